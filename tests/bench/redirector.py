"""Leads every connection to one place, as a corporate proxy that opens any tunnel would.

python -m tests.bench.redirector PORT TARGET_PORT

CONNECT to whatever host is granted; a connection that begins otherwise is led on as it is, so that
systems without CONNECT go the same way. Nothing slows down who sends faster than the other reads.
"""

from __future__ import annotations

import asyncio
import sys
from functools import partial
from typing import Final, cast

import uvloop

_GRANTED: Final = b"HTTP/1.1 200 OK\r\n\r\n"


class Back(asyncio.Protocol):
    """The connection to the target."""

    def __init__(self, front: asyncio.Transport) -> None:
        self._front = front
        self.data_received = front.write  # type: ignore[method-assign]

    def connection_lost(self, error: Exception | None) -> None:
        self._front.close()


class Front(asyncio.Protocol):
    def __init__(self, target: int) -> None:
        self._target = target
        self._early = b""
        self._dialling: asyncio.Task[None] | None = None
        self._back: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._back is not None:
            self._back.write(data)
            return
        self._early += data
        if self._dialling is not None:
            return
        if self._early.startswith(b"CONNECT "):
            if not self._early.endswith(b"\r\n\r\n"):
                return
            self._early = b""
            self._transport.write(_GRANTED)
        self._dialling = asyncio.get_running_loop().create_task(self._dial())

    async def _dial(self) -> None:
        try:
            back, _ = await asyncio.get_running_loop().create_connection(
                partial(Back, self._transport), "127.0.0.1", self._target
            )
        except OSError:
            self._transport.abort()
            return
        self._back = back
        back.write(self._early)
        if self._transport.is_closing():
            back.close()

    def connection_lost(self, error: Exception | None) -> None:
        if self._back is not None:
            self._back.close()


async def serve(port: int, target: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Front(target), "127.0.0.1", port, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), int(sys.argv[2])))
