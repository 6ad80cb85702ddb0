"""Capture: events of exchanges into the spool, at next to no cost for the relay's loop.

Heads and endings are noted, by reference, and become records behind the peers' backs, every 5 ms
or when there are many. Pieces of streams become records at once. Records go to the thread that
writes segments within 10 ms of an exchange's end, within 25 ms where none has ended, or at 1 MiB.
What can't be kept is dropped, and counted: bodies first, heads and endings last.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, cast

import orjson

from policies import spool
from policies.policy import Capture as CapturePolicy
from policies.spool import Kind
from proxy.ids import Ids
from proxy.redact import Redactor
from proxy.segments import Batches, Counters, Late, Records, SegmentWriter
from proxy.sketch import MOST_BYTES, Sketch
from proxy.tapes import BareTape, ExchangeTape, Tape
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
_MOST_SKETCHED: Final = 32 << 20  # bytes of requests in the making whose task is yet to be told
# Plain integers: reading a member of an enumeration costs more than packing it.
_REQUEST_BODY: Final = int(Kind.REQUEST_BODY)
_RESPONSE_BODY: Final = int(Kind.RESPONSE_BODY)
_OPENED: Final = int(Kind.OPENED)
_RESPONSE_HEAD: Final = int(Kind.RESPONSE_HEAD)
_CLOSED: Final = int(Kind.CLOSED)
_RECORD_BYTES: Final = spool.RECORD.size
_record: Final = spool.RECORD.pack
_monotonic: Final = time.monotonic


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
        self._records: Batches = []
        self._waiting = 0
        self._sketched = 0  # bytes in sketches that have not been handed over
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

    def open_bare(self, about: bytes, sketched: bool, length: int) -> tuple[bytes, Tape]:
        """A new exchange of which no body byte is spooled."""
        exchange, _ = self.open(about, False)
        return exchange, BareTape(self, exchange, sketched, length)

    def sketch(self, sketch: Sketch, data: bytes) -> bool:
        """A piece for it. False: that is too much, and the sketch is given up."""
        size = len(data)
        if sketch.size + size > MOST_BYTES or self._sketched + size > _MOST_SKETCHED:
            self._sketched -= sketch.size
            return False
        self._sketched += size
        sketch.add(data)
        return True

    def read_soon(self, sketch: Sketch) -> None:
        """It is whole: let the writer read it with the next batch."""

        def read() -> bytes:
            sketch.read()
            return b""

        self._late(0, sketch, read)

    def _end_bare(self, at: float, exchange: bytes, tape: BareTape, *how: Any) -> None:
        assert tape.sketch is not None

        def ending() -> bytes:
            payload = tape.ending(*how)
            return _record(len(payload), _CLOSED, exchange, at) + payload

        self._late(1, tape.sketch, ending)

    def _late(self, number: int, sketch: Sketch, make: Callable[[], bytes]) -> None:
        self._join()
        size = sketch.hand_over()
        self._sketched -= size
        self._records.append(Late(number, size, make))
        self._waiting += size
        if self._waiting > _FLUSH_BYTES:
            self._much_waiting()

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
                tape = what[0]
                if type(tape) is BareTape and tape.sketch is not None:
                    self._end_bare(at, exchange, *what)
                    continue
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
            self._waiting -= last.size
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
