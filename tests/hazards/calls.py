"""Calls without end through a sidecar: plain ones, streams, and chats whose turns share what was
said. Each has a number that both sides and its row can be told by.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from store.database import sqlite3
from tests.bench.bodies import SYSTEM, prose
from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import CANARY, chunked, sized

_WORDS: Final = prose(4000).split()
_TURNS: Final = 6
_AT_ONCE: Final = 20  # events of a stream
_CALL_SECONDS: Final = 20.0
_NUMBER: Final = re.compile(r"before=(\d+)")
_TOOL: Final = {
    "type": "function",
    "function": {"name": "look_up", "description": prose(300), "parameters": {"type": "object"}},
}


def said(number: int) -> str:
    """What the upstream answers to this call."""
    chance = random.Random(number)
    return " ".join([f"said-{number}.", *chance.choices(_WORDS, k=60)])


def answer(number: int) -> dict[str, Any]:
    message = {"role": "assistant", "content": said(number)}
    return {
        "id": f"chatcmpl-{number}",
        "object": "chat.completion",
        "model": "gpt-4o-mini",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 900, "completion_tokens": 60, "total_tokens": 960},
    }


def events(number: int) -> list[bytes]:
    words = said(number).split()
    deltas = [{"role": "assistant"}, *({"content": word + " "} for word in words), {}]
    found = []
    for place, delta in enumerate(deltas):
        finish = "stop" if place == len(deltas) - 1 else None
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": f"c-{number}", "object": "chat.completion.chunk", "choices": [choice]}
        found.append(b"data: " + orjson.dumps(chunk) + b"\n\n")
    return [*found, b"data: [DONE]\n\n"]


def request(number: int, body: bytes) -> bytes:
    head = (
        f"POST /v1/chat/completions?before={number} HTTP/1.1\r\nHost: app\r\n"
        f"Authorization: Bearer {CANARY}-key\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@dataclass
class Calls:
    """Clients and their upstream, on a loop in a thread of its own.

    `asked`: hashes of the requests that were answered as they should be, by number. `wrong`: what
    went otherwise, for a client, in words. `odd`: whole replies of the upstream to other calls.
    """

    clients: int = 8
    pause: float = 0.03
    asked: dict[int, bytes] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    odd: dict[int, bytes] = field(default_factory=dict)
    port: int = 0
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _going: bool = False
    _busy: int = 0
    _over: bool = False
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextmanager
    def upstream(self) -> Iterator[None]:
        ready = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._run(ready)), daemon=True)
        thread.start()
        ready.wait(10)
        try:
            yield
        finally:
            self._over = True
            thread.join(_CALL_SECONDS)

    @contextmanager
    def to(self, sidecar: Sidecar) -> Iterator[None]:
        """Meanwhile they call; at the end all have their answers."""
        self._sidecar = sidecar
        self._going = True
        try:
            yield
        finally:
            self._pause()

    @contextmanager
    def none(self) -> Iterator[None]:
        """Meanwhile they don't; the sidecar may be another process at another port afterwards."""
        self._pause()
        yield
        self._going = True

    def _pause(self) -> None:
        self._going = False
        wait_for(lambda: not self._busy, _CALL_SECONDS)

    async def _run(self, ready: threading.Event) -> None:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 24)
        self.port = server.sockets[0].getsockname()[1]
        ready.set()
        async with asyncio.TaskGroup() as tasks:
            for number in range(self.clients):
                tasks.create_task(self._client(random.Random(number)), name=f"client {number}")
        server.close()
        for writer in self._writers:
            writer.close()
        await asyncio.sleep(0.05)  # till they are

    # -- the upstream

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head, body = await _message(reader)
                await self._answer(writer, _number(head), b'"stream":true' in body)
        writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, number: int, streams: bool) -> None:
        if number in self.odd:
            writer.write(self.odd[number])
            return await writer.drain()
        kind = b"text/event-stream" if streams else b"application/json"
        kind = b"Content-Type: %b\r\n" % kind
        if not streams:
            writer.write(sized(orjson.dumps(answer(number)), headers=kind))
            return await writer.drain()
        writer.write(b"HTTP/1.1 200 OK\r\n%bTransfer-Encoding: chunked\r\n\r\n" % kind)
        all_ = events(number)
        for start in range(0, len(all_), _AT_ONCE):
            writer.write(chunked(*all_[start : start + _AT_ONCE]))
            await writer.drain()
            await asyncio.sleep(0.01)
        writer.write(b"0\r\n\r\n")
        await writer.drain()

    # -- the clients

    async def _client(self, chance: random.Random) -> None:
        connection, address = None, None
        while not self._over:
            await asyncio.sleep(chance.expovariate(1 / self.pause))
            if not self._going:
                continue
            self._busy += 1
            try:
                if connection is None or address != self._sidecar.address:
                    address = self._sidecar.address
                    connection = await asyncio.open_connection(*address)
                    self._writers.add(connection[1])
                async with asyncio.timeout(_CALL_SECONDS):
                    await self._talk(connection, chance)
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                connection = None
            finally:
                self._busy -= 1

    async def _talk(self, connection: Any, chance: random.Random) -> None:
        kind = chance.choice(("plain", "stream", "chat"))
        messages = [{"role": "system", "content": SYSTEM}]
        for _ in range(_TURNS if kind == "chat" else 1):
            number = next(self._numbers)
            words = " ".join(chance.choices(_WORDS, k=chance.randrange(20, 200)))
            messages.append({"role": "user", "content": f"call-{number}. {words}"})
            body: dict[str, Any] = {"model": "gpt-4o-mini", "messages": messages}
            body |= {"stream": True} if kind == "stream" else {}
            body |= {"tools": [_TOOL]} if kind == "chat" else {}
            data = orjson.dumps(body)
            await self._ask(connection, number, data)
            self.asked[number] = _hash(data)
            messages.append({"role": "assistant", "content": said(number)})

    async def _ask(self, connection: Any, number: int, body: bytes) -> None:
        reader, writer = connection
        writer.write(request(number, body))
        head, got = await _message(reader)
        streams = b"event-stream" in head
        right = b"".join(events(number)) if streams else orjson.dumps(answer(number))
        if not head.startswith(b"HTTP/1.1 200 ") or got != right:
            raise ValueError(f"{number}: {head[:40]!r}, {len(got)} bytes for {len(right)}")


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    if length := re.search(rb"(?i)content-length: *(\d+)", head):
        return head, await reader.readexactly(int(length[1]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readexactly(2)
    return head, body


def _number(head: bytes) -> int:
    found = _NUMBER.search(head.decode("latin-1"))
    return int(found[1]) if found else 0


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


# -- what became of them


@dataclass
class Tally:
    """Of the calls that were answered. `whole`: recorded with both bodies, as they were sent;
    `bare`: recorded, and the row says that a body, or the ending, is not whole. `lost`: without any
    row; `doubled`: with more than one; `altered`: whole, it says, but not what was sent."""

    whole: int = 0
    bare: int = 0
    lost: int = 0
    doubled: int = 0
    altered: int = 0

    @property
    def recorded(self) -> int:
        return self.whole + self.bare


_ROWS: Final = """
    SELECT e.path, e.complete, e.truncated, t.request, t.response
    FROM exchanges AS e LEFT JOIN texts AS t ON t.number = e.number
    WHERE e.path LIKE '%before=%'"""


def tally(asked: dict[int, bytes], *databases: Path) -> Tally:
    """Several databases: those that were set aside, too, and what one of them can't tell is lost.
    The newest may hold once more what another holds."""
    found, rows = Tally(), Counter[tuple[Path, int]]()
    for database in databases:
        for path, complete, truncated, sent, got in _rows(database):
            number = int(_NUMBER.search(path)[1])  # type: ignore[index]
            if number not in asked:
                continue
            rows[database, number] += 1
            if not complete or truncated or sent is None or got is None:
                found.bare += 1
            elif _hash(sent.encode()) != asked[number] or got.count(f"said-{number}.") != 1:
                found.altered += 1
            else:
                found.whole += 1
    found.lost = len(asked.keys() - {number for _, number in rows})
    found.doubled = sum(count > 1 for count in rows.values())
    return found


def _rows(database: Path) -> Iterator[tuple[Any, ...]]:
    uri = f"file:{database}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True)) as connection:
        with suppress(sqlite3.DatabaseError):
            yield from connection.execute(_ROWS)
