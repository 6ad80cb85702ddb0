"""A corporate proxy on the sidecar's way out, a real one, with credentials and without: both modes.

The app knows nothing of it; the sidecar alone has its address and its password.
"""

from __future__ import annotations

import http.client
import json
import shutil
import ssl
from pathlib import Path

import pytest

from tests.hazards.harness import Sidecar, sound
from tests.runtimes.corporate import STARTS
from tests.runtimes.openai_host import NAME, TARGET, OpenaiHost
from tests.runtimes.redirect import Credentials, Redirector

# The redirector is one, too, and is always there.
KINDS = ["redirector", *(kind for kind in STARTS if shutil.which(kind))]
STAFF = Credentials("staff", "plain-1.0")
ASKED = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hi"}]}


def asked_by(connection: http.client.HTTPConnection) -> tuple[int, str]:
    try:
        connection.request("POST", "/v1/chat/completions", json.dumps(ASKED), JSON)
        reply = connection.getresponse()
        return reply.status, reply.read().decode()
    finally:
        connection.close()


JSON = {"Content-Type": "application/json", "Authorization": "Bearer sk-of-the-app"}


def both_modes(sidecar: Sidecar) -> list[tuple[int, str]]:
    plain = http.client.HTTPConnection(*sidecar.address)
    trust = ssl.create_default_context(cafile=str(sidecar.home / "ca" / "root.pem"))
    secured = http.client.HTTPSConnection(*sidecar.address, context=trust)
    secured.set_tunnel(NAME, 443)
    return [asked_by(plain), asked_by(secured)]


def started(root: Path, host: OpenaiHost, proxy: str) -> Sidecar:
    environment = {"UNDERSTUDY_UPSTREAM_PROXY": proxy, "SSL_CERT_FILE": str(host.root)}
    policy = {"upstream": f"https://{NAME}"}
    sidecar = Sidecar(root, 9, policy=policy, environment=environment)
    sidecar.start()
    return sidecar


def ended(sidecar: Sidecar) -> None:
    try:
        sidecar.close_clients()
        assert sidecar.stop() == 0
        sound(sidecar)
        everything = [path for path in sidecar.home.rglob("*") if path.is_file()]
        assert not [path for path in everything if STAFF.password.encode() in path.read_bytes()]
        assert STAFF.password not in sidecar.errors()
    finally:
        sidecar.kill()


@pytest.mark.parametrize("credentials", [None, STAFF], ids=["open", "with credentials"])
@pytest.mark.parametrize("kind", KINDS)
def test_both_modes_go_through_a_corporate_proxy(
    host: OpenaiHost, tmp_path: Path, kind: str, credentials: Credentials | None
) -> None:
    with Redirector({TARGET: host.port}) as way:
        if kind == "redirector":
            way.credentials = credentials
            user = f"{credentials.user}:{credentials.password}@" if credentials else ""
            check(tmp_path, host, way, way.url.replace("http://", f"http://{user}"))
            return
        with STARTS[kind](way, credentials) as proxy:
            check(tmp_path, host, way, proxy.url)


def check(root: Path, host: OpenaiHost, way: Redirector, proxy: str) -> None:
    sidecar = started(root, host, proxy)
    try:
        for status, body in both_modes(sidecar):
            assert status == 200, body
            assert "hi: The quick" in body
        assert {asked.target for asked in way.asked} == {TARGET}
    finally:
        ended(sidecar)


def test_a_proxy_that_refuses_us_is_named_without_its_password(
    host: OpenaiHost, tmp_path: Path
) -> None:
    with Redirector({TARGET: host.port}, Credentials("staff", "another")) as way:
        proxy = way.url.replace("http://", f"http://{STAFF.user}:{STAFF.password}@")
        sidecar = started(tmp_path, host, proxy)
        try:
            for status, body in both_modes(sidecar):
                assert status == 502
                assert "upstream_proxy" in body
                assert "407" in body
        finally:
            ended(sidecar)
