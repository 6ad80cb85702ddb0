"""Heads that were seen before, recognised without the parser.

An app sends the same head call after call; only Content-Length differs. And an upstream answers
with the same header lines call after call; only values differ. So what the parser has proved once
is remembered. A request's head is known when its bytes are those of an earlier one, but for the
digits of its length. A reply's head is known when it matches the pattern that an earlier one was
turned into: the same names in the same order, the same status line and hop-by-hop values, and in
place of all other values a stricter rule than the parser's. Whatever is not known, byte for byte,
goes to the parser. Half the relay's work on a request used to be here.
"""

from __future__ import annotations

import re
from typing import Final

from proxy.heads import CHUNKED, MOST_HEAD_BYTES, RequestHead, ResponseHead
from proxy.shapes import HOP, Names, Shape, Texts

_MOST_BYTES: Final = 8 * 1024  # of a head worth remembering
_MOST_REQUESTS: Final = 1024  # whose bytes come to 8 MiB at the very most
_MOST_REPLIES: Final = 8  # per origin; each that does not match costs 0.3 µs
_MOST_SIGHTINGS: Final = 256
_SIGHTINGS: Final = 3  # a pattern takes a millisecond to compile
_MOST_COMPILED: Final = 256  # per origin and run: names that never repeat must not keep us busy
_LENGTH_LINE: Final = re.compile(rb"(?i)\r\ncontent-length:[ \t]*(\d{1,15})[ \t]*\r\n")
_KEEPS: Final = (b"", b"keep-alive", b"Keep-Alive")


class _KnownRequest:
    """`start`, digits, `end` are the head's bytes; `end` is None when there is no length."""

    __slots__ = ("end", "head", "start")

    def __init__(self, start: bytes, end: bytes | None, head: RequestHead) -> None:
        self.start, self.end, self.head = start, end, head


class KnownRequests:
    """The last head for each request line. Bounded."""

    def __init__(self, most: int = _MOST_REQUESTS) -> None:
        self._most = most
        self._by_line: dict[bytes, _KnownRequest] = {}

    def find(self, data: bytes) -> tuple[RequestHead, int, int] | None:
        """The head that `data` begins with, if known: with where it ends, and its length."""
        known = self._by_line.get(data[: data.find(b"\r\n")])
        if known is None or not data.startswith(known.start):
            return None
        at = len(known.start)
        if known.end is None:
            return known.head, at, 0
        stop = data.find(b"\r", at, at + 16)
        digits = data[at:stop]
        if not digits.isdigit() or not data.startswith(known.end, stop):
            return None
        return known.head, stop + len(known.end), int(digits)

    def learn(self, data: bytes, head: RequestHead) -> None:
        """`data` begins with this head, which the parser has read from nothing but it."""
        end = data.find(b"\r\n\r\n") + 4
        if end < 4 or end > _MOST_BYTES or not _may_be_known(head):
            return
        raw = data[:end]
        line = raw[: raw.find(b"\r\n")]
        if line != b"%b %b HTTP/1.1" % (head.method, head.target):
            return  # an empty line before it, say
        known = _KnownRequest(raw, None, head)
        if head.shape.length >= 0:
            found = _LENGTH_LINE.findall(raw)
            if len(found) != 1:
                return
            match = _LENGTH_LINE.search(raw)
            assert match is not None
            known = _KnownRequest(raw[: match.start(1)], raw[match.end(1) :], head)
        if len(self._by_line) >= self._most:
            self._by_line.clear()
        self._by_line[line] = known


def _may_be_known(head: RequestHead) -> bool:
    """Not what needs the parser for its body, an answer of its own, or ends the connection."""
    shape = head.shape
    # The parser heeds every Connection header, and Proxy-Connection as one of them.
    named = (*shape.places.get(b"connection", ()), *shape.places.get(b"proxy-connection", ()))
    return (
        head.http11
        and head.length != CHUNKED
        and not head.expects_continue
        and b"upgrade" not in shape.places
        and all(head.values[place] in _KEEPS for place in named)
    )


# A field value without white space around it (RFC 9110 section 5.5). Possessive: no way back, so
# a head that does not match costs no more than one that does.
_VALUE: Final = rb"([!-~\x80-\xff][\t -~\x80-\xff]*+(?<![ \t]))"


class _KnownReply:
    """The pattern of a reply's head, from the status line to the empty line.

    `runs` are the groups that go on as they are: all lines but the hop-by-hop ones. `shape` finds
    the values to record among the groups.
    """

    __slots__ = ("_length", "_runs", "_shape", "_status", "match")

    def __init__(self, status: int, line: bytes, shape: Shape, values: Texts) -> None:
        self._status = status
        pattern = rb"(" + re.escape(line) + rb"\r\n"
        groups: list[int] = []
        self._runs = [1]
        self._length = CHUNKED
        count, dropping = 1, False
        for name, value in zip(shape.names, values, strict=True):
            drop = name.lower() in shape.dropped
            if drop != dropping:
                pattern += rb")" if drop else rb"("
                if not drop:
                    count += 1
                    self._runs.append(count)
                dropping = drop
            count += 1
            groups.append(count)
            if name.lower() == b"content-length":
                self._length = count
                value_pattern = rb"(\d{1,15})"
            else:
                value_pattern = rb"(" + re.escape(value) + rb")" if drop else _VALUE
            pattern += re.escape(name) + rb": " + value_pattern + rb"\r\n"
        pattern += rb"\r\n" if dropping else rb")\r\n"
        self.match = re.compile(pattern).match
        self._shape = shape.by_groups(groups)

    def head(self, match: re.Match[bytes]) -> ResponseHead:
        runs = self._runs
        lines = match[1] if len(runs) == 1 else b"".join(match.group(*runs))
        length = CHUNKED if self._length == CHUNKED else int(match[self._length])
        return ResponseHead(self._status, length, lines, self._shape, match)


class KnownReplies:
    """Of one origin."""

    def __init__(self) -> None:
        self._replies: list[_KnownReply] = []
        self._sightings: dict[tuple[bytes, Names, Texts], int] = {}
        self._compiled = 0

    def find(self, data: bytes) -> tuple[ResponseHead, int] | None:
        """The head that `data` begins with, if known, and where it ends. Not for replies to HEAD,
        which have a length and no body."""
        replies = self._replies
        for index, reply in enumerate(replies):
            match = reply.match(data)
            if match is not None and match.end() <= MOST_HEAD_BYTES:
                if index:  # the likeliest first
                    replies.insert(0, replies.pop(index))
                return reply.head(match), match.end()
        return None

    def learn(self, data: bytes, head: ResponseHead, keeps_alive: bool) -> None:
        """`data` begins with this head, which the parser has read from nothing but it."""
        end = data.find(b"\r\n\r\n")
        if end < 0 or end > _MOST_BYTES or not keeps_alive or self._compiled >= _MOST_COMPILED:
            return
        line = data[: data.find(b"\r\n")]
        # With the space behind the status: a reply may lack it, we must not (RFC 9112 section 4).
        if head.status in (101, 204, 304) or not line.startswith(b"HTTP/1.1 %d " % head.status):
            return
        names = head.shape.names
        values = head.shape.every(head.values)
        if not _is_clear(names, values):
            return
        fixed = tuple(v for n, v in zip(names, values, strict=True) if n.lower() in HOP)
        seen = self._sightings.get((line, names, fixed), 0) + 1
        if len(self._sightings) >= _MOST_SIGHTINGS:
            self._sightings.clear()
        self._sightings[line, names, fixed] = seen
        if seen == _SIGHTINGS:
            self._compiled += 1
            self._replies.insert(0, _KnownReply(head.status, line, head.shape, values))
            del self._replies[_MOST_REPLIES:]


def _is_clear(names: Names, values: Texts) -> bool:
    """Framed by one length or by chunks, and Connection nominates nothing."""
    framing = 0
    for name, value in zip(names, values, strict=True):
        lower = name.lower()
        if lower == b"content-length" or lower == b"transfer-encoding":
            framing += 1
        elif lower == b"connection" and value not in _KEEPS:
            return False
    return framing == 1
