"""Several requests on one connection at once, and requests that end before their end."""

from __future__ import annotations

import select
import socket
import threading

import pytest

from tests.hazards.cases import GOOD, SEEN, calls_so_far, refused, tried
from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import ANSWER, Call, Peer, Upstream, chunked, get, post, sized

CHUNKED = "Transfer-Encoding: chunked\r\n"
GET = get("/v1/get")
IN_CHUNKS = post("/v1/chunked", chunked(b"hel", b"lo") + b"0\r\n\r\n", framing=CHUNKED)


def echo(call: Call) -> None:
    call.send(sized(call.target + b" " + call.read_body()))


MIXES = {
    "two": [GOOD, GOOD],
    "POST and GET": [GOOD, GET],
    "GET and POST": [GET, GOOD],
    "chunks and GET": [IN_CHUNKS, GET, IN_CHUNKS, GOOD],
    "each of them, 200 in all": [GOOD, GET, IN_CHUNKS, GET] * 50,
    "200 GETs": [get(f"/v1/{number}") for number in range(200)],
    "200 of one head": [post("/v1/x", b"%d" % number) for number in range(100, 300)],
}


def expected(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    return head.split(b" ")[1] + b" " + (b"hello" if request is IN_CHUNKS else body)


@pytest.mark.parametrize("write", ["one write", "a write each", "cut in odd places"])
@pytest.mark.parametrize("name", MIXES)
def test_pipelined_requests_are_answered_in_order(
    sidecar: Sidecar, upstream: Upstream, name: str, write: str
) -> None:
    requests = MIXES[name]
    data = b"".join(requests)
    step = {"one write": len(data), "a write each": 0, "cut in odd places": 997}[write]
    parts = [data[at : at + step] for at in range(0, len(data), step)] if step else requests
    with upstream.playing(echo):
        client = sidecar.connect()
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            client.send(part)
        for request in requests:
            assert client.reply().body == expected(request)
    assert client.buffer == b""


@pytest.mark.parametrize("bad", [b"rubbish\r\n\r\n", GOOD.replace(b"Length: 5", b"Length: +5")])
@pytest.mark.parametrize("before", [1, 2, 20])
def test_a_bad_request_behind_good_ones_costs_them_nothing(
    sidecar: Sidecar, upstream: Upstream, bad: bytes, before: int
) -> None:
    client = sidecar.connect()
    client.send(GOOD * before + bad + GOOD)
    for _ in range(before):
        assert client.reply().body == ANSWER
    assert client.reply().status == 400
    assert client.rest() == b""
    assert len(list(calls_so_far(upstream))) == before


def taken(client: Peer, data: bytes, most: int) -> int:
    """Bytes that go out until for half a second none do."""
    client.socket.setblocking(False)
    sent = 0
    while sent < most and select.select([], [client.socket], [], 0.5)[1]:
        sent += client.socket.send(data[sent % len(data) :])
    client.socket.settimeout(10.0)
    return sent


def test_reading_pauses_while_requests_wait(sidecar: Sidecar, upstream: Upstream) -> None:
    """Their number is bounded by one read, however many come; none is lost."""
    go_on = threading.Event()

    def wait(call: Call) -> None:
        go_on.wait(10)
        echo(call)

    request = post("/v1/x", b"y" * 10_000)
    most = 64 << 20
    before = sidecar.resident()
    with upstream.playing(wait):
        client = sidecar.connect()
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        sent = taken(client, request, most)
        assert sent < 16 << 20  # what the system's buffers hold
        assert sidecar.resident() - before < 4 << 20
        assert upstream.calls.qsize() == 1
        go_on.set()
        for _ in range(sent // len(request)):
            assert client.reply().body == b"/v1/x " + b"y" * 10_000


# -- ends before the end

PARTS = {
    "a request line": b"POST /v1/x HT",
    "a whole line": b"POST /v1/x HTTP/1.1\r\n",
    "a header": GOOD[:60],
    "all but the last line end": GOOD[: GOOD.index(b"\r\n\r\n") + 3],
    "a head": GOOD[: GOOD.index(b"\r\n\r\n") + 4],
    "some of a body": GOOD[:-2],
    "all but a byte": GOOD[:-1],
    "a head with chunks": IN_CHUNKS[: IN_CHUNKS.index(b"\r\n\r\n") + 4],
    "a chunk's size": IN_CHUNKS[: IN_CHUNKS.index(b"3\r\n") + 1],
    "some of a chunk": IN_CHUNKS[: IN_CHUNKS.index(b"hel") + 2],
    "a chunk": IN_CHUNKS[: IN_CHUNKS.index(b"hel") + 5],
    "all but the last chunk": IN_CHUNKS[:-5],
    "some of the last chunk": IN_CHUNKS[:-4],
    "all but the last line": IN_CHUNKS[:-2],
    "all but an LF": IN_CHUNKS[:-1],
}


@tried(PARTS)
def test_a_request_that_ends_early_is_none(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """The upstream sees no request, or one that breaks off; the client no reply to it."""
    with upstream.playing(echo):
        client = sidecar.connect()
        good = GOOD * {"cold": 0, "warm": SEEN, "behind": 1}[way]
        client.send(good + PARTS[name])
        client.socket.shutdown(socket.SHUT_WR)
        for _ in range(good.count(GOOD)):
            assert client.reply().body == b"/v1/x hello"
        assert client.rest() in (b"",)
        for _ in range(good.count(GOOD)):
            assert upstream.next_call().request.whole
        for call in calls_so_far(upstream):
            wait_for(lambda: call.ended is not None, 5)  # noqa: B023
            assert not call.request.whole


@pytest.mark.parametrize("requests", [[GET], [GOOD], [IN_CHUNKS], [GOOD, GET, IN_CHUNKS]])
def test_half_closed_clients_are_answered(
    sidecar: Sidecar, upstream: Upstream, requests: list[bytes]
) -> None:
    with upstream.playing(echo):
        for _ in range(SEEN):
            client = sidecar.connect()
            client.send(b"".join(requests))
            client.socket.shutdown(socket.SHUT_WR)
            for request in requests:
                reply = client.reply()
                assert (reply.status, reply.body) == (200, expected(request))
            assert client.rest() == b""


def test_a_refusal_reaches_a_client_that_still_uploads(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """Closing with bytes unread would reset the connection, and the refusal might be lost."""
    case = GOOD.replace(b"Length: 5", b"Length: 5x") + bytes(4 << 20)
    for way in ("cold", "warm"):
        refused(sidecar, upstream, case, 400, way=way)
