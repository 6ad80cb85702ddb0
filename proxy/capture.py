"""Capture: events of exchanges into spool segments, without the loop ever waiting for a disk.

The loop appends records to a list; every 10 ms, or at 256 KiB, the list goes to one writer thread.
(A write in the loop stalls it for up to 14 ms now and then, measured.) What can't be kept is
dropped, and counted: bodies first, heads and endings last.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Literal, Protocol

import orjson

from policies import spool
from policies.policy import Capture as CapturePolicy
from policies.spool import Kind, Outcome
from proxy.heads import Headers, RequestHead
from proxy.redact import Redactor

_FLUSH_SECONDS: Final = 0.01
_FLUSH_BYTES: Final = 256 * 1024
_MOST_WAITING: Final = 8 << 20  # bytes in memory; above it bodies are dropped
_SEGMENT_BYTES: Final = 8 << 20
_FSYNC_SECONDS: Final = 1.0

Side = Literal["request", "response"]


class Tape(Protocol):
    """What one exchange leaves behind."""

    def routed(self, to: str, why: str) -> None: ...
    def body(self, side: Side, data: bytes) -> None: ...
    def response_head(self, status: int, headers: Headers) -> None: ...
    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


class BlankTape:
    """Records nothing: capture is off."""

    def routed(self, to: str, why: str) -> None: ...
    def body(self, side: Side, data: bytes) -> None: ...
    def response_head(self, status: int, headers: Headers) -> None: ...
    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


BLANK: Final = BlankTape()


@dataclass(slots=True)
class Counters:
    """Of this run. `records_dropped`: heads and endings; `bodies_cut`: bodies not kept whole."""

    exchanges: int = 0
    bodies_cut: int = 0
    records_dropped: int = 0
    write_errors: int = 0
    last_error: str | None = None


class ExchangeTape:
    __slots__ = ("_bodies", "_cut", "_exchange", "_kept", "_sizes", "_spool")

    def __init__(self, spool_: Spool, exchange: bytes, bodies: bool) -> None:
        self._spool = spool_
        self._exchange = exchange
        self._bodies = bodies
        self._kept = {"request": 0, "response": 0}
        self._sizes = {"request": 0, "response": 0}
        self._cut: dict[str, str] = {}

    def routed(self, to: str, why: str) -> None:
        self._spool.add(Kind.ROUTED, self._exchange, orjson.dumps({"to": to, "why": why}))

    def body(self, side: Side, data: bytes) -> None:
        self._sizes[side] += len(data)
        if not self._bodies or side in self._cut:
            return  # once cut, stays cut: a body with a hole would be read as whole
        why = self._spool.refuses_body(self._kept[side] + len(data))
        if why is not None:
            self._cut[side] = why
            self._spool.counters.bodies_cut += 1
            return
        self._kept[side] += len(data)
        kind = Kind.REQUEST_BODY if side == "request" else Kind.RESPONSE_BODY
        self._spool.add(kind, self._exchange, data)

    def response_head(self, status: int, headers: Headers) -> None:
        said = {"status": status, "headers": self._spool.redactor.headers(headers)}
        self._spool.add(Kind.RESPONSE_HEAD, self._exchange, orjson.dumps(said))

    def closed(self, outcome: Outcome, error: str | None = None) -> None:
        said = {
            "outcome": outcome,
            "error": error,
            "request_bytes": self._sizes["request"],
            "response_bytes": self._sizes["response"],
            "cut": self._cut,
        }
        self._spool.add(Kind.CLOSED, self._exchange, orjson.dumps(said))


class Spool:
    """The loop's side: builds records, batches them, and knows the bounds."""

    def __init__(
        self,
        folder: Path,
        policy: CapturePolicy,
        redactor: Redactor,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.redactor = redactor
        self.counters = Counters()
        self._limit = policy.body_bytes
        self._loop = loop
        self._ids = _Ids()
        self._records: list[bytes] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = _Writer(folder, policy, self.counters)

    def open(self, head: RequestHead, bodies: bool) -> tuple[bytes, Tape]:
        """A new exchange: its id and its tape."""
        self.counters.exchanges += 1
        exchange = self._ids.next()
        said = {
            "seq": self.counters.exchanges,
            "at": time.time(),
            "method": head.method.decode("latin-1"),
            "target": self.redactor.target(head.target),
            "headers": self.redactor.headers(head.headers),
            "key": self.redactor.key_hash(head.credentials),
        }
        self.add(Kind.OPENED, exchange, orjson.dumps(said))
        return exchange, ExchangeTape(self, exchange, bodies)

    def refuses_body(self, size: int) -> str | None:
        """Why a body that would grow to `size` bytes is not kept; None when it is."""
        if size > self._limit:
            return "limit"
        if self._waiting > _MOST_WAITING:
            return "dropped"
        return "high_water" if self._writer.high_water else None

    def add(self, kind: Kind, exchange: bytes, payload: bytes) -> None:
        if self._waiting > 2 * _MOST_WAITING:
            self.counters.records_dropped += 1
            return
        record = spool.pack(kind, exchange, time.monotonic(), payload)
        self._records.append(record)
        self._waiting += len(record)
        if self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_SECONDS, self._flush)
        elif self._waiting > _FLUSH_BYTES and not self._writer.busy:
            self._timer.cancel()
            self._flush()

    def _flush(self) -> None:
        self._timer = None
        if not self._records:
            return
        if self._writer.busy:
            self._timer = self._loop.call_later(_FLUSH_SECONDS, self._flush)
            return
        self._writer.submit(self._records)
        self._records = []
        self._waiting = 0

    def close(self) -> None:
        """Write all that is left, and block until it is written: only when the work is done."""
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close(self._records)
        self._records = []


class _Ids:
    """UUIDv7 (RFC 9562 section 5.7): milliseconds, a counter, random bits drawn once per run."""

    def __init__(self) -> None:
        self._random = os.urandom(8)
        self._count = int.from_bytes(os.urandom(1), "big")

    def next(self) -> bytes:
        self._count = (self._count + 1) & 0xFFFFFFFFFF
        millis = time.time_ns() // 1_000_000
        # 12 counter bits behind the version, 28 more behind the variant, then the run's own.
        high, low = self._count >> 28 & 0xFFF, self._count & 0xFFFFFFF
        tail = int.from_bytes(self._random, "big") & 0x3FFFFFFFF
        value = millis << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low << 34 | tail
        return value.to_bytes(16, "big")


@dataclass(slots=True)
class _Segment:
    file: IO[bytes]
    size: int = 0
    synced: float = field(default_factory=time.monotonic)


class _Writer:
    """The writer thread and its segments.

    `busy` and `high_water` are plain flags that one side sets and the other reads: a stale value
    costs one flush interval, a lock would cost every record.
    """

    def __init__(self, folder: Path, policy: CapturePolicy, counters: Counters) -> None:
        self.busy = False
        self.high_water = False
        self._folder = folder
        self._policy = policy
        self._counters = counters
        self._number = 0
        self._segment: _Segment | None = None
        self._warned = 0.0
        folder.mkdir(mode=0o700, parents=True, exist_ok=False)
        self._alive = os.open(folder / spool.ALIVE_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._queue: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    def submit(self, records: list[bytes]) -> None:
        self.busy = True
        self._queue.put(records)

    def close(self, records: list[bytes]) -> None:
        self._queue.put(records)
        self._queue.put(None)
        self._thread.join()
        os.close(self._alive)

    def _run(self) -> None:
        while (records := self._queue.get()) is not None:
            try:
                self._write(records)
            except OSError as error:
                self._lost(records, error)
            self.busy = False
        if self._segment is not None:
            self._segment.file.close()

    def _write(self, records: list[bytes]) -> None:
        if not records:
            return
        segment = self._segment or self._next_segment()
        data = b"".join(records)
        written = 0
        while written < len(data):
            written += segment.file.write(data[written:] if written else data)
        segment.size += len(data)
        self._sync(segment)
        if segment.size >= _SEGMENT_BYTES:
            self._end_segment()

    def _sync(self, segment: _Segment) -> None:
        if self._policy.fsync == "none":
            return
        now = time.monotonic()
        if self._policy.fsync == "always" or now - segment.synced >= _FSYNC_SECONDS:
            os.fdatasync(segment.file.fileno())
            segment.synced = now
            self.high_water = self._on_disk() > self._policy.spool_bytes

    def _next_segment(self) -> _Segment:
        self._number += 1
        path = self._folder / f"{self._number:08d}{spool.SEGMENT_SUFFIX}"
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND, 0o600)
        self._segment = _Segment(os.fdopen(descriptor, "wb", buffering=0))
        return self._segment

    def _end_segment(self) -> None:
        """The next batch starts a new file, so that the recorder can delete this one."""
        if self._segment is not None:
            self._segment.file.close()
            self._segment = None
        self.high_water = self._on_disk() > self._policy.spool_bytes

    def _on_disk(self) -> int:
        """Bytes in all segments of all runs; a file may go while we look."""
        total = 0
        for path in self._folder.parent.glob(f"*/*{spool.SEGMENT_SUFFIX}"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
        return total

    def _lost(self, records: list[bytes], error: OSError) -> None:
        """A batch could not be written: cut the torn part off, go on in a new segment."""
        self._counters.write_errors += 1
        self._counters.records_dropped += len(records)
        self._counters.last_error = str(error)
        segment, self._segment = self._segment, None
        if segment is not None:
            try:
                segment.file.truncate(segment.size)
                segment.file.close()
            except OSError:
                pass  # the reader stops at the torn record; nothing more can be done here
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            print(f"understudy: capture lost {len(records)} records: {error}", file=sys.stderr)
