"""Two small files that the proxy polls for itself: the plan, and the kill switch.

By `stat`, every 250 ms: inode, time and size tell a replaced file. Nothing that hangs elsewhere
(director, recorder, model) keeps a kill from being seen.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policies import plan as plans
from policies.plan import EMPTY, Plan

POLL_SECONDS: Final = 0.25
_MOST_BYTES: Final = 4 << 20


@dataclass(slots=True)
class Watch:
    """`plan` is what holds now: EMPTY when it is missing, broken, expired or killed."""

    plan_file: Path | None  # None: nothing is ever diverted
    kill_file: Path
    plan: Plan = EMPTY
    diverts: bool = False  # has `plan` anything to divert?
    killed: bool = False
    problem: str | None = None
    _mark: tuple[int, int, int] | None = None
    _loaded: Plan = EMPTY
    _diverts: bool = False
    _expires: float = 0.0

    def poll(self) -> None:
        self.killed = self._kill_switch()
        mark = self._stat()
        if mark != self._mark:
            self._mark = mark
            self._load()
        live = not self.killed and time.monotonic() < self._expires
        self.plan = self._loaded if live else EMPTY
        self.diverts = live and self._diverts

    def forget(self) -> None:
        """Relay everything, until a plan is read again."""
        self.plan, self.diverts, self._mark = EMPTY, False, None

    def _kill_switch(self) -> bool:
        try:
            return self.kill_file.exists()
        except OSError:
            return True  # when it can't be seen, the safe side is upstream

    def _stat(self) -> tuple[int, int, int] | None:
        if self.plan_file is None:
            return None
        try:
            stat = self.plan_file.stat()
        except OSError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _load(self) -> None:
        self._loaded, self._diverts, self._expires = EMPTY, False, 0.0
        if self.plan_file is None or self._mark is None or self._mark[2] > _MOST_BYTES:
            return
        try:
            loaded = plans.load(self.plan_file.read_bytes())
            left = min(loaded.valid_until - time.time(), plans.LIFETIME)
            self._diverts = loaded.diverts
        except (OSError, ValueError, TypeError) as error:
            if self.problem is None:
                print(f"understudy: no plan, all is relayed: {error}", file=sys.stderr)
            self.problem = str(error)
            return
        self.problem = None
        self._loaded = loaded
        # From here on by the steady clock: a jump of the wall clock must not prolong a plan.
        self._expires = time.monotonic() + left
