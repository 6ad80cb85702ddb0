"""The record's copy of a body, freed of its Content-Encoding, within limits.

The app's bytes are never touched; only what is written down is decoded. A small body that inflates
without end must not fill the memory: at most 16 MiB come out, and at most 200 times what went in.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import brotli  # type: ignore[import-untyped]
import zstandard

MOST_DECODED: Final = 16 << 20
MOST_RATIO: Final = 200
# Short texts of one repeated character are no bombs.
_ALWAYS_ALLOWED: Final = 64 * 1024
# What RFC 9659 obliges receivers of Content-Encoding: zstd to support, and no more.
_ZSTD_WINDOW: Final = 8 << 20
# Nobody means more; each costs up to the limit in time.
_MOST_CODINGS: Final = 8
# Empty ones cost time and nothing else. Whoever writes one for each piece of a stream writes less.
_MOST_MEMBERS: Final = 1000
# What lies behind a member is copied: in such pieces, not the whole rest each time.
_CHUNK: Final = 64 * 1024
_ZEROS: Final = re.compile(rb"\0*")
ENDS_EARLY: Final = "decode_error: ends early"


@dataclass(frozen=True, slots=True)
class Decoded:
    """`error` says why `data` is None; with `ENDS_EARLY`, `data` is what came before the end."""

    data: bytes | None
    error: str | None = None


class _TooMuch(Exception):
    """More bytes than the limit, or more members than anyone means."""


def decode(body: bytes, encoding: str) -> Decoded:
    """Undo the codings listed in a Content-Encoding header, the last one first."""
    result = Decoded(body)
    limit = min(MOST_DECODED, max(len(body) * MOST_RATIO, _ALWAYS_ALLOWED))
    names = [part.strip().lower() for part in encoding.split(",")]
    if len(names) > _MOST_CODINGS:
        return Decoded(None, f"decode_error: {len(names)} codings")
    for name in reversed(names):
        if name in ("", "identity") or not result.data:
            continue
        step = _undo(name, result.data, limit)
        result = Decoded(step.data, step.error or result.error)
    return result


def _undo(name: str, body: bytes, limit: int) -> Decoded:
    decoder = _DECODERS.get(name)
    if decoder is None:
        return Decoded(None, f"unknown_encoding: {name[:40]}")
    try:
        data, ended = decoder(body, limit)
    except _TooMuch:
        return Decoded(None, "decode_error: inflates too much")
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        return Decoded(None, f"decode_error: {str(error)[:100]}")
    return Decoded(data, None if ended else ENDS_EARLY)


def _inflate(body: bytes, limit: int, wbits: int) -> tuple[bytes, bool]:
    """One or more zlib or gzip members, each after the other, and zeros that fill up."""
    pieces: list[bytes] = []
    size = at = 0
    for _ in range(_MOST_MEMBERS):
        stream = zlib.decompressobj(wbits)
        while at < len(body) and not stream.eof:
            piece = memoryview(body)[at : at + _CHUNK]
            pieces.append(stream.decompress(piece, limit + 1 - size))
            size += len(pieces[-1])
            if size > limit:
                raise _TooMuch
            at += len(piece) - len(stream.unused_data)
        at = _behind_zeros(body, at)
        if at == len(body):
            return b"".join(pieces), stream.eof
    raise _TooMuch


def _behind_zeros(body: bytes, at: int) -> int:
    found = _ZEROS.match(body, at)
    return at if found is None else found.end()


def _gzip(body: bytes, limit: int) -> tuple[bytes, bool]:
    return _inflate(body, limit, 16 + zlib.MAX_WBITS)


def _deflate(body: bytes, limit: int) -> tuple[bytes, bool]:
    """RFC 9110 section 8.4.1.2: zlib's format; some servers send it bare."""
    try:
        return _inflate(body, limit, zlib.MAX_WBITS)
    except zlib.error:
        return _inflate(body, limit, -zlib.MAX_WBITS)


def _brotli(body: bytes, limit: int) -> tuple[bytes, bool]:
    stream = brotli.Decompressor()
    pieces = [stream.process(body, output_buffer_limit=limit + 1)]
    size = len(pieces[0])
    while size <= limit and not stream.is_finished():
        piece = stream.process(b"", output_buffer_limit=limit + 1 - size)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    if size > limit:
        raise _TooMuch
    return b"".join(pieces), stream.is_finished()


def _zstd(body: bytes, limit: int) -> tuple[bytes, bool]:
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
    with decompressor.stream_reader(body, read_across_frames=True) as reader:
        data = reader.read(limit + 1)
    if len(data) > limit:
        raise _TooMuch
    # The reader does not tell a cut stream from a whole one. Within the limit, once more is safe.
    return data, _frames_ended(decompressor, body)


def _frames_ended(decompressor: zstandard.ZstdDecompressor, body: bytes) -> bool:
    at = 0
    for _ in range(_MOST_MEMBERS):
        frame = decompressor.decompressobj()
        while at < len(body) and not frame.eof:
            piece = memoryview(body)[at : at + _CHUNK]
            frame.decompress(piece)
            at += len(piece) - len(frame.unused_data)
        if at == len(body):
            return frame.eof
    raise _TooMuch


_DECODERS: Final[dict[str, Callable[[bytes, int], tuple[bytes, bool]]]] = {
    "gzip": _gzip,
    "x-gzip": _gzip,
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
