"""Reads replies out of an upstream's bytes, sans-IO.

Known heads (see `known`), bodies of a given length and whole chunks are read here; all else is the
parser's. After each `feed`, `head`, `pieces` and `ended` are what it brought; `framed`, if it is
not empty, are the pieces as the whole chunks that they came in.
"""

from __future__ import annotations

import re
from typing import Final

import httptools

from proxy.heads import (
    CHUNKED,
    MOST_HEAD_BYTES,
    UNTIL_CLOSE,
    Refused,
    ResponseHead,
    is_too_large,
    read_response,
)
from proxy.known import KnownReplies

_UNASKED: Final = "the upstream switched protocols unasked"
_TOO_LARGE: Final = "the upstream's head is over 64 KiB or 256 headers"
_CHUNKS_FOLLOW: Final = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
# Size and line end only (RFC 9112 section 7.1); with an extension it is the parser's.
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
# The size lines of most events of streams: looked up for a third of what a match costs.
_SMALL: Final = {b"%x" % size: size for size in range(1, 1024)}


class ReplyReader:
    """`begin` a call, `feed` it bytes until `ended`, then `reset` and take the next call.

    `reusable`: after `ended`, may the connection serve another call? `raw`: the upstream has agreed
    to speak another protocol; all that is fed from then on comes back in `pieces`.
    """

    def __init__(self, known: KnownReplies) -> None:
        self._known = known
        self._parser = httptools.HttpResponseParser(self)
        self._method = b""
        self._offered = b""
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._reason = b""
        self._head_bytes = 0
        self._left = 0  # bytes of a body that is counted, not parsed
        self._fresh = True  # nothing of this reply has been read
        self._skips_head = False  # the parser reads a head that is none of the upstream's
        self._in_body = False
        self._between_chunks = False
        self._keeps_alive = False
        self._clean = True  # no bytes but those of a reply
        self._learnable: ResponseHead | None = None
        self.trailers = 0
        self.raw = False
        self.length = 0
        self.head: ResponseHead | None = None
        self.pieces: list[bytes] = []
        self.framed = b""
        self.ended = False

    def begin(self, method: bytes, upgrade: bytes) -> None:
        """`upgrade`: the protocol that the call offers to speak instead, if any."""
        self._method = method
        self._offered = upgrade

    def feed(self, data: bytes) -> None:
        """Raises Refused (502) when this is no reply to the call. What came before still counts."""
        if self._left:
            self._count(data)
        elif self.raw:
            self.pieces.append(data)
        elif self._between_chunks and self._whole_chunks(data):
            pass
        elif self._fresh and self._method != b"HEAD" and (found := self._known.find(data)):
            self._fresh = False
            self._begin_known(found[0], data, found[1])
        else:
            self._parse(data)

    @property
    def reusable(self) -> bool:
        return self._clean and self._keeps_alive and self.length != UNTIL_CLOSE and not self.raw

    def reset(self) -> None:
        """The reply has ended: ready for the next call."""
        if self._method == b"HEAD":  # this parser still waits for a body
            self._parser = httptools.HttpResponseParser(self)
        self._names, self._values = [], []
        self._reason = b""
        self._head_bytes = self._left = self.length = self.trailers = 0
        self._fresh = True
        self._in_body = self._between_chunks = self.ended = False
        self.head = None
        self.pieces = []
        self.framed = b""

    def close(self) -> None:
        """Nothing more comes. The parser and its reader hold each other, and what was read with
        them: for longer than memory lasts, if left to the collector."""
        del self._parser

    # -- without the parser

    def _begin_known(self, head: ResponseHead, data: bytes, end: int) -> None:
        self.head = head
        self.length = head.length
        self._keeps_alive = True
        self._in_body = True
        rest = data[end:]
        if head.length == CHUNKED:
            self._skips_head = True
            self._parser.feed_data(_CHUNKS_FOLLOW)
            self._between_chunks = True
            if rest and not self._whole_chunks(rest):
                self._parse(rest)
        elif head.length:
            self._left = head.length
            if rest:
                self._count(rest)
        else:
            self.ended = True
            self._clean = self._clean and not rest

    def _count(self, data: bytes) -> None:
        left = self._left - len(data)
        if left < 0:
            self._clean = False  # bytes behind the reply
            data = data[: self._left]
            left = 0
        self._left = left
        self.pieces.append(data)
        self.ended = not left

    def _whole_chunks(self, data: bytes) -> bool:
        """Is `data` nothing but whole chunks? It is one small chunk in most reads of a stream."""
        line = data.find(b"\r\n", 0, 5)
        if _SMALL.get(data[:line]) == len(data) - line - 4 and data.endswith(b"\r\n"):
            self.framed = b"" if self.pieces else data
            self.pieces.append(data[line + 2 : -2])
            return True
        return self._many_chunks(data)

    def _many_chunks(self, data: bytes) -> bool:
        size, at = len(data), 0
        pieces = []
        while at < size:
            match = _CHUNK.match(data, at)
            if match is None:
                return False
            start = match.end()
            at = start + int(match[1], 16)
            piece = data[start:at]
            if data[at : at + 2] != b"\r\n":
                return False
            at += 2
            if not piece:
                if at != size:
                    return False
                self.ended = True
                self._parser = httptools.HttpResponseParser(self)  # the old one waits for chunks
                break
            pieces.append(piece)
        else:
            self.framed = b"" if self.pieces else data
        self.pieces += pieces
        return True

    # -- with the parser

    def _parse(self, data: bytes) -> None:
        fresh, self._fresh = self._fresh, False
        self._between_chunks = False
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._switch(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError as error:
            raise _cause(error) from None
        # At the border of two chunks, with nothing of a size line in the parser?
        self._between_chunks = self._between_chunks and data.endswith(b"\r\n")
        # Heads, interim replies, trailers, chunk extensions: whatever is read and is no body.
        if self._head_bytes > MOST_HEAD_BYTES and not self.ended:
            raise Refused(502, "bad_upstream_reply", _TOO_LARGE)
        learnable, self._learnable = self._learnable, None
        if fresh and learnable is not None:
            self._known.learn(data, learnable, self._keeps_alive)

    def _switch(self, rest: bytes) -> None:
        self.ended = False
        if self.head is None or self.head.status != 101:
            self.head = None
            raise Refused(502, "bad_upstream_reply", _UNASKED)
        self.raw = True
        if rest:
            self.pieces.append(rest)

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if self.ended:
            self._clean = False  # bytes behind the reply
        self._reason = b""

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._names.append(name)
        self._values.append(value)

    def on_headers_complete(self) -> None:
        names, self._names = self._names, []
        values, self._values = self._values, []
        if self._skips_head:
            self._skips_head = False
            return
        status = self._parser.get_status_code()
        if self.ended or (100 <= status < 200 and status != 101):
            return
        if is_too_large(names, values, len(b"HTTP/1.1 200 \r\n") + len(self._reason)):
            raise Refused(502, "bad_upstream_reply", _TOO_LARGE)
        self.head = read_response(
            status,
            self._reason,
            self._parser.get_http_version(),
            tuple(names),
            values,
            self._method,
        )
        # Without `Connection: upgrade` it switches nothing (RFC 9110 section 7.8).
        agreed = self._parser.should_upgrade() and _agrees(self.head, self._offered)
        if status == 101 and not agreed:
            self.head = None
            raise Refused(502, "bad_upstream_reply", _UNASKED)
        self.length = self.head.length
        self._keeps_alive = self._parser.should_keep_alive()
        self._in_body = True
        self._learnable = self.head
        if self._method == b"HEAD":
            self.ended = True  # the parser would wait for the body that Content-Length names

    def on_chunk_header(self) -> None:
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        self._between_chunks = not self.ended

    def on_body(self, data: bytes) -> None:
        if not self._in_body:  # RFC 9112 section 6.3: none, whatever the headers say
            raise Refused(502, "bad_upstream_reply", "the upstream's interim reply has a body")
        self._head_bytes = 0
        if self.ended:
            self._clean = False  # a body behind a reply that has none
        else:
            self.pieces.append(data)

    def on_message_complete(self) -> None:
        if self._names:  # trailers: dropped, never merged
            self.trailers += len(self._names)
            self._names, self._values = [], []
        if self._in_body:  # not so after an interim reply (1xx): the final one follows
            self.ended = True
            self._between_chunks = False


def _agrees(head: ResponseHead, offered: bytes) -> bool:
    if not offered:
        return False
    named = [value for name, value in head.pairs() if name.lower() == b"upgrade"]
    return [value.lower() for value in named] == [offered.lower()]


def _cause(error: Exception) -> Refused:
    """The parser wraps what a callback raised."""
    inner = error.__context__
    if isinstance(inner, Refused):
        return Refused(502, "bad_upstream_reply", inner.message)
    return Refused(502, "bad_upstream_reply", f"the upstream's reply is not HTTP: {error}")
