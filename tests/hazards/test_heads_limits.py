"""Heads at their limits and over them: 64 KiB, 256 headers, a target of 16 KiB; both sides."""

from __future__ import annotations

import socket

import pytest

from tests.hazards.cases import GOOD, REPLY_WAYS, answered, refused, send_in_way, tried
from tests.hazards.harness import Sidecar
from tests.hazards.peers import ANSWER, CANARY, Upstream, get, post, sized

HEAD = 64 * 1024
HEADERS = 256
TARGET = 16 * 1024
OURS = 4  # headers that every GET of these tests has, with the last one


def filled(size: int, method: str = "GET") -> bytes:
    """A request whose head has this many bytes, by one long value that nobody may log."""
    build = get if method == "GET" else post
    empty = build("/v1/x", headers=f"X-Long: {CANARY}\r\n")
    missing = size - len(empty.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
    return build("/v1/x", headers=f"X-Long: {CANARY}{'x' * missing}\r\n")


def head_size(request: bytes) -> int:
    return request.index(b"\r\n\r\n") + 4


AT_LIMIT = {
    "head of a GET": filled(HEAD),
    "head of a POST": filled(HEAD, "POST"),
    "many long headers": get("/v1/x", "".join(f"A{n}: {'y' * 240}\r\n" for n in range(250))),
    "number of headers": get("/v1/x", "A: b\r\n" * (HEADERS - OURS + 1)),
    "target": get("/v1/x" + "t" * (TARGET - 5)),
    "target of 8 KiB": get("/v1/x" + "t" * 8192),
    "cookie of 16 KiB": get("/v1/x", "Cookie: " + "c" * TARGET + "\r\n"),
    "query": get("/v1/x?" + "q" * (TARGET - 6)),
}


@pytest.mark.parametrize("write", ["one write", "three writes"])
@pytest.mark.parametrize("name", AT_LIMIT)
def test_a_head_at_a_limit_passes(
    sidecar: Sidecar, upstream: Upstream, name: str, write: str
) -> None:
    case = AT_LIMIT[name]
    assert head_size(case) <= HEAD
    client = sidecar.connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    third = len(case) // 3
    for _ in range(3):
        for part in [case] if write == "one write" else [case[:third], case[third:-9], case[-9:]]:
            client.send(part)
        assert client.reply().body == ANSWER
        sent = upstream.next_call().request
        assert sent.start == case.partition(b"\r\n")[0]
        lines = case.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]
        pairs = [tuple(line.split(b": ", 1)) for line in lines]
        host = (b"Host", b"127.0.0.1:%d" % upstream.port)
        assert sent.headers == [host if name == b"Host" else (name, v) for name, v in pairs]


OVER = {
    "head by a byte": filled(HEAD + 1),
    "head of a POST by a byte": filled(HEAD + 1, "POST"),
    "one value of 100 KB": get("/v1/x", "A: " + "x" * 100_000 + "\r\n"),
    "one value of 1 MiB": get("/v1/x", "A: " + "x" * (1 << 20) + "\r\n"),
    "one name of 100 KB": get("/v1/x", "x" * 100_000 + ": a\r\n"),
    "one header too many": get("/v1/x", "A: b\r\n" * (HEADERS - OURS + 2)),
    "300 headers": get("/v1/x", "A: b\r\n" * 300),
    "20,000 headers": get("/v1/x", "A: b\r\n" * 20_000),
    "endless head": get("/v1/x", "A: b\r\n" * 100_000).removesuffix(b"\r\n"),
}
OVER_TARGET = {
    "target by a byte": get("/v1/x" + "t" * (TARGET - 4)),
    "target of 60 KB": get("/v1/x" + "t" * 60_000),
    "target of 1 MiB": get("/v1/x" + "t" * (1 << 20)),
}


@tried(OVER)
def test_a_head_over_a_limit_is_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    refused(sidecar, upstream, OVER[name], 431, way=way)
    assert "xxxx" not in sidecar.errors()


@tried(OVER_TARGET)
def test_a_target_over_the_limit_is_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """414; or 431 when the whole head is too large by then."""
    statuses = (414,) if name == "target by a byte" else (414, 431)
    refused(sidecar, upstream, OVER_TARGET[name], *statuses, way=way)
    assert "tttt" not in sidecar.errors()


def test_a_long_head_behind_a_body_is_refused(sidecar: Sidecar, upstream: Upstream) -> None:
    """In the same write: neither the body's bytes nor the body's end make the head shorter."""
    for body in (b"hello", bytes(10_000)):
        good = post("/v1/x", body)
        refused(sidecar, upstream, OVER["one value of 100 KB"], 431, way="behind", good=good)
    chunked = post("/v1/x", b"5\r\nhello\r\n0\r\n\r\n", framing="Transfer-Encoding: chunked\r\n")
    refused(sidecar, upstream, OVER["one value of 100 KB"], 431, way="behind", good=chunked)


def test_floods_of_heads_take_no_memory(sidecar: Sidecar, upstream: Upstream) -> None:
    before = sidecar.resident()
    flood = get("/v1/x", "A: " + "x" * (4 << 20) + "\r\n")
    for _ in range(8):
        send_in_way(sidecar, upstream, "cold", GOOD, flood)
    assert sidecar.resident() - before < 16 << 20


# -- of replies

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
LENGTH = b"Content-Length: 59\r\n\r\n" + ANSWER
assert len(ANSWER) == 59


def reply_of(size: int) -> bytes:
    missing = size - len(OK + b"X-Long: \r\n" + LENGTH) + len(ANSWER)
    return OK + b"X-Long: " + b"y" * missing + b"\r\n" + LENGTH


REPLY_AT_LIMIT = {
    "head": reply_of(HEAD),
    "number of headers": OK + b"A: b\r\n" * (HEADERS - 2) + LENGTH,
    "policy of 16 KiB": OK + b"Content-Security-Policy: " + b"c" * TARGET + b"\r\n" + LENGTH,
}
REPLY_OVER = {
    "head by a byte": reply_of(HEAD + 1),
    "one value of 100 KB": OK + b"A: " + b"x" * 100_000 + b"\r\n" + LENGTH,
    "one value of 5 MiB": OK + b"A: " + b"x" * (5 << 20) + b"\r\n" + LENGTH,
    "one header too many": OK + b"A: b\r\n" * (HEADERS - 1) + LENGTH,
    "20,000 headers": OK + b"A: b\r\n" * 20_000 + LENGTH,
    "interim heads": b"HTTP/1.1 102 Processing\r\nA: b\r\n\r\n" * 5_000 + OK + LENGTH,
}
GOOD_REPLY = sized(ANSWER, headers=b"Content-Type: application/json\r\n")


@tried(REPLY_AT_LIMIT, ways=REPLY_WAYS)
def test_a_replys_head_at_a_limit_passes(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = REPLY_AT_LIMIT[name]
    assert head_size(case) <= HEAD
    reply = answered(sidecar, upstream, way, GOOD_REPLY, case)
    assert (reply.status, reply.body) == (200, ANSWER)
    assert sum(len(k) + len(v) + 4 for k, v in reply.headers) + 19 == head_size(case)


@tried(REPLY_OVER, ways=REPLY_WAYS)
def test_a_replys_head_over_a_limit_is_none(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    reply = answered(sidecar, upstream, way, GOOD_REPLY, REPLY_OVER[name], drops=True)
    assert reply.status == 502
    assert reply.all(b"x-understudy-error") == [b"bad_upstream_reply"]
    assert b"xxxx" not in reply.body
