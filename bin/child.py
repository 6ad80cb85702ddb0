"""A child process of the supervisor: reads its settings, ties its life to its parent's, runs.

python -m bin.child        (settings on standard input, see policies/settings.py)
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import uvloop

from bin import unfailing
from policies.settings import Settings, load

_PR_SET_PDEATHSIG: Final = 1
_MOST_SETTINGS: Final = 4 << 20


def main() -> None:
    os.umask(0o077)
    unfailing.install()
    _die_with_parent()
    settings = load(_first_line())
    if settings.role != "proxy":
        step_back()
    threading.Thread(target=_hold_lifeline, name="lifeline", daemon=True).start()
    role = _role(settings)
    collect_rarely()
    uvloop.run(role)


def _die_with_parent() -> None:
    """No orphans, ever: the kernel kills us when the supervisor is gone, however it went."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "prctl"):
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def collect_rarely() -> None:
    """What was loaded lives for ever: keep the collector from walking it under load. An exchange
    leaves no cycles behind, in the relay as in the record: look for leaks rarely.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 50, 100)


def step_back() -> None:
    """Last in line for the processor: nobody waits for these, and the app must not feel them.

    Where the kernel groups tasks by session (`sched_autogroup_enabled`), niceness counts within a
    session alone, and the app is in another: there the group's own one counts (sched(7)). Without
    it a recorder at work held the app up for a whole tick of the clock: p99 3.7 ms, with it 0.5 ms.
    """
    with suppress(OSError):
        os.nice(19)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def _first_line() -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(0, 1)
        if not byte or len(line) > _MOST_SETTINGS:
            sys.exit("understudy: a child process is started by 'understudy serve' only")
        line += byte
    return line


def _hold_lifeline() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _role(settings: Settings) -> Coroutine[Any, Any, None]:
    """Each role imports only what it needs: the proxy is up in a fraction of a second."""
    if settings.role == "proxy":
        from proxy.serve import run as run_proxy

        return run_proxy(settings)
    if settings.role == "recorder":
        from store.recorder import run as run_recorder

        return run_recorder(settings)
    if settings.role == "director":
        from shadow.director import run as run_director
        from store.record import Record

        home = settings.home
        return run_director(settings, Record(home.database, home.recorder_socket))
    if settings.role == "model":
        from shadow.model import run as run_model

        return run_model(settings)
    raise ValueError(f"unknown role {settings.role!r}")


if __name__ == "__main__":
    main()
