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
from pathlib import Path
from typing import Final, TypeVar

import orjson

from policies.home import Home
from policies.settings import Settings
from policies.words import Write
from store import orders, schema, writes
from store.database import chance_of_retry, is_corrupt, say
from store.desk import Json
from store.keeper import Keeper, Result, next_of
from store.recording import Recording
from store.writes import OrderError

_POLL_SECONDS: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_WARN_SECONDS: Final = 60.0
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
    home: Home, recording: Recording, work: Callable[[Keeper], _T], patience: float = 30.0
) -> _T:
    """Be the writer for a moment, for one who holds the home folder's lock. Raises OrderError."""
    home.spool.mkdir(mode=0o700, exist_ok=True)
    folder = os.open(home.spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + patience
    keeper = Keeper(home, recording)
    try:
        while not _locked(folder):
            if time.monotonic() > deadline:
                raise OrderError("a recorder is still at work there; try again when it has ended")
            time.sleep(_POLL_SECONDS)
        try:
            return work(keeper)
        finally:
            keeper.close()
    finally:
        os.close(folder)


def carry_out(keeper: Keeper, order: orders.Order, report: orders.Report) -> Json:
    """For `alone`."""
    try:
        return orders.finish(keeper.begin(order), report)
    finally:
        keeper.end()


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
        self._keeper = Keeper(home, recording)
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
                await self._in_thread(self._keeper.close)
            self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    # -- the spool

    async def _open(self) -> None:
        while not self._stop.is_set():
            if await self._tried(self._keeper.open) is not None:
                return
            await _pause(self._stop, self._trouble.pause)

    async def _read_spool(self) -> None:
        while not self._stop.is_set():
            more = await self._tried(self._keeper.step)
            if more is None:
                await _pause(self._stop, self._trouble.pause)
            elif not more:
                await _pause(self._stop, _POLL_SECONDS)

    async def _drain(self) -> None:
        """Everything that the spool holds now; the proxies have stopped, or will be read later."""
        while self._trouble.seconds() < _DRAIN_SECONDS:
            more = await self._tried(self._keeper.step)
            if more is None:
                await asyncio.sleep(self._trouble.pause)
            elif not more:
                return

    async def _tried(self, work: Callable[[], bool]) -> bool | None:
        """Its result, or None when it failed in a way that may pass."""
        try:
            result = await self._in_thread(work)
            if (past := self._trouble.end()) is not None:
                await self._in_thread(lambda: self._keeper.note("database_trouble", past))
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
                await self._in_thread(lambda: self._keeper.replace(why))

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
            steps = await self._in_thread(lambda: self._keeper.begin(order))
            while not self._stop.is_set():
                said = await self._in_thread(lambda: next_of(steps))
                if isinstance(said, Result):
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
            await self._in_thread(self._keeper.end)

    async def _written(self, asked: list[Write]) -> dict[str, object]:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            try:
                await self._in_thread(lambda: self._keeper.write(asked))
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
