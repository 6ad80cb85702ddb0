"""The records of a file of JSON, one after the other, in bounded memory.

JSON lines, where one bad line costs no other; else one array, or objects over many lines, which
are found by their brackets. Compressed by gzip or not.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

import orjson

from store.values import Json

MOST_RECORD: Final = 64 << 20  # bytes of a record; a longer one is left out
_CHUNK: Final = 1 << 20
_SPACE: Final = b" \t\r\n"
_MARK: Final = b"\xef\xbb\xbf"
_GZIP: Final = b"\x1f\x8b"
# A string, without its end if that is yet to be read, or a bracket.
_TOKEN: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+("?)|[{}\[\]]', re.DOTALL)
_TOO_LONG: Final = f"longer than {MOST_RECORD >> 20} MiB"
# Begins a record that goes on in the next line.
_GOES_ON: Final = (b"{", b"[", b",")

Found = tuple[int, Json | str]  # number of its first line, and the record or why it is none


class Backlog:
    """A file of records. `size` and `position`: bytes on disk, how far it was read."""

    def __init__(self, path: Path) -> None:
        """Raises OSError."""
        self._raw = path.open("rb")
        self.path = path
        self.size = path.stat().st_size
        self.time = path.stat().st_mtime
        packed = self._raw.peek(2)[:2] == _GZIP
        self._file: IO[bytes] = (
            io.BufferedReader(gzip.GzipFile(fileobj=self._raw)) if packed else self._raw
        )

    @property
    def position(self) -> int:
        return self._raw.tell()

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def records(self) -> Iterator[Found]:
        """A damaged archive ends with a reason, as one record that can't be read."""
        try:
            yield from _records(self._file)
        except (EOFError, gzip.BadGzipFile) as error:
            yield 0, f"damaged gzip: {error}"


def _records(file: IO[bytes]) -> Iterator[Found]:
    number, line = 0, b""
    while not line.strip():
        number, line = number + 1, file.readline(MOST_RECORD)
        if not line:
            return
        line = line.removeprefix(_MARK) if number == 1 else line
    whole = line.strip(_SPACE)
    if whole[:1] == b"[" or (whole.endswith(_GOES_ON) and whole[:1] == b"{"):
        for at, value in _values(line, file.read):
            yield number + at, value if isinstance(value, str) else _parsed(value)
        return
    yield from _lines(number, line, file)


def _lines(number: int, line: bytes, file: IO[bytes]) -> Iterator[Found]:
    while line:
        if len(line) >= MOST_RECORD and not line.endswith(b"\n"):
            while (rest := file.readline(_CHUNK)) and not rest.endswith(b"\n"):
                pass
            yield number, _TOO_LONG
        elif line.strip(_SPACE):
            yield number, _parsed(line)
        number, line = number + 1, file.readline(MOST_RECORD)


def _parsed(data: bytes) -> Json | str:
    try:
        value = orjson.loads(data)
    except ValueError as error:
        return f"not JSON: {error}"
    return value if isinstance(value, dict) else "no JSON object"


@dataclass(slots=True)
class _Place:
    """Where a scan is. `start`: of the value that it is in, -1 outside. `line`: before `buffer`."""

    buffer: bytes
    at: int = 0
    start: int = -1
    depth: int = 0
    base: int = 0  # depth that values begin at: 1 in an array of them
    line: int = 0

    def cut(self, more: bytes) -> None:
        """Forget what was passed, and read on."""
        done = self.start if self.start >= 0 else self.at
        self.line += self.buffer.count(b"\n", 0, done)
        self.buffer = self.buffer[done:] + more
        self.at -= done
        self.start = 0 if self.start >= 0 else -1

    def lines(self) -> int:
        return self.line + self.buffer.count(b"\n", 0, max(self.start, 0))


def _values(begun: bytes, read: Callable[[int], bytes]) -> Iterator[tuple[int, bytes | str]]:
    """Objects, also those of arrays around them, each with how many lines are before it."""
    place = _Place(begun)
    while True:
        for end in _ends(place):
            yield place.lines(), place.buffer[place.start : end]
            place.start = -1
        if place.depth < 0:
            yield place.lines(), "not JSON: a bracket too many"
            return
        if place.start >= 0 and len(place.buffer) - place.start > MOST_RECORD:
            yield place.lines(), _TOO_LONG
            return
        more = read(_CHUNK)
        if not more:
            break
        place.cut(more)
    if place.start >= 0:
        yield place.lines(), "the file ends within it"


def _ends(place: _Place) -> Iterator[int]:
    """Ends of values in the buffer; what follows the last is left in `place`."""
    for token in _TOKEN.finditer(place.buffer, place.at):
        sign = token[0]
        if sign[:1] == b'"':
            if not token[1]:
                place.at = token.start()
                return
        elif sign in b"[{":
            if place.depth == place.base and place.start < 0:
                if sign == b"[" and place.depth == 0:
                    place.base = 1
                else:
                    place.start = token.start()
            place.depth += 1
        else:
            place.depth -= 1
            if place.depth < 0:
                return
            if place.depth == 0:
                place.base = 0
            if place.start >= 0 and place.depth == place.base:
                yield token.end()
        place.at = token.end()
