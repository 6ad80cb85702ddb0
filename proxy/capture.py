"""Capture: events of exchanges into the spool, at next to no cost for the relay's loop.

Heads and endings are noted, by reference, and become records behind the peers' backs, every 5 ms
or when there are many. Pieces of streams become records at once. Records go to the thread that
writes segments within 10 ms of an exchange's end, within 25 ms where none has ended, or at 1 MiB.
What can't be kept is dropped, and counted: bodies first, heads and endings last.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final, Protocol, cast

import orjson

from policies import spool
from policies.policy import Capture as CapturePolicy
from policies.spool import Kind, Outcome
from proxy.heads import ResponseHead
from proxy.ids import Ids
from proxy.redact import Redactor
from proxy.segments import Counters, Records, SegmentWriter
from proxy.writes import AT_ONCE

# Together they are the 10 ms that a crash may cost of what has ended.
_SETTLE_SECONDS: Final = 0.005
_ENDED_SECONDS: Final = 0.005
_SETTLE_NOTES: Final = 64  # some 0.1 ms of work: more at a time would keep a request waiting
# To wake the writer for pieces of streams alone costs more than all else that is done for them:
# they wait a little longer.
_STREAMED_SECONDS: Final = 0.025
_JOIN_BYTES: Final = 64 << 10  # what was made last is still at hand for the processor
_FLUSH_BYTES: Final = 1 << 20
_MOST_WAITING: Final = 8 << 20  # bytes in memory; above it bodies are dropped
# Plain integers: reading a member of an enumeration costs more than packing it.
_REQUEST_BODY: Final = int(Kind.REQUEST_BODY)
_RESPONSE_BODY: Final = int(Kind.RESPONSE_BODY)
_OPENED: Final = int(Kind.OPENED)
_RESPONSE_HEAD: Final = int(Kind.RESPONSE_HEAD)
_ROUTED: Final = int(Kind.ROUTED)
_CLOSED: Final = int(Kind.CLOSED)
_RECORD_BYTES: Final = spool.RECORD.size
_record: Final = spool.RECORD.pack
_monotonic: Final = time.monotonic


class Tape(Protocol):
    """What one exchange leaves behind."""

    def routed(self, to: str, why: str) -> None: ...
    def keep_bodies(self) -> None: ...
    def request_body(self, data: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
    def counted(self, request_bytes: int, response_bytes: int) -> None:
        """Of bytes that nobody looks at."""

    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


class BlankTape:
    """Records nothing: capture is off."""

    def routed(self, to: str, why: str) -> None: ...
    def keep_bodies(self) -> None: ...
    def request_body(self, data: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
    def counted(self, request_bytes: int, response_bytes: int) -> None: ...
    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


BLANK: Final = BlankTape()


class ExchangeTape:
    """Of one exchange that is captured."""

    __slots__ = ("_exchange", "_spool", "bodies", "cut", "request_bytes", "response_bytes")

    def __init__(self, spool_: Spool, exchange: bytes, bodies: bool) -> None:
        self._spool = spool_
        self._exchange = exchange
        self.bodies = bodies  # are they kept?
        self.request_bytes = 0  # seen
        self.response_bytes = 0
        self.cut: dict[str, str] | None = None

    def keep_bodies(self) -> None:
        self.bodies = True

    def routed(self, to: str, why: str) -> None:
        self._spool.note(_ROUTED, self._exchange, (to, why))

    def request_body(self, data: bytes) -> None:
        size = self.request_bytes = self.request_bytes + len(data)
        whole = self.cut is None and size <= self._spool.body_limit  # as nearly always
        if self.bodies and (whole or self._keeps("request", size)):
            self._spool.piece(_REQUEST_BODY, self._exchange, data)

    def response_body(self, data: bytes) -> None:
        size = self.response_bytes = self.response_bytes + len(data)
        whole = self.cut is None and size <= self._spool.body_limit  # as nearly always
        if self.bodies and (whole or self._keeps("response", size)):
            self._spool.piece(_RESPONSE_BODY, self._exchange, data)

    def _keeps(self, side: str, size: int) -> bool:
        """Once cut, a body stays cut: one with a hole would be read as whole."""
        spool_ = self._spool
        if size <= spool_.body_limit:
            return self.cut is None or side not in self.cut
        if self.cut is None:
            self.cut = {}
        if side not in self.cut:
            self.cut[side] = spool_.refuses_bodies or "limit"
            spool_.counters.bodies_cut += 1
        return False

    def response_head(self, head: ResponseHead) -> None:
        self._spool.note(_RESPONSE_HEAD, self._exchange, head)

    def counted(self, request_bytes: int, response_bytes: int) -> None:
        self.request_bytes, self.response_bytes = request_bytes, response_bytes

    def closed(self, outcome: Outcome, error: str | None = None) -> None:
        self._spool.note(_CLOSED, self._exchange, (self, outcome, error))

    def ending(self, outcome: Outcome, error: str | None) -> bytes:
        return b'{"outcome":"%b","error":%b,"request_bytes":%d,"response_bytes":%d,"cut":%b}' % (
            outcome.encode(),
            b"null" if error is None else orjson.dumps(error),
            self.request_bytes,
            self.response_bytes,
            orjson.dumps(self.cut) if self.cut else b"{}",
        )


class Spool:
    """The loop's side: makes records, batches them, and knows the bounds."""

    def __init__(
        self,
        folder: Path,
        policy: CapturePolicy,
        redactor: Redactor,
        loop: asyncio.AbstractEventLoop,
        ids: Ids,
    ) -> None:
        self.redactor = redactor
        self.counters = Counters()
        self.refuses_bodies: str | None = None  # why new body bytes are not kept now
        self.body_limit = policy.body_bytes
        self._policy_limit = policy.body_bytes
        self._loop = loop
        self._ids = ids
        self._noted: list[tuple[float, int, bytes, Any]] = []
        self._settling = cast(asyncio.TimerHandle, None)
        self._made: list[bytes] = []
        self._made_bytes = 0
        self._records: list[Records] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0  # when the timer ends
        self._writer = SegmentWriter(folder, policy, self.counters)

    def open(self, about: bytes, bodies: bool) -> tuple[bytes, Tape]:
        """A new exchange: its id and its tape. `about`: what `Redactor.request` said of it."""
        if self.refuses_bodies not in ("dropped", self._writer.refuses):
            self._refuse_bodies(self._writer.refuses)
        exchange = self._ids.next()
        self.counters.exchanges += 1
        self.note(_OPENED, exchange, (self.counters.exchanges, time.time(), about))
        return exchange, ExchangeTape(self, exchange, bodies)

    def note(self, kind: int, exchange: bytes, what: Any) -> None:
        """Make a record of it when the peers have been served."""
        if not self._noted:
            self._settling = self._loop.call_later(_SETTLE_SECONDS, self._settle)
        elif len(self._noted) == _SETTLE_NOTES:
            self._loop.call_soon(self._settle)
        self._noted.append((_monotonic(), kind, exchange, what))

    def piece(self, kind: int, exchange: bytes, data: bytes) -> None:
        if self._noted and len(data) < AT_ONCE:
            self._noted.append((_monotonic(), kind, exchange, data))  # in its turn
            return
        self._settle()
        self._add(_monotonic(), kind, exchange, data)
        if self._timer is None:
            self._flush_within(_STREAMED_SECONDS)

    def _settle(self) -> None:
        if not self._noted:
            return
        noted, self._noted = self._noted, []
        self._settling.cancel()
        within = _STREAMED_SECONDS
        for at, kind, exchange, what in noted:
            if kind == _CLOSED:
                within = _ENDED_SECONDS
            whole = kind in (_REQUEST_BODY, _RESPONSE_BODY)
            self._add(at, kind, exchange, what if whole else self._said(kind, what))
        self._flush_within(within)

    def _said(self, kind: int, what: Any) -> bytes:
        if kind == _RESPONSE_HEAD:
            return b'{"status":%d,"headers":%b}' % (what.status, self.redactor.response(what))
        if kind == _CLOSED:
            ending: bytes = what[0].ending(*what[1:])
            return ending
        if kind == _OPENED:
            return b'{"seq":%d,"at":%.6f,%b' % what
        to, why = what
        return orjson.dumps({"to": to, "why": why})

    def _add(self, at: float, kind: int, exchange: bytes, payload: bytes) -> None:
        size = len(payload)
        self._made += (_record(size, kind, exchange, at), payload)
        self._made_bytes += size + _RECORD_BYTES
        if self._made_bytes >= _JOIN_BYTES:
            self._join()

    def _join(self) -> None:
        """Here and not in the writer: what they were made of is let go while it is at hand."""
        if not self._made:
            return
        self._records.append(Records(len(self._made) // 2, b"".join(self._made)))
        self._waiting += self._made_bytes
        self._made = []
        self._made_bytes = 0
        if self._waiting > _FLUSH_BYTES:
            self._much_waiting()

    def _flush_within(self, seconds: float) -> None:
        due = _monotonic() + seconds
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._loop.call_later(seconds, self._flush)

    def _much_waiting(self) -> None:
        if not self._writer.busy:
            if self._timer is not None:
                self._timer.cancel()
            self._flush()
        elif self._waiting > 2 * _MOST_WAITING:
            last = self._records.pop()  # even heads and endings, when the disk stands still
            self.counters.records_dropped += last.number
            self._waiting -= len(last.data)
        elif self._waiting > _MOST_WAITING:
            self._refuse_bodies("dropped")

    def _refuse_bodies(self, why: str | None) -> None:
        self.refuses_bodies = why
        self.body_limit = self._policy_limit if why is None else -1

    def _flush(self) -> None:
        self._timer = None
        self._join()
        if not self._records:
            return
        if self._writer.busy:
            self._flush_within(_ENDED_SECONDS)
            return
        self._writer.submit(self._records)
        self._records = []
        self._waiting = 0
        self._refuse_bodies(self._writer.refuses)

    def close(self) -> None:
        """Write all that is left, and block until it is written: only when the work is done."""
        self._settle()
        self._join()
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close(self._records)
        self._records = []
