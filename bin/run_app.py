"""The command of a `run`: it gets the signals that we get, and we end as it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType
from typing import Final

_PASSED: Final = frozenset(
    {
        signal.SIGINT,
        signal.SIGTERM,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGWINCH,
    }
)
_OF_A_TERMINAL: Final = frozenset({signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH})
NOT_FOUND: Final = 127  # as shells say it
NOT_EXECUTABLE: Final = 126


class App:
    """A command in our own process group, so that a terminal treats the two as one job.

    From `start` to `wait` the signals are blocked here and taken one by one: none is lost, and each
    tells who sent it.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._command = command
        self._environment = environment
        self._before: set[signal.Signals] = set()
        self._watched = _PASSED | {signal.SIGCHLD}

    def start(self) -> None:
        """Raises OSError. Before any thread is: they inherit what is blocked."""
        for number in (signal.SIGCHLD, signal.SIGWINCH):
            signal.signal(number, _nothing)  # what is ignored may not even wait
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self._watched)
        self._before = {signal.Signals(number) for number in before}
        try:
            self._process = subprocess.Popen(
                self._command, env=self._environment, preexec_fn=self._unblock
            )
        except BaseException:
            self._unblock()
            raise

    def wait(self) -> int:
        """Its exit code, or 128 + n if signal n ended it."""
        try:
            while self._process.poll() is None:
                number, typed = _next_signal(self._watched)
                if number != signal.SIGCHLD and not typed:
                    self._process.send_signal(number)
        finally:
            while signal.sigpending() & self._watched:  # it came too late for anyone
                signal.sigwait(self._watched)
            self._unblock()
        code = self._process.returncode
        return code if code >= 0 else 128 - code

    def _unblock(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


def _next_signal(watched: frozenset[signal.Signals]) -> tuple[int, bool]:
    """The next one, and whether a terminal sent it: to the whole group, so the command has it."""
    if sys.platform != "darwin":
        found = signal.sigwaitinfo(watched)
        return found.si_signo, found.si_code > 0  # of the kernel; what processes send has 0 or less
    number = signal.sigwait(watched)
    return number, number in _OF_A_TERMINAL and os.isatty(0)


def _nothing(number: int, frame: FrameType | None) -> None:
    return None
