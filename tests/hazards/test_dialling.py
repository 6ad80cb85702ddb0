"""The way to the upstream through the real sidecar: bad TLS, a corporate proxy, and itself."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson
import pytest

from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import CANARY, Message, chat, get, post
from tests.proxy.far_ends import (
    LAST_REPLY,
    Authority,
    TlsServer,
    TunnelProxy,
    closes,
    no_tls,
    resets,
)

_UNPROXIED = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}


@dataclass
class Placed(Sidecar):
    """A sidecar with an upstream anywhere, a data port of choice, and variables of its own."""

    upstream: str = ""
    listen: str = "127.0.0.1:0"
    environment: dict[str, str] = field(default_factory=dict)

    def start(self) -> None:
        self.process = self.run(stderr=self._errors)
        host, _, port = wait_for(self._data_address, 20).rpartition(":")
        self.address = (host, int(port))
        wait_for(lambda: self.health()["status"] == "ok", 20)

    def run(self, stderr: Path) -> subprocess.Popen[bytes]:
        self.root.mkdir(parents=True, exist_ok=True)
        policy = self.root / "policy.yaml"
        policy.write_bytes(orjson.dumps({"upstream": self.upstream, "timeouts": self.timeouts}))
        with stderr.open("wb") as errors:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(self.home),
                 "--listen", self.listen, "--admin", "127.0.0.1:0", "--policy", str(policy)],
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=_UNPROXIED | self.environment,
            )  # fmt: skip


@contextlib.contextmanager
def running(sidecar: Placed) -> Iterator[Placed]:
    try:
        sidecar.start()
        yield sidecar
        assert sidecar.stop() == 0
        assert "Traceback" not in sidecar.errors()
        assert sidecar.canaries() == []
    finally:
        sidecar.kill()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(authority: Authority) -> Iterator[TlsServer]:
    """It keeps no connection, so that each call finds what is there now."""
    made = TlsServer(authority.context("IP:127.0.0.1", "DNS:api.test"))
    made.reply = LAST_REPLY
    yield made
    made.close()


@pytest.fixture(scope="module")
def direct(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, server: TlsServer
) -> Iterator[Placed]:
    made = Placed(
        tmp_path_factory.mktemp("direct"),
        0,
        upstream=f"https://127.0.0.1:{server.port}",
        environment={"SSL_CERT_FILE": str(authority.root)},
    )
    with running(made) as sidecar:
        yield sidecar


def fault(reply: Message, status: int, code: str) -> str:
    """What an app is told."""
    assert reply.status == status
    error = orjson.loads(reply.body)["error"]
    assert (error["type"], error["code"]) == ("understudy_error", code)
    assert reply.all(b"x-understudy-error") == [code.encode()]
    return str(error["message"])


def test_new_connections_resume_their_session(direct: Placed, server: TlsServer) -> None:
    before = len(server.seen.handshakes)
    for _ in range(3):
        assert direct.exchange(post("/v1/x")).body == b"ok"
    shaken = server.seen.handshakes[before:]
    assert [handshake.resumed for handshake in shaken[1:]] == [True, True]
    assert {handshake.protocol for handshake in shaken} == {"http/1.1"}


CERTIFICATES = {
    "another name": (("DNS:other.test",), 2, False),
    "expired": (("IP:127.0.0.1",), -1, False),
    "signed by itself": (("IP:127.0.0.1",), 2, True),
}


@pytest.mark.parametrize("name", CERTIFICATES)
def test_no_request_goes_to_who_cannot_prove_its_name(
    direct: Placed, server: TlsServer, authority: Authority, name: str
) -> None:
    names, days, own = CERTIFICATES[name]
    tag = name.replace(" ", "-")
    with unlike(direct, server):
        server.context = authority.context(*names, days=days, own=own)
        began = time.monotonic()
        reply = direct.exchange(post(chat(tag)))
        assert time.monotonic() - began < 5
        assert "CERTIFICATE_VERIFY_FAILED" in fault(reply, 502, "upstream_tls")
    row = direct.row(tag)
    assert (row["outcome"], row["status"]) == ("upstream_unreachable", None)


@pytest.mark.parametrize("spoil", [no_tls, resets, closes])
def test_no_request_goes_to_who_speaks_no_tls(
    direct: Placed, server: TlsServer, spoil: Callable[[socket.socket], None]
) -> None:
    with unlike(direct, server):
        server.spoil = spoil
        fault(direct.exchange(post("/v1/x")), 502, "upstream_tls")


@contextlib.contextmanager
def unlike(sidecar: Placed, server: TlsServer) -> Iterator[None]:
    """The server is another one meanwhile; afterwards all is as it was."""
    context = server.context
    asked = len(server.seen.requests)
    try:
        yield
        assert len(server.seen.requests) == asked
    finally:
        server.context, server.spoil = context, None
    assert sidecar.exchange(get("/v1/models"), "GET").body == b"ok"


# -- a corporate proxy


@pytest.fixture(scope="module")
def proxied(server: TlsServer) -> Iterator[TunnelProxy]:
    made = TunnelProxy(server.port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def behind(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, proxied: TunnelProxy
) -> Iterator[Placed]:
    """A sidecar with credentials for its way out."""
    made = Placed(
        tmp_path_factory.mktemp("behind"),
        0,
        upstream="https://api.test",
        environment={
            "SSL_CERT_FILE": str(authority.root),
            "UNDERSTUDY_UPSTREAM_PROXY": f"http://me:{CANARY}%40@127.0.0.1:{proxied.port}",
        },
    )
    with running(made) as sidecar:
        yield sidecar


def test_the_upstream_is_reached_through_the_proxy(
    behind: Placed, server: TlsServer, proxied: TunnelProxy
) -> None:
    assert behind.exchange(post("/v1/x")).body == b"ok"
    asked = proxied.asked[-1]
    assert asked.startswith(b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n")
    assert b"\r\nProxy-Authorization: Basic " in asked
    assert server.seen.handshakes[-1].name == "api.test"
    assert b"Proxy-Authorization" not in server.seen.requests[-1]


def test_what_the_proxy_says_is_not_passed_on(
    behind: Placed, server: TlsServer, proxied: TunnelProxy
) -> None:
    proxied.reply = b"HTTP/1.1 407 No\r\nContent-Length: 14\r\n\r\n<html>internal"
    asked = len(server.seen.requests)
    try:
        reply = behind.exchange(post("/v1/x"))
    finally:
        proxied.reply = b""
    said = fault(reply, 502, "upstream_proxy")
    assert said == "the proxy on the way to the upstream said 407"
    assert len(server.seen.requests) == asked
    assert behind.exchange(post("/v1/x")).body == b"ok"


def test_no_child_has_the_proxys_password_in_its_environment(behind: Placed) -> None:
    for name, pid in behind.state()["processes"].items():
        for shown in ("environ", "cmdline"):
            assert CANARY.encode() not in Path(f"/proc/{pid}/{shown}").read_bytes(), name


# -- itself


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_it_does_not_start_as_its_own_upstream(tmp_path: Path, host: str) -> None:
    port = free_port()
    sidecar = Placed(tmp_path, 0, upstream=f"http://{host}:{port}", listen=f"127.0.0.1:{port}")
    stderr = tmp_path / "stderr.txt"
    assert sidecar.run(stderr).wait(20) == 2
    said = f"understudy: upstream http://{host}:{port}: is this sidecar's own address; "
    assert stderr.read_text() == said + "name the API itself\n"


def test_it_does_not_start_with_a_proxy_it_cannot_use(tmp_path: Path) -> None:
    secret = {"HTTPS_PROXY": f"socks5://me:{CANARY}@proxy.test:1080"}
    sidecar = Placed(tmp_path, 0, upstream="https://api.test", environment=secret)
    stderr = tmp_path / "stderr.txt"
    assert sidecar.run(stderr).wait(20) == 2
    assert "HTTPS_PROXY: '(not shown)': must be http://host:port" in stderr.read_text()
    assert CANARY not in stderr.read_text()


def test_a_name_that_leads_back_to_it_is_seen_at_the_first_call(tmp_path: Path) -> None:
    """127.1 is an address only to the resolver."""
    port = free_port()
    made = Placed(tmp_path, 0, upstream=f"http://127.1:{port}", listen=f"127.0.0.1:{port}")
    with running(made) as sidecar:
        fault(sidecar.exchange(post("/v1/x")), 508, "loop")
        assert sidecar.health()["requests"] <= 5
