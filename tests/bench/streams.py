"""Server-sent events: a bare uvloop upstream, and a client that counts and times what arrives.

python -m tests.bench.streams upstream PORT EVENTS_PER_SECOND
python -m tests.bench.streams client PORT STREAMS SECONDS      (prints JSON)
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import cast

import uvloop

_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_REQUEST = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer sk-bench\r\nContent-Length: 15\r\n\r\n" + b'{"stream":true}'
)
_EVENT_BYTES = 180


class Upstream(asyncio.Protocol):
    """Sends an event with its time of sending, at a steady rate, until the client leaves."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._transport.write(_HEAD)
            self._send()

    def _send(self) -> None:
        event = b"data: %-*b\n\n" % (_EVENT_BYTES - 8, b'{"sent":%.6f}' % time.monotonic())
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._timer = asyncio.get_running_loop().call_later(self._interval, self._send)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Client(asyncio.Protocol):
    def __init__(self, delays: list[float]) -> None:
        self._delays = delays

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(_REQUEST)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        at = data.find(b'{"sent":')
        while at >= 0:
            self._delays.append(now - float(data[at + 8 : data.index(b"}", at)]))
            at = data.find(b'{"sent":', at + 8)


async def serve(port: int, rate: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Upstream(1 / rate), "127.0.0.1", port)
    await server.serve_forever()


async def listen(port: int, streams: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    transports = []
    for _ in range(streams):
        transport, _ = await loop.create_connection(lambda: Client(delays), "127.0.0.1", port)
        transports.append(transport)
        await asyncio.sleep(0.0005)  # spread over the interval, as independent apps are
    await asyncio.sleep(0.5)
    delays.clear()
    print("go", flush=True)
    await asyncio.sleep(seconds)
    found = sorted(delays)
    print(json.dumps({"events": len(found), "p50": found[len(found) // 2],
                      "p99": found[len(found) * 99 // 100]}), flush=True)  # fmt: skip
    for transport in transports:
        transport.abort()


if __name__ == "__main__":
    role, first, *rest = sys.argv[1:]
    if role == "upstream":
        uvloop.run(serve(int(first), float(rest[0])))
    else:
        uvloop.run(listen(int(first), int(rest[0]), float(rest[1])))
