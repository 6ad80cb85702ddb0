"""The reader that judges: strict, whole messages only, and it knows where each byte stood."""

from __future__ import annotations

import pytest

from bin.wire_frames import BINARY, PING, PONG, TEXT, Frame, accept, read_frame
from bin.wire_read import Tape, WireError, read_reply, read_request

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n"
END = b"0\r\nX-Sum: 1\r\n\r\n"


def test_a_chunked_reply_is_read_with_the_place_of_each_byte() -> None:
    wire = CHUNKED + END
    reply = read_reply(wire + b"next", b"GET", ended=False)
    assert reply is not None
    assert (reply.status, reply.reason, reply.body, reply.framing) == (
        200, b"OK", b"abcde", "chunked",
    )  # fmt: skip
    assert (reply.trailers, reply.extensions, reply.end) == (((b"X-Sum", b"1"),), 1, len(wire))
    assert reply.body_by(wire.index(b"bc")) == 1
    assert reply.body_by(len(CHUNKED)) == 5
    assert wire[: reply.wire_for(4)].endswith(b"d")


@pytest.mark.parametrize("size", range(len(CHUNKED + END)))
def test_a_part_of_a_reply_is_none_yet_and_cut_short_if_the_peer_is_gone(size: int) -> None:
    part = (CHUNKED + END)[:size]
    assert read_reply(part, b"GET", ended=False) is None
    cut = read_reply(part, b"GET", ended=True)
    assert cut is None or not cut.whole


@pytest.mark.parametrize(
    ("wire", "method", "body", "framing", "end"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\nx", b"GET", b"", "none", 1),
        (b"HTTP/1.1 304 \r\nContent-Length: 9\r\n\r\nx", b"GET", b"", "none", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx", b"HEAD", b"", "none", 1),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nabx", b"GET", b"ab", "length", 1),
        (b"HTTP/1.1 200 OK\r\n\r\nabx", b"GET", b"abx", "close", 0),
        (b"HTTP/1.1 101 Go\r\nUpgrade: w\r\n\r\n\x81\0", b"GET", b"\x81\0", "tunnel", 0),
    ],
)
def test_how_a_body_ends(wire: bytes, method: bytes, body: bytes, framing: str, end: int) -> None:
    reply = read_reply(wire, method, ended=True)
    assert reply is not None
    assert (reply.body, reply.framing, len(wire) - reply.end) == (body, framing, end)


def test_interim_replies_are_kept_apart_from_the_final_one() -> None:
    wire = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nLink: a\r\n\r\n" + CHUNKED + END
    reply = read_reply(wire, b"POST", ended=False)
    assert reply is not None
    assert (reply.interim, reply.headers) == ((100, 103), ((b"Transfer-Encoding", b"chunked"),))


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA : b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: b\0c\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\na",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        CHUNKED + b"0x1\r\n",
        CHUNKED + b"1\r\nab\r\n0\r\n\r\n",
    ],
)
def test_what_is_no_http_is_an_error(wire: bytes) -> None:
    with pytest.raises(WireError):
        read_reply(wire, b"GET", ended=True)


def test_a_request_is_read_and_its_odd_bytes_are_kept() -> None:
    start = b"POST //a/../%2F;b? HTTP/1.1\r\n"
    wire = start + b"hOST: x\r\nX-E:\r\nX-O: \xff \r\nContent-Length: 2\r\n\r\nabGET"
    request = read_request(wire)
    assert request is not None
    assert (request.method, request.target, request.body) == (b"POST", b"//a/../%2F;b?", b"ab")
    assert request.headers[:3] == ((b"hOST", b"x"), (b"X-E", b""), (b"X-O", b"\xff"))
    assert read_request(wire[:-4]) is None
    with pytest.raises(WireError, match="no request line"):
        read_request(b"GET  /two HTTP/1.1\r\n\r\n")


def test_a_part_of_a_tape_keeps_its_times() -> None:
    tape = Tape(b"abcdef", ((2, 1.0), (4, 2.0), (6, 3.0)))
    assert [tape.at(end) for end in (1, 2, 3, 6)] == [1.0, 1.0, 2.0, 3.0]
    assert tape.part(1, 5) == Tape(b"bcde", ((1, 1.0), (3, 2.0), (4, 3.0)))


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
@pytest.mark.parametrize("masked", [False, True])
def test_a_frame_is_read_as_it_was_written(size: int, masked: bool) -> None:
    frame = Frame(BINARY, bytes(range(256)) * (size // 256) + b"x" * (size % 256))
    wire = frame.bytes(masked)
    assert read_frame(wire + b"more") == (frame, len(wire))
    assert read_frame(wire[:-1]) is None
    assert read_frame(wire[:1]) is None


def test_the_accept_header_and_pongs_are_as_rfc_6455_has_them() -> None:
    assert accept(b"dGhlIHNhbXBsZSBub25jZQ==") == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert Frame(PING, b"a").echo() == Frame(PONG, b"a")
    assert Frame(TEXT, b"a").bytes(masked=False) == b"\x81\x01a"
