"""Requests with an expectation, of HTTP/1.0, with headers for one hop, or slow."""

from __future__ import annotations

import time

import pytest

from tests.hazards.cases import REQUEST_WAYS, SEEN, refused, tried
from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import ANSWER, Upstream, chat, chunked, get, post, sized

CHUNKED = "Transfer-Encoding: chunked\r\n"


def framed(lines: str, body: bytes = b"") -> bytes:
    return post("/v1/x", body, framing=lines)


def headed(line: str) -> bytes:
    return get("/v1/x", line + "\r\n")


# -- expectations

WANTS = "Expect: 100-continue\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("way", REQUEST_WAYS)
@pytest.mark.parametrize(
    "line", ["Expect: the-moon", "Expect: 100-continue, x", WANTS + "Expect: the-moon"]
)
def test_an_unknown_expectation_is_refused(
    sidecar: Sidecar, upstream: Upstream, line: str, way: str
) -> None:
    refused(sidecar, upstream, headed(line), 417, way=way)


@pytest.mark.parametrize("way", REQUEST_WAYS)
def test_a_bad_request_is_not_told_to_continue(
    sidecar: Sidecar, upstream: Upstream, way: str
) -> None:
    refused(sidecar, upstream, framed(WANTS + "Content-Length: 5x\r\n"), 400, way=way)


@pytest.mark.parametrize("expect", [WANTS, "expect: 100-Continue\r\n"])
@pytest.mark.parametrize("framing", ["sized", "chunked"])
def test_a_client_that_waits_is_told_to_continue_at_once(
    sidecar: Sidecar, upstream: Upstream, framing: str, expect: str
) -> None:
    client = sidecar.connect()
    lines, body = "Content-Length: 4\r\n", b"body"
    if framing == "chunked":
        lines, body = CHUNKED, chunked(b"body") + b"0\r\n\r\n"
    for _ in range(SEEN):
        client.send(framed(expect + lines))
        assert client.until(b"\r\n\r\n") == CONTINUE
        client.send(body)
        assert client.reply().status == 200
        request = upstream.next_call().request
        assert (request.body, request.all(b"expect")) == (b"body", [])


@pytest.mark.parametrize("framing", ["sized", "chunked"])
def test_a_client_that_expects_and_does_not_wait_is_answered_once(
    sidecar: Sidecar, upstream: Upstream, framing: str
) -> None:
    client = sidecar.connect()
    case = framed(WANTS + "Content-Length: 4\r\n", b"body")
    if framing == "chunked":
        case = framed(WANTS + CHUNKED, chunked(b"body") + b"0\r\n\r\n")
    for _ in range(SEEN):
        client.send(case)
        reply = client.reply()
        if reply.start == CONTINUE.split(b"\r\n")[0]:
            reply = client.reply()
        assert (reply.status, reply.body, client.buffer) == (200, ANSWER, b"")
        request = upstream.next_call().request
        assert (request.body, request.all(b"expect")) == (b"body", [])
    assert upstream.calls.empty()


def test_http_1_0_knows_no_interim_replies(sidecar: Sidecar, upstream: Upstream) -> None:
    """RFC 9110 section 10.1.1: such an expectation is ignored."""
    client = sidecar.connect()
    client.send(framed(WANTS + "Content-Length: 4\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    client.send(b"body")
    assert client.reply().status == 200
    assert upstream.next_call().request.body == b"body"


# -- HTTP/1.0

OLD_HEADS = {
    "bare": b"GET /v1/x HTTP/1.0\r\n\r\n",
    "with Host": b"GET /v1/x HTTP/1.0\r\nHost: app\r\n\r\n",
    "kept": b"GET /v1/x HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\n\r\n",
    "kept, no Host": b"GET /v1/x HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n",
}


@pytest.mark.parametrize("name", OLD_HEADS)
@pytest.mark.parametrize("reply", ["sized", "chunked", "close"])
def test_http_1_0_is_answered_without_chunks(
    sidecar: Sidecar, upstream: Upstream, name: str, reply: str
) -> None:
    """Sized replies keep the connection where that was asked for; streams end with it."""
    said = {
        "sized": sized(ANSWER),
        "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunked(ANSWER[:10], ANSWER[10:]) + b"0\r\n\r\n",
        "close": b"HTTP/1.1 200 OK\r\n\r\n" + ANSWER,
    }[reply]  # fmt: skip
    kept = "kept" in name and reply == "sized"
    with upstream.saying(said):
        for _ in range(SEEN):
            client = sidecar.connect()
            client.send(OLD_HEADS[name])
            answer = client.reply("GET")
            assert (answer.start, answer.body) == (b"HTTP/1.1 200 OK", ANSWER)
            assert answer.all(b"transfer-encoding") == []
            assert answer.all(b"connection") == [b"keep-alive" if kept else b"close"]
            if kept:
                client.send(OLD_HEADS[name])
                assert client.reply("GET").body == ANSWER
            else:
                assert (client.rest(), client.ended) == (b"", "closed")
            client.close()
    assert upstream.calls.get().request.start == b"GET /v1/x HTTP/1.1"


def test_a_stream_to_http_1_0_that_breaks_ends_in_a_reset(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """The end of the connection is the end of the reply: a clean one would be a lie."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with upstream.saying(head + chunked(b"one")):
        client = sidecar.connect()
        client.send(OLD_HEADS["bare"])
        assert client.rest().endswith(b"one") or client.ended == "reset"
        assert client.ended == "reset"


# -- hop by hop

HOP = {
    "Keep-Alive": "timeout=5",
    "TE": "trailers",
    "Trailer": "X-Sum",
    "Upgrade": "foo",
    "HTTP2-Settings": "AAMA",
    "Proxy-Connection": "keep-alive",
    "Proxy-Authorization": "Basic eA==",
    "Proxy-Authenticate": "Basic",
    "Proxy-Authentication-Info": "x=1",
    "Proxy-Features": "y",
}
SPELLINGS = (str, str.lower, str.upper)


@pytest.mark.parametrize("name", HOP)
def test_hop_by_hop_headers_are_dropped(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    client = sidecar.connect()
    for spelled in SPELLINGS:
        for _ in range(SEEN):
            client.send(post("/v1/x", headers=f"{spelled(name)}: {HOP[name]}\r\nX-Kept: 1\r\n"))
            assert client.reply().body == ANSWER
            request = upstream.next_call().request
            assert request.all(name.encode()) == request.all(b"connection") == []
            assert request.all(b"x-kept") == [b"1"]


@pytest.mark.parametrize(
    "connection",
    ["X-Mine", "x-mine, X-Other", " ,X-MINE ,, x-OTHER,", "keep-alive, x-mine",
     "keep-alive\r\nConnection: x-mine"],
)  # fmt: skip
def test_headers_that_connection_nominates_are_dropped(
    sidecar: Sidecar, upstream: Upstream, connection: str
) -> None:
    client = sidecar.connect()
    without = post("/v1/x", headers="X-Mine: 1\r\nX-Kept: 2\r\n")
    nominating = post("/v1/x", headers=f"X-Mine: 1\r\nX-Kept: 2\r\nConnection: {connection}\r\n")
    for _ in range(SEEN):  # a head that nominates nothing does not make it forgotten
        client.send(without + nominating)
        assert [client.reply().body, client.reply().body] == [ANSWER, ANSWER]
        plain, named = upstream.next_call().request, upstream.next_call().request
        assert plain.all(b"x-mine") == [b"1"]
        assert named.all(b"x-mine") == named.all(b"connection") == []
        assert named.all(b"x-kept") == plain.all(b"x-kept") == [b"2"]


NEVER_NOMINATED = ("Authorization", "Host", "Cookie", "Content-Type", "Content-Length",
                   "Content-Encoding", "close, authorization", "x-a, CONTENT-TYPE",
                   "keep-alive,host", "close\r\nConnection: Cookie")  # fmt: skip


@tried(NEVER_NOMINATED)
def test_connection_must_not_name_what_the_upstream_needs(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = post("/v1/x", b"hello", headers=f"Connection: {name}\r\n")
    good = post("/v1/x", b"hello", headers="Connection: keep-alive\r\n")
    refused(sidecar, upstream, case, 400, way=way, good=good)


# -- in time


def test_slow_heads_and_bodies_are_cut(sidecar: Sidecar, upstream: Upstream) -> None:
    drips = [sidecar.connect() for _ in range(20)]
    for client in drips:
        client.send(b"GET /v1/models HTTP/1.1\r\nHo")
    body = sidecar.connect()
    body.send(framed("Content-Length: 10\r\n", b"12345"))
    began = time.monotonic()
    assert sidecar.exchange(get("/v1/models"), "GET").status == 200
    assert time.monotonic() - began < 1.4
    assert {client.reply().status for client in drips} == {408}
    assert body.reply().status == 408
    assert 1.4 < time.monotonic() - began < 6


def test_a_client_that_never_reads_is_let_go(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.playing(lambda call: call.send(sized(bytes(32 << 20)))):
        client = sidecar.connect()
        client.send(get("/v1/files/a/content"))
        wait_for(lambda: sidecar.health()["clients"] > 1, 2)
        wait_for(lambda: sidecar.health()["clients"] == 1, 6)


def test_connections_are_kept_on_both_sides(sidecar: Sidecar, upstream: Upstream) -> None:
    client = sidecar.connect()
    client.send(get("/v1/models"))
    client.reply("GET")
    before = upstream.connections
    for number in range(20):
        client.send(post(chat(f"kept-{number}")))
        assert client.reply().body == ANSWER
    assert upstream.connections == before
    assert sidecar.row("kept-19")["outcome"] == "ok"
