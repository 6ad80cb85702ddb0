"""Capture: events of exchanges into the spool, at next to no cost for the relay's loop.

A tape notes what happens, by reference. Notes become records behind the peers' backs, every 5 ms
or when there are many. Records go to the thread that writes segments within 10 ms of an exchange's
end, within 25 ms where none has ended, or at 1 MiB. What can't be kept is dropped, and counted:
bodies first, heads and endings last.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final, Protocol

import orjson

from policies import spool
from policies.policy import Capture as CapturePolicy
from policies.spool import Kind, Outcome
from proxy.heads import ResponseHead
from proxy.ids import Ids
from proxy.redact import Redactor
from proxy.segments import Counters, Records, SegmentWriter
from proxy.writes import AT_ONCE

# Together they are the 10 ms that a crash may cost of what has ended. To wake the writer for pieces
# of streams alone costs more than all else that is done for them: they wait a little longer.
_SETTLE_SECONDS: Final = 0.005
_ENDED_SECONDS: Final = 0.005
_STREAMED_SECONDS: Final = 0.02
_SETTLE_NOTES: Final = 64  # some 0.1 ms of work: more at a time would keep a request waiting
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
    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


class BlankTape:
    """Records nothing: capture is off."""

    def routed(self, to: str, why: str) -> None: ...
    def keep_bodies(self) -> None: ...
    def request_body(self, data: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


BLANK: Final = BlankTape()


class ExchangeTape:
    """Notes what happens, by reference; what is made of it waits until the peers are served. Not
    so large pieces: a turn may bring megabytes of them."""

    __slots__ = ("_spool", "bodies", "cut", "exchange", "request_bytes", "response_bytes")

    def __init__(self, spool_: Spool, exchange: bytes, bodies: bool) -> None:
        self._spool = spool_
        self.exchange = exchange
        self.bodies = bodies  # are they kept?
        self.request_bytes = 0  # seen
        self.response_bytes = 0
        self.cut: dict[str, str] | None = None

    def keep_bodies(self) -> None:
        self.bodies = True

    def routed(self, to: str, why: str) -> None:
        self._spool.note(_ROUTED, self, (to, why))

    def request_body(self, data: bytes) -> None:
        if self._keeps("request"):
            self._spool.note(_REQUEST_BODY, self, data)
            if len(data) >= AT_ONCE:
                self._spool.settle()
        else:
            self.request_bytes += len(data)

    def response_body(self, data: bytes) -> None:
        if self._keeps("response"):
            self._spool.note(_RESPONSE_BODY, self, data)
            if len(data) >= AT_ONCE:
                self._spool.settle()
        else:
            self.response_bytes += len(data)

    def _keeps(self, side: str) -> bool:
        return self.bodies and (self.cut is None or side not in self.cut)

    def response_head(self, head: ResponseHead) -> None:
        self._spool.note(_RESPONSE_HEAD, self, head)

    def closed(self, outcome: Outcome, error: str | None = None) -> None:
        self._spool.note(_CLOSED, self, (outcome, error))

    def ending(self, outcome: Outcome, error: str | None) -> bytes:
        return b'{"outcome":"%b","error":%b,"request_bytes":%d,"response_bytes":%d,"cut":%b}' % (
            outcome.encode(),
            b"null" if error is None else orjson.dumps(error),
            self.request_bytes,
            self.response_bytes,
            orjson.dumps(self.cut) if self.cut else b"{}",
        )


class Spool:
    """The loop's side: builds records, batches them, and knows the bounds."""

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
        self._noted: list[tuple[float, int, ExchangeTape, Any]] = []
        self._settling: asyncio.TimerHandle | None = None
        self._records: list[Records] = []
        self._waiting = 0
        self._timer: asyncio.TimerHandle | None = None
        self._writer = SegmentWriter(folder, policy, self.counters)

    def open(self, about: bytes, bodies: bool) -> tuple[bytes, Tape]:
        """A new exchange: its id and its tape. `about`: what `Redactor.request` said of it."""
        exchange = self._ids.next()
        tape = ExchangeTape(self, exchange, bodies)
        self.note(_OPENED, tape, (time.time(), about))
        return exchange, tape

    def note(self, kind: int, tape: ExchangeTape, what: Any) -> None:
        if not self._noted:
            self._settling = self._loop.call_later(_SETTLE_SECONDS, self.settle)
        elif len(self._noted) == _SETTLE_NOTES:
            self._loop.call_soon(self.settle)
        self._noted.append((_monotonic(), kind, tape, what))

    # -- from notes to records

    def settle(self) -> None:
        """Make records of what was noted."""
        noted, self._noted = self._noted, []
        if self._settling is not None:
            self._settling.cancel()
            self._settling = None
        if self.refuses_bodies not in ("dropped", self._writer.refuses):
            self._refuse_bodies(self._writer.refuses)
        within = _STREAMED_SECONDS
        made: list[bytes] = []
        for at, kind, tape, what in noted:
            if kind == _RESPONSE_BODY:
                tape.response_bytes += len(what)
                if not self._keeps(tape, "response", tape.response_bytes):
                    continue
            elif kind == _REQUEST_BODY:
                tape.request_bytes += len(what)
                if not self._keeps(tape, "request", tape.request_bytes):
                    continue
            else:
                if kind == _CLOSED:
                    within = _ENDED_SECONDS
                what = self._said(kind, tape, what)
            made += (_record(len(what), kind, tape.exchange, at), what)
            self._waiting += len(what) + _RECORD_BYTES
            if self._waiting > _FLUSH_BYTES:
                self._join(made)
                made = []
                self._much_waiting()
        if made:
            self._join(made)
        self._flush_within(within)

    def _join(self, made: list[bytes]) -> None:
        """Here and not in the writer: what they were made of is let go while it is at hand."""
        self._records.append(Records(len(made) // 2, b"".join(made)))

    def _flush_within(self, seconds: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= self._loop.time() + seconds:
                return
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, self._flush)

    def _keeps(self, tape: ExchangeTape, side: str, size: int) -> bool:
        """Once cut, a body stays cut: one with a hole would be read as whole."""
        if not tape.bodies:
            return False
        if tape.cut is None:
            if size <= self.body_limit:
                return True
            tape.cut = {}
        if side not in tape.cut and size > self.body_limit:
            tape.cut[side] = self.refuses_bodies or "limit"
            self.counters.bodies_cut += 1
        return side not in tape.cut

    def _said(self, kind: int, tape: ExchangeTape, what: Any) -> bytes:
        if kind == _RESPONSE_HEAD:
            return b'{"status":%d,"headers":%b}' % (what.status, self.redactor.response(what))
        if kind == _CLOSED:
            return tape.ending(*what)
        if kind == _OPENED:
            self.counters.exchanges += 1
            return b'{"seq":%d,"at":%.6f,%b' % (self.counters.exchanges, *what)
        to, why = what
        return orjson.dumps({"to": to, "why": why})

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
        self.settle()
        if self._timer is not None:
            self._timer.cancel()
        self._writer.close(self._records)
        self._records = []
