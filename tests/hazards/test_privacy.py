"""What is for us alone never goes on, and what must not be kept is in no file at any time."""

from __future__ import annotations

import itertools
import queue
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest

from policies.fingerprint import request_hash, task_id
from policies.spool import SEGMENT_SUFFIX, Kind, unpack
from tests.hazards.cases import SEEN
from tests.hazards.harness import Baseline, Sidecar, calm, sound, wait_for
from tests.hazards.peers import (
    ANSWER,
    QUESTION,
    Call,
    Peer,
    Upstream,
    chat,
    get,
    plain,
    post,
    sized,
)
from tests.hazards.peers import chunked as in_chunks
from tests.hazards.websocket import PING, SWITCHING, assent, echo, offer
from tests.proxy.far_ends import Authority, TlsServer

OURS = (
    "X-Understudy-Task: triage\r\nx-understudy-tenant: acme\r\nx-understudy-session: s1\r\n"
    "X-UNDERSTUDY-NO-STORE: 0\r\nx-understudy-purpose: probe\r\nx-understudy-else: 1\r\n"
)
POLICY = {
    "identity": {"tenant": ["header:x-team", "header:x-understudy-tenant", "key"]},
    "privacy": {
        "rules": [
            {"tenant": "hush", "mode": "off"},
            {"tenant": "meta-*", "mode": "metadata"},
            {"path": "/v1/embeddings", "mode": "off"},
        ]
    },
}


_fresh = itertools.count()


class SecureUpstream(TlsServer):
    """Answers each call, behind TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.answer = sized(ANSWER)
        super().__init__(context)

    def serve(self, connection: socket.socket) -> None:
        with self.context.wrap_socket(connection, server_side=True) as tls:
            buffer = b""
            while (call := Call(tls, buffer)).request.start:
                call.read_body()
                self.calls.put(call)
                call.send(self.answer)
                buffer = call.buffer


@dataclass
class Scene:
    sidecar: Sidecar
    upstream: Upstream
    tls: SecureUpstream

    def secured(self) -> Peer:
        """A connection to the intercepted host."""
        peer = self.sidecar.connect()
        host = b"localhost:%d" % self.tls.port
        peer.send(b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (host, host, OURS.encode()))
        assert peer.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
        trusting = ssl.create_default_context(cafile=self.sidecar.home / "ca" / "root.pem")
        secured = Peer(trusting.wrap_socket(peer.socket, server_hostname="localhost"))
        return self.sidecar.keep(secured)

    def not_recorded(self) -> int:
        found: int = self.sidecar.health()["capture"]["not_recorded"]
        return found

    def holding(self, *secrets: str) -> list[str]:
        """Files below the home folder, and what was said on the way, that hold one of these."""
        files = [path for path in self.sidecar.root.rglob("*") if path.is_file()]
        return [
            f"{secret} in {path}"
            for path in files
            for secret in secrets
            if secret.encode() in path.read_bytes()
        ]

    def events(self) -> list[tuple[Kind, bytes]]:
        """All that the spool holds, once what was said so far is in it. The recorder is frozen."""
        mark = self.mark()
        files: list[Path] = []

        def written() -> bool:
            files[:] = sorted(self.sidecar.home.rglob(f"*{SEGMENT_SUFFIX}"))
            return any(mark.encode() in file.read_bytes() for file in files)

        wait_for(written, 5)
        batches = [batch for file in files for batch in unpack(file.read_bytes())]
        return [(event.kind, event.payload) for batch in batches for event in batch.events]

    def recorded(self) -> None:
        """What was said so far is in the database."""
        self.sidecar.row(self.mark())

    def mark(self) -> str:
        tag = f"mark-{next(_fresh)}-"
        assert self.sidecar.exchange(post(chat(tag))).status == 200
        return tag


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    root = tmp_path_factory.mktemp("privacy")
    authority = Authority.make(root)
    tls = SecureUpstream(authority.context("DNS:localhost"))
    upstream = Upstream()
    allowed = [f"localhost:{tls.port}", f"127.0.0.1:{upstream.port}"]
    upstreams = [{"prefix": "/other", "url": f"http://127.0.0.1:{upstream.port}", "strip": True}]
    forward = {"intercept": ["localhost"], "allow": allowed}
    sidecar = Sidecar(
        root / "sidecar",
        upstream.port,
        policy=POLICY | {"forward": forward, "upstreams": upstreams},
        environment={"SSL_CERT_FILE": str(authority.root)},
    )
    try:
        sidecar.start()
        before = Baseline.of(sidecar)
        yield Scene(sidecar, upstream, tls)
        calm(sidecar, before)
        assert sidecar.stop() == 0
        sound(sidecar)
    finally:
        sidecar.kill()
        tls.close()
        upstream.close()


@pytest.fixture(autouse=True)
def cleared(scene: Scene) -> Iterator[None]:
    scene.upstream.forget_calls()
    yield
    scene.sidecar.close_clients()


# -- what is for us is not sent on


def cold(scene: Scene, headers: str) -> list[Call]:
    scene.sidecar.exchange(post("/v1/cold" + str(len(headers)), headers=headers))
    return [scene.upstream.next_call()]


def known(scene: Scene, headers: str) -> list[Call]:
    client = scene.sidecar.connect()
    for _ in range(SEEN):
        client.send(post("/v1/known", headers=headers))
        assert client.reply().status == 200
    return [scene.upstream.next_call() for _ in range(SEEN)]


def pipelined(scene: Scene, headers: str) -> list[Call]:
    client = scene.sidecar.connect()
    client.send(post("/v1/behind", headers=headers) * 3)
    assert [client.reply().status for _ in range(3)] == [200] * 3
    return [scene.upstream.next_call() for _ in range(3)]


def chunked(scene: Scene, headers: str) -> list[Call]:
    body = in_chunks(QUESTION, b"")
    case = post("/v1/x", body, headers, "Transfer-Encoding: chunked\r\n")
    assert scene.sidecar.exchange(case).status == 200
    return [scene.upstream.next_call()]


def expecting(scene: Scene, headers: str) -> list[Call]:
    client = scene.sidecar.connect()
    head, _, body = post("/v1/x", headers=headers + "Expect: 100-continue\r\n").partition(b"{")
    client.send(head)
    assert client.until(b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
    client.send(b"{" + body)
    assert client.reply().status == 200
    return [scene.upstream.next_call()]


def old(scene: Scene, headers: str) -> list[Call]:
    case = post("/v1/x", headers=headers).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    assert scene.sidecar.exchange(case).status == 200
    return [scene.upstream.next_call()]


def named_by_connection(scene: Scene, headers: str) -> list[Call]:
    more = "Connection: x-understudy-task, keep-alive\r\n"
    assert scene.sidecar.exchange(post("/v1/x", headers=headers + more)).status == 200
    return [scene.upstream.next_call()]


def upgrading(scene: Scene, headers: str) -> list[Call]:
    with scene.upstream.playing(echo):
        client = scene.sidecar.connect()
        client.send(offer("/v1/responses").replace(b"\r\n", b"\r\n" + headers.encode(), 1))
        assert client.until(b"\r\n\r\n") == assent()
        client.send(PING)
        assert client.take(len(PING)) == PING
        client.close()
    return [scene.upstream.next_call()]


def by_prefix(scene: Scene, headers: str) -> list[Call]:
    assert scene.sidecar.exchange(post("/other/v1/x", headers=headers)).status == 200
    return [scene.upstream.next_call()]


def absolute(scene: Scene, headers: str) -> list[Call]:
    """To a host that is not intercepted."""
    target = f"http://127.0.0.1:{scene.upstream.port}/v1/x"
    for _ in range(2):
        assert scene.sidecar.exchange(post(target, headers=headers)).status == 200
    return [scene.upstream.next_call() for _ in range(2)]


def intercepted(scene: Scene, headers: str) -> list[Call]:
    client = scene.secured()
    for _ in range(SEEN):
        client.send(post("/v1/x", headers=headers))
        assert client.reply().body == ANSWER
    return [scene.tls.calls.get(timeout=5) for _ in range(SEEN)]


WAYS = (
    cold, known, pipelined, chunked, expecting, old, named_by_connection, upgrading, by_prefix,
    absolute, intercepted,
)  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.__name__))
def test_what_is_for_us_is_not_sent_on(
    scene: Scene, way: Callable[[Scene, str], list[Call]]
) -> None:
    plain, ours = way(scene, ""), way(scene, OURS)
    assert len(plain) == len(ours)
    for one, other in zip(plain, ours, strict=True):
        assert one.request.headers == other.request.headers
        assert one.request.body == other.request.body
        assert not any(b"understudy" in name.lower() for name, _ in other.request.headers)


def test_who_asks_is_recorded_as_it_was_said(scene: Scene) -> None:
    with scene.sidecar.frozen("recorder"):
        headers = "X-Team: law\r\nX-Other: nobody's\r\n" + OURS
        scene.sidecar.exchange(post(chat("who"), headers=headers))
        opened = [
            orjson.loads(said)
            for kind, said in scene.events()
            if kind == Kind.OPENED and b"before=who" in said
        ]
    found = {name.lower(): value for name, value in opened[0]["headers"]}
    assert "mode" not in opened[0]
    assert (found["x-team"], found["x-understudy-task"]) == ("law", "triage")
    assert (found["x-understudy-tenant"], found["x-understudy-session"]) == ("acme", "s1")
    assert found["x-other"].startswith("hash:")


# -- what must not be kept

SECRET = "zirconium-parakeet"
SECRET_QUESTION = QUESTION.replace(b"hello", SECRET.encode())
SECRET_ANSWER = sized(
    ANSWER.replace(b"chatcmpl-1", SECRET.encode()), headers=b"Content-Type: application/json\r\n"
)
OFF = {
    "no-store": ("/v1/chat/completions", "x-understudy-no-store: true\r\n"),
    "no-store in capitals": ("/v1/chat/completions", "X-Understudy-No-Store: 1\r\n"),
    "a tenant": ("/v1/chat/completions", "X-Team: hush\r\n"),
    "a path": ("/v1/embeddings", ""),
}


def secretly(call: Call) -> None:
    call.read_body()
    call.send(SECRET_ANSWER)


def ask_secretly(scene: Scene, target: str, headers: str, way: str) -> None:
    """Twice: with a length, and in chunks."""
    scene.tls.answer = SECRET_ANSWER
    peer = scene.secured() if way == "intercepted" else scene.sidecar.connect()
    calls = scene.tls.calls if way == "intercepted" else scene.upstream.calls
    with scene.upstream.playing(secretly):
        for framing in ("", "Transfer-Encoding: chunked\r\n"):
            body = in_chunks(SECRET_QUESTION, b"") if framing else SECRET_QUESTION
            peer.send(post(target, body, headers, framing))
            assert SECRET.encode() in peer.reply().body
            assert calls.get(timeout=5).request.body == SECRET_QUESTION


def test_what_may_be_kept_is_found_by_the_same_search(scene: Scene) -> None:
    """Or the tests below would say nothing."""
    open_word = "zirconium-budgerigar"
    with scene.sidecar.frozen("recorder"):
        body = QUESTION.replace(b"hello", open_word.encode())
        scene.sidecar.exchange(post(chat("open"), body))
        scene.events()
        assert any(SEGMENT_SUFFIX in each for each in scene.holding(open_word))
    scene.recorded()
    assert any("understudy.db" in each for each in scene.holding(open_word))


@pytest.mark.parametrize("name", OFF)
@pytest.mark.parametrize("way", ["plain", "intercepted"])
def test_of_an_exchange_that_is_off_nothing_is_kept(scene: Scene, name: str, way: str) -> None:
    """Not even what would be listed."""
    path, headers = OFF[name]
    before = scene.not_recorded()
    with scene.sidecar.frozen("recorder"):
        ask_secretly(scene, f"{path}?before={SECRET}", headers + f"User-Agent: {SECRET}\r\n", way)
        assert not [said for _, said in scene.events() if SECRET.encode() in said]
        assert scene.holding(SECRET) == []
    scene.recorded()
    assert scene.holding(SECRET) == []
    assert scene.sidecar.rows(SECRET) == []
    assert scene.not_recorded() == before + 2
    said = scene.sidecar.exchange(get("/_understudy/metrics"), "GET").body.decode().splitlines()
    assert f"understudy_not_recorded_total {before + 2}" in said


@pytest.mark.parametrize("way", ["plain", "intercepted"])
def test_of_metadata_there_is_a_task_and_no_byte_of_a_body(scene: Scene, way: str) -> None:
    asked = orjson.loads(SECRET_QUESTION)
    hashes = (task_id("chat.completions", asked), request_hash(asked))
    with scene.sidecar.frozen("recorder"):
        ask_secretly(scene, chat(f"meta-{way}"), "X-Team: meta-1\r\n", way)
        events = scene.events()
        assert scene.holding(SECRET) == []
    opened = [said for kind, said in events if kind == Kind.OPENED and b"before=meta" in said]
    assert [orjson.loads(said)["mode"] for said in opened[-2:]] == ["metadata"] * 2
    closed = [orjson.loads(said) for kind, said in events if kind == Kind.CLOSED]
    told = [each for each in closed if "task_id" in each]
    assert [(each["task_id"], each["request_hash"]) for each in told[-2:]] == [hashes] * 2
    assert {each["request_bytes"] for each in told} == {len(SECRET_QUESTION)}
    scene.recorded()
    rows = scene.sidecar.rows(f"meta-{way}")
    assert [(row["status"], row["outcome"]) for row in rows] == [(200, "ok")] * 2
    assert [(row["task_id"], row["request_hash"]) for row in rows] == [hashes] * 2
    assert scene.holding(SECRET) == []


@pytest.mark.parametrize("team", ["hush", "meta-1"])
def test_another_protocol_is_kept_no_more_than_http(scene: Scene, team: str) -> None:
    """On the one kind of call whose bodies are kept, in a protocol that is plain text."""
    headers = f"Connection: Upgrade\r\nUpgrade: telnet\r\nX-Team: {team}\r\n"

    def answer(call: Call) -> None:
        call.send(SWITCHING + b"Connection: Upgrade\r\nUpgrade: telnet\r\n\r\n")
        call.send(call.take(len(SECRET)).upper())
        call.rest()

    before = scene.not_recorded()
    with scene.upstream.playing(answer), scene.sidecar.frozen("recorder"):
        client = scene.sidecar.connect()
        client.send(post(chat(f"talk-{team}"), b"", headers, "X-None: 1\r\n"))
        assert client.until(b"\r\n\r\n").startswith(SWITCHING)
        client.send(SECRET.encode())
        assert client.take(len(SECRET)) == SECRET.upper().encode()
        client.close()
        wait_for(lambda: scene.sidecar.health()["clients"] == 1, 3)
        scene.upstream.answer = plain
        found = [said for kind, said in scene.events() if f"talk-{team}".encode() in said]
        assert scene.holding(SECRET, SECRET.upper()) == []
    assert len(found) == (team != "hush")
    assert scene.not_recorded() == before + (team == "hush")


def test_what_is_cut_short_is_told_of_and_not_kept(scene: Scene) -> None:
    with scene.sidecar.frozen("recorder"):
        client = scene.sidecar.connect()
        case = post(chat("short"), SECRET_QUESTION, "X-Team: meta-1\r\n")
        client.send(case[:-5])
        wait_for(lambda: not scene.upstream.calls.empty(), 3)
        client.close()
        wait_for(lambda: scene.sidecar.health()["clients"] == 1, 3)
        events = scene.events()
        assert scene.holding(SECRET) == []
    ended = [orjson.loads(said) for kind, said in events if kind == Kind.CLOSED]
    left = [each for each in ended if each["outcome"] == "client_abort"]
    assert len(left) == 1
    assert "task_id" not in left[0]
    assert left[0]["request_bytes"] == len(SECRET_QUESTION) - 5
