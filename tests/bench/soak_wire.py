"""HTTP by hand over asyncio's streams, for both ends of a soak: heads, bodies as pieces, resets."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Final, Self

PIECE: Final = 64 << 10
_LIMIT: Final = 1 << 20
_NOISE: Final = os.urandom(1 << 20)


class Cut(Exception):
    """The other end is gone before the message was whole."""


@dataclass(frozen=True, slots=True)
class Head:
    start: bytes
    fields: dict[bytes, bytes]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])

    @property
    def chunked(self) -> bool:
        return self.fields.get(b"transfer-encoding") == b"chunked"

    @property
    def length(self) -> int:
        return int(self.fields.get(b"content-length", b"0"))


@dataclass(frozen=True, slots=True)
class Weight:
    """What a body came to: equal at both ends, or it was changed."""

    size: int
    sha256: str

    def __bytes__(self) -> bytes:
        return b"%d %b" % (self.size, self.sha256.encode())


class Scale:
    """Weighs a body piece by piece."""

    def __init__(self) -> None:
        self._size = 0
        self._hash = hashlib.sha256()

    def add(self, piece: bytes) -> bytes:
        self._size += len(piece)
        self._hash.update(piece)
        return piece

    def weight(self) -> Weight:
        return Weight(self._size, self._hash.hexdigest())


@dataclass(frozen=True, slots=True)
class Line:
    """One end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def to(cls, address: tuple[str, int]) -> Self:
        return cls(*await asyncio.open_connection(*address, limit=_LIMIT))

    async def send(self, data: bytes) -> None:
        if self.writer.is_closing():
            raise Cut("before all was sent")
        self.writer.write(data)
        await self.writer.drain()

    async def send_body(self, pieces: Iterator[bytes], chunked: bool) -> Weight:
        scale = Scale()
        for piece in pieces:
            scale.add(piece)
            await self.send(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            await self.send(b"0\r\n\r\n")
        return scale.weight()

    async def head(self) -> Head:
        """The next head. Raises Cut when none comes."""
        try:
            said = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut("before a head") from error
        start, *lines = said[:-4].split(b"\r\n")
        pairs = (line.partition(b":") for line in lines)
        return Head(start, {name.lower(): value.strip() for name, _, value in pairs})

    async def pieces(self, head: Head) -> AsyncIterator[bytes]:
        """The body, without its framing. Raises Cut when it stops short."""
        if not head.chunked:
            async for piece in self._take(head.length):
                yield piece
            return
        while size := int(await self._line(), 16):
            async for piece in self._take(size):
                yield piece
            await self._line()
        await self._line()

    async def body(self, head: Head) -> bytes:
        return b"".join([piece async for piece in self.pieces(head)])

    async def weigh(self, head: Head) -> Weight:
        scale = Scale()
        async for piece in self.pieces(head):
            scale.add(piece)
        return scale.weight()

    async def gone(self) -> None:
        """Wait until the other end goes, whatever it says until then."""
        try:
            while await self.reader.read(PIECE):
                pass
        except ConnectionError:
            pass

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        """End with RST instead of FIN."""
        if self.writer.is_closing():
            return
        ours: socket.socket = self.writer.get_extra_info("socket")
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def _take(self, size: int) -> AsyncIterator[bytes]:
        while size:
            piece = await self._some(min(size, PIECE))
            size -= len(piece)
            yield piece

    async def _some(self, most: int) -> bytes:
        try:
            piece = await self.reader.read(most)
        except ConnectionError as error:
            raise Cut("reset inside a body") from error
        if not piece:
            raise Cut("closed inside a body")
        return piece

    async def _line(self) -> bytes:
        try:
            return await self.reader.readuntil(b"\r\n")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise Cut("before the end of its chunks") from error


def noise(size: int, seed: int) -> Iterator[bytes]:
    """A body that no compression and no mix-up would leave as it is."""
    at = seed * 7919 % (len(_NOISE) - PIECE)
    while size:
        piece = _NOISE[at : at + min(size, PIECE)]
        size -= len(piece)
        at = (at + 104_729) % (len(_NOISE) - PIECE)
        yield piece


def weight_of(pieces: Iterator[bytes]) -> Weight:
    scale = Scale()
    for piece in pieces:
        scale.add(piece)
    return scale.weight()
