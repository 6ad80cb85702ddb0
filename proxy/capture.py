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
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Protocol

import orjson

from policies import spool
from policies.policy import Capture as CapturePolicy
from policies.spool import Kind, Outcome
from proxy.heads import RequestHead, ResponseHead
from proxy.redact import Redactor

_FLUSH_SECONDS: Final = 0.01
_FLUSH_BYTES: Final = 1 << 20
_MOST_WAITING: Final = 8 << 20  # bytes in memory; above it bodies are dropped
_SEGMENT_BYTES: Final = 8 << 20
_FSYNC_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.5
_MOST_BUFFERS: Final = 1000  # in one writev; Linux takes 1024
# Plain integers: reading a member of an enumeration costs more than packing it.
_REQUEST_BODY: Final = int(Kind.REQUEST_BODY)
_RESPONSE_BODY: Final = int(Kind.RESPONSE_BODY)
_OPENED: Final = int(Kind.OPENED)
_RESPONSE_HEAD: Final = int(Kind.RESPONSE_HEAD)
_CLOSED: Final = int(Kind.CLOSED)
_HEADER_BYTES: Final = spool.HEADER.size
_header: Final = spool.header
_monotonic: Final = time.monotonic


class Tape(Protocol):
    """What one exchange leaves behind."""

    def routed(self, to: str, why: str) -> None: ...
    def request_body(self, data: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


class BlankTape:
    """Records nothing: capture is off."""

    def routed(self, to: str, why: str) -> None: ...
    def request_body(self, data: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
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
    __slots__ = ("_bodies", "_cut", "_exchange", "_request", "_response", "_spool")

    def __init__(self, spool_: Spool, exchange: bytes, bodies: bool) -> None:
        self._spool = spool_
        self._exchange = exchange
        self._bodies = bodies
        self._request = 0  # bytes seen
        self._response = 0
        self._cut: dict[str, str] = {}

    def routed(self, to: str, why: str) -> None:
        self._spool.add(Kind.ROUTED, self._exchange, orjson.dumps({"to": to, "why": why}))

    def request_body(self, data: bytes) -> None:
        self._request += len(data)
        if self._bodies and not self._cuts("request", self._request):
            self._spool.add(_REQUEST_BODY, self._exchange, data)

    def response_body(self, data: bytes) -> None:
        self._response += len(data)
        if self._bodies and not self._cuts("response", self._response):
            self._spool.add(_RESPONSE_BODY, self._exchange, data)

    def _cuts(self, side: str, size: int) -> bool:
        """Once cut, a body stays cut: one with a hole would be read as whole."""
        spool_ = self._spool
        if size <= spool_.body_limit and not self._cut:
            return False
        if side not in self._cut and size > spool_.body_limit:
            self._cut[side] = spool_.refuses_bodies or "limit"
            spool_.counters.bodies_cut += 1
        return side in self._cut

    def response_head(self, head: ResponseHead) -> None:
        headers = self._spool.redactor.headers(head.shape, head.values)
        said = b'{"status":%d,"headers":%b}' % (head.status, headers)
        self._spool.add(_RESPONSE_HEAD, self._exchange, said)

    def closed(self, outcome: Outcome, error: str | None = None) -> None:
        said = b'{"outcome":"%b","error":%b,"request_bytes":%d,"response_bytes":%d,"cut":%b}' % (
            outcome.encode(),
            b"null" if error is None else orjson.dumps(error),
            self._request,
            self._response,
            orjson.dumps(self._cut) if self._cut else b"{}",
        )
        self._spool.add(_CLOSED, self._exchange, said)


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
        self.refuses_bodies: str | None = None  # why new body bytes are not kept now
        self.body_limit = policy.body_bytes
        self._policy_limit = policy.body_bytes
        self._loop = loop
        self._ids = _Ids()
        self._records: list[bytes] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = _Writer(folder, policy, self.counters)

    def open(self, head: RequestHead, key: str | None, bodies: bool) -> tuple[bytes, Tape]:
        """A new exchange: its id and its tape."""
        self.counters.exchanges += 1
        exchange = self._ids.next()
        said = b'{"seq":%d,"at":%.6f,"method":"%b","target":%b,"headers":%b,"key":%b}' % (
            self.counters.exchanges,
            time.time(),
            head.method,
            self.redactor.target(head.target),
            self.redactor.headers(head.shape, head.values),
            b"null" if key is None else b'"%b"' % key.encode(),
        )
        self.add(_OPENED, exchange, said)
        return exchange, ExchangeTape(self, exchange, bodies)

    def add(self, kind: int, exchange: bytes, payload: bytes) -> None:
        self._records += (_header(kind, exchange, _monotonic(), payload), payload)
        self._waiting += len(payload) + _HEADER_BYTES
        if self._timer is None:
            self._timer = self._loop.call_later(_FLUSH_SECONDS, self._flush)
        elif self._waiting > _FLUSH_BYTES:
            self._much_waiting()

    def _much_waiting(self) -> None:
        if not self._writer.busy:
            if self._timer is not None:
                self._timer.cancel()
            self._flush()
        elif self._waiting > 2 * _MOST_WAITING:
            del self._records[-2:]  # even heads and endings, when the disk stands still
            self.counters.records_dropped += 1
            self._waiting = 2 * _MOST_WAITING
        elif self._waiting > _MOST_WAITING:
            self._refuse_bodies("dropped")

    def _refuse_bodies(self, why: str | None) -> None:
        self.refuses_bodies = why
        self.body_limit = self._policy_limit if why is None else -1

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
        self._refuse_bodies("high_water" if self._writer.high_water else None)

    def close(self) -> None:
        """Write all that is left, and block until it is written: only when the work is done."""
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close(self._records)
        self._records = []


class _Ids:
    """UUIDv7 (RFC 9562 section 5.7): milliseconds, a counter, random bits drawn once per run."""

    def __init__(self) -> None:
        # The constant bits: version 7, variant 0b10, and 34 random ones of this run.
        self._base = 0x7 << 76 | 0b10 << 62 | int.from_bytes(os.urandom(8), "big") >> 30
        self._count = 0

    def next(self) -> bytes:
        count = self._count = self._count + 1 & 0xFFFFFFFFFF
        # The counter: 12 bits behind the version, 28 behind the variant.
        counted = (count >> 28) << 64 | (count & 0xFFFFFFF) << 34
        return (time.time_ns() // 1_000_000 << 80 | self._base | counted).to_bytes(16, "big")


@dataclass(slots=True)
class _Segment:
    file: IO[bytes]
    size: int = 0


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
        self._synced = time.monotonic()
        self._looked = 0.0
        self._alive: int | None = None
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
        if self._alive is not None:
            os.close(self._alive)

    def _open_run(self) -> None:
        """Here and not at start: a disk that is full then must not keep the relay from running."""
        if self._alive is not None and self._folder.is_dir():
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._alive is not None:  # somebody removed the folder under us
            os.close(self._alive)
            self._alive = self._segment = None
        alive = os.open(self._folder / spool.ALIVE_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
        self._alive = alive

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
        self._open_run()
        segment = self._segment or self._next_segment()
        for start in range(0, len(records), _MOST_BUFFERS):
            segment.size += _write_all(
                segment.file.fileno(), records[start : start + _MOST_BUFFERS]
            )
        self._sync(segment)
        # At high water soon: only whole segments can be deleted, and make room.
        look = self.high_water and time.monotonic() - self._looked >= _LOOK_SECONDS
        if segment.size >= _SEGMENT_BYTES or look:
            self._end_segment()

    def _sync(self, segment: _Segment) -> None:
        if self._policy.fsync == "none":
            return
        now = time.monotonic()
        if self._policy.fsync == "always" or now - self._synced >= _FSYNC_SECONDS:
            os.fdatasync(segment.file.fileno())
            self._synced = now

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
        self._looked = time.monotonic()
        # Once over it, only well below it: or bodies would come and go by the batch.
        limit = self._policy.spool_bytes // 2 if self.high_water else self._policy.spool_bytes
        self.high_water = self._on_disk() > limit

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
        self._counters.records_dropped += len(records) // 2
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
            print(f"understudy: capture lost {len(records) // 2} records: {error}", file=sys.stderr)


def _write_all(descriptor: int, buffers: list[bytes]) -> int:
    """Bytes written: all of them, without joining them first."""
    size = sum(map(len, buffers))
    written = os.writev(descriptor, buffers)
    if written < size:
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return size
