"""What the demo shows: the rollout's standing, read from the database, and the app's calls."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from rich.table import Table

from bin.show_app import MODEL, Call
from policies.evidence import NOTHING, Figures, Sample, judge
from policies.home import Home
from policies.policy import Rollout
from store.database import Connection, DatabaseError, reading

# Dollars for a million tokens of gpt-4o-mini, as published on that day.
_INPUT_PRICE: Final = 0.15
_OUTPUT_PRICE: Final = 0.60
_MILLION: Final = 1_000_000
_PRICED: Final = "2024-07-18"
_LATELY: Final = 3.0  # seconds that "now" means in the table


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the rollout is, why, and the evidence that counts now."""

    phase: str = "no rollout yet"
    percent: float = 0.0
    why: str = ""
    figures: Figures = NOTHING


def standing(database: Path, candidate: str, rules: Rollout) -> Standing:
    """Read-only, as any other program may look on while the sidecar runs."""
    try:
        with reading(database) as connection:
            return _standing(connection, candidate, rules)
    except DatabaseError:  # there is none yet
        return Standing()


def _standing(connection: Connection, candidate: str, rules: Rollout) -> Standing:
    row = connection.execute(
        "SELECT task_id, phase, percent, state, why FROM rollouts WHERE candidate = ?"
        " ORDER BY at DESC LIMIT 1",
        (candidate,),
    ).fetchone()
    if row is None:
        return Standing()
    since = json.loads(row["state"])["evidence_since"]
    compared = connection.execute(
        "SELECT request_hash, verdict, at FROM comparisons WHERE candidate = ? AND task_id = ?"
        " AND at >= ? AND verdict <> 'ignored' ORDER BY at",
        (candidate, row["task_id"], since),
    )
    samples = [Sample(c["request_hash"], c["verdict"] == "matched", c["at"]) for c in compared]
    return Standing(row["phase"], row["percent"], row["why"], judge(samples, rules).figures)


@dataclass(frozen=True, slots=True)
class Cost:
    """`avoided`: dollars, estimated. `calls`: answered locally, as the database has them."""

    calls: int
    avoided: float


def cost(database: Path, candidate: str) -> Cost:
    """What the local answers would have cost: their tokens at the upstream's prices."""
    with reading(database) as connection:
        row = connection.execute(
            "SELECT count(*) AS calls, total(input_tokens) AS prompt,"
            " total(output_tokens) AS completion FROM exchanges WHERE served_by = ?",
            (candidate,),
        ).fetchone()
    dollars = row["prompt"] * _INPUT_PRICE + row["completion"] * _OUTPUT_PRICE
    return Cost(row["calls"], dollars / _MILLION)


@dataclass(frozen=True, slots=True)
class Tally:
    """Figures over some calls. A median of nothing is None."""

    calls: int
    failed: int
    local: int
    upstream_ms: float | None
    local_ms: float | None
    all_ms: float | None

    @property
    def local_share(self) -> float:
        return self.local / self.calls if self.calls else 0.0


def tally(calls: Sequence[Call]) -> Tally:
    good = [call for call in calls if call.error is None]
    local = [call.ms for call in good if call.served_by is not None]
    upstream = [call.ms for call in good if call.served_by is None]
    return Tally(
        calls=len(calls),
        failed=len(calls) - len(good),
        local=len(local),
        upstream_ms=_median(upstream),
        local_ms=_median(local),
        all_ms=_median([call.ms for call in good]),
    )


def _median(values: Sequence[float]) -> float | None:
    return median(values) if values else None


def lately(calls: Sequence[Call]) -> Sequence[Call]:
    since = time.time() - _LATELY
    return [call for call in calls[-1000:] if call.at >= since]


@dataclass(frozen=True, slots=True)
class Board:
    """One look at the show."""

    act: str
    elapsed: float
    standing: Standing
    all: Tally
    now: Tally

    def rows(self) -> list[tuple[str, str]]:
        return [
            ("elapsed", f"{self.elapsed:.0f} s"),
            ("calls", f"{self.all.calls}"),
            ("failed", f"{self.all.failed}"),
            ("agreement", agreement(self.standing.figures)),
            ("phase", self.standing.phase),
            ("share set", f"{self.standing.percent:g} %"),
            ("served locally now", f"{self.now.local_share:.0%}"),
            ("median upstream", duration(self.now.upstream_ms)),
            ("median local", duration(self.now.local_ms)),
        ]

    def table(self) -> Table:
        table = Table(title=self.act, title_justify="left", show_header=False, min_width=60)
        for name, value in self.rows():
            table.add_row(name, value)
        return table

    def line(self) -> str:
        said = ", ".join(f"{name} {value}" for name, value in self.rows()[1:])
        return f"[{self.elapsed:5.1f} s] {said}"


def agreement(figures: Figures) -> str:
    if not figures.pairs:
        return "no pairs yet"
    bounds = f"between {figures.low:.3f} and {figures.high:.3f}"
    return f"{figures.agreement:.1%} of {figures.pairs} distinct requests ({bounds})"


def duration(ms: float | None) -> str:
    return "-" if ms is None else f"{ms:.0f} ms"


@dataclass(slots=True)
class Figured:
    """What is kept of the acts for the end; None for what the show did not come to.

    `before`: calls while everything went upstream. `after`: calls at the last step. `proof`: the
    evidence before the cloud changed its answers.
    """

    before: Tally | None = None
    after: Tally | None = None
    proof: Figures | None = None


def closing(home: Home, candidate: str, calls: Sequence[Call], figured: Figured) -> list[str]:
    everything, before, after = tally(calls), figured.before, figured.after
    rows = [
        ("calls", f"{everything.calls}"),
        ("failed calls", f"{everything.failed}"),
        ("served locally", f"{everything.local_share:.0%} of all; {_share(after)} at 100 %"),
        ("agreement", agreement(figured.proof or NOTHING)),
        ("median latency", f"{_typical(before)} before, {_typical(after)} at 100 %"),
        ("cost avoided", _cost_line(home.database, candidate)),
        ("database", f"{home.database}"),
        ("next", f"understudy status --home {home.root}"),
        ("", f"understudy exchanges --home {home.root}"),
    ]
    return [f"{name:<16}{value}" for name, value in rows]


def _share(found: Tally | None) -> str:
    return f"{found.local_share:.0%}" if found else "-"


def _typical(found: Tally | None) -> str:
    return duration(found.all_ms if found else None)


def _cost_line(database: Path, candidate: str) -> str:
    try:
        found = cost(database, candidate)
    except DatabaseError:
        return "unknown: the database can't be read"
    if not found.calls:
        return "nothing: no call was served locally"
    million = found.avoided / found.calls * _MILLION
    return (
        f"${found.avoided:.4f} estimated for {found.calls} local answers, ${million:.0f} for a "
        f"million ({MODEL}, prices of {_PRICED})"
    )
