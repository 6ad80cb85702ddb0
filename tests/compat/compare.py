"""What two runs of the same calls found, side by side."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_MOST_SHOWN = 300  # characters of a value


@dataclass(frozen=True, slots=True)
class Difference:
    name: str
    direct: str
    through: str

    def __str__(self) -> str:
        return f"{self.name}\n    direct   {self.direct}\n    through  {self.through}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Rows of counts (direct, through) and what differs; `said` is for whoever reads the table."""

    title: str
    rows: Mapping[str, tuple[int, int]]
    differences: tuple[Difference, ...] = ()
    said: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        width = max(map(len, self.rows), default=0)
        lines = [self.title, f"  {'':{width}}  {'direct':>8}  {'through':>8}"]
        lines += [f"  {row:{width}}  {a:>8}  {b:>8}" for row, (a, b) in self.rows.items()]
        lines += [f"  {line}" for line in self.said]
        lines.append(f"  differ: {len(self.differences)}")
        lines += [f"  {difference}" for difference in self.differences]
        return "\n".join(lines)


Outcomes = Mapping[str, Mapping[str, Any]]


def of_outcomes(title: str, direct: Outcomes, through: Outcomes, *said: str) -> Comparison:
    """Of two runs of one test suite: each test's outcome, and its reason where it has one."""
    counts = [Counter(str(test["outcome"]) for test in run.values()) for run in (direct, through)]
    calling = [[test for test in run.values() if test["calls"]] for run in (direct, through)]
    passing = [[test for test in run if test["outcome"] == "passed"] for run in calling]
    rows = {"tests": (len(direct), len(through))}
    for outcome in sorted(counts[0] | counts[1]):
        rows[outcome] = (counts[0][outcome], counts[1][outcome])
    rows["that call the server"] = (len(calling[0]), len(calling[1]))
    rows["... and pass"] = (len(passing[0]), len(passing[1]))
    return Comparison(title, rows, of_values(_told(direct), _told(through)), said)


def _told(run: Outcomes) -> dict[str, str]:
    return {name: f"{test['outcome']}: {test['reason']}" for name, test in run.items()}


def of_values(direct: Mapping[str, Any], through: Mapping[str, Any]) -> tuple[Difference, ...]:
    """Of two mappings, by name; a list or mapping that differs is shown where it does."""
    names = [*direct, *(name for name in through if name not in direct)]
    return tuple(
        difference
        for name in names
        if (difference := _differing(name, direct.get(name), through.get(name)))
    )


def _differing(name: str, a: Any, b: Any) -> Difference | None:
    if a == b:
        return None
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        key = next(key for key in a if a[key] != b[key])
        return _differing(f"{name}.{key}", a[key], b[key])
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        index = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return _differing(f"{name}[{index}]", a[index], b[index])
    return Difference(name, _shown(a), _shown(b))


def _shown(value: Any) -> str:
    told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return told if len(told) <= _MOST_SHOWN else f"{told[:_MOST_SHOWN]}... ({len(told)} characters)"
