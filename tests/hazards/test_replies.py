"""Replies that are broken, bodiless, encoded or odd: one clean error, or every byte as it came.

What a reply does to its connection is tried where the head is new, and where it has been seen so
often that it is read without the parser.
"""

from __future__ import annotations

import socket

import orjson
import pytest

from tests.hazards.cases import (
    GOOD,
    REPLY_WAYS,
    SEEN,
    InTurn,
    answered,
    tried,
)
from tests.hazards.harness import Sidecar
from tests.hazards.peers import (
    ANSWER,
    EVENTS,
    Call,
    Upstream,
    chunked,
    get,
    sized,
)

OK = b"HTTP/1.1 200 OK\r\n"
JSON = b"Content-Type: application/json\r\n"
FIVE = OK + JSON + b"Content-Length: 5\r\n\r\nhello"
STREAM = OK + b"Content-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"
SOME = STREAM + chunked(*EVENTS) + END


def with_line(line: bytes) -> bytes:
    return FIVE.replace(JSON, JSON + line + b"\r\n", 1)


# -- broken heads

BROKEN = {
    "two lengths": with_line(b"Content-Length: 6"),
    "two lengths, the longer last": FIVE.replace(b": 5\r\n", b": 5\r\nContent-Length: 50\r\n"),
    "the same length twice": with_line(b"Content-Length: 5"),
    "listed lengths": FIVE.replace(b": 5\r\n", b": 5, 5\r\n"),
    "length and chunks": with_line(b"Transfer-Encoding: chunked"),
    "chunks and length": SOME.replace(b"chunked\r\n", b"chunked\r\nContent-Length: 5\r\n", 1),
    **{f"length {value!r}": FIVE.replace(b": 5\r\n", b": %b\r\n" % value)
       for value in (b"+5", b"-5", b"0x5", b"5_0", b"", b"5.0", b"5 5", b"9" * 19, b"9" * 30,
                     b"5x", b"\xb25", b"\x0b5", b"5\x00", b"five")},
    **{f"coding {value!r}": SOME.replace(b": chunked", b": " + value, 1)
       for value in (b"gzip, chunked", b"chunked, chunked", b"chunked, gzip", b"identity",
                     b"xchunked", b"", b'"chunked"', b"\x0bchunked", b"chunked;q=1")},
    "coding twice": SOME.replace(b"chunked\r\n", b"chunked\r\nTransfer-Encoding: chunked\r\n", 1),
    **{f"control {code:#x} in a value": with_line(b"A: b%cc" % code)
       for code in (*range(9), *range(11, 13), *range(14, 32), 127)},
    **{f"control {code:#x} in a known value": FIVE.replace(b"/json", b"/js%con" % code)
       for code in (0, 1, 0x1B, 127)},
    "CR in a value": with_line(b"A: b\rc"),
    "CR in a known value": FIVE.replace(b"/json", b"/js\ron"),
    "LF in a known value": FIVE.replace(b"/json", b"/js\non"),
    "folded header": with_line(b"A: b\r\n c"),
    "folded known header": FIVE.replace(b"/json", b"/json\r\n more"),
    "folded length": FIVE.replace(b"Length: 5", b"Length:\r\n 5"),
    "bare LF": FIVE.replace(b"\r\n", b"\n"),
    "bare LF behind the status line": FIVE.replace(b"OK\r\n", b"OK\n"),
    "bare LF behind a header": FIVE.replace(b"json\r\n", b"json\n"),
    "bare LF before the body": FIVE.replace(b"\r\n\r\n", b"\r\n\n"),
    "no colon": with_line(b"Abc"),
    "empty name": with_line(b": b"),
    "space in a name": with_line(b"A b: c"),
    "space before a colon": with_line(b"A : b"),
    "space before the length's colon": FIVE.replace(b"Length:", b"Length :"),
    "obs-text in a name": with_line(b"A\xe4: b"),
    "rubbish": b"hello there\r\n\r\n",
    "HTTP/2.0": FIVE.replace(b"HTTP/1.1", b"HTTP/2.0", 1),
    "HTTP/0.9": FIVE.replace(b"HTTP/1.1", b"HTTP/0.9", 1),
    "HTTP/9.9": FIVE.replace(b"HTTP/1.1", b"HTTP/9.9", 1),
    "http/1.1": FIVE.replace(b"HTTP/1.1", b"http/1.1", 1),
    "ICY": FIVE.replace(b"HTTP/1.1", b"ICY", 1),
    "status of two digits": FIVE.replace(b"200", b"20", 1),
    "status of four digits": FIVE.replace(b"200", b"2000", 1),
    "status 099": FIVE.replace(b"200", b"099", 1),
    "status in words": FIVE.replace(b"200", b"two", 1),
    "two spaces before the status": FIVE.replace(b" 200", b"  200", 1),
    "NUL in the reason": FIVE.replace(b"OK", b"O\0K", 1),
    "control in the reason": FIVE.replace(b"OK", b"O\x1bK", 1),
    "CR in the reason": FIVE.replace(b"OK", b"O\rK", 1),
    "flood of interim replies": b"HTTP/1.1 102 Processing\r\n\r\n" * 20_000,
    **{f"unasked 101, {name}": b"HTTP/1.1 101 Switching Protocols\r\n%b\r\n\x00\x01" % lines
       for name, lines in {
           "named": b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
           "unnamed": b"",
           "sized": b"Upgrade: x\r\nConnection: Upgrade\r\nContent-Length: 5\r\n",
           "after 100": b"\r\nHTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: Upgrade\r\n",
       }.items()},
}  # fmt: skip


def is_refused(sidecar: Sidecar, upstream: Upstream, way: str, case: bytes) -> None:
    good = STREAM + END if b"text/event-stream" in case else FIVE
    reply = answered(sidecar, upstream, way, good, case, drops=True)
    assert reply.status == 502
    error = orjson.loads(reply.body)["error"]
    assert (error["type"], error["code"]) == ("understudy_error", "bad_upstream_reply")
    assert reply.all(b"x-understudy-error") == [b"bad_upstream_reply"]
    assert len(reply.headers) == 3


@tried(BROKEN, ways=REPLY_WAYS)
def test_broken_heads_become_one_clean_error(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """Nothing of them comes through; the connection goes; the next call gets its own answer."""
    is_refused(sidecar, upstream, way, BROKEN[name])


# Each of these five a well-known proxy passes on, or takes for something else.


@pytest.mark.parametrize("way", REPLY_WAYS)
def test_control_characters_in_a_replys_header_are_not_passed_on(
    sidecar: Sidecar, upstream: Upstream, way: str
) -> None:
    for code in (1, 8, 0x1B, 0x7F):
        is_refused(sidecar, upstream, way, FIVE.replace(b"/json", b"/js%con" % code))


@pytest.mark.parametrize("way", REPLY_WAYS)
def test_headers_that_a_replys_connection_nominates_are_not_passed_on(
    sidecar: Sidecar, upstream: Upstream, way: str
) -> None:
    """And what a client can't do without stays, whoever nominates it."""
    lines = b"X-Hop: 1\r\nX-Kept: 2\r\nConnection: keep-alive, X-HOP, Content-Type, content-length"
    good = with_line(b"X-Hop: 1\r\nX-Kept: 2\r\nConnection: keep-alive")
    reply = answered(sidecar, upstream, way, good, with_line(lines))
    assert reply.headers == [
        (b"Content-Type", b"application/json"), (b"X-Kept", b"2"), (b"Content-Length", b"5"),
    ]  # fmt: skip


@pytest.mark.parametrize("way", REPLY_WAYS)
def test_what_a_reply_says_to_proxies_is_not_passed_on(
    sidecar: Sidecar, upstream: Upstream, way: str
) -> None:
    lines = (
        b"Proxy-Authenticate: Basic\r\nProxy-Connection: keep-alive\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Authentication-Info: x=1\r\nProxy-Authorization: y\r\nTrailer: X-Sum\r\n"
        b"Upgrade: h2c\r\nTE: trailers"
    )
    said = with_line(lines)
    reply = answered(sidecar, upstream, way, said, said)
    assert reply.headers == [(b"Content-Type", b"application/json"), (b"Content-Length", b"5")]


@pytest.mark.parametrize("way", REPLY_WAYS)
def test_a_reply_with_two_lengths_is_none(sidecar: Sidecar, upstream: Upstream, way: str) -> None:
    is_refused(sidecar, upstream, way, BROKEN["two lengths"])


@pytest.mark.parametrize("way", REPLY_WAYS)
def test_a_switch_of_protocols_that_nobody_asked_for_is_none(
    sidecar: Sidecar, upstream: Upstream, way: str
) -> None:
    is_refused(sidecar, upstream, way, BROKEN["unasked 101, named"])


# -- broken bodies: what came before counts, and the reply looks broken

BREAKS = {
    "size is no number": b"zz\r\nrubbish",
    "0x before the size": b"0x4\r\nwxyz\r\n" + END,
    "sign before the size": b"+4\r\nwxyz\r\n" + END,
    "space before the size": b" 4\r\nwxyz\r\n" + END,
    "space behind the size": b"4 \r\nwxyz\r\n" + END,
    "no size": b"\r\nwxyz\r\n" + END,
    "size over 64 bits": b"fffffffffffffffff\r\nwxyz\r\n" + END,
    "LF behind the size": b"4\nwxyz\r\n" + END,
    "LF in an extension": b"4;a\nb\r\nwxyz\r\n" + END,
    "long extension": b"4;" + b"x" * (1 << 20),
    "LF behind the last size": b"0\n\r\n",
    "trailer without a colon": b"0\r\nAbc\r\n\r\n",
    "NUL in a trailer": b"0\r\nA: \0\r\n\r\n",
    "length in a trailer": b"0\r\nContent-Length: 5\r\n\r\n",
    "endless trailer": b"0\r\nA: " + b"x" * (2 << 20),
}


@tried(BREAKS, ways=REPLY_WAYS)
def test_broken_chunks_break_the_reply(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = STREAM + chunked(*EVENTS) + BREAKS[name]
    reply = answered(sidecar, upstream, way, SOME, case, drops=True)
    assert (reply.status, reply.body, reply.whole) == (200, b"".join(EVENTS), False)


ENDS = {
    "LF behind the data": STREAM + b"4\r\nwxyz\n" + END,
    "nothing behind the data": STREAM + b"4\r\nwxyz" + END,
    "more data than its size": STREAM + b"4\r\nwxyzzz\r\n" + END,
}


@tried(ENDS, ways=REPLY_WAYS)
def test_a_chunk_that_does_not_end_breaks_the_reply(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    reply = answered(sidecar, upstream, way, SOME, ENDS[name], drops=True)
    assert (reply.status, reply.whole) == (200, False)
    assert reply.body in (b"", b"wxyz")


SHORT = {
    "length, no body": FIVE[:-5],
    "length, short body": FIVE[:-1],
    "chunks, none": STREAM,
    "chunks, in a size": STREAM + b"5",
    "chunks, in a size's line end": STREAM + b"5\r",
    "chunks, before data": STREAM + b"5\r\n",
    "chunks, in data": STREAM + b"5\r\nhel",
    "chunks, before the line end": STREAM + b"5\r\nhello",
    "chunks, in the line end": STREAM + b"5\r\nhello\r",
    "chunks, no last one": STREAM + b"5\r\nhello\r\n",
    "chunks, in the last one": STREAM + b"5\r\nhello\r\n0",
    "chunks, behind the last size": STREAM + b"5\r\nhello\r\n0\r\n",
    "chunks, in the last line end": STREAM + b"5\r\nhello\r\n0\r\n\r",
    "chunks, in a trailer": STREAM + b"5\r\nhello\r\n0\r\nA: b\r\n",
}


@tried(SHORT, ways=REPLY_WAYS)
def test_a_reply_that_stops_early_never_ends_cleanly(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = SHORT[name]
    good = FIVE if "length" in name else SOME
    reply = answered(sidecar, upstream, way, good, case, closes=True)
    assert (reply.status, reply.whole) == (200, False)
    assert b"hello".startswith(reply.body)


@tried({"only a status line": OK, "no byte": b"", "some of a head": OK + b"Content-Le"},
       ways=REPLY_WAYS)  # fmt: skip
def test_a_head_that_stops_early_is_an_error(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    case = {"only a status line": OK, "no byte": b""}.get(name, OK + b"Content-Le")
    reply = answered(sidecar, upstream, way, FIVE, case, closes=True)
    assert reply.status == 502
    assert reply.all(b"x-understudy-error") == [b"upstream_truncated"]


# -- bytes behind a reply

STOLEN = sized(b"stolen")
BEHIND = {
    "another reply": STOLEN,
    "rubbish": b"rubbish",
    "a line end": b"\r\n",
    "an interim reply": b"HTTP/1.1 100 Continue\r\n\r\n",
    "chunks": chunked(b"stolen") + END,
}
FIRST = {
    "length": FIVE,
    "chunks": SOME,
    "no body": sized(b"", headers=JSON),
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\n\r\n",
}


@pytest.mark.parametrize("first", FIRST)
@tried(BEHIND, ways=REPLY_WAYS)
def test_bytes_behind_a_reply_never_answer_the_next_request(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str, first: str
) -> None:
    case = FIRST[first] + BEHIND[name]
    reply = answered(sidecar, upstream, way, FIRST[first], case, drops=name != "a line end")
    assert reply.whole
    assert reply.body == FIRST[first].partition(b"\r\n\r\n")[2] or first == "chunks"


@pytest.mark.parametrize("first", FIRST)
def test_bytes_that_come_later_never_answer_the_next_request(
    sidecar: Sidecar, upstream: Upstream, first: str
) -> None:
    """On an idle connection: it is not used again."""
    client = sidecar.connect()
    turn = InTurn([FIRST[first]], watches=False)

    def late(call: Call) -> None:
        turn(call)
        replied.append(client.reply())
        call.send(STOLEN)
        turn.dropped.put(call.wait_ended())

    for _ in range(SEEN):
        replied: list[object] = []
        with upstream.playing(late):
            client.send(GOOD)
            assert turn.dropped.get(timeout=5)
            assert len(replied) == 1
        client.send(GOOD)
        assert client.reply().body == ANSWER


# -- replies without a body

HEAD = (
    GOOD.replace(b"POST", b"HEAD", 1).replace(b"Content-Length: 5\r\n", b"").removesuffix(b"hello")
)
GET = get("/v1/x")
BODILESS = {
    "HEAD, known head": (HEAD, FIVE[:-5]),
    "HEAD, long": (HEAD, OK + JSON + b"Content-Length: 500\r\n\r\n"),
    "HEAD, length 0": (HEAD, sized(b"", headers=JSON)),
    "HEAD, chunks": (HEAD, STREAM),
    "HEAD, neither": (HEAD, OK + JSON + b"\r\n"),
    "HEAD, 404": (HEAD, b"HTTP/1.1 404 Not Found\r\nContent-Length: 90\r\n\r\n"),
    "204": (GET, b"HTTP/1.1 204 No Content\r\n\r\n"),
    "204, known headers": (GET, b"HTTP/1.1 204 No Content\r\n" + JSON + b"\r\n"),
    "304": (GET, b"HTTP/1.1 304 Not Modified\r\nETag: x\r\n\r\n"),
    "304, long": (GET, b"HTTP/1.1 304 Not Modified\r\n" + JSON + b"Content-Length: 500\r\n\r\n"),
    "304, known headers": (GET, FIVE[:-5].replace(b"200 OK", b"304 Not Modified")),
}


@tried(BODILESS, ways=REPLY_WAYS)
def test_replies_without_a_body_leave_both_connections_usable(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """After the same headers have announced a body that came."""
    request, said = BODILESS[name]
    client = sidecar.connect()
    goods = SEEN if way == "warm" else 0
    turn = InTurn([*([FIVE] * goods), said, said, FIVE, said, FIVE])
    with upstream.playing(turn):
        for _ in range(goods):
            client.send(GOOD)
            assert client.reply().body == b"hello"
        before = upstream.connections
        for bodiless in (True, True, False, True, False):
            client.send(request if bodiless else GOOD)
            reply = client.reply(request.split(b" ")[0].decode() if bodiless else "POST")
            assert reply.start == (said if bodiless else FIVE).partition(b"\r\n")[0]
            assert reply.body == (b"" if bodiless else b"hello")
            assert client.buffer == b""
    if name != "HEAD, neither":  # the parser holds that such a reply ends with the connection
        assert upstream.connections - before <= (goods == 0)


@tried(["HEAD", "204", "204 chunks", "304"], ways=REPLY_WAYS)
def test_a_body_behind_a_reply_that_has_none_is_dropped(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    status = {"HEAD": b"200 OK", "304": b"304 Not Modified"}.get(name, b"204 No Content")
    case = (SOME if "chunks" in name else FIVE).replace(b"200 OK", status)
    request = HEAD if name == "HEAD" else GET
    good = SOME if "chunks" in name else FIVE
    reply = answered(sidecar, upstream, way, good, case, request)
    assert reply.start == b"HTTP/1.1 " + status
    assert reply.body == b""


# -- interim replies

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\nX-Secret: 1\r\n\r\n"
INTERIM = {
    "100": CONTINUE,
    "102": b"HTTP/1.1 102 Processing\r\n\r\n",
    "103": HINTS,
    "103 of a length": b"HTTP/1.1 103 Early Hints\r\nContent-Length: 5\r\n\r\n",
    "103 of a known head's length": FIVE[:-5].replace(b"200 OK", b"103 Early Hints"),
    "199": b"HTTP/1.1 199 Odd\r\n\r\n",
    "100 and 103": CONTINUE + HINTS + HINTS,
    "with a known head's headers": b"HTTP/1.1 103 Early Hints\r\n" + JSON + b"\r\n",
}


@pytest.mark.parametrize("reads", ["together", "apart"])
@pytest.mark.parametrize("final", ["length", "chunks", "304"])
@tried(INTERIM, ways=REPLY_WAYS)
def test_the_final_reply_follows_interim_ones(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str, final: str, reads: str
) -> None:
    said = FIRST[final]

    def apart(call: Call) -> None:
        call.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        call.send(INTERIM[name])
        call.send(said)

    case = apart if reads == "apart" else INTERIM[name] + said
    reply = answered(sidecar, upstream, way, said, case)
    assert reply.start == said.partition(b"\r\n")[0]
    assert reply.whole
    assert reply.all(b"link") == reply.all(b"x-secret") == []
    assert len(reply.headers) == said.partition(b"\r\n\r\n")[0].count(b"\r\n")


INTERIM_BODY = {
    "199 of a length": b"HTTP/1.1 199 Odd\r\nContent-Length: 5\r\n\r\n",
    "199 of a known head's length": FIVE[:-5].replace(b"200 OK", b"199 Odd"),
    "102 in chunks": b"HTTP/1.1 102 Processing\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    + END,
}


@tried(INTERIM_BODY, ways=REPLY_WAYS)
def test_an_interim_reply_with_a_body_never_reaches_the_client(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    """None has one (RFC 9112 section 6.3); what the parser takes for one is no reply's body."""
    is_refused(sidecar, upstream, way, INTERIM_BODY[name] + FIVE)
