"""The recorder: the only writer of the database.

One thread owns the connection; the event loop only waits, so that a signal or a director's request
is heard while a disk is slow. A database that is locked or full is tried again, with growing
pauses: what was not committed is still in the spool, and nothing is lost.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import orjson

from policies.home import Home
from policies.settings import Settings
from policies.words import Write
from store import forget, orders, schema, search, spool_reader, writes
from store.database import (
    Connection,
    chance_of_retry,
    file_of,
    files_of,
    is_corrupt,
    leave_behind,
    say,
    set_aside,
)  # fmt: skip
from store.desk import Desk, Json, Steps
from store.ingest import Ingest
from store.recording import Recording
from store.removal import try_empty_journal
from store.retention import Retention
from store.writes import OrderError

_POLL_SECONDS: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_WARN_SECONDS: Final = 60.0
_TIDY_SECONDS: Final = 10.0
_LONGEST_CLEANING: Final = 600.0  # between two attempts
_DRAIN_SECONDS: Final = 1.0  # of failures in a row; the next start goes on where this one stopped
_ANSWER_SECONDS: Final = 10.0  # a director's write waits that long for a locked database
_BACKLOG: Final = 64
_T = TypeVar("_T")


async def run(settings: Settings) -> None:
    """Record until SIGTERM or SIGINT, then what is left in the spool, then return."""
    stop = asyncio.Event()
    _on_signals(stop)
    settings.home.root.mkdir(mode=0o700, parents=True, exist_ok=True)
    async with _sole_reader(settings.home.spool, stop):
        if not stop.is_set():
            key = bytes.fromhex(settings.install_key)
            recording = Recording.of(settings.parsed_policy(), key)
            await Recorder(settings.home, recording, stop).run()


def alone(
    home: Home, recording: Recording, work: Callable[[_Database], _T], patience: float = 30.0
) -> _T:
    """Be the writer for a moment, for one who holds the home folder's lock. Raises OrderError."""
    home.spool.mkdir(mode=0o700, exist_ok=True)
    folder = os.open(home.spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + patience
    database = _Database(home, recording)
    try:
        while not _locked(folder):
            if time.monotonic() > deadline:
                raise OrderError("a recorder is still at work there; try again when it has ended")
            time.sleep(_POLL_SECONDS)
        try:
            return work(database)
        finally:
            database.close()
    finally:
        os.close(folder)


def carry_out(database: _Database, order: orders.Order, report: orders.Report) -> Json:
    """For `alone`."""
    try:
        return orders.finish(database.begin(order), report)
    finally:
        database.end()


def _locked(folder: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _on_signals(stop: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError, RuntimeError):  # not in the main thread: the caller cancels
            loop.add_signal_handler(number, stop.set)


@asynccontextmanager
async def _sole_reader(spool: Path, stop: asyncio.Event) -> AsyncIterator[None]:
    """Wait until a predecessor that still drains is gone: two writers could harm the database."""
    spool.mkdir(mode=0o700, exist_ok=True)
    folder = os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        while not stop.is_set():
            if _locked(folder):
                break
            await _pause(stop, _POLL_SECONDS)
        yield
    finally:
        os.close(folder)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


class Recorder:
    """Reads the spool, serves writes, owns the connection through its one thread."""

    def __init__(self, home: Home, recording: Recording, stop: asyncio.Event) -> None:
        self._home = home
        self._stop = stop
        self._thread = ThreadPoolExecutor(1, "database")
        self._database = _Database(home, recording)
        self._trouble = _Trouble()
        self._ordered = asyncio.Lock()  # one order at a time

    async def run(self) -> None:
        try:
            await self._open()
            server = await self._listen()
            try:
                await self._read_spool()
            finally:
                server.close()
                self._home.recorder_socket.unlink(missing_ok=True)
            await self._drain()
        finally:
            with suppress(Exception):  # the spool still has what could not be written
                await self._in_thread(self._database.close)
            self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # -- the spool

    async def _open(self) -> None:
        while not self._stop.is_set():
            if await self._tried(self._database.open) is not None:
                return
            await _pause(self._stop, self._trouble.pause)

    async def _read_spool(self) -> None:
        while not self._stop.is_set():
            more = await self._tried(self._database.step)
            if more is None:
                await _pause(self._stop, self._trouble.pause)
            elif not more:
                await _pause(self._stop, _POLL_SECONDS)

    async def _drain(self) -> None:
        """Everything that the spool holds now; the proxies have stopped, or will be read later."""
        while self._trouble.seconds() < _DRAIN_SECONDS:
            more = await self._tried(self._database.step)
            if more is None:
                await asyncio.sleep(self._trouble.pause)
            elif not more:
                return

    async def _tried(self, work: Callable[[], bool]) -> bool | None:
        """Its result, or None when it failed in a way that may pass."""
        try:
            result = await self._in_thread(work)
            if (past := self._trouble.end()) is not None:
                await self._in_thread(lambda: self._database.note("database_trouble", past))
            return result
        except schema.NewerSchema:
            raise
        except Exception as error:
            await self._recover(error)
            return None

    async def _recover(self, error: Exception) -> None:
        self._trouble.begin(error)
        if is_corrupt(error):
            why = str(error)
            with suppress(Exception):  # a full disk, perhaps: the next attempt comes here again
                await self._in_thread(lambda: self._database.replace(why))

    # -- the director

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(
            self._serve, sock=_private_socket(self._home.recorder_socket), limit=writes.MOST_LINE
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(orjson.dumps(await self._answer(line, writer)) + b"\n")
                await writer.drain()
        except ValueError:
            writer.write(b'{"ok":false,"error":"a line of more than 16 MiB"}\n')
        except ConnectionError:
            pass  # gone; what it sent is committed or not, and it will send it again
        finally:
            writer.close()

    async def _answer(self, line: bytes, writer: asyncio.StreamWriter) -> dict[str, object]:
        try:
            order = orders.load(line)
            asked = writes.load(line) if order is None else []
        except ValueError as error:
            return {"ok": False, "error": str(error)}
        if order is None:
            return await self._written(asked)
        async with self._ordered:
            return await self._carried_out(order, writer)

    async def _carried_out(
        self, order: orders.Order, writer: asyncio.StreamWriter
    ) -> dict[str, object]:
        """In steps, between which the spool is read as always. Who asked hears how far it is, and
        when they leave it ends: what is done is done, and the same order takes it up again."""
        try:
            steps = await self._in_thread(lambda: self._database.begin(order))
            while not self._stop.is_set():
                said = await self._in_thread(lambda: _next(steps))
                if isinstance(said, _Result):
                    return {"ok": True, "result": said.value}
                writer.write(orjson.dumps({"progress": said}) + b"\n")
                await writer.drain()
            raise OrderError("the sidecar is stopping; give the same command again")
        except ConnectionError:
            raise
        except Exception as error:
            if is_corrupt(error):
                await self._recover(error)
            return writes.refusal(error)
        finally:
            await self._in_thread(self._database.end)

    async def _written(self, asked: list[Write]) -> dict[str, object]:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            try:
                await self._in_thread(lambda: self._database.write(asked))
                return {"ok": True}
            except Exception as error:
                failure = error
            if is_corrupt(failure):
                await self._recover(failure)
            late = self._stop.is_set() or time.monotonic() > deadline
            if late or not (chance_of_retry(failure) or is_corrupt(failure)):
                return writes.refusal(failure)
            await _pause(self._stop, 2 * _POLL_SECONDS)


def _private_socket(path: Path) -> socket.socket:
    """0600 from its first moment (Linux gives the file the socket's own mode), and listening from
    the moment that it has its name."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    os.fchmod(listener.fileno(), 0o600)
    listener.bind(str(new))
    os.chmod(new, 0o600)
    listener.listen(_BACKLOG)
    new.rename(path)
    return listener


@dataclass(frozen=True, slots=True)
class _Result:
    value: Json


def _next(steps: Steps) -> Json | _Result:
    """StopIteration can't cross a future."""
    try:
        return next(steps)
    except StopIteration as done:
        return _Result(done.value)


class _Database:
    """What runs in the thread."""

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
        before = file_of(self._home.database)
        self._connection = schema.prepare(self._home.database)
        ingest = Ingest(self._connection, self._recording, self._home.files)
        ingest.forget_missing({run.name for run in spool_reader.runs(self._home.spool)})
        self._files = files_of(self._home.database)
        if before not in (None, self._files[""]):
            ingest.note("database_set_aside", "unusable; it lies next to this one")
        self._desk = Desk(self._connection, ingest, self._recording, self._home, self.step)
        self._changes = -1
        self._ingest = ingest
        return True

    def replace(self, why: str) -> None:
        """The database turned out to be damaged while in use."""
        self._disconnect()
        aside = set_aside(self._home.database, why)
        self.open()
        self.note("database_set_aside", f"{aside.name}: {why}")

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
            if not isinstance(_next(self._steps), _Result):
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


class _Trouble:
    """Since when nothing can be written, how long to wait, and when to say so again."""

    def __init__(self) -> None:
        self.pause = _POLL_SECONDS
        self._since: float | None = None
        self._warned = -_WARN_SECONDS
        self._reason = ""

    def begin(self, error: Exception) -> None:
        now = time.monotonic()
        self.pause = _POLL_SECONDS if self._since is None else min(2 * self.pause, _LONGEST_PAUSE)
        self._since = now if self._since is None else self._since
        self._reason = f"{type(error).__name__}: {error}"
        if now - self._warned >= _WARN_SECONDS:
            self._warned = now
            say(f"the recorder can't write ({self._reason}); it keeps trying")

    def end(self) -> str | None:
        """What has just passed, for the record; None when nothing was wrong."""
        if self._since is None:
            return None
        said = f"{self._reason}; {self.seconds():.1f} s"
        self._since = None
        return said

    def seconds(self) -> float:
        return 0.0 if self._since is None else time.monotonic() - self._since
