"""Who may use the data port when it is bound beyond this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.hazards.harness import Sidecar, sound
from tests.hazards.peers import Peer, Upstream, get

CREDENTIALS = "UNDERSTUDY_PROXY_CREDENTIALS"


def refused_start(tmp_path: Path, policy: dict[str, Any], **environment: str) -> str:
    """What `serve` on all addresses says when it does not start."""
    file = tmp_path / "policy.yaml"
    file.write_bytes(orjson.dumps(policy))
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(tmp_path / "home"),
         "--listen", "0.0.0.0:0", "--admin", "127.0.0.1:0", "--policy", str(file)],
        capture_output=True, text=True, timeout=20, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 2
    return done.stderr


def test_bound_beyond_this_machine_somebody_must_be_named(tmp_path: Path) -> None:
    said = refused_start(tmp_path, {})
    assert "--listen 0.0.0.0" in said
    assert "'clients'" in said
    assert CREDENTIALS in said


@pytest.mark.parametrize("value", ["nocolon", ":pw", "u:p\nx"])
def test_credentials_that_are_none_are_refused_and_not_shown(tmp_path: Path, value: str) -> None:
    said = refused_start(tmp_path, {}, **{CREDENTIALS: value})
    assert "must be user:password" in said
    assert value not in said


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    made = Upstream()
    yield made
    made.close()


def start(root: Path, upstream: Upstream, policy: dict[str, Any], credentials: str = "") -> Sidecar:
    environment = {CREDENTIALS: credentials}
    sidecar = Sidecar(root, upstream.port, policy=policy, environment=environment, listen="0.0.0.0")
    sidecar.start()
    return sidecar


def end(sidecar: Sidecar) -> None:
    try:
        sidecar.close_clients()
        assert sidecar.stop() == 0
        sound(sidecar)
    finally:
        sidecar.kill()


def stranger(sidecar: Sidecar) -> Peer:
    """A connection from an address that is not this machine's loopback."""
    return sidecar.connect(host=sidecar.outer_address())


def test_a_network_that_is_listed_is_served(tmp_path: Path, upstream: Upstream) -> None:
    sidecar = start(tmp_path, upstream, {"clients": ["0.0.0.0/0"]})
    try:
        peer = stranger(sidecar)
        peer.send(get("/v1/models"))
        assert peer.reply("GET").status == 200
    finally:
        end(sidecar)


def test_an_address_that_is_not_listed_is_not(tmp_path: Path, upstream: Upstream) -> None:
    sidecar = start(tmp_path, upstream, {"clients": ["203.0.113.0/24"]})
    try:
        for case in (get("/v1/models"), b"CONNECT h.example:443 HTTP/1.1\r\nHost: h\r\n\r\n"):
            peer = stranger(sidecar)
            peer.send(case)
            reply = peer.reply("GET")
            assert reply.status == 403
            assert b"client_denied" in reply.body
        peer = stranger(sidecar)
        peer.send(get("/_understudy/health"))
        assert peer.reply("GET").body == b'{"status":"ok"}'  # that it lives, and no more
        peer.send(get("/_understudy/metrics"))
        assert peer.reply("GET").status == 403
        assert sidecar.exchange(get("/v1/models"), "GET").status == 200  # this machine
        assert upstream.next_call().target == b"/v1/models"
    finally:
        end(sidecar)


def test_who_knows_the_credentials_is_served(tmp_path: Path, upstream: Upstream) -> None:
    policy = {"forward": {"allow": [f"127.0.0.1:{upstream.port}"]}}
    sidecar = start(tmp_path, upstream, policy, "app:s3cret")
    try:
        target = b"http://127.0.0.1:%d/v1/x" % upstream.port
        ask = b"GET %b HTTP/1.1\r\nHost: h\r\n%b\r\n"
        for credentials, status in ((b"", 407), (b"app:wrong", 407), (b"app:s3cret", 200)):
            line = b"Proxy-Authorization: Basic %b\r\n" % b64encode(credentials)
            peer = stranger(sidecar)
            peer.send(ask % (target, line if credentials else b""))
            reply = peer.reply("GET")
            assert reply.status == status
            if status == 407:
                assert reply.all(b"proxy-authenticate") == [b'Basic realm="understudy"']
        heads = [upstream.next_call().request.headers]
        assert not [name for head in heads for name, _ in head if name.startswith(b"Proxy")]
    finally:
        end(sidecar)
