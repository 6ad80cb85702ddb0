"""Recorded bytes and the HTTP/1.1 messages in them: pure, and strict.

It shares nothing with the relay's parser: what examines must not have the faults of what is
examined. Positions are kept: for each byte of a body one can ask where on the wire it was, and so
when it came.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Final, Literal

Headers = tuple[tuple[bytes, bytes], ...]
Framing = Literal["none", "length", "chunked", "close", "tunnel"]

_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([1-9]\d\d)(?: (.*))?", re.DOTALL)
_REQUEST: Final = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([!-~]+) HTTP/1\.[01]")
_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})([ \t]*;.*)?")
_LENGTH: Final = re.compile(rb"\d{1,15}")


class WireError(ValueError):
    """These bytes are no HTTP/1.1 message."""


class _Incomplete(Exception):
    """More bytes may make it one."""


@dataclass(frozen=True, slots=True)
class Tape:
    """Bytes in one direction. `marks`: bytes so far and monotonic seconds, of each step."""

    data: bytes = b""
    marks: tuple[tuple[int, float], ...] = ()

    def at(self, end: int) -> float:
        """When the first `end` bytes were there."""
        place = bisect_left(self.marks, (end, float("-inf")))
        return self.marks[min(place, len(self.marks) - 1)][1]

    def part(self, start: int, end: int) -> Tape:
        """The bytes from `start` to `end` as a tape of their own."""
        inner = [(mark - start, at) for mark, at in self.marks if start < mark < end]
        last = [(end - start, self.at(end))] if end > start else []
        return Tape(self.data[start:end], tuple(inner + last))


@dataclass(frozen=True, slots=True)
class Message:
    """One request or final reply, its body without framing.

    `spans`: (place on the wire, place in the body, size) of each piece of the body.
    `whole`: False if the connection ended before the framing said so.
    """

    start: bytes
    headers: Headers
    framing: Framing = "none"
    body: bytes = b""
    spans: tuple[tuple[int, int, int], ...] = ()
    trailers: Headers = ()
    extensions: int = 0
    interim: tuple[int, ...] = ()
    head_end: int = 0
    end: int = 0
    whole: bool = True

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]

    @property
    def status(self) -> int:
        found = _STATUS.fullmatch(self.start)
        return int(found[1]) if found else 0

    @property
    def reason(self) -> bytes:
        found = _STATUS.fullmatch(self.start)
        return (found[2] or b"") if found else b""

    @property
    def method(self) -> bytes:
        return self.start.split(b" ")[0]

    @property
    def target(self) -> bytes:
        return self.start.split(b" ")[1]

    @property
    def version(self) -> bytes:
        return self.start[:8] if self.start.startswith(b"HTTP/") else self.start[-8:]

    def body_by(self, wire: int) -> int:
        """How much of the body is in the first `wire` bytes."""
        most = 0
        for place, start, size in self.spans:
            if wire > place:
                most = start + min(size, wire - place)
        return most

    def wire_for(self, size: int) -> int:
        """How many bytes of the wire bring the body's first `size`."""
        for place, start, length in self.spans:
            if size <= start + length:
                return place + size - start
        return self.end


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def line(self) -> bytes:
        end = self.data.find(b"\r\n", self.at)
        if end < 0:
            raise _Incomplete
        line = self.data[self.at : end]
        if b"\n" in line or b"\r" in line:
            raise WireError("a line ends with a bare CR or LF")
        self.at = end + 2
        return line

    def take(self, size: int) -> bytes:
        if len(self.data) - self.at < size:
            raise _Incomplete
        self.at += size
        return self.data[self.at - size : self.at]


@dataclass(frozen=True, slots=True)
class _Head:
    start: bytes
    headers: Headers
    end: int
    interim: tuple[int, ...] = ()


def read_request(data: bytes, upgrades: bool = False) -> Message | None:
    """The request that these bytes begin with; None: not all of it is there. Raises WireError.

    `upgrades`: what follows the head is no HTTP, and the message ends where the data do.
    """
    cursor = _Cursor(data)
    try:
        head = _head(cursor)
        if not _REQUEST.fullmatch(head.start):
            raise WireError(f"no request line: {head.start[:60]!r}")
        if upgrades:
            return _rest(data, head, "tunnel", True)
        return _body(cursor, head, _framing(head.headers, "none"))
    except _Incomplete:
        return None


def read_reply(data: bytes, method: bytes, ended: bool) -> Message | None:
    """The final reply that these bytes begin with; None: not all of it is there. Raises WireError.

    `ended`: the peer has closed. A body that is then short comes back with `whole` False.
    """
    cursor = _Cursor(data)
    interim: list[int] = []
    try:
        while True:
            head = _head(cursor)
            status = _STATUS.fullmatch(head.start)
            if status is None:
                raise WireError(f"no status line: {head.start[:60]!r}")
            if status[1] == b"101" or not status[1].startswith(b"1"):
                break
            interim.append(int(status[1]))
    except _Incomplete:
        return None
    return _reply(cursor, replace(head, interim=tuple(interim)), status[1], method, ended)


def _reply(
    cursor: _Cursor, head: _Head, status: bytes, method: bytes, ended: bool
) -> Message | None:
    if status == b"101":
        return _rest(cursor.data, head, "tunnel", ended)
    bodiless = method == b"HEAD" or status in (b"204", b"304")
    framing = "none" if bodiless else _framing(head.headers, "close")
    if framing == "close":
        return _rest(cursor.data, head, framing, True) if ended else None
    try:
        return _body(cursor, head, framing)
    except _Incomplete:
        # Of a cut chunked body the chunk lines stay in: that it is not whole is what matters.
        return _rest(cursor.data, head, framing, False) if ended else None


def _head(cursor: _Cursor) -> _Head:
    start = cursor.line()
    headers = _fields(cursor)
    return _Head(start, headers, cursor.at)


def _fields(cursor: _Cursor) -> Headers:
    fields: list[tuple[bytes, bytes]] = []
    while line := cursor.line():
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            raise WireError(f"no header line: {line[:60]!r}")
        value = value.strip(b" \t")
        if _CONTROL.search(value):
            raise WireError(f"a control character in {name[:60]!r}")
        fields.append((name, value))
    return tuple(fields)


def _framing(headers: Headers, without: Framing) -> Framing:
    """RFC 9112 section 6.3, with all that is doubtful refused."""
    lengths = [value for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if codings:
        if lengths or [coding.lower() for coding in codings] != [b"chunked"]:
            raise WireError("ambiguous framing")
        return "chunked"
    if not lengths:
        return without
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise WireError("no clear Content-Length")
    return "length"


def _rest(data: bytes, head: _Head, framing: Framing, whole: bool) -> Message:
    """All that there is as the body: it ends with the connection, or was cut short by its end."""
    body = data[head.end :]
    return Message(
        head.start, head.headers, framing, body, ((head.end, 0, len(body)),),
        interim=head.interim, head_end=head.end, end=len(data), whole=whole,
    )  # fmt: skip


def _body(cursor: _Cursor, head: _Head, framing: Framing) -> Message:
    if framing == "chunked":
        return _chunks(cursor, head)
    size = int(_first(head.headers, b"content-length")) if framing == "length" else 0
    body = cursor.take(size)
    return Message(
        head.start, head.headers, framing, body, ((head.end, 0, size),),
        interim=head.interim, head_end=head.end, end=cursor.at,
    )  # fmt: skip


def _first(headers: Headers, wanted: bytes) -> bytes:
    return next(value for name, value in headers if name.lower() == wanted)


def _chunks(cursor: _Cursor, head: _Head) -> Message:
    pieces: list[bytes] = []
    spans: list[tuple[int, int, int]] = []
    extensions = done = 0
    while True:
        line = cursor.line()
        found = _SIZE.fullmatch(line)
        if found is None:
            raise WireError(f"no chunk size: {line[:60]!r}")
        size = int(found[1], 16)
        extensions += bool(found[2])
        if size == 0:
            break
        pieces.append(cursor.take(size))
        spans.append((cursor.at - size, done, size))
        done += size
        if cursor.take(2) != b"\r\n":
            raise WireError("a chunk is longer than its size")
    trailers = _fields(cursor)
    return Message(
        head.start, head.headers, "chunked", b"".join(pieces), tuple(spans), trailers, extensions,
        head.interim, head.end, cursor.at,
    )  # fmt: skip
