"""Known heads: what is remembered, what is told apart by a byte, and how much is kept."""

from __future__ import annotations

import pytest

from proxy.known import KnownReplies, KnownRequests
from tests.fuzz.readings import (
    Call,
    NoReplies,
    NoRequests,
    read_replies,
    read_requests,
    taught,
    taught_replies,
)

ASKED = (
    b"POST /v1/x HTTP/1.1\r\nHost: app\r\nX-A: 1\r\nContent-Length: 3\r\nConnection: keep-alive"
    b"\r\nCookie: a\r\n\r\nabc"
)
HEAD = len(ASKED) - 3
SAID = (
    b"HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nX-A: 1\r\nX-B: 2\r\nKeep-Alive: timeout=5\r\n"
    b"Content-Length: 2\r\nServer: s\r\n\r\nhi"
)
CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\n\r\n2\r\nhi\r\n0\r\n\r\n"


def knows(replies: KnownReplies, data: bytes) -> bool:
    return replies.find(data) is not None


def seen(data: bytes, times: int = 3, method: bytes = b"GET") -> KnownReplies:
    return taught_replies([Call(method, [data])], times)


# -- requests


def test_a_request_is_known_from_its_second_sight_whatever_its_length() -> None:
    known = taught([ASKED])
    for digits in (b"3", b"0", b"12", b"007", b"9" * 15):
        data = ASKED[:HEAD].replace(b": 3\r", b": " + digits + b"\r") + b"abc"
        found = known.find(data)
        assert found is not None
        head, end, length = found
        assert (data[end:], length) == (b"abc", int(digits))
        assert head.wire(length) == read_requests(NoRequests(), [data]).requests[0].wire


@pytest.mark.parametrize(
    "digits", [b"", b"+3", b"-3", b" 3", b"3 ", b"3,3", b"0x3", b"\xb2", b"9" * 16, b"3\r\nA: 3"]
)
def test_a_length_that_is_spelled_otherwise_is_not_known(digits: bytes) -> None:
    assert taught([ASKED]).find(ASKED.replace(b"h: 3\r", b"h: " + digits + b"\r")) is None


def test_a_head_that_differs_in_any_byte_or_is_not_whole_is_not_known() -> None:
    known = taught([ASKED])
    digit = ASKED.index(b": 3\r") + 2
    for at in range(HEAD):
        assert known.find(ASKED[:at]) is None
        assert known.find(ASKED[:at] + ASKED[at + 1 :]) is None
        for byte in (0, 9, 10, 13, 32, 58, 255):
            changed = ASKED[:at] + bytes([byte]) + ASKED[at + 1 :]
            assert changed == ASKED or known.find(changed) is None, at
    assert known.find(ASKED[:digit] + b"4" + ASKED[digit + 1 :]) is not None


NEVER_KNOWN = {
    "chunks": b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n",
    "Expect": b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 0\r\n\r\n",
    "Upgrade": b"GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c\r\n\r\n",
    "close": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    "close, second": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive\r\n"
    b"Connection: close\r\n\r\n",
    "close, by its other name": b"GET / HTTP/1.1\r\nHost: a\r\nProxy-Connection: close\r\n\r\n",
    "a nominated header": b"GET / HTTP/1.1\r\nHost: a\r\nConnection: x-a\r\nX-A: 1\r\n\r\n",
    "an empty line before": b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "over 8 KiB": b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"x" * 8192 + b"\r\n\r\n",
}


@pytest.mark.parametrize("name", NEVER_KNOWN)
def test_what_needs_the_parser_is_never_known(name: str) -> None:
    data = NEVER_KNOWN[name]
    known = taught([data, data])
    assert known._by_line == {}
    assert read_requests(known, [data]) == read_requests(NoRequests(), [data])


def test_a_refused_head_is_not_learnt() -> None:
    assert taught([b"GET /#a HTTP/1.1\r\nHost: a\r\n\r\n"])._by_line == {}
    assert taught([b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n"])._by_line == {}


def test_only_the_last_head_of_a_line_is_kept_and_few_lines() -> None:
    other = ASKED.replace(b"Cookie: a", b"Cookie: b")
    known = taught([ASKED, other])
    assert known.find(ASKED) is None and known.find(other) is not None
    for number in range(3000):
        read_requests(known, [b"GET /%d HTTP/1.1\r\nHost: a\r\n\r\n" % number])
        assert len(known._by_line) <= 1024
    assert known.find(b"GET /2999 HTTP/1.1\r\nHost: a\r\n\r\n") is not None


# -- replies


@pytest.mark.parametrize("data", [SAID, CHUNKS])
def test_a_reply_is_known_from_its_fourth_sight_whatever_its_values(data: bytes) -> None:
    assert not knows(seen(data, 2), data)
    known = seen(data)
    other = data.replace(b"X-A: 1", b'X-A: "caf\xe9"\t%s \\1')
    for reply in (data, other):
        assert knows(known, reply)
        call = Call(b"GET", [reply])
        assert read_replies(known, [call]) == read_replies(NoReplies(), [call])


UNLIKE = [
    (b"200 OK", b"200 Ok"), (b"200 OK", b"201 OK"), (b"1.1 ", b"1.0 "), (b"X-A: 1", b"X-A:1"),
    (b"X-A: 1", b"X-A:  1"), (b"X-A: 1", b"X-A: 1 "), (b"X-A: 1", b"X-A: "), (b"X-A: 1", b"X-a: 1"),
    (b"X-A: 1", b"X-A: 1\0"), (b"X-A: 1", b"X-A: 1\x7f"), (b"X-A: 1", b"X-A: 1\r\n 2"),
    (b"X-A: 1", b"X-A: 1\n"), (b"X-A: 1\r\n", b""), (b"X-A: 1\r\n", b"X-A: 1\r\nX-C: 3\r\n"),
    (b"keep-alive", b"close"), (b"timeout=5", b"timeout=6"), (b"h: 2\r", b"h: +2\r"),
    (b"h: 2\r", b"h: 2, 2\r"), (b"h: 2\r", b"h: " + b"0" * 15 + b"2\r"), (b"h: 2\r", b"h: -2\r"),
    (b"X-A: 1\r\nX-B: 2\r\n", b"X-B: 2\r\nX-A: 1\r\n"),
    (b"X-A: 1", b"X-A: 1\r\nTransfer-Encoding: chunked"), (b"Server: s\r\n", b"Server: s\n"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "instead"), UNLIKE)
def test_a_reply_that_is_unlike_in_anything_but_values_is_not_known(
    what: bytes, instead: bytes
) -> None:
    assert what in SAID
    known, data = seen(SAID), SAID.replace(what, instead, 1)
    assert not knows(known, data)
    call = Call(b"GET", [data])
    assert read_replies(known, [call]) == read_replies(NoReplies(), [call])


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",  # goes on with the space that it lacks
        b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nConnection: x-a\r\nX-A: 1\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\n\r\nuntil it closes",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: " + b"x" * 8192 + b"\r\n\r\n",
    ],
)
def test_a_reply_that_needs_the_parser_is_never_known(data: bytes) -> None:
    known = seen(data, 5)
    assert not knows(known, data)
    call = Call(b"GET", [data])
    assert read_replies(known, [call]) == read_replies(NoReplies(), [call])


def test_a_head_learnt_from_head_tells_the_length_of_others_but_not_of_its_like() -> None:
    head = SAID.removesuffix(b"hi")
    known = seen(head, method=b"HEAD")
    assert read_replies(known, [Call(b"GET", [SAID])])[0].body == b"hi"
    [reply] = read_replies(known, [Call(b"HEAD", [head])])
    assert reply.ended and reply.body == b"" and reply.length == 0


def test_a_head_in_two_reads_is_the_parsers() -> None:
    known = seen(SAID)
    for at in range(1, SAID.index(b"\r\n\r\n") + 4):
        assert not knows(known, SAID[:at])
        assert read_replies(known, [Call(b"GET", [SAID[:at], SAID[at:]])])[0].body == b"hi"


def test_few_patterns_are_kept_the_likeliest_first_and_names_that_never_repeat_cost_nothing() -> (
    None
):
    known = KnownReplies()

    def hear(name: int, times: int) -> bytes:
        data = b"HTTP/1.1 200 OK\r\nX-%d: 1\r\nContent-Length: 0\r\n\r\n" % name
        for _ in range(times):
            read_replies(known, [Call(b"GET", [data])])
        return data

    for number in range(400):
        hear(number, 1)
        assert len(known._sightings) <= 256
    assert known._replies == []
    often = hear(1000, 4)
    for number in range(7):
        hear(2000 + number, 4)
        assert knows(known, often)
    hear(3000, 4)
    assert len(known._replies) == 8
    assert knows(known, often)
    for number in range(300):
        hear(4000 + number, 3)
    assert known._compiled == 256


def test_connections_of_an_origin_share_and_others_do_not() -> None:
    assert not knows(KnownReplies(), SAID)
    assert KnownRequests().find(ASKED) is None
