"""New connections to real servers: TLS and its sessions, the race of addresses, tunnels, loops."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvloop

from policies.forward import Rules
from policies.listeners import Listeners
from policies.policy import build
from policies.way_out import WayOut
from proxy.addresses import Address, resolve
from proxy.dial import Dialer
from proxy.heads import Refused
from proxy.origin import Origin
from tests.proxy.far_ends import (
    REPLY,
    Authority,
    TlsServer,
    TunnelProxy,
    closes,
    no_tls,
    resets,
    unused,
)

V4, V6 = socket.AF_INET, socket.AF_INET6


class Caller(asyncio.Protocol):
    """Sends one request when told, and keeps what comes back."""

    def __init__(self) -> None:
        self.transport = cast(asyncio.Transport, None)
        self.came = b""
        self.answered = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.came += data
        if len(self.came) >= len(REPLY) and not self.answered.done():
            self.answered.set_result(None)

    async def ask(self) -> bytes:
        self.transport.write(b"GET / HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(5):
            await self.answered
        return self.came


def run(main: Coroutine[Any, Any, None]) -> None:
    """On the loop that the sidecar runs on."""
    uvloop.run(main)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def trusted(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Authority:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    return authority


@pytest.fixture
def server(trusted: Authority) -> Iterator[TlsServer]:
    made = TlsServer(trusted.context("IP:127.0.0.1", "DNS:localhost", "DNS:api.test"))
    yield made
    made.close()


def dialer(way_out: WayOut | None = None, addresses: list[Address] | None = None) -> Dialer:
    async def found(host: str, port: int) -> list[Address]:
        return addresses or []

    return Dialer(way_out or WayOut(), Listeners(), resolve if addresses is None else found)


async def called(dialer: Dialer, origin: Origin) -> Caller:
    """A connection over which a call was answered."""
    caller = await dialer.open(origin, Caller)
    assert await caller.ask() == REPLY
    return caller


async def refusal(dialer: Dialer, origin: Origin) -> Refused:
    with pytest.raises(Refused) as refused:
        await dialer.open(origin, Caller)
    return refused.value


# -- TLS


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("runner", [uvloop.run, asyncio.run])
def test_the_second_connection_resumes_the_session_of_the_first(
    server: TlsServer, version: ssl.TLSVersion, runner: Callable[..., None]
) -> None:
    server.context.maximum_version = version

    async def main() -> None:
        opened = dialer()
        for _ in range(3):
            caller = await called(opened, Origin("localhost", server.port, tls=True))
            opened.remember(caller.transport)
            caller.transport.abort()

    runner(main())
    shaken = server.seen.handshakes
    assert [handshake.resumed for handshake in shaken] == [False, True, True]
    assert {handshake.version for handshake in shaken} == {version.name.replace("TLSv1_", "TLSv1.")}
    assert {handshake.name for handshake in shaken} == {"localhost"}
    assert {handshake.protocol for handshake in shaken} == {"http/1.1"}


def test_a_session_is_kept_when_its_connection_is_gone_already(server: TlsServer) -> None:
    async def main() -> None:
        opened = dialer()
        for _ in range(2):
            caller = await called(opened, Origin("localhost", server.port, tls=True))
            caller.transport.abort()
            await asyncio.sleep(0.01)
            opened.remember(caller.transport)

    run(main())
    assert [handshake.resumed for handshake in server.seen.handshakes] == [False, True]


def test_a_session_of_one_name_is_not_shown_to_another(server: TlsServer) -> None:
    async def main() -> None:
        opened = dialer()
        for host in ("localhost", "127.0.0.1", "localhost"):
            caller = await called(opened, Origin(host, server.port, tls=True))
            opened.remember(caller.transport)
            caller.transport.abort()

    run(main())
    assert [handshake.resumed for handshake in server.seen.handshakes] == [False, False, True]


def test_a_server_that_does_not_know_the_session_shakes_hands_in_full(
    server: TlsServer, trusted: Authority
) -> None:
    async def main() -> None:
        opened = dialer()
        origin = Origin("localhost", server.port, tls=True)
        caller = await called(opened, origin)
        opened.remember(caller.transport)
        caller.transport.abort()
        server.context = trusted.context("DNS:localhost")  # restarted, with another certificate
        (await called(opened, origin)).transport.abort()

    run(main())
    assert [handshake.resumed for handshake in server.seen.handshakes] == [False, False]


def test_old_tls_is_not_spoken(server: TlsServer) -> None:
    with pytest.warns(DeprecationWarning):
        server.context.minimum_version = ssl.TLSVersion.TLSv1_1
        server.context.maximum_version = ssl.TLSVersion.TLSv1_1

    async def main() -> None:
        refused = await refusal(dialer(), Origin("localhost", server.port, tls=True))
        assert (refused.status, refused.code) == (502, "upstream_tls")

    run(main())


BAD_CERTIFICATES = {
    "another name": (("DNS:other.test",), 2, False, "Hostname mismatch"),
    "expired": (("DNS:localhost",), -1, False, "certificate has expired"),
    "signed by itself": (("DNS:localhost",), 2, True, "self-signed certificate"),
    "a star is no address": (("DNS:*",), 2, False, "Hostname mismatch"),
}


@pytest.mark.parametrize("name", BAD_CERTIFICATES)
def test_bad_certificates_are_refused(server: TlsServer, trusted: Authority, name: str) -> None:
    names, days, own, why = BAD_CERTIFICATES[name]
    server.context = trusted.context(*names, days=days, own=own)

    async def main() -> None:
        refused = await refusal(dialer(), Origin("localhost", server.port, tls=True))
        assert (refused.status, refused.code) == (502, "upstream_tls")
        expected = f"TLS with the upstream failed: CERTIFICATE_VERIFY_FAILED ({why})"
        assert refused.message.replace("self signed", "self-signed") == expected

    run(main())
    assert server.seen.requests == []


def test_an_authority_that_is_not_trusted(
    server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(Authority.make(tmp_path).root))

    async def main() -> None:
        refused = await refusal(dialer(), Origin("localhost", server.port, tls=True))
        assert "unable to get local issuer certificate" in refused.message

    run(main())


@pytest.mark.parametrize("spoil", [no_tls, resets, closes])
def test_a_peer_that_does_not_speak_tls(
    server: TlsServer, spoil: Callable[[socket.socket], None]
) -> None:
    server.spoil = spoil

    async def main() -> None:
        refused = await refusal(dialer(), Origin("localhost", server.port, tls=True))
        assert (refused.status, refused.code) == (502, "upstream_tls")
        assert "400" not in refused.message

    run(main())


# -- addresses


def test_an_address_that_refuses_is_passed_over_at_once(server: TlsServer) -> None:
    async def main() -> None:
        addresses = [(int(V6), ("::1", server.port, 0, 0)), (int(V4), ("127.0.0.1", server.port))]
        loop = asyncio.get_running_loop()
        began = loop.time()
        caller = await called(dialer(addresses=addresses), Origin("localhost", 1, tls=True))
        caller.transport.abort()
        assert loop.time() - began < 5

    run(main())


def test_sockets_send_at_once_and_notice_a_dead_peer(server: TlsServer) -> None:
    async def main() -> None:
        for tls in (True, False):
            opened = await dialer().open(Origin("localhost", server.port, tls=tls), Caller)
            connected = opened.transport.get_extra_info("socket")
            assert connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            opened.transport.abort()

    run(main())


def test_a_name_that_is_not_found() -> None:
    async def fails(host: str, port: int) -> list[Address]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def main() -> None:
        opened = Dialer(WayOut(), Listeners(), fails)
        for _ in range(2):
            with pytest.raises(OSError, match="not known"):
                await opened.open(Origin("a.test", 80), Caller)

    run(main())


def test_names_that_clients_choose_hold_up_no_others() -> None:
    """Two of them are looked up at once; whatever is intercepted does not wait for them."""
    asked: list[str] = []

    async def hangs(host: str, port: int) -> list[Address]:
        asked.append(host)
        if host.startswith("slow"):
            await asyncio.sleep(60)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    rules = Rules.of(build({"forward": {"intercept": ["api.test"]}}).forward, Listeners())

    async def main() -> None:
        opened = Dialer(WayOut(), Listeners(), hangs, rules)
        loop = asyncio.get_running_loop()
        origins = [Origin(f"slow{number}.test", 443, guarded=True) for number in range(9)]
        slow = [loop.create_task(opened.reach(each), name=each.host) for each in origins]
        await asyncio.sleep(0.01)
        for guarded in (True, False):
            with pytest.raises(OSError, match="not known"):
                await opened.reach(Origin("api.test", 443, guarded=guarded))
        assert asked == ["slow0.test", "slow1.test", "api.test", "api.test"]
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)

    run(main())


# -- through a proxy


@pytest.fixture
def proxied(server: TlsServer) -> Iterator[TunnelProxy]:
    made = TunnelProxy(server.port)
    yield made
    made.close()


def through(proxied: TunnelProxy, user: str = "") -> Dialer:
    url = f"http://{user}127.0.0.1:{proxied.port}"
    return dialer(WayOut.of(https=url, http=url))


def test_tls_through_a_tunnel_with_credentials(server: TlsServer, proxied: TunnelProxy) -> None:
    async def main() -> None:
        opened = through(proxied, "me:p%40ss%3A@")
        for _ in range(2):
            caller = await called(opened, Origin("api.test", 443, tls=True))
            opened.remember(caller.transport)
            caller.transport.abort()

    run(main())
    assert proxied.asked[0] == (
        b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n"
        b"Proxy-Authorization: Basic bWU6cEBzczo=\r\n\r\n"
    )
    assert [handshake.name for handshake in server.seen.handshakes] == ["api.test", "api.test"]
    assert [handshake.resumed for handshake in server.seen.handshakes] == [False, True]
    assert b"Proxy-Authorization" not in b"".join(server.seen.requests)


def test_plain_http_goes_through_a_tunnel_too(server: TlsServer, proxied: TunnelProxy) -> None:
    async def main() -> None:
        opened = await through(proxied).open(Origin("2001:db8::1", 80), Caller)
        opened.transport.abort()

    run(main())
    asked = b"CONNECT [2001:db8::1]:80 HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n"
    assert proxied.asked == [asked]


def test_this_machine_is_reached_without_the_proxy(server: TlsServer, proxied: TunnelProxy) -> None:
    async def main() -> None:
        for host in ("localhost", "127.0.0.1"):
            caller = await called(through(proxied), Origin(host, server.port, tls=True))
            caller.transport.abort()

    run(main())
    assert proxied.asked == []


PROXY_REPLIES = {
    b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 6\r\n\r\nsecret": "said 407",
    b"HTTP/1.0 503 secret\r\n\r\n": "said 503",
    b"HTTP/1.1 302 Found\r\nLocation: http://secret/\r\n\r\n": "said 302",
    b"SSH-2.0-secret\r\n\r\n": "did not answer in HTTP",
    b"HTTP/1.1 200 OK\r\nA: " + b"secret" * 10_000: "did not answer in HTTP",
    b"HTTP/1.1 200 OK\r\n\r\nsecret": "sent bytes of its own into the tunnel",
}


@pytest.mark.parametrize(("reply", "said"), PROXY_REPLIES.items(), ids=PROXY_REPLIES.values())
def test_a_proxy_that_opens_no_tunnel(
    server: TlsServer, proxied: TunnelProxy, reply: bytes, said: str
) -> None:
    proxied.reply = reply

    async def main() -> None:
        refused = await refusal(through(proxied, "me:hidden@"), Origin("api.test", 443, tls=True))
        assert (refused.status, refused.code) == (502, "upstream_proxy")
        assert refused.message == f"the proxy on the way to the upstream {said}"

    run(main())
    assert server.accepted == 0


def test_a_proxy_that_is_not_there(server: TlsServer) -> None:
    async def main() -> None:
        url = f"http://127.0.0.1:{unused()[1][1]}"
        refused = await refusal(dialer(WayOut.of(https=url)), Origin("api.test", 443, tls=True))
        assert refused.code == "upstream_proxy"
        assert "refused" in refused.message

    run(main())


def test_a_proxy_that_hangs_can_be_given_up(server: TlsServer, proxied: TunnelProxy) -> None:
    proxied.reply = b"HTTP/1.1 200"

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await through(proxied).open(Origin("api.test", 443, tls=True), Caller)

    run(main())


# -- ourselves


@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
def test_our_own_listener_is_never_called(server: TlsServer, bound: str) -> None:
    listeners = Listeners.of([f"{bound}:{server.port}"])
    url = f"http://127.0.0.1:{server.port}"

    async def main() -> None:
        for way_out in (WayOut(), WayOut.of(https=url, http=url)):
            opened = Dialer(way_out, listeners)
            for origin in (Origin("localhost", server.port), Origin("127.1", server.port)):
                refused = await refusal(opened, origin)
                assert (refused.status, refused.code) == (508, "loop")

    run(main())
    assert server.seen.handshakes == []


def test_unix_sockets_are_dialled_as_they_are(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(REPLY)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    async def main() -> None:
        path = str(tmp_path / "s")
        listening = await asyncio.start_unix_server(answer, path)
        opened = dialer(WayOut.of(https="http://127.0.0.1:1", http="http://127.0.0.1:1"))
        (await called(opened, Origin(path=path))).transport.abort()
        listening.close()

    run(main())
