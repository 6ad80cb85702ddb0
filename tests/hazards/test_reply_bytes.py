"""Replies that pass: every byte as it came, whatever their coding, framing, status or headers."""

from __future__ import annotations

import gzip
import itertools
import socket
import zlib

import brotli  # type: ignore[import-untyped]
import pytest
import zstandard

from tests.hazards.cases import GOOD, REPLY_WAYS, SEEN, InTurn, answered, tried
from tests.hazards.harness import Sidecar
from tests.hazards.peers import ANSWER, EVENTS, Call, Message, Upstream, chat, chunked, post, sized

OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"Content-Type: application/json\r\n"
FIVE = OK + JSON + b"Content-Length: 5\r\n\r\nhello"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
SOME = STREAM + chunked(*EVENTS) + END


def with_line(line: bytes) -> bytes:
    return FIVE.replace(JSON, JSON + line + b"\r\n", 1)


# -- to the byte

ODD = (
    b"HTTP/1.1 200 Fine, th\xc3\xa4nks\r\nX-Odd: 1\r\nX-EMPTY: \r\nx-odd: caf\xe9 100%\r\n"
    b'X-Odd: "q\\"\r\nSet-Cookie: a=1; Path=/\r\nset-cookie: b=2\r\nSet-Cookie: a=1; Path=/\r\n'
    b"X-%s: %d\r\nX-Tab: a\tb\r\nVary: *\r\nVary: Origin\r\ncontent-LENGTH: 5\r\n\r\nhello"
)
STATUSES = (b"201 Created", b"299 ", b"302 Found", b"400 Bad Request", b"404 Not Found", b"418 Tea",
            b"429 Too Many Requests", b"500 Oops", b"599 x y z", b"600 Odd", b"999 Odder",
            b"200 \xc3\xa4\xff\t!", b"401 OK", b"200 Different")  # fmt: skip
EXACT = {
    "odd headers": ODD,
    "other values": ODD.replace(b"caf\xe9", b"t\xe9a").replace(b"a=1;", b"c=\xff;"),
    "space behind a value": FIVE.replace(b"/json\r\n", b"/json \t\r\n"),
    "other length": FIVE.replace(b": 5", b": 11").replace(b"hello", b"hello again"),
    "no space in values": FIVE.replace(b"application/json", b"x"),
    "known but for a case": FIVE.replace(b"Content-Type", b"content-type"),
    "known but for one more": with_line(b"X-More: 1"),
    "known but for one less": FIVE.replace(JSON, b""),
    "a body that looks like a reply": sized(FIVE + FIVE, headers=JSON),
    "a body that looks like chunks": sized(chunked(b"x") + END, headers=JSON),
    **{f"status {status!r}": FIVE.replace(b"200 OK", status) for status in STATUSES},
}


@tried(EXACT, ways=REPLY_WAYS)
def test_replies_pass_to_the_byte(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """As often as they come; the last of them are known themselves."""
    said = EXACT[name]
    client = sidecar.connect()
    goods = SEEN if way == "warm" else 0
    with upstream.playing(InTurn([*([FIVE] * goods), said])):
        for _ in range(goods):
            client.send(GOOD)
            assert client.take(len(FIVE)) == FIVE
        for _ in range(SEEN + 1):
            client.send(GOOD)
            assert client.take(len(said)) == said
    assert client.buffer == b""


ALTERED = {
    "more space before a value": (FIVE.replace(b"Type: ", b"Type: \t "), FIVE),
    "no space before a value": (FIVE.replace(b"Type: ", b"Type:"), FIVE),
    "no reason and no space": (FIVE.replace(b"200 OK", b"200"), FIVE.replace(b" OK", b" ")),
    "HTTP/1.0": (FIVE.replace(b"HTTP/1.1", b"HTTP/1.0"), FIVE),
    "a line end before it": (b"\r\n" + FIVE, FIVE),
}


@tried(ALTERED, ways=REPLY_WAYS)
def test_what_is_not_canonical_goes_on_canonical_however_known(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    said, wanted = ALTERED[name]
    for _ in range(SEEN + 1):
        client = sidecar.connect()
        with upstream.playing(InTurn([FIVE, said] if way == "warm" else [said])):
            if way == "warm":
                client.send(GOOD)
                assert client.take(len(FIVE)) == FIVE
            client.send(GOOD)
            assert client.take(len(wanted)) == wanted
        client.close()


CODED = {
    "gzip": gzip.compress(ANSWER),
    "br": brotli.compress(ANSWER),
    "zstd": zstandard.compress(ANSWER),
    "deflate": zlib.compress(ANSWER),
    "gzip, br": brotli.compress(gzip.compress(ANSWER)),
}
NOT_CODED = {
    "gzip": b"this is no gzip",
    "GZIP": gzip.compress(ANSWER)[:-9],
    "br": b"\x00\xff broken",
    "zstd": gzip.compress(ANSWER),
    "x-unknown": bytes(range(256)),
}


@pytest.mark.parametrize("framing", ["length", "chunks"])
@tried(CODED, ways=REPLY_WAYS)
def test_encoded_bodies_pass_to_the_byte_and_are_recorded_decoded(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str, framing: str
) -> None:
    """Both ways: the request has the same coding."""
    body = CODED[name]
    tag = f"coded-{way}-{framing}-{name}".replace(", ", "-")
    reply = coded(sidecar, upstream, way, name, body, framing, tag)
    assert (reply.body, reply.all(b"content-encoding")) == (body, [name.encode()])
    row = sidecar.row(tag)
    assert row["request"] == row["response"] == ANSWER.decode()


@pytest.mark.parametrize("framing", ["length", "chunks"])
@tried(NOT_CODED, ways=REPLY_WAYS)
def test_bodies_that_are_not_what_they_say_pass_to_the_byte(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str, framing: str
) -> None:
    body = NOT_CODED[name]
    tag = f"uncoded-{way}-{framing}-{name}"
    reply = coded(sidecar, upstream, way, name, body, framing, tag)
    assert (reply.body, reply.all(b"content-encoding")) == (body, [name.encode()])
    row = sidecar.row(tag)
    assert row["request"] is row["response"] is None
    why = "unknown_encoding" if name == "x-unknown" else "decode_error"
    assert row["request_note"].startswith(why)
    assert row["response_note"].startswith(why)


def coded(
    sidecar: Sidecar, upstream: Upstream, way: str, coding: str, body: bytes, framing: str, tag: str
) -> Message:
    head = JSON + b"Content-Encoding: %b\r\n" % coding.encode()
    said = sized(body, headers=head)
    if framing == "chunks":
        half = len(body) // 2
        said = OK + head + b"Transfer-Encoding: chunked\r\n\r\n"
        said += chunked(body[:half], body[half:]) + END
    line = f"Content-Encoding: {coding}\r\n"
    request = post(chat(tag), body, line)
    if framing == "chunks":
        request = post(chat(tag), chunked(body) + END, line, "Transfer-Encoding: chunked\r\n")
    client = sidecar.connect()
    goods = SEEN if way == "warm" else 0
    with upstream.playing(InTurn([said])):
        for _ in range(goods):
            client.send(post("/v1/x", body, line))
            client.reply()
            upstream.next_call()
        client.send(request)
        reply = client.reply()
        assert upstream.next_call().request.body == body
    return reply


def test_a_body_that_inflates_without_end_passes_and_is_not_recorded(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    bomb = gzip.compress(bytes(64 << 20), 9)
    said = sized(bomb, headers=JSON + b"Content-Encoding: gzip\r\n")
    with upstream.playing(InTurn([said])):
        client = sidecar.connect()
        client.send(post(chat("bomb"), bomb, "Content-Encoding: gzip\r\n"))
        assert client.take(len(said)) == said
    row = sidecar.row("bomb")
    assert row["request_note"] == row["response_note"] == "decode_error: inflates too much"


TRAILERS = b"0\r\nX-Sum: 9\r\nSet-Cookie: evil=1\r\nContent-Type: evil\r\n\r\n"


@pytest.mark.parametrize("way", REPLY_WAYS)
def test_a_replys_trailers_are_dropped(sidecar: Sidecar, upstream: Upstream, way: str) -> None:
    before = sidecar.health()["trailers_dropped"]
    case = STREAM + chunked(*EVENTS) + TRAILERS
    reply = answered(sidecar, upstream, way, SOME, case)
    assert (reply.body, reply.whole) == (b"".join(EVENTS), True)
    assert [name for name, _ in reply.headers] == [b"Content-Type", b"Transfer-Encoding"]
    assert sidecar.health()["trailers_dropped"] - before == 3


SPELLED = {
    "upper case": b"F\r\n" + b"x" * 15 + b"\r\n" + END,
    "zeros before it": b"0000f\r\n" + b"x" * 15 + b"\r\n000\r\n\r\n",
    "more zeros than fit": b"0" * 20 + b"f\r\n" + b"x" * 15 + b"\r\n" + b"0" * 20 + b"\r\n\r\n",
    "extension": b"f;a=b\r\n" + b"x" * 15 + b"\r\n0;c\r\n\r\n",
    "one by one": chunked(*[b"x"] * 15) + END,
    "data like chunks": chunked(b"0\r\n\r\n5\r\nxxxxx\r\n"[:15]) + END,
    "data like line ends": chunked(b"\r\n" * 7 + b"\r") + END,
}


@pytest.mark.parametrize("name", SPELLED)
def test_chunks_are_read_wherever_they_are_cut(
    sidecar: Sidecar, upstream: Upstream, name: str
) -> None:
    """Two cuts at all places that are near each other: what a read holds differs each time."""
    said = STREAM + SPELLED[name]
    plain = {
        "data like chunks": b"0\r\n\r\n5\r\nxxxxx\r\n",
        "data like line ends": b"\r\n" * 7 + b"\r",
    }
    body = plain.get(name, b"x" * 15)[:15]
    start = len(STREAM) - 2
    cuts = [(a, b) for a, b in itertools.combinations(range(start, len(said)), 2) if b - a < 4]
    turn = iter(cuts)

    def cut(call: Call) -> None:
        call.read_body()
        call.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one, two = next(turn)
        for part in (said[:one], said[one:two], said[two:]):
            call.send(part)

    with upstream.playing(cut):
        client = sidecar.connect()
        before = upstream.connections
        for _ in cuts:
            client.send(GOOD)
            reply = client.reply()
            assert (reply.body, reply.whole) == (body, True)
    assert upstream.connections - before <= 1
