"""A recorder for a command that brings exchanges: the sidecar's, or one of our own for as long.

Only one process may write to the database. Where a sidecar runs it is its recorder, and we wait
for it; else we take the home's lock, and no sidecar starts until we are done.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from bin import runtime
from bin.sidecar_at import running
from bin.supervisor import StartError, open_home, secret_file
from policies.home import Home
from policies.policy import Policy
from store.recorder import Recorder
from store.recording import Recording

_POLL_SECONDS: Final = 0.05
_PRIVATE: Final = 0o077


class Stopped(RuntimeError):
    """The recorder is gone before it was done. What it has not read stays in the spool."""


class Reading(Protocol):
    """Who reads the spool."""

    def check(self) -> None:
        """Raises Stopped."""


@contextmanager
def recorder_at_work(root: Path, policy: Policy) -> Iterator[Reading]:
    """Raises StartError. At the end our own recorder has read all there is."""
    try:
        resolved, lock = open_home(root)
    except StartError:
        yield _theirs(root)
        return
    umask = os.umask(_PRIVATE)
    try:
        with _ours(resolved, policy) as own:
            yield own
    finally:
        os.umask(umask)
        os.close(lock)


def _theirs(root: Path) -> _Theirs:
    home = Home(root, root)
    found = running(home)
    if found is None:
        raise StartError(
            f"--home {root}: another understudy is using it; try again when it is done"
        )
    if "recorder" not in found.processes:
        raise StartError(f"--home {root}: its sidecar records nothing; stop it first")
    return _Theirs(home, found.pid)


class _Theirs:
    def __init__(self, home: Home, pid: int) -> None:
        self._home = home
        self._pid = pid

    def check(self) -> None:
        found = running(self._home)
        if found is None or found.pid != self._pid:
            raise Stopped("the sidecar has stopped; what it has not read it reads when it is back")


@contextmanager
def _ours(root: Path, policy: Policy) -> Iterator[_Ours]:
    run_dir, lock = runtime.make()
    home = Home(root, run_dir)
    try:
        key = bytes.fromhex(secret_file(home.install_key))
        own = _Ours(home, Recording.of(policy, key))
        try:
            yield own
        finally:
            own.stop()
    finally:
        os.close(lock)
        runtime.remove_dead(run_dir.parent)


class _Ours:
    """A recorder in a thread."""

    def __init__(self, home: Home, recording: Recording) -> None:
        home.spool.mkdir(mode=0o700, exist_ok=True)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._error: BaseException | None = None
        recorder = Recorder(home, recording, self._stop)
        self._thread = threading.Thread(target=self._run, args=(recorder,), name="recorder")
        self._thread.start()

    def _run(self, recorder: Recorder) -> None:
        try:
            self._loop.run_until_complete(recorder.run())
        except Exception as error:
            self._error = error
        finally:
            self._loop.close()

    def check(self) -> None:
        if not self._thread.is_alive():
            raise Stopped(str(self._error or "the recorder has stopped"))

    def stop(self) -> None:
        if self._thread.is_alive():
            try:
                self._loop.call_soon_threadsafe(self._stop.set)
            except RuntimeError:  # it has just ended
                pass
        self._thread.join()


def wait_until_read(
    reading: Reading, folders: Iterable[Path], most: int = 0, tick: Callable[[], None] | None = None
) -> None:
    """Until at most so many of these runs are left. Raises Stopped."""
    folders = list(folders)
    while sum(folder.exists() for folder in folders) > most:
        reading.check()
        if tick is not None:
            tick()
        time.sleep(_POLL_SECONDS)
