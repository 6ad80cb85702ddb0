"""Server-sent events: a bare uvloop upstream, and a client that counts and times what arrives.

python -m tests.bench.streams upstream PORT EVENTS_PER_SECOND
python -m tests.bench.streams client PORT STREAMS SECONDS      (prints JSON)

Each event says its number and when it was sent. The client says `open` when all streams run, waits
for a line, and says `go` when it begins to measure. It says what was lost; a stream that ended or
was refused makes it fail.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Final, cast

import uvloop

from tests.bench.figures import percentile
from tests.bench.machine import allow_many_files

_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_ASKED: Final = b'{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"go"}]}'
_REQUEST: Final = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    b"Authorization: Bearer sk-bench\r\nContent-Length: %d\r\n\r\n%b" % (len(_ASKED), _ASKED)
)
_EVENT_BYTES: Final = 180
_MARK: Final = b"data: "
_SILENT_SECONDS: Final = 5.0
_WARM_SECONDS: Final = 0.5
_OPEN_SECONDS: Final = 60.0


class Upstream(asyncio.Protocol):
    """Sends a numbered event with its time of sending, at a steady rate, until the client leaves.

    The next one is due an interval after the last one was, not after it was late.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._timer: asyncio.TimerHandle | None = None
        self._number = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._loop = asyncio.get_running_loop()

    def data_received(self, data: bytes) -> None:
        if self._timer is None:
            self._transport.write(_HEAD)
            self._due = self._loop.time()
            self._send()

    def _send(self) -> None:
        said = b'{"n":%d,"sent":%.6f}' % (self._number, time.monotonic())
        event = b"data: %-*b\n\n" % (_EVENT_BYTES - 8, said)
        self._transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self._number += 1
        self._due += self._interval
        self._timer = self._loop.call_at(self._due, self._send)

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()


class Gathered:
    """What all streams of a client came to: delays in seconds, and what went wrong."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.lost = 0
        self.broken: list[str] = []
        self.leaving = False


class Client(asyncio.Protocol):
    """One stream. An event may come in two reads: what is not whole yet waits."""

    def __init__(self, gathered: Gathered) -> None:
        self._gathered = gathered
        self._rest = b""
        self._began = False
        self._next = 0
        self.heard = 0.0  # when the newest event came, 0 before the first

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(_REQUEST)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        data = self._rest + data
        if not self._began:
            self._begin(data)
        at = data.find(_MARK)
        while at >= 0 and (end := data.find(b"}", at)) >= 0:
            self._take(data[at + len(_MARK) : end + 1], now)
            at = data.find(_MARK, end)
        # A mark may be torn too.
        self._rest = data[at:] if at >= 0 else data[-len(_MARK) + 1 :]

    def _begin(self, data: bytes) -> None:
        self._began = True
        if not data.startswith(b"HTTP/1.1 200"):
            self._gathered.broken.append(data[:80].decode("latin-1"))

    def _take(self, event: bytes, now: float) -> None:
        number, _, sent = event[len(b'{"n":') : -1].partition(b',"sent":')
        self._gathered.lost += int(number) - self._next
        self._next = int(number) + 1
        self._gathered.delays.append(now - float(sent))
        self.heard = now

    def connection_lost(self, error: Exception | None) -> None:
        if not self._gathered.leaving:
            self._gathered.broken.append(f"the stream ended: {error}")


async def serve(port: int, rate: float) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Upstream(1 / rate), "127.0.0.1", port, backlog=4096
    )  # fmt: skip
    await server.serve_forever()


async def listen(port: int, streams: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    gathered = Gathered()
    clients: list[Client] = []
    transports = []
    for _ in range(streams):
        transport, client = await loop.create_connection(
            lambda: Client(gathered), "127.0.0.1", port
        )
        transports.append(transport)
        clients.append(client)
        await asyncio.sleep(0.001)  # spread over the interval, as independent apps are
    await _all_heard(clients, gathered)
    print("open", flush=True)
    await loop.run_in_executor(None, sys.stdin.readline)
    gathered.delays.clear()
    print("go", flush=True)
    await asyncio.sleep(seconds)
    print(json.dumps(_summary(gathered, clients)), flush=True)
    gathered.leaving = True
    for transport in transports:
        transport.abort()


async def _all_heard(clients: list[Client], gathered: Gathered) -> None:
    deadline = time.monotonic() + _OPEN_SECONDS
    while not all(client.heard for client in clients) and not gathered.broken:
        if time.monotonic() > deadline:
            gathered.broken.append(f"a stream did not begin within {_OPEN_SECONDS:g} s")
        await asyncio.sleep(0.05)
    await asyncio.sleep(_WARM_SECONDS)


def _summary(gathered: Gathered, clients: list[Client]) -> dict[str, object]:
    now = time.monotonic()
    silent = sum(now - client.heard > _SILENT_SECONDS for client in clients)
    found = sorted(gathered.delays)
    return {
        "events": len(found),
        "p50": percentile(found, 50) if found else None,
        "p99": percentile(found, 99) if found else None,
        "longest": found[-1] if found else None,
        "lost": gathered.lost,
        "silent": silent,
        "broken": gathered.broken[:3],
    }


if __name__ == "__main__":
    role, first, *rest = sys.argv[1:]
    allow_many_files(16_384)
    if role == "upstream":
        uvloop.run(serve(int(first), float(rest[0])))
    else:
        uvloop.run(listen(int(first), int(rest[0]), float(rest[1])))
