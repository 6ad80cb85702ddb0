"""Helpers: what a proxy would write, and a home folder to record into."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from policies.home import Home
from policies.policy import build
from policies.settings import Settings, dump
from policies.spool import ALIVE_FILE, Kind, pack
from store import recorder
from store.database import is_ready, reading
from store.recording import Recording

KEY = bytes(range(32))  # of the installation
PROGRAM = (
    "import asyncio, sys; from policies.settings import load; from store import recorder; "
    "asyncio.run(recorder.run(load(sys.stdin.buffer.readline())))"
)
JSON_HEADERS = [("Content-Type", "application/json"), ("x-request-id", "req_1")]
SSE_HEADERS = [("content-type", "text/event-stream; charset=utf-8")]


def home(root: Path) -> Home:
    return Home(root / "home", root / "run")


def settings(at: Home) -> Settings:
    return Settings("recorder", str(at.root), str(at.run), "run-1", {}, install_key=KEY.hex())


def chat_request(text: str = "hello", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]
    return {"model": "gpt-4o", "messages": messages, **more}


def chat_answer(text: str | None = "hi", finish: str = "stop", **more: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **more}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 3, "total_tokens": 12},
    }


def stream_of(*chunks: object, done: bool = True) -> bytes:
    lines = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks]
    return b"".join(lines) + (b"data: [DONE]\n\n" if done else b"")


def delta(index: int = 0, finish: str | None = None, **fields: Any) -> dict[str, Any]:
    choice = {"index": index, "delta": fields, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]}


def exchange_id(number: int) -> bytes:
    return (number << 80 | 0x7 << 76 | 0x2 << 62).to_bytes(16, "big")


@dataclass
class Exchange:
    """One exchange as the proxy would spool it; what a test does not say is usual."""

    number: int = 1
    request: bytes = field(default_factory=lambda: orjson.dumps(chat_request()))
    response: bytes = field(default_factory=lambda: orjson.dumps(chat_answer()))
    status: int | None = 200
    target: str = "/v1/chat/completions"
    method: str = "POST"
    outcome: str = "ok"
    error: str | None = None
    cut: dict[str, str] = field(default_factory=dict)
    request_headers: list[tuple[str, str]] = field(default_factory=lambda: list(JSON_HEADERS))
    response_headers: list[tuple[str, str]] = field(default_factory=lambda: list(JSON_HEADERS))
    routed: list[dict[str, str]] = field(default_factory=list)
    key: str | None = "k1"
    at: float = field(default_factory=time.time)
    pieces: int = 1
    more_opened: dict[str, Any] = field(default_factory=dict)
    more_closed: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> bytes:
        return exchange_id(self.number)

    @property
    def uuid(self) -> str:
        text = self.id.hex()
        return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))

    def record(self, kind: int, payload: object, after: float = 0.0) -> bytes:
        data = payload if isinstance(payload, bytes) else orjson.dumps(payload)
        return pack(kind, self.id, 100.0 + after, data)

    def opening(self) -> bytes:
        said = {
            "seq": self.number,
            "at": self.at,
            "method": self.method,
            "target": self.target,
            "headers": self.request_headers,
            "key": self.key,
            **self.more_opened,
        }
        body = self.record(Kind.REQUEST_BODY, self.request, 0.001) if self.request else b""
        return self.record(Kind.OPENED, said) + body

    def rest(self) -> bytes:
        records = [self.record(Kind.ROUTED, route, 0.002) for route in self.routed]
        if self.status is not None:
            head = {"status": self.status, "headers": self.response_headers}
            records.append(self.record(Kind.RESPONSE_HEAD, head, 0.003))
        size = max(1, -(-len(self.response) // self.pieces))
        for start in range(0, len(self.response), size):
            piece = self.response[start : start + size]
            records.append(self.record(Kind.RESPONSE_BODY, piece, 0.25 + start / 1e6))
        return b"".join(records) + self.closing()

    def closing(self) -> bytes:
        said = {
            "outcome": self.outcome,
            "error": self.error,
            "request_bytes": len(self.request),
            "response_bytes": len(self.response),
            "cut": self.cut,
            **self.more_closed,
        }
        return self.record(Kind.CLOSED, said, 0.5)

    def records(self) -> bytes:
        return self.opening() + self.rest()


def zipped(exchange: Exchange) -> Exchange:
    exchange.response = gzip.compress(exchange.response)
    exchange.response_headers = [*exchange.response_headers, ("Content-Encoding", "gzip")]
    return exchange


class Run:
    """A proxy's run: its folder, its segments and its lock."""

    def __init__(self, at: Home, name: str = "run-a", alive: bool = True) -> None:
        self.name = name
        self.folder = at.spool / name
        self.folder.mkdir(parents=True)
        self._alive = os.open(self.folder / ALIVE_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        os.utime(self.folder / ALIVE_FILE, (time.time() - 60,) * 2)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self.number = 1
        if not alive:
            self.die()

    @property
    def segment(self) -> Path:
        return self.folder / f"{self.number:08d}.seg"

    def write(self, *records: bytes) -> None:
        with self.segment.open("ab") as file:
            file.write(b"".join(records))

    def next_segment(self) -> None:
        self.number += 1

    def die(self) -> None:
        if self._alive >= 0:
            os.close(self._alive)
            self._alive = -1


def making(**policy: Any) -> Recording:
    return Recording.of(build(policy), KEY)


def record_all(at: Home, **policy: Any) -> None:
    """Let a recorder read all there is and stop, in this process."""

    async def once() -> None:
        await recorder.Recorder(at, making(**policy), _stopped()).run()

    asyncio.run(once())


def _stopped() -> asyncio.Event:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, stop.set)
    return stop


def start_recorder(at: Home, **more: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, **more)
    assert process.stdin is not None
    process.stdin.write(dump(settings(at)))
    process.stdin.flush()
    return process


@contextmanager
def recording(at: Home, **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A recorder as a process of its own, stopped with SIGTERM."""
    process = start_recorder(at, **more)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(20)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def recorded(root: Path, *exchanges: Exchange, **policy: Any) -> dict[str, Any]:
    """The row of the last of `exchanges`; with its `bodies`, if there are any: the row, both sides
    whole as `text_asked` and `text_answered`, and as the pair has them `asked` and `answered`."""
    at = home(root)
    run = Run(at)
    for one in exchanges:
        run.write(one.records())
    run.die()
    record_all(at, **policy)
    found = row(at, "SELECT * FROM exchanges WHERE id = ?", exchanges[-1].uuid)
    number = found["number"]
    for body in rows(at, "SELECT * FROM bodies WHERE number = ?", number):
        text = row(at, "SELECT request AS a, response AS b FROM texts WHERE number = ?", number)
        pair = row(at, "SELECT request AS a, response AS b FROM pairs WHERE number = ?", number)
        found |= {"bodies": body, "asked": pair["a"], "answered": pair["b"]}
        found |= {"text_asked": text["a"], "text_answered": text["b"]}
    return found


def rows(at: Home, sql: str, *values: object) -> list[dict[str, Any]]:
    if not is_ready(at.database):
        return []
    with reading(at.database) as connection:
        return [dict(row) for row in connection.execute(sql, values)]


def row(at: Home, sql: str, *values: object) -> dict[str, Any]:
    (found,) = rows(at, sql, *values)
    return found


def wait_for(condition: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s")
        time.sleep(0.01)
