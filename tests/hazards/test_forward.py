"""The forward proxy: whom it reaches, what it takes over, and what it leaves alone."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.hazards.harness import TIMEOUTS, Baseline, Sidecar, calm, sound, wait_for
from tests.hazards.peers import CANARY, Peer, Upstream, chat, get, post
from tests.proxy.far_ends import Authority, Listener, TlsServer, closes, no_tls, resets


class Echo(Listener):
    """Sends back what comes, in capitals, and its end with it."""

    def serve(self, connection: socket.socket) -> None:
        while data := connection.recv(65536):
            connection.sendall(data.upper())
        connection.sendall(b"<end>")


@dataclass
class Far:
    sidecar: Sidecar
    tls: TlsServer
    authority: Authority
    echo: Echo
    trap: Echo
    upstream: Upstream
    mute: int  # a port that may be tunnelled to, where nobody listens

    @property
    def host(self) -> bytes:
        return b"localhost:%d" % self.tls.port

    def open(self, target: bytes, behind: bytes = b"", headers: bytes = b"") -> Peer:
        """A CONNECT, as it is sent."""
        peer = self.sidecar.connect()
        peer.send(
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n%b" % (target, target, headers, behind)
        )
        return peer

    def tunnelled(self, target: bytes) -> Peer:
        peer = self.open(target)
        assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        return peer

    def trusting(self, root: Path | None = None) -> ssl.SSLContext:
        found = ssl.create_default_context(cafile=root or self.sidecar.home / "ca" / "root.pem")
        found.set_alpn_protocols(["h2", "http/1.1"])
        return found

    def secured(self, name: str = "localhost", root: Path | None = None) -> Peer:
        """A connection to the intercepted host, in TLS."""
        return self.in_tls(self.trusting(root), name)

    def in_tls(self, context: ssl.SSLContext, name: str | None) -> Peer:
        peer = self.tunnelled(self.host)
        with contextlib.closing(peer.socket):
            secured = Peer(context.wrap_socket(peer.socket, server_hostname=name))
        self.sidecar.keep(secured)
        return secured


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Far]:
    root = tmp_path_factory.mktemp("forward")
    authority = Authority.make(root)
    tls = TlsServer(authority.context("DNS:localhost"))
    echo, trap, upstream = Echo(), Echo(), Upstream()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        mute = probe.getsockname()[1]
    ports = (echo.port, upstream.port, mute)
    allowed = [f"localhost:{tls.port}", *(f"127.0.0.1:{port}" for port in ports)]
    sidecar = Sidecar(
        root / "sidecar",
        upstream.port,
        timeouts=TIMEOUTS | {"upstream_idle": 20},
        policy={"forward": {"intercept": ["localhost"], "allow": allowed}},
        environment={"SSL_CERT_FILE": str(authority.root)},
    )
    try:
        sidecar.start()
        before = Baseline.of(sidecar)
        yield Far(sidecar, tls, authority, echo, trap, upstream, mute)
        assert trap.accepted == 0
        calm(sidecar, before)
        assert sidecar.stop() == 0
        sound(sidecar)
    finally:
        sidecar.kill()
        for each in (tls, echo, trap, upstream):
            each.close()


@pytest.fixture(autouse=True)
def cleared(far: Far) -> Iterator[None]:
    far.tls.seen.requests.clear()
    far.tls.spoil = None
    far.upstream.forget_calls()
    yield
    far.sidecar.close_clients()


# -- whom it reaches


DENIED = (
    "127.0.0.1:{trap}", "127.1:{trap}", "localhost:{trap}", "LOCALHOST.:{trap}", "0.0.0.0:{trap}",
    "[::1]:{trap}", "[::]:{trap}", "[::ffff:127.0.0.1]:{trap}", "2130706433:{trap}",
    "0x7f000001:{trap}", "017700000001:{trap}", "127.0.0.0x1:{trap}", "127.0.0.1:443",
    "localhost:443", "169.254.169.254:443", "169.254.169.254:80", "[fd00:ec2::254]:443",
    "metadata.google.internal:443", "127.0.0.1:{own}", "localhost:{own}", "127.0.0.1:{admin}",
    "example.com:22", "example.com:80",
)  # fmt: skip
MALFORMED = (
    "api.openai.com", "api.openai.com:", ":443", "h:99999", "h:0", "h:+5443", "u@h:443",
    "u:" + CANARY + "@h:443", "[::1:443", "h:443:443", "h:443/", "/v1/x", "http://h:443",
    "h" * 9000 + ":443", "*",
)  # fmt: skip


def filled(target: str, far: Far) -> bytes:
    admin = far.sidecar.state()["admin"].rpartition(":")[2]
    own = far.sidecar.address[1]
    return target.format(trap=far.trap.port, own=own, admin=admin).encode()


@pytest.mark.parametrize("target", DENIED)
def test_what_is_denied_is_not_dialled(far: Far, target: str) -> None:
    heard = far.open(filled(target, far), b"\x16\x03\x01hello").rest()
    assert heard.startswith(b"HTTP/1.1 403 ")
    assert b'"code":"target_denied"' in heard
    assert far.trap.accepted == 0


@pytest.mark.parametrize("target", MALFORMED)
def test_what_names_nobody_is_refused(far: Far, target: str) -> None:
    heard = far.open(target.encode()).rest()
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert CANARY.encode() not in heard


def test_a_connect_of_another_version_or_size(far: Far) -> None:
    peer = far.sidecar.connect()
    peer.send(b"CONNECT %b HTTP/2.0\r\nHost: h\r\n\r\n" % far.host)
    assert peer.rest()[9:12] in (b"400", b"505")
    peer = far.sidecar.connect()
    peer.send(b"CONNECT " + b"h" * 70_000 + b":443 HTTP/1.1\r\nHost: h\r\n\r\n")
    assert peer.rest()[9:12] in (b"400", b"414", b"431")
    for framing in (b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n"):
        assert far.open(far.host, headers=framing).rest().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.1:{trap}/", "http://localhost:{trap}/v1/x", "http://2130706433:{trap}/",
     "http://169.254.169.254/latest/meta-data", "http://[fd00:ec2::254]/", "http://127.0.0.1/",
     "http://127.0.0.1:{admin}/"],
)  # fmt: skip
def test_absolute_targets_that_are_denied_are_not_dialled(far: Far, target: str) -> None:
    asked = filled(target, far)
    peer = far.sidecar.connect()
    peer.send(b"GET %b HTTP/1.1\r\nHost: app\r\n\r\n" % asked)
    assert peer.rest().startswith(b"HTTP/1.1 403 ")


@pytest.mark.parametrize(
    "target", ["http://me:secret@h/", "https://h/", "ws://h/", "ftp://h/", "http://", "http:///x"]
)
def test_absolute_targets_that_are_none(far: Far, target: str) -> None:
    peer = far.sidecar.connect()
    peer.send(b"GET %b HTTP/1.1\r\nHost: app\r\n\r\n" % target.encode())
    heard = peer.rest()
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert b"secret" not in heard


def test_an_absolute_target_is_relayed_and_not_recorded(far: Far) -> None:
    target = b"http://127.0.0.1:%d" % far.upstream.port
    before = far.sidecar.health()["capture"]["exchanges"]
    for path in (b"/v1/chat/completions?x=1", b"", b"?a"):
        case = post("/T", b"hi").replace(b"/T", target + path, 1)
        assert far.sidecar.exchange(case).status == 200
    seen = [far.upstream.next_call().target for _ in range(3)]
    assert seen == [b"/v1/chat/completions?x=1", b"/", b"/?a"]
    assert far.sidecar.health()["capture"]["exchanges"] == before


def test_the_sidecars_own_name_in_front_of_a_target_says_nothing(far: Far) -> None:
    own = b"http://127.0.0.1:%d" % far.sidecar.address[1]
    case = get("/T").replace(b"/T", own + chat("own").encode(), 1)
    assert far.sidecar.exchange(case, "GET").status == 200
    assert far.upstream.next_call().target == chat("own").encode()
    health = get("/T").replace(b"/T", own + b"/_understudy/health", 1)
    assert b'"status":"ok"' in far.sidecar.exchange(health, "GET").body


# -- blind tunnels


def blind(far: Far) -> bytes:
    return b"127.0.0.1:%d" % far.echo.port


def test_a_tunnel_passes_bytes_and_half_closes(far: Far) -> None:
    peer = far.tunnelled(blind(far))
    peer.send(b"hello ")
    assert peer.take(6) == b"HELLO "
    peer.send(b"world")
    peer.socket.shutdown(socket.SHUT_WR)
    assert peer.rest() == b"WORLD<end>"


def test_half_a_tunnel_in_which_nothing_moves_ends(far: Far) -> None:
    """The client says no more, and the server, which waits for something else, nothing."""
    with socket.create_server(("127.0.0.1", far.mute)) as server:
        peer = far.tunnelled(b"127.0.0.1:%d" % far.mute)
        taken, _ = server.accept()
        with taken:
            peer.socket.shutdown(socket.SHUT_WR)
            assert taken.recv(1) == b""
            began = time.monotonic()
            for _ in range(3):
                time.sleep(TIMEOUTS["client_body"] / 2)
                taken.sendall(b"x")
            assert peer.rest() == b"xxx"
            assert time.monotonic() - began > 2 * TIMEOUTS["client_body"]


def test_what_comes_behind_the_connect_is_kept(far: Far) -> None:
    peer = far.open(blind(far), b"early")
    assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert peer.take(5) == b"EARLY"


def test_a_tunnel_carries_much_both_ways_in_little_memory(far: Far) -> None:
    peer = far.tunnelled(blind(far))
    before = far.sidecar.resident()
    block = b"x" * (1 << 20)
    for _ in range(24):
        peer.send(block)
        assert peer.take(len(block)) == block.upper()
    assert far.sidecar.resident() - before < 8 << 20


def test_a_tunnel_is_known_by_its_size_alone(far: Far) -> None:
    peer = far.tunnelled(blind(far))
    peer.send(CANARY.encode())
    peer.take(len(CANARY))
    peer.socket.shutdown(socket.SHUT_WR)
    peer.rest()
    peer.close()

    def rows() -> list[dict[str, Any]]:
        return far.sidecar.query(
            "SELECT * FROM exchanges WHERE method = 'CONNECT' AND request_bytes = ?", len(CANARY)
        )

    row = wait_for(rows, 5)[0]
    assert row["path"] == blind(far).decode()
    assert (row["outcome"], row["response_bytes"]) == ("ok", len(CANARY) + len(b"<end>"))
    assert not far.sidecar.query("SELECT * FROM bodies WHERE number = ?", row["number"])


def test_a_tunnel_to_nobody_is_refused(far: Far) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    heard = far.open(b"127.0.0.1:%d" % port).rest()
    assert heard.startswith(b"HTTP/1.1 403 ")  # it is not listed
    heard = far.open(b"no-such-host.invalid:443").rest()
    assert heard.startswith(b"HTTP/1.1 502 ")


def test_what_is_no_tls_is_tunnelled(far: Far) -> None:
    """To the intercepted host itself, whose answer is its own."""
    far.tls.spoil = no_tls
    peer = far.tunnelled(far.host)
    peer.send(b"SSH-2.0-client\r\n")
    assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 400 Bad Request")


def test_a_tunnelled_host_shows_its_own_certificate(far: Far) -> None:
    """Beside the intercepted name its address, which is not intercepted."""
    other = TlsServer(far.authority.context("DNS:localhost", days=1))
    with contextlib.closing(other):
        target = b"127.0.0.1:%d" % other.port
        assert far.open(target).rest().startswith(b"HTTP/1.1 403 ")
    peer = far.tunnelled(b"127.0.0.1:%d" % far.echo.port)
    with pytest.raises(ssl.SSLError):  # whoever answers, it is not us
        far.trusting().wrap_socket(peer.socket, server_hostname="localhost")


# -- interception


def test_an_intercepted_call_is_relayed_and_recorded(far: Far) -> None:
    peer = far.secured()
    assert isinstance(peer.socket, ssl.SSLSocket)
    assert peer.socket.selected_alpn_protocol() == "http/1.1"
    for tag in ("first", "second"):
        peer.send(get(chat(tag), f"Authorization: Bearer {CANARY}\r\n"))
        assert peer.reply("GET").body == b"ok"
    assert len(far.tls.seen.requests) == 2
    sent = far.tls.seen.requests[0]
    assert b"\r\nHost: %b\r\n" % far.host in sent
    assert CANARY.encode() in sent
    assert far.sidecar.row("first")["status"] == 200
    assert far.sidecar.health()["forward"]["intercepted"] >= 1


def test_the_client_hello_may_come_early(far: Far) -> None:
    """In the same packet as the CONNECT, by whatever cut."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = far.trusting().wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    for cut in (len(hello), 1, 5, 100):
        peer = far.open(far.host, hello[:cut])
        assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        peer.send(hello[cut:])
        assert peer.take(1) == b"\x16"  # its side of the handshake
        peer.close()


@pytest.mark.parametrize("name", ["localhost", "api.openai.com", None])
def test_the_name_in_tls_changes_nothing(far: Far, name: str | None) -> None:
    context = far.trusting()
    context.check_hostname = False
    peer = far.in_tls(context, name)
    peer.send(get("/v1/models"))
    assert peer.reply("GET").body == b"ok"


def test_an_inner_host_or_target_does_not_lead_elsewhere(far: Far) -> None:
    peer = far.secured()
    peer.send(b"GET /v1/a HTTP/1.1\r\nHost: evil.example\r\n\r\n")
    assert peer.reply("GET").body == b"ok"
    assert b"\r\nHost: %b\r\n" % far.host in far.tls.seen.requests[-1]
    for case in (b"GET http://evil.example/ HTTP/1.1\r\nHost: h\r\n\r\n",
                 b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: h\r\n\r\n" % far.trap.port):  # fmt: skip
        peer = far.secured()
        peer.send(case)
        assert peer.reply("GET").status in (405, 421)
    peer = far.secured()
    peer.send(get("/_understudy/health"))
    assert peer.reply("GET").body == b"ok"  # there it is a path of the upstream's


def test_a_client_without_our_authority_is_seen(far: Far) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        far.secured(root=far.authority.root)

    def seen() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = far.sidecar.health()["forward"]["rejecting"]
        return [each for each in found if "UNKNOWN_CA" in each["alert"]]

    assert wait_for(seen, 3)[0]["client"] == "127.0.0.1"
    assert far.tls.seen.requests == []


@pytest.mark.parametrize(
    "junk", [b"\x16junk that is no TLS at all....", b"\x16\x03\x01\x02\x00\x01"]
)
def test_junk_for_a_hello_ends(far: Far, junk: bytes) -> None:
    """At once, or in the time for a head."""
    peer = far.tunnelled(far.host)
    peer.send(junk)
    assert peer.wait_ended(TIMEOUTS["client_head"] + 4)


def test_silence_behind_a_connect_ends(far: Far) -> None:
    assert far.tunnelled(far.host).wait_ended(TIMEOUTS["client_head"] + 2)


SPOILT: dict[str, Callable[[socket.socket], None]] = {
    "no TLS": no_tls, "reset": resets, "closed": closes,
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_an_upstream_that_speaks_no_tls_never_sees_the_request(far: Far, name: str) -> None:
    wait_for(lambda: far.sidecar.connections_to(far.tls.port) == 0, 5)  # none is kept
    far.tls.spoil = SPOILT[name]
    peer = far.secured()
    peer.send(get("/v1/models", f"Authorization: Bearer {CANARY}\r\n"))
    reply = peer.reply("GET")
    assert reply.status == 502
    assert b"upstream_tls" in reply.body
    assert far.tls.seen.requests == []


def test_an_upstream_that_does_not_verify_never_sees_the_request(far: Far) -> None:
    wait_for(lambda: far.sidecar.connections_to(far.tls.port) == 0, 5)
    good, far.tls.context = far.tls.context, far.authority.context("DNS:localhost", own=True)
    try:
        peer = far.secured()
        peer.send(get("/v1/models", f"Authorization: Bearer {CANARY}\r\n"))
        reply = peer.reply("GET")
    finally:
        far.tls.context = good
    assert reply.status == 502
    assert b"CERTIFICATE_VERIFY_FAILED" in reply.body
    assert far.tls.seen.requests == []


# -- when the authority is not as it should be


@pytest.mark.parametrize("damage", ["mode", "gone", "other"])
def test_without_a_sound_authority_there_is_no_forward_proxy(
    far: Far, tmp_path: Path, damage: str
) -> None:
    """The data port serves OPENAI_BASE_URL all the same, and says why it does no more."""
    sidecar = Sidecar(tmp_path, far.upstream.port)
    sidecar.start()
    assert sidecar.stop() == 0
    key = next((sidecar.home / "ca").glob("*.key"))
    if damage == "mode":
        key.chmod(0o644)
    elif damage == "gone":
        key.unlink()
    else:
        os.system(f"openssl ecparam -genkey -name prime256v1 -noout -out {key} 2>/dev/null")
        key.chmod(0o600)
    try:
        sidecar.start()
        assert sidecar.exchange(get("/v1/models"), "GET").status == 200
        peer = sidecar.connect()
        peer.send(b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com\r\n\r\n")
        assert peer.rest().startswith(b"HTTP/1.1 405 ")
        said = [line for line in sidecar.errors().splitlines() if "no forward proxy" in line]
        assert len(said) == 1
        assert damage != "mode" or "chmod 600" in said[0]
        assert sidecar.stop() == 0
    finally:
        sidecar.close_clients()
        sidecar.kill()
