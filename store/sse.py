"""Server-sent events from bytes, sans-IO (WHATWG HTML, section 9.2.6).

Lines end in LF, CRLF or a lone CR; data lines of an event join with LF; a line that begins with a
colon is a comment; one byte order mark at the very start is skipped. Data stays bytes: a character
may be cut anywhere, and whether it is UTF-8 at all is for the reader of the data to find out.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_BOM: Final = b"\xef\xbb\xbf"
_DATA: Final = b"data: "
_EVENT: Final = b"event: "
_END: Final = b"\n\n"


class ServerEvent(NamedTuple):
    data: bytes
    name: bytes = b""


class Events(NamedTuple):
    """The data of each event of a body; names, of those that have one, by position."""

    data: list[bytes]
    names: dict[int, bytes]


class Parser:
    """Feed it bytes as they come; it gives the events that are whole."""

    def __init__(self) -> None:
        self._begun = False
        self._held = b""  # the first half of a CRLF, or of a byte order mark
        self._pieces: list[bytes] = []

    def feed(self, data: bytes) -> list[ServerEvent]:
        data = self._held + data
        self._held = b""
        if not self._begun:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._held = data
                return []
            self._begun = True
            data = data.removeprefix(_BOM)
        return self._take(data)

    def end(self) -> list[ServerEvent]:
        """After a clean end: an event that lacks its last line end or blank line counts too.

        The standard drops it, but servers do end with a bare `data: [DONE]`, and SDKs stop there.
        """
        rest, self._held = self._held.removesuffix(b"\r"), b""
        return self._take(rest + _END)

    def _take(self, data: bytes) -> list[ServerEvent]:
        if b"\r" in data:
            if data.endswith(b"\r"):
                self._held, data = b"\r", data[:-1]
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        self._pieces.append(data)
        if b"\n" not in data:
            return []
        text = b"".join(self._pieces)
        end = text.rfind(_END) + len(_END)
        if end < len(_END):
            self._pieces = [text]
            return []
        self._pieces = [text[end:]]
        blocks = text[:end].split(_END)
        return [event for block in blocks if block and (event := _event(block)) is not None]


def _event(block: bytes) -> ServerEvent | None:
    if block.startswith(_DATA) and b"\n" not in block:
        return ServerEvent(block[len(_DATA) :])
    data: list[bytes] = []
    name = b""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" "))
        elif field == b"event":
            name = value.removeprefix(b" ")
    if not data:
        return None
    return ServerEvent(data[0] if len(data) == 1 else b"\n".join(data), name)


def read(body: bytes, whole: bool) -> Events:
    """The events of a body. `whole`: it ended cleanly, so its last event did too."""
    found = _uniform(body)
    if found is not None:
        return found
    parser = Parser()
    events = parser.feed(body)
    if whole:
        events += parser.end()
    names = {place: event.name for place, event in enumerate(events) if event.name}
    return Events([event.data for event in events], names)


def _uniform(body: bytes) -> Events | None:
    """Nearly every stream is `data: ...` and an empty line, again and again, or the same with a
    line `event: ...` before each: those are cut up at once, in a fraction of the time. None for
    any other shape."""
    if b"\r" in body:
        body = body.replace(b"\r\n", b"\n")
        if b"\r" in body:
            return None
    if not body.endswith(_END):
        return None
    if body.startswith(_DATA):
        data = body[len(_DATA) : -len(_END)].split(_END + _DATA)
        return Events(data, {}) if body.count(b"\n") == 2 * len(data) else None
    return _named(body) if body.startswith(_EVENT) else None


def _named(body: bytes) -> Events | None:
    blocks = body[len(_EVENT) : -len(_END)].split(_END + _EVENT)
    if body.count(b"\n") != 3 * len(blocks):
        return None
    pairs = [block.partition(b"\n" + _DATA) for block in blocks]
    if not all(found for _, found, _ in pairs):
        return None
    return Events(
        [data for _, _, data in pairs], {at: name for at, (name, _, _) in enumerate(pairs)}
    )
