"""The database and all that is done to it, by the recorder's one thread: the spool into it, orders,
the search index, retention, and what to do when its file is damaged, gone or another.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policies.home import Home
from policies.words import Write
from store import forget, orders, schema, search, spool_reader, writes
from store.database import (
    Connection,
    file_of,
    files_of,
    leave_behind,
    recorded_in,
    say,
    set_aside,
)  # fmt: skip
from store.desk import Desk, Json, Steps
from store.ingest import Ingest
from store.recording import Recording
from store.removal import try_empty_journal
from store.retention import Retention
from store.writes import OrderError

_TIDY_SECONDS: Final = 10.0
_LONGEST_CLEANING: Final = 600.0  # between two attempts


@dataclass(frozen=True, slots=True)
class Result:
    value: Json


def next_of(steps: Steps) -> Json | Result:
    """StopIteration can't cross a future."""
    try:
        return next(steps)
    except StopIteration as done:
        return Result(done.value)


class Keeper:
    """Keeps the database open. Every method is called by one thread at a time."""

    def __init__(self, home: Home, recording: Recording) -> None:
        self._home = home
        self._recording = recording
        self._connection: Connection | None = None
        self._ingest: Ingest | None = None
        self._desk: Desk | None = None
        self._order: Steps | None = None
        self._retention = Retention(recording.record)
        self._files: dict[str, tuple[int, int] | None] = {}
        self._finished: set[str] = set()
        self._tidied = 0.0
        self._changes = -1  # of the connection, when its journal was last emptied
        self._cleaning = _Cleaning()

    def open(self) -> bool:
        self._home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._disconnect()  # of an attempt that came half the way
        asides: list[Path] = []
        self._connection = schema.prepare(self._home.database, asides.append)
        ingest = Ingest(self._connection, self._recording, self._home.files)
        ingest.forget_missing({run.name for run in spool_reader.runs(self._home.spool)})
        self._files = files_of(self._home.database)
        for aside in asides:
            ingest.note("database_set_aside", _set_aside(aside))
        self._desk = Desk(self._connection, ingest, self._recording, self._home, self.step)
        self._changes = -1
        self._ingest = ingest
        return True

    def replace(self, why: str) -> None:
        """The database turned out to be damaged while in use."""
        self._disconnect()
        aside = set_aside(self._home.database, why)
        self.open()
        self.note("database_set_aside", f"{_set_aside(aside)}: {why}")

    def _is_gone(self) -> bool:
        """Was the file removed, or another put in its place? To look costs some µs."""
        return file_of(self._home.database) != self._files[""]

    def _leave_behind(self) -> None:
        """And begin anew: what the spool still has is read into what lies there now."""
        assert self._connection is not None
        self._cleaning = _Cleaning()
        connection, self._connection, self._ingest = self._connection, None, None
        self._desk = None
        leave_behind(connection, self._home.database, self._files)
        said = "the database was removed or replaced while in use"
        say(f"{said}: going on with what lies there now")
        self.open()
        self.note("database_gone", said)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self._disconnect()

    def _disconnect(self) -> None:
        self._cleaning = _Cleaning()
        connection, self._connection, self._ingest = self._connection, None, None
        self._desk = None
        if connection is not None:
            connection.close()

    def note(self, kind: str, detail: str) -> None:
        self._opened().note(kind, detail)

    def write(self, asked: list[Write]) -> None:
        self._opened()
        assert self._connection is not None
        writes.apply(self._connection, asked, self._recording)

    def begin(self, order: orders.Order) -> Steps:
        self._opened()
        assert self._desk is not None
        self._cleaning.stop()
        self._order = orders.perform(self._desk, order)
        return self._order

    def end(self) -> None:
        """Of the order that was begun, wherever it is. Its database may be gone meanwhile."""
        order, self._order = self._order, None
        if order is not None:
            with suppress(Exception):
                order.close()

    def step(self) -> bool:
        """One piece of every run. Is there more to read at once?"""
        ingest = self._opened()
        more = False
        failure: Exception | None = None
        for run in spool_reader.runs(self._home.spool):
            try:
                more |= self._step_run(ingest, run)
            except Exception as error:  # the other runs get their turn all the same
                failure = error
        if failure is not None:
            raise failure
        if not more:
            more = self._index() or self._retain() or self._finish_forgetting()
            self._tidy()
        return more

    def _index(self) -> bool:
        """Behind the spool: what is searched may come a moment later than what is recorded."""
        assert self._connection is not None and self._desk is not None
        wanted = self._recording.record.search and self._desk.indexing
        return wanted and search.fill(self._connection, self.note)

    def _retain(self) -> bool:
        """Behind that, so that what is retained is complete. Not while an order deletes."""
        assert self._desk is not None
        if self._order is not None or self._cleaning.at_work:
            return False
        return self._retention.step(self._desk, time.time(), time.monotonic())

    def _step_run(self, ingest: Ingest, run: Path) -> bool:
        if run.name not in self._finished:
            before = ingest.position(run.name)
            piece = spool_reader.read(run, before)
            if not (piece.events or piece.finished or piece.position != before):
                return False
            ingest.apply(run.name, spool_reader.started_at(run), piece)
            if self._is_gone():
                return True  # with the piece still in the spool
            if not piece.finished:
                with suppress(OSError):  # a later piece of the run, or its end, makes up for it
                    spool_reader.wipe_read(run, before, piece.position)
                return piece.more
            self._finished.add(run.name)
        with suppress(OSError):  # next time, then
            spool_reader.delete_run(run)
            self._finished.discard(run.name)
            ingest.forget_missing({run.name for run in spool_reader.runs(self._home.spool)})
        return False

    def _tidy(self) -> None:
        if time.monotonic() - self._tidied > _TIDY_SECONDS:
            self._tidied = time.monotonic()
            for run in spool_reader.runs(self._home.spool):
                spool_reader.let_go(run, time.time())
            self._empty_journal()

    def _empty_journal(self) -> None:
        """It has the pages as they were before something was deleted. Who reads is not waited
        for: next time, then."""
        assert self._connection is not None
        changes = self._connection.total_changes
        if changes != self._changes and try_empty_journal(self._connection):
            self._changes = changes

    def _finish_forgetting(self) -> bool:
        """A command was cut short. What it had not come to is asked for by giving it again; but
        of the rows that it did forget nothing may be left on the disk. A step; is there more?"""
        assert self._desk is not None
        return self._order is None and self._cleaning.step(self._desk, time.monotonic())

    def _opened(self) -> Ingest:
        if self._ingest is None:
            self.open()
        elif self._is_gone():
            self._leave_behind()
        assert self._ingest is not None
        return self._ingest


def _set_aside(aside: Path) -> str:
    """Which file it is now, and how much the new database lacks therefore."""
    held = recorded_in(aside)
    return f"{aside.name}, exchanges in it: {'unknown' if held is None else held}"


class _Cleaning:
    """A forgetting that is to be finished: in steps, and with growing pauses between attempts that
    fail because somebody reads, or there is no room."""

    def __init__(self) -> None:
        self._steps: Steps | None = None
        self._due = 0.0
        self._pause = _TIDY_SECONDS

    @property
    def at_work(self) -> bool:
        return self._steps is not None

    def step(self, desk: Desk, now: float) -> bool:
        if self._steps is None:
            if now < self._due:
                return False
            if not forget.is_pending(desk.connection):
                self._due, self._pause = now + _TIDY_SECONDS, _TIDY_SECONDS
                return False
            self._steps = forget.clean_on(desk)
        try:
            if not isinstance(next_of(self._steps), Result):
                return True
        except OrderError:
            self._due, self._pause = now + self._pause, min(2 * self._pause, _LONGEST_CLEANING)
        except BaseException:
            self._steps = None
            raise
        self._steps = None
        return False

    def stop(self) -> None:
        """An order begins: it does all of it, if it forgets; else it comes again after it."""
        steps, self._steps, self._due = self._steps, None, 0.0
        if steps is not None:
            steps.close()
