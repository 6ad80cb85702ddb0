"""However bytes are cut, and whatever heads are known: the readers make the same of them.

The measure is a reader that knows no heads and gets everything in one piece: the parser alone.
"""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.fuzz.messages import Answer, Asked, cut, cut_anyhow, damaged, replies, requests
from tests.fuzz.readings import (
    Call,
    NoReplies,
    NoRequests,
    RequestsRead,
    agree,
    is_vague,
    read_replies,
    read_requests,
    taught,
    taught_replies,
)
from tests.fuzz.runs import examples

SEVERAL = st.lists(requests(), min_size=1, max_size=4)


def by_the_parser(data: bytes, refuses_offers: bool = False) -> RequestsRead:
    return read_requests(NoRequests(), [data], refuses_offers)


# -- requests


@examples(250)
@given(SEVERAL, st.booleans(), st.data())
def test_requests_are_read_alike(asked: list[Asked], refuses: bool, data: st.DataObject) -> None:
    stream = b"".join(one.wire for one in asked)
    pieces = cut_anyhow(data, stream)
    measure = by_the_parser(stream, refuses)
    assert read_requests(NoRequests(), pieces, refuses) == measure
    assert read_requests(taught(one.like for one in asked), pieces, refuses) == measure


@examples(500)
@given(SEVERAL, st.booleans(), st.data())
def test_damaged_requests_are_read_alike(
    asked: list[Asked], refuses: bool, data: st.DataObject
) -> None:
    """What the parser refuses is never accepted because an earlier head was like it."""
    whole = [one.wire for one in asked]
    stream = data.draw(damaged(b"".join(whole)))
    assume(not is_vague(stream))
    known = taught([*(one.like for one in asked), stream, stream])
    pieces = cut_anyhow(data, stream)
    measure = by_the_parser(stream, refuses)
    assert read_requests(NoRequests(), pieces, refuses) == measure
    assert read_requests(known, pieces, refuses) == measure
    assert read_requests(known, [stream], refuses) == measure


STREAMS = {
    "sized and pipelined": b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
    b"GET /b HTTP/1.1\r\nHost: a\r\n\r\nPOST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
    "chunks, extensions and trailers": b"POST /a HTTP/1.1\r\nHost: a\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n0\r\nA: b\r\n\r\n"
    b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "empty lines before": b"\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n\r\n"
    b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "an offer of h2c": b"POST /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    b"Content-Length: 3\r\n\r\nabcGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "an offer that is passed on": b"GET /a HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "the last of several": b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"
    b"GET /b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "a fault behind a request": b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n"
    b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a fault between chunks": b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\nabcx\r\n0\r\n\r\n",
    "two spaces": b"GET /b HTTP/1.1\r\nHost: a\r\n\r\nGET  /b HTTP/1.1\r\nHost: a\r\n\r\n",
}


@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("name", STREAMS)
def test_requests_are_read_alike_cut_at_every_byte(name: str, refuses: bool) -> None:
    stream = STREAMS[name]
    known = taught([stream, b"GET /b HTTP/1.1\r\nHost: a\r\n\r\n", stream])
    measure = by_the_parser(stream, refuses)
    every = [[place] for place in range(len(stream))] + [list(range(len(stream)))]
    for places in every:
        assert read_requests(known, cut(stream, places), refuses) == measure, places


# -- replies


@st.composite
def conversations(draw: st.DrawFn) -> list[Answer]:
    some = st.sampled_from((b"GET", b"GET", b"POST", b"HEAD"))
    methods = draw(st.lists(some, min_size=1, max_size=4))
    return [draw(replies(method=method)) for method in methods]


def in_one_piece(answer: Answer) -> Call:
    return Call(answer.method, [answer.wire])


@examples(250)
@given(conversations(), st.data())
def test_replies_are_read_alike(answers: list[Answer], data: st.DataObject) -> None:
    calls = [Call(answer.method, cut_anyhow(data, answer.wire)) for answer in answers]
    measure = read_replies(NoReplies(), map(in_one_piece, answers))
    known = taught_replies(map(in_one_piece, answers))
    assert read_replies(NoReplies(), calls) == measure
    assert read_replies(known, calls) == measure


@examples(500)
@given(conversations(), st.data())
def test_damaged_replies_are_read_alike(answers: list[Answer], data: st.DataObject) -> None:
    known = taught_replies(map(in_one_piece, answers))
    at = data.draw(st.integers(0, len(answers) - 1))
    wires = [answer.wire for answer in answers]
    wires[at] = data.draw(damaged(wires[at]))
    measured = [Call(answer.method, [wire]) for answer, wire in zip(answers, wires, strict=True)]
    calls = [Call(call.method, cut_anyhow(data, call.pieces[0])) for call in measured]
    measure = read_replies(NoReplies(), measured)
    agree(read_replies(NoReplies(), calls), measure)
    agree(read_replies(known, calls), measure)
    agree(read_replies(known, measured), measure)


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BODIES = {
    "sizes of two digits": b"10\r\n0123456789abcdef\r\n1\r\n9\r\n11\r\n\r\n0\r\n\r\nGET / HTTP\r\n"
    b"0\r\n\r\n",
    "a size that ends like the last one": b"1\r\na\r\n10\r\n\r\n23456789abcdef\r\n0\r\n\r\n",
    "extensions and trailers": b"02;a\r\nab\r\n1 ;b\r\nc\r\n000;c\r\nA: b\r\n\r\n",
    "bytes behind it": b"2\r\nab\r\n0\r\n\r\n0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
    "no end of a chunk": b"2\r\nab\r\n2\r\ncdX\r\n0\r\n\r\n",
    "a bad size": b"2\r\nab\r\n1\r\n2\r\n0\r\n\r\ng\r\n",
    "sizes of many digits": b"0000000001\r\na\r\n00000002\r\nbc\r\n0000000000\r\n\r\n",
}


@pytest.mark.parametrize("name", BODIES)
def test_chunks_are_read_alike_cut_at_any_two_bytes(name: str) -> None:
    stream = HEAD + BODIES[name]
    known = taught_replies([Call(b"GET", [HEAD + b"0\r\n\r\n"])])
    measure = read_replies(NoReplies(), [Call(b"GET", [stream])])
    for one in range(len(HEAD), len(stream)):
        for other in range(one, len(stream)):
            pieces = cut(stream, [one, other])
            agree(read_replies(known, [Call(b"GET", pieces)]), measure)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
def test_sized_replies_are_read_alike_cut_at_any_two_bytes(method: bytes) -> None:
    stream = b"HTTP/1.1 200 OK\r\nX-A: 1\r\nContent-Length: 5\r\n\r\nabc\r\nHTTP/1.1 200 OK\r\n"
    known = taught_replies([Call(b"GET", [stream])])
    measure = read_replies(NoReplies(), [Call(method, [stream])])
    for one in range(len(stream)):
        for other in range(one, len(stream)):
            agree(read_replies(known, [Call(method, cut(stream, [one, other]))]), measure)


WHOLE = {
    "sized": (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"),
    "empty": (b"GET", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
    "chunked": (b"POST", HEAD + b"2\r\nab\r\n0\r\n\r\n"),
    "to HEAD": (b"HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"),
    "204": (b"GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "304": (b"GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n"),
}
BEHIND = [b"x", b"H", b"\0", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"]


@pytest.mark.parametrize("name", WHOLE)
def test_a_connection_with_bytes_behind_a_reply_serves_no_other(name: str) -> None:
    method, wire = WHOLE[name]
    for known in (NoReplies(), taught_replies([Call(method, [wire])])):
        [alone] = read_replies(known, [Call(method, [wire])])
        assert alone.ended and alone.reusable
        for more in BEHIND:
            [reply] = read_replies(known, [Call(method, [wire + more])])
            assert reply.wires == alone.wires and reply.body == alone.body
            assert reply.ended and not reply.reusable
