"""Chunked request bodies: their grammar's faults, their trailers, and what they may cost."""

from __future__ import annotations

import os
import queue
import socket
from pathlib import Path

import pytest

from tests.hazards.cases import GOOD, SEEN, Heard, calls_so_far, send_in_way, tried
from tests.hazards.harness import Sidecar
from tests.hazards.peers import ANSWER, CANARY, Call, Upstream, chunked, get, post, sized

CHUNKED = "Transfer-Encoding: chunked\r\n"
STOLEN = get("/v1/stolen", "Connection: close\r\n")
END = b"0\r\n\r\n"
WAYS = ("cold", "warm", "behind")


def in_chunks(body: bytes, lines: str = "") -> bytes:
    return post("/v1/x", body, lines, CHUNKED)


FAULTS = {
    "0x before the size": b"0x4\r\nwxyz\r\n" + END,
    "sign before the size": b"+4\r\nwxyz\r\n" + END,
    "negative size": b"-1\r\n\r\n" + END,
    "underscore in the size": b"4_0\r\n" + bytes(64) + b"\r\n" + END,
    "point in the size": b"4.0\r\nwxyz\r\n" + END,
    "list of sizes": b"4,4\r\nwxyz\r\n" + END,
    "no hexadecimal size": b"g\r\n\r\n" + END,
    "superscript size": b"\xb2\r\nwx\r\n" + END,
    "no size": b"\r\nwxyz\r\n" + END,
    "empty line before the size": b"\r\n4\r\nwxyz\r\n" + END,
    "space before the size": b" 4\r\nwxyz\r\n" + END,
    "space behind the size": b"4 \r\nwxyz\r\n" + END,
    "tab behind the size": b"4\t\r\nwxyz\r\n" + END,
    "NUL behind the size": b"4\x00\r\nwxyz\r\n" + END,
    "size over 64 bits": b"fffffffffffffffff\r\nwxyz\r\n" + END,
    "size that wraps to 4": b"10000000000000004\r\nwxyz\r\n" + END,
    "LF behind the size": b"4\nwxyz\r\n" + END,
    "CR behind the size": b"4\rwxyz\r\n" + END,
    "two CR behind the size": b"4\r\r\nwxyz\r\n" + END,
    "LF behind the data": b"4\r\nwxyz\n" + END,
    "nothing behind the data": b"4\r\nwxyz" + END,
    "more data than its size": b"4\r\nwxyzzz\r\n" + END,
    "less data than its size": b"6\r\nwxyz\r\n" + END,
    "empty line between chunks": b"4\r\nwxyz\r\n\r\n" + END,
    "LF behind the last size": b"4\r\nwxyz\r\n0\n\r\n",
    "LF at the very end": b"4\r\nwxyz\r\n0\r\n\n",
    "CR at the very end": b"4\r\nwxyz\r\n0\r\n\r",
    "LF in an extension": b"4;a\nb\r\nwxyz\r\n" + END,
    "CR in an extension": b"4;a\rb\r\nwxyz\r\n" + END,
    "NUL in an extension": b"4;a\x00\r\nwxyz\r\n" + END,
    "control in an extension": b"4;a\x01\r\nwxyz\r\n" + END,
    "open quote in an extension": b'4;a="b\r\nwxyz\r\n' + END,
    "no extension behind its sign": b"4;\r\nwxyz\r\n" + END,
    "trailer without a colon": b"4\r\nwxyz\r\n0\r\nAbc\r\n\r\n",
    "space before a trailer's colon": b"4\r\nwxyz\r\n0\r\nA : b\r\n\r\n",
    "folded trailer": b"4\r\nwxyz\r\n0\r\nA: b\r\n c\r\n\r\n",
    "LF behind a trailer": b"4\r\nwxyz\r\n0\r\nA: b\n\r\n",
    "NUL in a trailer": b"4\r\nwxyz\r\n0\r\nA: \x00\r\n\r\n",
}


def cut_short(heard: Heard) -> None:
    """Refused, and the upstream never saw the body's end, nor what came behind it."""
    assert heard.statuses == [400], heard.data
    assert b"\r\nConnection: close" in heard.data
    assert CANARY.encode() not in heard.data
    assert [call.request.start[:9] for call in heard.calls] in ([], [b"POST /v1/"])
    assert not any(call.request.whole for call in heard.calls)


@tried(FAULTS)
def test_faults_of_the_chunk_grammar_are_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """Behind the fault stands what a laxer reader would take for a request of its own."""
    cut_short(send_in_way(sidecar, upstream, way, GOOD, in_chunks(FAULTS[name] + STOLEN)))


@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_come_later_are_refused(
    sidecar: Sidecar, upstream: Upstream, name: str
) -> None:
    """A chunk has gone on by then: the upstream sees the body break off, never end."""
    ended: queue.Queue[bytes] = queue.Queue()
    with upstream.playing(lambda call: ended.put(call.read_body())):
        client = sidecar.connect()
        client.send(in_chunks(chunked(b"first")))
        call = upstream.next_call()
        client.send(FAULTS[name] + STOLEN)
        data = client.rest()
        assert ended.get(timeout=5).startswith(b"first")
        cut_short(Heard(data, [call, *calls_so_far(upstream)]))


ALLOWED = {
    "zeros before the size": b"0000000000000000000004\r\nwxyz\r\n000\r\n\r\n",
    "upper-case size": b"A\r\nwxyzwxyzwx\r\n" + END,
    "extension": b"4;a\r\nwxyz\r\n0;b=c\r\n\r\n",
    "quoted extension": b'4;a="b;c"\r\nwxyz\r\n' + END,
    "long extension": b"4;" + b"a" * 60_000 + b"\r\nwxyz\r\n" + END,
    "trailer": b"4\r\nwxyz\r\n0\r\nX-Sum: 9\r\n\r\n",
}


@tried(ALLOWED)
def test_what_the_grammar_allows_is_read_as_one_body(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    heard = send_in_way(sidecar, upstream, way, GOOD, in_chunks(ALLOWED[name]) + STOLEN)
    assert heard.statuses == [200, 200]
    first, second = (call.request for call in heard.calls)
    assert first.body == (b"wxyzwxyzwx" if name == "upper-case size" else b"wxyz")
    assert first.all(b"transfer-encoding") == [b"chunked"]
    assert second.start == b"GET /v1/stolen HTTP/1.1"


TRAILERS = (
    b"0\r\nAuthorization: Bearer evil\r\nHost: evil\r\nCookie: evil\r\nContent-Type: evil\r\n"
    b"Upgrade: evil\r\nExpect: evil\r\nX-Sum: 9\r\n\r\n"
)


def test_trailers_are_dropped(sidecar: Sidecar, upstream: Upstream) -> None:
    """And never merged: not into this request, not into the next on the connection."""
    client = sidecar.connect()
    before = sidecar.health()["trailers_dropped"]
    for _ in range(SEEN):
        client.send(in_chunks(chunked(b"abc") + TRAILERS, "Trailer: X-Sum\r\n") + GOOD)
        for body, framing in ((b"abc", b"Transfer-Encoding"), (b"hello", b"Content-Length")):
            assert client.reply().body == ANSWER
            request = upstream.next_call().request
            assert (request.body, request.whole) == (body, True)
            names = [name for name, _ in request.headers]
            kept = [b"Host", b"Authorization", b"Cookie", b"Content-Type", framing]
            assert names == kept
            assert b"evil" not in b"".join(value for _, value in request.headers)
    assert sidecar.health()["trailers_dropped"] - before == SEEN * 7


@tried(["Content-Length: 900", "Content-Length: 3", "Transfer-Encoding: chunked"])
def test_trailers_that_speak_of_framing_are_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """RFC 9110 section 6.5.1: a sender must not; and no framing is ever taken from one."""
    case = in_chunks(chunked(b"abc") + b"0\r\n%b\r\n\r\n" % name.encode() + STOLEN)
    cut_short(send_in_way(sidecar, upstream, way, GOOD, case))


FLOODS = {
    "long chunk extension": b"4;" + b"x" * (2 << 20),
    "extensions without end": b"1;xxxxxxxxxxxxxxxx\r\nw\r\n" + b"1;" + b"y" * (1 << 20),
    "long trailer": b"0\r\nA: " + b"x" * (2 << 20),
    "many trailers": b"0\r\n" + b"A: b\r\n" * 300_000,
}


@pytest.mark.parametrize("name", FLOODS)
def test_floods_inside_a_body_are_refused(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    before = sidecar.resident()
    came = sidecar.raw(in_chunks(FLOODS[name]))
    assert came.split(b" ")[1] in (b"400", b"431")
    assert CANARY.encode() not in came
    assert sidecar.resident() - before < 8 << 20
    assert not any(call.request.whole for call in calls_so_far(upstream))


def cpu(sidecar: Sidecar) -> float:
    """Seconds that the proxy has computed."""
    fields = Path(f"/proc/{sidecar.proxy_pid()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_very_small_chunks_of_a_request_cost_little(sidecar: Sidecar, upstream: Upstream) -> None:
    body = os.urandom(20_000)
    before = cpu(sidecar)
    case = in_chunks(chunked(*(body[at : at + 1] for at in range(len(body)))) + END)
    assert sidecar.exchange(case).body == ANSWER
    assert upstream.next_call().request.body == body
    assert cpu(sidecar) - before < 1.0


def test_very_small_chunks_of_a_reply_cost_little(sidecar: Sidecar, upstream: Upstream) -> None:
    body = os.urandom(20_000)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = chunked(*(body[at : at + 1] for at in range(len(body)))) + END
    before = cpu(sidecar)
    with upstream.playing(lambda call: call.send(head + chunks)):
        client = sidecar.connect()
        for _ in range(2):
            client.send(get("/v1/x"))
            assert client.reply("GET").body == body
    assert cpu(sidecar) - before < 2.0


def test_chunks_are_read_wherever_they_are_cut(sidecar: Sidecar, upstream: Upstream) -> None:
    body = chunked(b"w", b"xyz" * 6) + b"00\r\nX-Sum: 9\r\n\r\n"
    client = sidecar.connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for cut in range(len(body)):
        client.send(in_chunks(body[:cut]))
        client.send(body[cut:])
        assert client.reply().body == ANSWER
        assert upstream.next_call().request.body == b"w" + b"xyz" * 6


def test_a_chunked_upload_with_another_request_behind_it(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """What comes while the first is in flight must not end its body a second time."""

    def after_the_others_are_sent(call: Call) -> None:
        body = call.read_body()
        if call.target == b"/v1/0":
            client.send(get("/v1/1"))
            client.send(get("/v1/2"))
        call.send(sized(call.target + b" " + body))

    with upstream.playing(after_the_others_are_sent):
        client = sidecar.connect()
        client.send(in_chunks(chunked(b"abc") + END).replace(b"/v1/x", b"/v1/0"))
        replies = [client.reply().body for _ in range(3)]
    assert replies == [b"/v1/0 abc", b"/v1/1 ", b"/v1/2 "]
