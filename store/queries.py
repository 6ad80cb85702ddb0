"""What the command line shows. Read-only, one short transaction each.

While there is no database yet, lists are empty and counts are zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from store.database import Connection, is_ready, reading

Row = dict[str, Any]

_UUID_LENGTH: Final = 36


class NotFound(LookupError):
    """No row, or more than one, goes by that prefix. The message is for a person."""


@dataclass(frozen=True, slots=True)
class Count:
    outcome: str
    served_by: str | None
    exchanges: int


@dataclass(frozen=True, slots=True)
class ExchangeLine:
    """One line of a list of exchanges."""

    id: str
    started_at: str
    endpoint: str
    model: str | None
    status: int | None
    outcome: str
    stream: int
    complete: int
    served_by: str | None
    task_id: str | None
    latency_ms: float | None
    ttft_ms: float | None
    input_tokens: int | None
    output_tokens: int | None
    error: str | None


@dataclass(frozen=True, slots=True)
class ExchangeDetail:
    """All that is known of one exchange. `exchange` and `bodies` are rows, column by column."""

    exchange: Row
    request: str | None
    response: str | None
    bodies: Row | None
    observations: list[Row]
    comparisons: list[Row]
    feedback: list[Row]


@dataclass(frozen=True, slots=True)
class TaskLine:
    """A task with its volume; `diverted` were served by a candidate."""

    id: str
    endpoint: str
    model: str | None
    system_prompt: str | None
    first_seen: str
    exchanges: int
    diverted: int
    last_at: str | None
    agreement: list[Agreement]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Comparisons of one (task, candidate). `score`: the mean, None when all were ignored."""

    task_id: str
    candidate: str
    matched: int
    mismatched: int
    ignored: int
    score: float | None


@dataclass(frozen=True, slots=True)
class LogLine:
    at: float
    phase: str
    percent: float
    why: str


@dataclass(frozen=True, slots=True)
class RolloutLine:
    """A rollout as it stands. `log`: its last lines, newest first."""

    task_id: str
    candidate: str
    phase: str
    percent: float
    at: float
    why: str
    log: list[LogLine]


@dataclass(frozen=True, slots=True)
class RunLine:
    """A life of one proxy. `lost`: requests that it counted and that left no row."""

    id: str
    started_at: str
    ended_clean: int | None
    highest_seq: int
    recorded: int
    open: int
    lost: int
    torn_bytes: int


@dataclass(frozen=True, slots=True)
class Incident:
    at: str
    kind: str
    detail: str


def counts(database: Path) -> list[Count]:
    """Exchanges by outcome and by who served them, the most first."""
    sql = """SELECT outcome, nullif(served_by, ''), sum(calls) FROM daily
             GROUP BY outcome, served_by ORDER BY sum(calls) DESC"""
    return [Count(*row) for row in _all(database, sql)]


_LINE: Final = ", ".join(ExchangeLine.__dataclass_fields__)


def newest(database: Path, limit: int = 20, task: str | None = None) -> list[ExchangeLine]:
    """The newest exchanges; `task` is an id or a unique prefix of one."""
    if not is_ready(database):
        return []
    with reading(database) as connection:
        where = "" if task is None else "WHERE task_id = ?"
        values = () if task is None else (full_id(connection, "tasks", task),)
        found = connection.execute(
            f"SELECT {_LINE} FROM exchanges {where} ORDER BY started_at DESC LIMIT ?",
            (*values, limit),
        )
        return [ExchangeLine(*row) for row in found]


def exchange(database: Path, prefix: str) -> ExchangeDetail:
    """One exchange by its id, or a unique prefix of it. Raises `NotFound`."""
    if not is_ready(database):
        raise NotFound("nothing has been recorded yet")
    with reading(database) as connection:
        identity = (full_id(connection, "exchanges", prefix),)

        def rows(sql: str) -> list[Row]:
            return [dict(row) for row in connection.execute(sql, identity)]

        pair = (rows("SELECT request, response FROM pairs WHERE id = ?") or [{}])[0]
        return ExchangeDetail(
            rows("SELECT * FROM exchanges WHERE id = ?")[0],
            pair.get("request"),
            pair.get("response"),
            next(iter(rows(_BODIES)), None),
            rows("SELECT * FROM observations WHERE exchange_id = ? ORDER BY at"),
            rows("SELECT * FROM comparisons WHERE exchange_id = ? ORDER BY at"),
            rows(_FEEDBACK),
        )


_BODIES: Final = """
    SELECT t.request, t.response, b.events, b.request_note, b.response_note
    FROM exchanges AS e JOIN bodies AS b ON b.number = e.number
    JOIN texts AS t ON t.number = e.number
    WHERE e.id = ?"""


_FEEDBACK: Final = """
    SELECT at, score, label, correction, source FROM feedback
    WHERE exchange_id = ? ORDER BY number"""


def full_id(connection: Connection, table: str, prefix: str) -> str:
    """The one id in `table` that begins with `prefix`. Raises `NotFound`."""
    kind = table.removesuffix("s")
    if not prefix or not all(letter in "0123456789abcdef-" for letter in prefix.lower()):
        raise NotFound(f"{prefix!r} is no id of {kind}s: it takes digits and letters a to f")
    prefix = prefix.lower()
    found = connection.execute(
        f"SELECT id FROM {table} WHERE id >= ? AND id < ? ORDER BY id LIMIT 2",
        (prefix, prefix + "g"),
    ).fetchall()
    if len(found) == 1:
        return str(found[0][0])
    if not found:
        raise NotFound(f"no {kind} has an id that begins with {prefix!r}")
    raise NotFound(f"several {kind}s have ids that begin with {prefix!r}: give more of it")


def tasks(database: Path) -> list[TaskLine]:
    """Tasks by volume, the most first, each with its agreement by candidate."""
    if not is_ready(database):
        return []
    sql = """
        SELECT id, endpoint, model, system_prompt, first_seen,
               coalesce(exchanges, 0) AS exchanges, coalesce(diverted, 0) AS diverted, last_at
        FROM tasks LEFT JOIN task_totals ON task_id = id ORDER BY 6 DESC, id"""
    with reading(database) as connection:
        agreed = _agreement(connection)
        found = connection.execute(sql).fetchall()
        return [TaskLine(**dict(row), agreement=agreed.get(row["id"], [])) for row in found]


def _agreement(connection: Connection) -> dict[str, list[Agreement]]:
    sql = """
        SELECT task_id, candidate, sum(verdict = 'matched'), sum(verdict = 'mismatched'),
               sum(verdict = 'ignored'), avg(score)
        FROM comparisons GROUP BY task_id, candidate ORDER BY candidate"""
    found: dict[str, list[Agreement]] = {}
    for row in connection.execute(sql):
        found.setdefault(row["task_id"], []).append(Agreement(*row))
    return found


def rollouts(database: Path, lines: int = 5) -> list[RolloutLine]:
    """Every rollout with the last lines of its log."""
    if not is_ready(database):
        return []
    columns = "task_id, candidate, phase, percent, at, why"
    log = """SELECT at, phase, percent, why FROM rollout_log
             WHERE task_id = ? AND candidate = ? ORDER BY number DESC LIMIT ?"""
    with reading(database) as connection:
        found = connection.execute(f"SELECT {columns} FROM rollouts ORDER BY at DESC").fetchall()
        result = []
        for row in found:
            last = connection.execute(log, (row["task_id"], row["candidate"], lines))
            result.append(RolloutLine(**dict(row), log=[LogLine(*line) for line in last]))
        return result


def runs(database: Path, limit: int = 20) -> list[RunLine]:
    """The newest runs. What is still open is not lost."""
    sql = """
        SELECT id, started_at, ended_clean, highest_seq, recorded, open,
               max(0, highest_seq - recorded - open) AS lost, torn_bytes
        FROM (SELECT *, (SELECT count(DISTINCT exchange) FROM staged WHERE run = runs.id) AS open
              FROM runs ORDER BY started_at DESC LIMIT ?)"""
    return [RunLine(*row) for row in _all(database, sql, (limit,))]


def incidents(database: Path, limit: int = 20) -> list[Incident]:
    """What went wrong with the record, the newest first."""
    sql = "SELECT at, kind, detail FROM incidents ORDER BY rowid DESC LIMIT ?"
    return [Incident(*row) for row in _all(database, sql, (limit,))]


def _all(database: Path, sql: str, values: Sequence[object] = ()) -> list[Any]:
    if not is_ready(database):
        return []
    with reading(database) as connection:
        return connection.execute(sql, values).fetchall()
