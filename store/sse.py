"""Server-sent events from bytes, sans-IO (WHATWG HTML, section 9.2.6).

Lines end in LF, CRLF or a lone CR; data lines of an event join with LF; a line that begins with a
colon is a comment; one byte order mark at the very start is skipped. Data stays bytes: a character
may be cut anywhere, and whether it is UTF-8 at all is for the reader of the data to find out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_BOM: Final = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    data: bytes
    name: bytes = b""


class Parser:
    """Feed it bytes as they come; it gives the events that are whole."""

    def __init__(self) -> None:
        self._begun = False
        self._tail = b""
        self._data: list[bytes] = []
        self._name = b""

    def feed(self, data: bytes) -> list[ServerEvent]:
        data = self._tail + data if self._tail else data
        if not self._begun:
            if len(data) < len(_BOM) and _BOM.startswith(data):
                self._tail = data
                return []
            self._begun = True
            data = data.removeprefix(_BOM)
        return self._lines(data)

    def end(self) -> list[ServerEvent]:
        """After a clean end: an event that lacks its last line end or blank line counts too.

        The standard drops it, but servers do end with a bare `data: [DONE]`, and SDKs stop there.
        """
        rest, self._tail = self._tail, b""
        return self._lines(rest.removesuffix(b"\r") + b"\n\n")

    def _lines(self, data: bytes) -> list[ServerEvent]:
        held = b"\r" if data.endswith(b"\r") else b""  # may be the first half of a CRLF
        if b"\r" in data:
            whole = data[: len(data) - len(held)]
            data = whole.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = data.split(b"\n")
        self._tail = rest + held
        events = []
        for line in lines:
            if line:
                self._field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
        elif name == b"event":
            self._name = value.removeprefix(b" ")

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._name
        if name:
            self._name = b""
        if not data:
            return None
        self._data = []
        return ServerEvent(data[0] if len(data) == 1 else b"\n".join(data), name)


def events(body: bytes, whole: bool) -> list[ServerEvent]:
    """The events of a body. `whole`: it ended cleanly, so its last event did too."""
    parser = Parser()
    found = parser.feed(body)
    return found + parser.end() if whole else found
