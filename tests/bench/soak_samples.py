"""What a soak measures every few seconds, the line through it, and how it is shown."""

from __future__ import annotations

import csv
import importlib
import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

_WARM_UP: Final = 1 / 3
_MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds since the start; bytes and descriptors that each process holds; calls so far."""

    seconds: float
    proxy_bytes: int
    proxy_descriptors: int
    recorder_bytes: int
    recorder_descriptors: int
    calls: int


@dataclass(frozen=True, slots=True)
class Fit:
    """A straight line by least squares. `growth`: what it rises by over the span that was fitted;
    `error`: the standard error of that."""

    start: float
    growth: float
    error: float


def warm(samples: Sequence[Sample]) -> Sequence[Sample]:
    """Without the first third: until then caches, pools and the allocator fill up."""
    return samples[int(len(samples) * _WARM_UP) :]


def fit(times: Sequence[float], values: Sequence[float]) -> Fit:
    """Raises ValueError for fewer than three points."""
    count = len(times)
    if count < 3:
        raise ValueError(f"a line through {count} samples says nothing: let it run longer")
    mean_time, mean = sum(times) / count, sum(values) / count
    spread = sum((time - mean_time) ** 2 for time in times)
    pairs = list(zip(times, values, strict=True))
    slope = sum((time - mean_time) * (value - mean) for time, value in pairs) / spread
    missed = sum((value - mean - slope * (time - mean_time)) ** 2 for time, value in pairs)
    span = times[-1] - times[0]
    error = math.sqrt(missed / (count - 2) / spread) * span
    return Fit(mean + slope * (times[0] - mean_time), slope * span, error)


def fit_of(samples: Sequence[Sample], name: str) -> Fit:
    chosen = warm(samples)
    values = [float(getattr(sample, name)) for sample in chosen]
    return fit([sample.seconds for sample in chosen], values)


def write(samples: Sequence[Sample], path: Path) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([field.name for field in fields(Sample)])
        rows.writerows(astuple(sample) for sample in samples)


def picture(samples: Sequence[Sample], path: Path) -> bool:
    """A plot as PNG, where matplotlib is installed."""
    try:
        pyplot: Any = importlib.import_module("matplotlib.pyplot")
    except ImportError:
        return False
    figure, (above, below) = pyplot.subplots(2, 1, sharex=True, figsize=(9, 6))
    minutes = [sample.seconds / 60 for sample in samples]
    for name in ("proxy", "recorder"):
        sizes = [getattr(sample, f"{name}_bytes") / _MIB for sample in samples]
        open_files = [getattr(sample, f"{name}_descriptors") for sample in samples]
        above.plot(minutes, sizes, label=name)
        below.plot(minutes, open_files, label=name)
    above.set_ylabel("resident MiB")
    below.set_ylabel("open descriptors")
    below.set_xlabel("minutes")
    above.legend()
    figure.savefig(path, dpi=110)
    return True


def drawn(values: Sequence[float], width: int = 72, height: int = 9) -> str:
    """A plot of characters, from the lowest value to the highest; the scale is on the left."""
    width = min(width, len(values))
    ends = [len(values) * column // width for column in range(width + 1)]
    columns = [max(values[a:b]) for a, b in pairwise(ends)]
    low, high = min(columns), max(columns)
    step = (high - low) / (height - 1) or 1.0
    lines = []
    for row in reversed(range(height)):
        marks = "".join("*" if round((value - low) / step) == row else " " for value in columns)
        lines.append(f"{low + row * step:10.1f} |{marks}")
    return "\n".join(lines)
