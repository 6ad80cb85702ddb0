"""permessage-deflate: the compression of WebSocket messages (RFC 7692), the reading half."""

from __future__ import annotations

import zlib
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, Literal

from store.decode import MOST_DECODED, MOST_RATIO

Side = Literal["client", "server"]

MOST_MESSAGE: Final = MOST_DECODED
# A message that repeats the one before it comes to a few bytes, and is no bomb.
_ALWAYS_ALLOWED: Final = 1 << 20
_MOST_ENDS: Final = 8  # of deflate streams in a message; each costs a copy of what follows
_MOST_PIECES: Final = 64
_LARGEST_WINDOW: Final = 1 << 15
_WINDOWS: Final = {str(bits): 1 << bits for bits in range(8, 16)}
_FLUSH: Final = b"\0\0\xff\xff"  # section 7.2.2
_HIDDEN: Final = "hash:"  # a header whose value the spool does not hold

_Stream = Any  # zlib does not export the type


class NotInflated(Exception):
    """With the reason; what the inflater knew is lost."""


@dataclass(frozen=True, slots=True)
class Deflate:
    """What one direction agreed on. `window` is in bytes."""

    takeover: bool = True
    window: int = _LARGEST_WINDOW


def agreed(extensions: str | None, side: Side) -> Deflate | None:
    """What the response's Sec-WebSocket-Extensions says about messages *from* `side`.

    A value that the spool holds only as a hash is taken for compression with takeover: an inflater
    that keeps the largest window reads every other agreement as well.
    """
    if extensions is not None and extensions.startswith(_HIDDEN):
        return Deflate()
    for offer in (extensions or "").split(","):
        name, *parameters = [part.strip().lower() for part in offer.split(";")]
        if name == "permessage-deflate":
            found = dict(_pair(parameter) for parameter in parameters)
            window = _WINDOWS.get(found.get(f"{side}_max_window_bits", ""), _LARGEST_WINDOW)
            return Deflate(f"{side}_no_context_takeover" not in found, window)
    return None


def _pair(parameter: str) -> tuple[str, str]:
    name, _, value = parameter.partition("=")
    return name.strip(), value.strip().strip('"')


class Inflater:
    """The messages of one direction. The largest window reads what any smaller one wrote."""

    def __init__(self, deflate: Deflate, window: bytes) -> None:
        self._deflate = deflate
        self._recent = deque((window,)) if window else deque[bytes]()
        self._size = len(window)
        self._stream = _inflating(window) if deflate.takeover else None

    def window(self) -> bytes:
        return b"".join(self._recent)[-self._deflate.window :]

    def inflate(self, data: bytes) -> bytes:
        limit = min(MOST_MESSAGE, max(len(data) * MOST_RATIO, _ALWAYS_ALLOWED))
        stream = self._stream or _inflating(b"")
        try:
            plain: bytes = stream.decompress(data + _FLUSH, limit + 1)
            if stream.eof:
                stream, plain = self._go_on(stream, plain, limit)
        except zlib.error as error:
            raise NotInflated(f"inflating: {str(error)[:100]}") from None
        if len(plain) > limit:
            raise NotInflated("a message that inflates too much")
        if self._deflate.takeover:
            self._stream = stream
            self._remember(plain)
        return plain

    def _go_on(self, stream: _Stream, plain: bytes, limit: int) -> tuple[_Stream, bytes]:
        """A sender may end its stream (BFINAL) within a message: RFC 7692 section 7.2.3.4."""
        for _ in range(_MOST_ENDS):
            if not stream.eof or len(plain) > limit:
                return stream, plain
            rest = stream.unused_data
            stream = _inflating((self.window() + plain)[-_LARGEST_WINDOW:])
            plain += stream.decompress(rest, limit + 1 - len(plain))
        raise NotInflated("a message of too many deflate streams")

    def _remember(self, plain: bytes) -> None:
        most = self._deflate.window
        plain = plain[-most:]  # a copy only where it is longer
        self._recent.append(plain)
        self._size += len(plain)
        while self._size - len(self._recent[0]) >= most:
            self._size -= len(self._recent.popleft())
        if len(self._recent) > _MOST_PIECES:
            self._recent = deque((self.window(),))
            self._size = len(self._recent[0])


def _inflating(window: bytes) -> _Stream:
    return zlib.decompressobj(-15, zdict=window) if window else zlib.decompressobj(-15)
