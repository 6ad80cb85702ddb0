"""A gibibyte up and one down: equal at both ends, and the proxy holds next to nothing of it."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.soak_clients import Asker, download, upload

GIBIBYTE: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class Passed:
    """One transfer. `growth`: bytes of memory that the proxy came to hold more, at its peak."""

    what: str
    seconds: float
    growth: int

    @property
    def speed(self) -> float:
        """MB a second."""
        return GIBIBYTE / self.seconds / 1e6


async def passes(address: tuple[str, int], pid: int) -> AsyncIterator[Passed]:
    """Raises Wrong if one byte is another at the far end."""
    transfers = {"upload": upload, "download": download}
    number = 0
    for name, transfer in transfers.items():
        for chunked in (False, True):
            number += 1
            asker = Asker(address, random.Random(number), number)
            before, began = forget_peak(pid), time.monotonic()
            try:
                await transfer(asker, GIBIBYTE, chunked)
            finally:
                asker.close()
            what = f"{name}, {'chunked' if chunked else 'with its length'}"
            yield Passed(what, time.monotonic() - began, peak(pid) - before)


def forget_peak(pid: int) -> int:
    """Start the process's peak anew from what it holds now: that much."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return peak(pid)


def peak(pid: int) -> int:
    """The most memory the process has held, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    raise ValueError(f"/proc/{pid}/status names no peak")
