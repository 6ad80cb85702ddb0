"""Figures: what rounds gave, and the rows of the table that they come to. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

YARDSTICK: Final = "nginx"
# By metric, then by system: one figure of each round, in the same order for all systems.
Figures = Mapping[str, Mapping[str, Sequence[float]]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `ratio`: median of the rounds' ratios to nginx, None without it."""

    what: str
    system: str
    unit: str
    median: float
    low: float
    high: float
    ratio: float | None = None
    note: str = ""


def rows(what: str, figures: Figures, base: str = YARDSTICK) -> list[Row]:
    """Rows of every metric and system, CPU first; a metric's name ends with its unit: 'p50 µs'."""
    metrics = sorted(figures, key=lambda metric: not metric.startswith("CPU"))
    return [
        _row(what, metric, system, values, figures[metric].get(base))
        for metric in metrics
        for system, values in figures[metric].items()
    ]


def pick(figures: Figures, *metrics: str) -> Figures:
    return {metric: figures[metric] for metric in metrics}


def single(what: str, metric: str, system: str, value: float, note: str = "") -> Row:
    """A figure that is measured once."""
    name, unit = _split(metric)
    return Row(f"{what}: {name}" if name else what, system, unit, value, value, value, note=note)


def _row(
    what: str,
    metric: str,
    system: str,
    values: Sequence[float],
    base: Sequence[float] | None,
) -> Row:
    name, unit = _split(metric)
    median = statistics.median(values)
    label = f"{what}: {name}" if name else what
    return Row(label, system, unit, median, min(values), max(values), ratio(values, base))


def _split(metric: str) -> tuple[str, str]:
    name, _, unit = metric.rpartition(" ")
    return name, unit


def ratio(values: Sequence[float], base: Sequence[float] | None) -> float | None:
    """The median of the rounds' own ratios: drift of the machine hits both sides of each alike."""
    if base is None or any(other <= 0 for other in base):
        return None
    return statistics.median(a / b for a, b in zip(values, base, strict=True))


def added(figures: Figures, base: str = "direct") -> dict[str, dict[str, list[float]]]:
    """What each system adds to the base, round by round."""
    return {
        f"added {metric}": {
            system: [a - b for a, b in zip(values, of_metric[base], strict=True)]
            for system, values in of_metric.items()
            if system != base
        }
        for metric, of_metric in figures.items()
        if base in of_metric
    }


def against(what: str, figures: Figures, pairs: Mapping[str, str]) -> list[Row]:
    """Each system of `pairs` as a multiple of its partner in the same round."""
    found = []
    for metric, of_metric in figures.items():
        for system, partner in pairs.items():
            if system not in of_metric:
                continue
            both = zip(of_metric[system], of_metric[partner], strict=True)
            values = [a / b for a, b in both if b > 0]
            if values:
                name = f"{_split(metric)[0]} x".strip()
                found.append(_row(what, name, f"{system} / {partner}", values, None))
    return found


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of sorted values, the smallest that at least so many percent do not exceed."""
    if not ordered:
        raise ValueError("no values: no percentile")
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]
