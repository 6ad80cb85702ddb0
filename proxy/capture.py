"""Capture: events of exchanges into the spool, at next to no cost for the relay's loop.

The loop appends records to a list; every 10 ms, or at 1 MiB, the list goes to the thread that
writes segments. What can't be kept is dropped, and counted: bodies first, heads and endings last.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from pathlib import Path
from typing import Final, Protocol

import orjson

from policies import spool
from policies.policy import Capture as CapturePolicy
from policies.spool import Kind, Outcome
from proxy.heads import ResponseHead
from proxy.redact import Redactor
from proxy.segments import Counters, SegmentWriter

_FLUSH_SECONDS: Final = 0.01
_FLUSH_BYTES: Final = 1 << 20
_MOST_WAITING: Final = 8 << 20  # bytes in memory; above it bodies are dropped
# Plain integers: reading a member of an enumeration costs more than packing it.
_REQUEST_BODY: Final = int(Kind.REQUEST_BODY)
_RESPONSE_BODY: Final = int(Kind.RESPONSE_BODY)
_OPENED: Final = int(Kind.OPENED)
_RESPONSE_HEAD: Final = int(Kind.RESPONSE_HEAD)
_CLOSED: Final = int(Kind.CLOSED)
_RECORD_BYTES: Final = spool.RECORD.size
_record: Final = spool.RECORD.pack
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


class ExchangeTape:
    __slots__ = ("_bodies", "_cut", "_exchange", "_request", "_response", "_spool")

    def __init__(self, spool_: Spool, exchange: bytes, bodies: bool) -> None:
        self._spool = spool_
        self._exchange = exchange
        self._bodies = bodies
        self._request = 0  # bytes seen
        self._response = 0
        self._cut: dict[str, str] | None = None

    def routed(self, to: str, why: str) -> None:
        self._spool.add(Kind.ROUTED, self._exchange, orjson.dumps({"to": to, "why": why}))

    def request_body(self, data: bytes) -> None:
        size = self._request = self._request + len(data)
        if self._bodies and ((size <= self._spool.body_limit and self._cut is None)
                             or not self._cuts("request", size)):  # fmt: skip
            self._spool.add(_REQUEST_BODY, self._exchange, data)

    def response_body(self, data: bytes) -> None:
        size = self._response = self._response + len(data)
        if self._bodies and ((size <= self._spool.body_limit and self._cut is None)
                             or not self._cuts("response", size)):  # fmt: skip
            self._spool.add(_RESPONSE_BODY, self._exchange, data)

    def _cuts(self, side: str, size: int) -> bool:
        """Once cut, a body stays cut: one with a hole would be read as whole."""
        spool_ = self._spool
        cut = self._cut or {}
        if side not in cut and size > spool_.body_limit:
            cut[side] = spool_.refuses_bodies or "limit"
            self._cut = cut
            spool_.counters.bodies_cut += 1
        return side in cut

    def response_head(self, head: ResponseHead) -> None:
        headers = self._spool.redactor.response(head)
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
        self._writer = SegmentWriter(folder, policy, self.counters)

    def open(self, about: bytes, bodies: bool) -> tuple[bytes, Tape]:
        """A new exchange: its id and its tape. `about`: what `Redactor.request` said of it."""
        counters = self.counters
        counters.exchanges += 1
        exchange = self._ids.next()
        self.add(_OPENED, exchange, b'{"seq":%d,"at":%.6f,%b' % (
            counters.exchanges, time.time(), about,
        ))  # fmt: skip
        return exchange, ExchangeTape(self, exchange, bodies)

    def add(self, kind: int, exchange: bytes, payload: bytes) -> None:
        size = len(payload)
        self._records += (_record(size, kind, exchange, _monotonic()), payload)
        self._waiting += size + _RECORD_BYTES
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

    _pack: Final = struct.Struct(">QQ").pack

    def __init__(self) -> None:
        # Variant 0b10 and 34 random bits of this run.
        self._base = 0b10 << 62 | int.from_bytes(os.urandom(8), "big") >> 30
        self._count = 0

    def next(self) -> bytes:
        count = self._count = self._count + 1 & 0xFFFFFFFFFF
        # The counter: 12 bits behind the version (7), 28 behind the variant.
        high = time.time_ns() // 1_000_000 << 16 | 0x7000 | count >> 28
        return self._pack(high, self._base | (count & 0xFFFFFFF) << 34)
