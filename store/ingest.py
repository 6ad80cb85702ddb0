"""A piece of the spool into the database, in one transaction with the reader's position.

That is what makes it exactly once: the position, the rows of exchanges that closed, and the events
of exchanges still open (`staged`) move together or not at all. The memory's copy of open exchanges
is a cache of `staged`, changed only after a commit, and thrown away after any failure.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from pathlib import Path
from typing import Any, Final

from policies.spool import Event, Kind
from store import counted_once, daily
from store.cutting import Parts
from store.database import Connection, chance_of_retry, is_corrupt, iso, transaction
from store.groups import CONTENT_KINDS, grouped, merged
from store.media import File
from store.media import write as write_file
from store.rate_limits import RateLimits
from store.recording import Recording
from store.rows import Bodies, Rows, Unreadable, build, build_turns, sequence
from store.slices import Digests, Slices, digests_of
from store.sockets import is_switch, shortened
from store.spool_reader import Piece, Position
from store.steps import in_step, whole

# Bodies of open exchanges kept in memory; above it they are read back from `staged` at the end.
MOST_CACHED: Final = 64 << 20
# Bytes of a socket since its turns were last read, above which they are read again.
_LONG_SOCKET: Final = 256 << 10
_IN_STEP: Final = 64  # exchanges whose rows are made together
_BYTES_IN_STEP: Final = 2 << 20
_MOST_DETAIL: Final = 300

_BODIES: Final = (
    "number", "request", "request_parts", "response", "response_parts", "events", "request_note",
    "response_note",
)  # fmt: skip
_RATE_LIMITS: Final = ("number", *RateLimits._fields)
_INSERT_FILE: Final = """
    INSERT INTO files VALUES (?, ?, ?, 1) ON CONFLICT (hash) DO UPDATE SET uses = uses + 1"""
_INSERT_FILE_USE: Final = "INSERT INTO file_uses VALUES (?, ?)"
_INSERT_TASK: Final = """
    INSERT INTO tasks VALUES (?, ?, ?, ?, ?)
    ON CONFLICT (id) DO UPDATE SET system_prompt = excluded.system_prompt  -- it was forgotten
    WHERE system_prompt IS NULL AND excluded.system_prompt IS NOT NULL"""
_OPEN: Final = "SELECT exchange, run FROM staged GROUP BY exchange"
_HEADS: Final = "SELECT exchange, payload FROM staged WHERE kind = ?"
_UNREAD: Final = """
    SELECT coalesce(sum(length(payload)), 0) FROM staged WHERE exchange = ?1 AND number >
        coalesce((SELECT max(number) FROM staged WHERE exchange = ?1 AND kind = ?2), 0)"""
_INSERT_STAGED: Final = (
    "INSERT INTO staged (run, exchange, kind, at, payload) VALUES (?, ?, ?, ?, ?)"
)


@dataclass(slots=True)
class _Open:
    """An exchange in `staged`. `events` is None when memory was needed for others. `unread`: bytes
    of a socket since its turns were last read."""

    run: str
    events: list[Event] | None
    size: int
    socket: bool = False
    unread: int = 0


@dataclass(slots=True)
class _Batch:
    """What one piece comes to, before anything is changed."""

    run: str
    ready: list[tuple[bytes, list[Event]]] = field(default_factory=list)  # to make rows of
    ready_bytes: int = 0
    rows: list[Rows] = field(default_factory=list)
    closed: list[bytes] = field(default_factory=list)  # of these, some were staged
    staged: dict[bytes, list[Event]] = field(default_factory=dict)
    highest_seq: int = 0
    left_open: int = 0
    incidents: Counter[tuple[str, str]] = field(default_factory=Counter)


class Ingest:
    """The spool's side of the writing connection."""

    def __init__(
        self,
        connection: Connection,
        recording: Recording,
        files: Path,
        most_cached: int = MOST_CACHED,
    ) -> None:
        """`files`: the folder of large parts."""
        self._connection = connection
        self._recording = recording
        self._files = files
        self.slices = Slices(connection)
        self._most_cached = most_cached
        self._open: dict[bytes, _Open] = {}
        self._cached = 0
        self._loaded = False
        self._positions: dict[str, Position] = {}

    def position(self, run: str) -> Position:
        if not self._loaded:
            self._load()
        return self._positions.get(run, Position())

    def forget_missing(self, existing: set[str]) -> None:
        """Drop positions of runs whose folders are gone: their names may come again."""
        self.position("")
        gone = [(run,) for run in self._positions if run not in existing]
        if gone:
            with transaction(self._connection):
                self._connection.executemany("DELETE FROM spool_position WHERE run = ?", gone)
            for (run,) in gone:
                del self._positions[run]

    def apply(self, run: str, started: float, piece: Piece) -> None:
        """Commit a piece. On an error nothing has happened: read and apply it again."""
        self.position(run)
        try:
            with transaction(self._connection):
                batch = self._digest(run, piece)
                self._write(batch, started, piece)
        except BaseException:
            self._forget()
            raise
        self._positions[run] = piece.position
        self._remember(batch)

    def reload(self) -> None:
        """Another hand has changed what is staged."""
        self._forget()

    def note(self, kind: str, detail: str) -> None:
        with transaction(self._connection):
            self._insert_incidents([(kind, detail)])

    # -- from events to a batch

    def _digest(self, run: str, piece: Piece) -> _Batch:
        batch = _Batch(run)
        for events in grouped(piece.events):
            self._sort_in(batch, events[0].exchange, events)
        if piece.finished:
            self._close_all(batch)
        self._make_rows(batch)
        if piece.unreadable:
            batch.incidents["unreadable_record", "a kind that is not known"] += piece.unreadable
        if piece.torn:
            batch.incidents["torn_tail", f"run {run}: {piece.torn} bytes cut"] += 1
        return batch

    def _sort_in(self, batch: _Batch, exchange: bytes, events: list[Event]) -> None:
        known = exchange in self._open and exchange not in batch.closed
        if not known and events[0].kind is not Kind.OPENED:
            batch.incidents["orphan_record", f"run {batch.run}: no opening"] += len(events)
        elif any(event.kind is Kind.CLOSED for event in events):
            before = self._events(exchange) if known else []
            if known:
                batch.closed.append(exchange)
            self._is_over(batch, exchange, before + events)
        else:
            batch.staged[exchange] = merged(events)
            if not known:
                batch.highest_seq = max(batch.highest_seq, sequence(events[0].payload))
            elif self._open[exchange].socket:
                self._shorten(batch, exchange)

    def _shorten(self, batch: _Batch, exchange: bytes) -> None:
        """A socket that has become long: its turns so far are recorded, and their bytes go."""
        open_, new = self._open[exchange], batch.staged[exchange]
        if open_.unread + _size(new) < _LONG_SOCKET:
            return
        open_.socket = False  # without turns, or a fault of ours: not to be tried again
        try:
            found = shortened(exchange, self._events(exchange) + new, self._recording)
            if found is None:
                return
            turns = build_turns(batch.run, found.turns, self._recording)
        except Exception as error:
            batch.incidents["unreadable_exchange", _fault(exchange.hex(), error)] += 1
            return
        batch.rows += turns
        batch.closed.append(exchange)
        batch.staged[exchange] = found.events

    def _close_all(self, batch: _Batch) -> None:
        """The run is over: what is still open will never close."""
        cached = [exchange for exchange, open_ in self._open.items() if open_.run == batch.run]
        for exchange in cached:
            if exchange in batch.closed:
                continue
            batch.closed.append(exchange)
            events = self._events(exchange) + batch.staged.pop(exchange, [])
            self._is_over(batch, exchange, events)
            batch.left_open += 1
        for exchange, events in batch.staged.items():
            self._is_over(batch, exchange, events)
            batch.left_open += 1
        batch.staged = {}

    def _is_over(self, batch: _Batch, exchange: bytes, events: list[Event]) -> None:
        """Its rows can be made, together with others': so many as fit the processor's cache."""
        batch.ready.append((exchange, events))
        batch.ready_bytes += _size(events)
        if len(batch.ready) >= _IN_STEP or batch.ready_bytes >= _BYTES_IN_STEP:
            self._make_rows(batch)

    def _make_rows(self, batch: _Batch) -> None:
        ready, batch.ready, batch.ready_bytes = batch.ready, [], 0
        made = in_step([build(batch.run, *each, self._recording) for each in ready])
        for (exchange, events), found in zip(ready, made, strict=True):
            if isinstance(found, Exception):
                found = self._after_fault(batch, exchange, events, found)
            for rows in found:
                if rows.problem is not None:
                    batch.incidents["unreadable_record", rows.problem] += 1
                batch.highest_seq = max(batch.highest_seq, rows.seq)
            batch.rows += found

    def _after_fault(
        self, batch: _Batch, exchange: bytes, events: list[Event], error: Exception
    ) -> list[Rows]:
        """A fault of ours must cost one body, not the record."""
        if not isinstance(error, Unreadable):
            batch.incidents["unreadable_exchange", _fault(exchange.hex(), error)] += 1
            try:
                return _bare_rows(batch.run, exchange, events, self._recording)
            except Exception as another:
                error = Unreadable(_fault(exchange.hex(), another))
        batch.incidents["unreadable_record", str(error)] += 1
        return []

    def _events(self, exchange: bytes) -> list[Event]:
        events = self._open[exchange].events
        if events is not None:
            return events
        found = self._connection.execute(
            "SELECT kind, at, payload FROM staged WHERE exchange = ? ORDER BY number", (exchange,)
        )
        return [Event(Kind(kind), exchange, at, bytes(payload)) for kind, at, payload in found]

    # -- into the database

    def _write(self, batch: _Batch, started: float, piece: Piece) -> None:
        execute, executemany = self._connection.execute, self._connection.executemany
        with daily.counting(self._connection):
            recorded = self._insert_rows(batch)
        self.slices.settle()
        if batch.closed:
            executemany("DELETE FROM staged WHERE exchange = ?", [(one,) for one in batch.closed])
        executemany(_INSERT_STAGED, _staged_rows(batch))
        self._insert_incidents(_counted(batch.incidents))
        execute(
            "INSERT OR REPLACE INTO spool_position VALUES (?, ?, ?)",
            (batch.run, piece.position.segment, piece.position.offset),
        )
        execute(
            "INSERT INTO runs (id, started_at, highest_seq, recorded, torn_bytes) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET "
            "highest_seq = max(highest_seq, excluded.highest_seq), "
            "recorded = recorded + excluded.recorded, "
            "torn_bytes = torn_bytes + excluded.torn_bytes",
            (batch.run, iso(started), batch.highest_seq, recorded, piece.torn),
        )
        if piece.finished:
            execute(
                "UPDATE runs SET ended_clean = (? AND torn_bytes = 0) "
                "WHERE id = ? AND ended_clean IS NULL",
                (batch.left_open == 0, batch.run),
            )

    def _insert_rows(self, batch: _Batch) -> int:
        if not batch.rows:
            return 0
        self._connection.execute("SAVEPOINT rows")
        try:
            return self._insert_all(batch.rows)
        except Exception as error:
            if chance_of_retry(error) or is_corrupt(error):
                raise
        # A value that SQLite has no place for: find whose it is.
        self._rolled_back()
        return sum(self._insert_one(batch, rows) for rows in batch.rows)

    def _rolled_back(self) -> None:
        self._connection.execute("ROLLBACK TO rows")
        self.slices.forget()

    def _insert_all(self, batch: list[Rows]) -> int:
        """How many of them the proxy counted, too: turns on a socket it did not."""
        numbers = [self._insert_exchange(rows) for rows in batch]
        new = [(n, rows) for n, rows in zip(numbers, batch, strict=True) if n is not None]
        for number, rows in new:
            if rows.bodies is not None:
                self._insert("INTO bodies", _BODIES, (number, *self._placed(rows.bodies)))
        for number, rows in new:
            if rows.rate_limit is not None:
                self._insert("INTO rate_limits", _RATE_LIMITS, (number, *rows.rate_limit))
            for file in rows.files:
                self._insert_file(number, file)
        tasks = {rows.task[0]: rows.task for _, rows in reversed(new) if rows.task is not None}
        self._connection.executemany(_INSERT_TASK, tasks.values())
        return sum(rows.exchange["seq"] is not None for _, rows in new)

    def _insert_exchange(self, rows: Rows) -> int | None:
        """Its number. None for what is there already, perhaps forgotten: nothing of it is kept
        again."""
        exchange = rows.exchange
        if rows.once is not None:
            exchange = counted_once.settled(self._connection, exchange, rows.once)
        inserted = self._insert("OR IGNORE INTO exchanges", exchange, exchange.values())
        return int(inserted.lastrowid) if inserted.rowcount else None

    def _insert_file(self, number: int, file: File) -> None:
        write_file(self._files, file)
        self._connection.execute(_INSERT_FILE, (file.hash, len(file.data), file.media_type))
        self._connection.execute(_INSERT_FILE_USE, (number, file.hash))

    def _insert(self, into: str, columns: Iterable[str], values: Collection[Any]) -> Any:
        """Known values alone: to bind a None takes as long as ten texts."""
        known = [value is not None for value in values]
        sql = _insert_of(into, tuple(compress(columns, known)))
        return self._connection.execute(sql, tuple(compress(values, known)))

    def _placed(self, bodies: Bodies) -> tuple[str | None, ...]:
        """A row of `bodies` without its number."""
        return (
            *self._side(bodies.request, bodies.request_parts, bodies.request_digests),
            *self._side(bodies.response, bodies.response_parts, None),
            bodies.events, bodies.request_note, bodies.response_note,
        )  # fmt: skip

    def _side(
        self, text: str | None, parts: Parts | None, digests: Digests | None
    ) -> tuple[str | None, str | None]:
        """Text and parts: one of them."""
        if parts is None:
            return text, None
        kept = self.slices.keep(parts, digests or digests_of(parts, self._recording.key))
        return (text, None) if kept is None else (None, kept)

    def _insert_one(self, batch: _Batch, rows: Rows) -> int:
        self.slices.settle()
        self._connection.execute("SAVEPOINT rows")
        try:
            return self._insert_all([rows])
        except Exception as error:
            if chance_of_retry(error) or is_corrupt(error):
                raise
            self._rolled_back()
            batch.incidents["unreadable_exchange", _fault(rows.exchange["id"], error)] += 1
            return 0

    def _insert_incidents(self, found: Iterable[tuple[str, str]]) -> None:
        at = iso(time.time())
        self._connection.executemany(
            "INSERT INTO incidents VALUES (?, ?, ?)",
            [(at, kind, detail[:_MOST_DETAIL]) for kind, detail in found],
        )

    # -- the cache

    def _load(self) -> None:
        """Read back what a predecessor left: positions, and which exchanges are open."""
        sockets = {
            bytes(exchange)
            for exchange, head in self._connection.execute(_HEADS, (Kind.RESPONSE_HEAD,))
            if is_switch(bytes(head))
        }
        self._open = {
            bytes(exchange): _Open(run, None, 0, bytes(exchange) in sockets)
            for exchange, run in self._connection.execute(_OPEN)
        }
        for exchange in sockets:
            found = self._connection.execute(_UNREAD, (exchange, Kind.SOCKET))
            self._open[exchange].unread = found.fetchone()[0]
        self._positions = {
            run: Position(segment, offset)
            for run, segment, offset in self._connection.execute("SELECT * FROM spool_position")
        }
        self._cached = 0
        self._loaded = True

    def _forget(self) -> None:
        self._loaded = False
        self.slices.forget()

    def _remember(self, batch: _Batch) -> None:
        for exchange in batch.closed:
            self._cached -= self._open.pop(exchange).size
        for exchange, events in batch.staged.items():
            size, socket = _size(events), _switches(events)
            known = self._open.get(exchange)
            if known is None:
                unread = 0 if any(event.kind is Kind.SOCKET for event in events) else size
                self._open[exchange] = _Open(batch.run, events, size, socket, unread)
                self._cached += size
                continue
            known.socket = known.socket or socket
            known.unread += size
            if known.events is not None:
                known.events = known.events + events
                known.size += size
                self._cached += size
        if self._cached > self._most_cached:
            self._make_room()

    def _make_room(self) -> None:
        for open_ in sorted(self._open.values(), key=lambda one: one.size, reverse=True):
            if self._cached <= self._most_cached // 2:
                return
            self._cached -= open_.size
            open_.events, open_.size = None, 0


def _size(events: list[Event]) -> int:
    return sum(len(event.payload) for event in events)


def _fault(exchange: str, error: Exception) -> str:
    """Without what the error says: that may quote what was sent."""
    return f"{exchange}: {type(error).__name__}"


def _bare_rows(run: str, exchange: bytes, events: list[Event], recording: Recording) -> list[Rows]:
    """Without the bodies, which could not be made sense of."""
    heads = [e for e in events if e.kind not in CONTENT_KINDS]
    found = whole(build(run, exchange, heads, recording))
    for rows in found:
        rows.exchange["complete"] = 0
        rows.exchange["error"] = rows.exchange["error"] or "unreadable: its bodies"
    return found


def _switches(events: list[Event]) -> bool:
    return any(e.kind is Kind.RESPONSE_HEAD and is_switch(e.payload) for e in events)


@lru_cache(maxsize=512)
def _insert_of(into: str, columns: tuple[str, ...]) -> str:
    return f"INSERT {into} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def _staged_rows(batch: _Batch) -> list[tuple[Any, ...]]:
    return [
        (batch.run, exchange, int(event.kind), event.at, event.payload)
        for exchange, events in batch.staged.items()
        for event in events
    ]


def _counted(incidents: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    return [
        (kind, detail if count == 1 else f"{detail} ({count} times)")
        for (kind, detail), count in incidents.items()
    ]
