"""Requests that each carry a token of their own: a steady rate, or as fast as they are answered.

python -m tests.bench.pairs steady PORT REQUESTS_PER_SECOND SECONDS
python -m tests.bench.pairs closed PORT CONNECTIONS SECONDS

Says `go`, then JSON. Tokens are numbered from 0; every request that was sent has been answered, or
`broken` says what happened. The latency of the steady rate counts from when a request was due.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import Final, cast

import uvloop

from tests.bench.bodies import Tokened
from tests.bench.figures import percentile

_LINES: Final = 256  # connections of the steady rate
_TICK_SECONDS: Final = 0.001
_LAST_ANSWER_SECONDS: Final = 60.0
_LENGTH: Final = b"\r\ncontent-length: "


class Line(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, client: Load) -> None:
        self._client = client
        self._rest = b""
        self._due = 0.0
        self._busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def ask(self, request: bytes, due: float) -> None:
        self._due, self._busy = due, True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        end = data.find(b"\r\n\r\n")
        if end < 0 or len(data) < (whole := end + 4 + self._length(data[: end + 2])):
            self._rest = data
            return
        self._rest = b""
        self._busy = False
        if len(data) > whole or not data.startswith(b"HTTP/1.1 200"):
            self._client.broken.append(data[:200].decode("latin-1"))
        self._client.answered(self, time.monotonic() - self._due)

    def _length(self, head: bytes) -> int:
        found = head.lower().partition(_LENGTH)[2].partition(b"\r\n")[0]
        if not found.isdigit():
            self._client.broken.append(head.decode("latin-1"))
        return int(found or 0)

    def connection_lost(self, error: Exception | None) -> None:
        if self._busy or not self._client.leaving:
            self._client.broken.append(f"a connection was lost: {error}")


class Load:
    """What is sent, and what came of it. `more` says whether another request is to be sent now."""

    def __init__(self, on_answer: Callable[[Line], None]) -> None:
        self._on_answer = on_answer
        self._request = Tokened()
        self.sent = 0
        self.latencies: list[float] = []
        self.broken: list[str] = []
        self.leaving = False

    def send(self, line: Line, due: float) -> None:
        line.ask(self._request(self.sent), due)
        self.sent += 1

    def answered(self, line: Line, seconds: float) -> None:
        self.latencies.append(seconds)
        self._on_answer(line)

    async def open(self, port: int, lines: int) -> list[Line]:
        loop = asyncio.get_running_loop()
        return [
            (await loop.create_connection(lambda: Line(self), "127.0.0.1", port))[1]
            for _ in range(lines)
        ]

    async def finish(self) -> None:
        """Wait for what is still to be answered."""
        deadline = time.monotonic() + _LAST_ANSWER_SECONDS
        while len(self.latencies) < self.sent and not self.broken:
            if time.monotonic() > deadline:
                self.broken.append(f"{self.sent - len(self.latencies)} were never answered")
            await asyncio.sleep(0.01)
        self.leaving = True

    def summary(self, seconds: float) -> dict[str, object]:
        found = sorted(self.latencies)
        return {
            "sent": self.sent,
            "answered": len(found),
            "seconds": seconds,
            "p50": percentile(found, 50) if found else None,
            "p99": percentile(found, 99) if found else None,
            "broken": self.broken[:3],
        }


async def steady(port: int, rate: float, seconds: float) -> dict[str, object]:
    idle: deque[Line] = deque()
    load = Load(idle.append)
    idle.extend(await load.open(port, _LINES))
    print("go", flush=True)
    began = time.monotonic()
    total = round(rate * seconds)
    while load.sent < total and not load.broken:
        due = min(total, int((time.monotonic() - began) * rate) + 1)
        while load.sent < due and idle:
            load.send(idle.popleft(), began + load.sent / rate)
        await asyncio.sleep(_TICK_SECONDS)
    await load.finish()
    return load.summary(time.monotonic() - began)


async def closed(port: int, lines: int, seconds: float) -> dict[str, object]:
    def again(line: Line) -> None:
        now = time.monotonic()
        if now < until and not load.broken:
            load.send(line, now)

    load = Load(again)
    opened = await load.open(port, lines)
    print("go", flush=True)
    began = time.monotonic()
    until = began + seconds
    for line in opened:
        load.send(line, time.monotonic())
    await asyncio.sleep(seconds)
    await load.finish()
    return load.summary(time.monotonic() - began)


if __name__ == "__main__":
    role, port, amount, seconds = sys.argv[1:]
    if role == "steady":
        said = uvloop.run(steady(int(port), float(amount), float(seconds)))
    else:
        said = uvloop.run(closed(int(port), int(amount), float(seconds)))
    print(json.dumps(said), flush=True)
