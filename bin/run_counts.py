"""What the sidecar of a `run` has counted, also when it has gone and its files with it.

A sidecar that stops removes its runtime folder. Slots that were open by then can still be read, and
hold what the workers wrote last.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Final

from bin.run_report import Counts
from bin.sidecar_at import METRICS, ask
from policies import metrics
from policies.metrics import COPY_BYTES, PREFIX, Sample

_SETTLE_TRIES: Final = 10
_SETTLE_SECONDS: Final = 0.05
_SLOT_SECONDS: Final = 0.3  # a worker that was not asked writes its counts four times a second
_LOOK_SECONDS: Final = 1.0


class Counters:
    """Of one sidecar, at `address` and with this runtime folder."""

    def __init__(self, run_dir: Path, address: str) -> None:
        self._run_dir = run_dir
        self._address = address
        self.ended = False  # then somebody else may be at its address
        self._slots: dict[str, int] = {}
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Open the slots of workers that come later, too, from now on."""
        threading.Thread(target=self._look, name="slots", daemon=True).start()

    def now(self, *, settle: bool = False) -> Counts | None:
        """None: nothing is known. What is on its way into the counts is waited for, shortly."""
        last = self._counted()
        for _ in range(_SETTLE_TRIES if settle else 0):
            time.sleep(_SETTLE_SECONDS)
            now = self._counted()
            if now == last:
                break
            last = now
        return last

    def _counted(self) -> Counts | None:
        if not self.ended:
            with contextlib.suppress(OSError):
                ask(self._address, METRICS)  # the worker that answers writes its counts first
        if len(found := self._samples()) > 1 and any(sample.up for sample in found):
            time.sleep(_SLOT_SECONDS)
            found = self._samples()
        return Counts.of(found) if found else None

    def _samples(self) -> list[Sample]:
        self._open()
        found = {}
        for name, slot in self._slots.copy().items():
            with contextlib.suppress(OSError):
                found[name] = os.pread(slot, 2 * COPY_BYTES, 0)
        return metrics.samples(found, time.monotonic())

    def _open(self) -> None:
        with self._lock, contextlib.suppress(OSError):
            for name in os.listdir(self._run_dir):
                if name.startswith(PREFIX) and name not in self._slots:
                    path = self._run_dir / name
                    self._slots[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def _look(self) -> None:
        while True:
            self._open()
            time.sleep(_LOOK_SECONDS)
