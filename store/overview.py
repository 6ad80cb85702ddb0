"""What `understudy status` says of money, limits and the index. Read-only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from store.database import Connection, is_ready, reading
from store.rate_limits import hours_lost

_TOO_MANY: Final = 429
_MOST_LIMITED: Final = 5_000
_TOP_REASONS: Final = 3


@dataclass(frozen=True, slots=True)
class ModelUse:
    """`usd` is None where no call's cost is known; `cached` is a share of `input_tokens`, 0..1."""

    model: str | None
    calls: int
    input_tokens: int | None
    cached: float | None
    output_tokens: int | None
    usd: float | None
    calls_without_cost: int


@dataclass(frozen=True, slots=True)
class Unknown:
    """Calls of which something is not known, with the most frequent reasons."""

    calls: int
    reasons: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Overview:
    """`usd` since the record began; the rest since the day that was asked for.

    `unindexed`: calls that the search index is behind at most; None: it was never begun.
    """

    usd: float | None
    calls: int
    models: tuple[ModelUse, ...]
    cost: Unknown
    usage: Unknown
    limited: int
    hours_lost: float
    retries: int
    unindexed: int | None


def overview(database: Path, since: str) -> Overview | None:
    """`since`: the first day, as `2026-01-31`. None while there is no database."""
    if not is_ready(database):
        return None
    with reading(database) as connection:
        usd, calls = _one(connection, "SELECT sum(cost_usd), total(calls) FROM daily")
        sums = "total(calls_without_cost), total(calls_without_usage), total(retries)"
        no_cost, no_usage, retries = _one(
            connection, f"SELECT {sums} FROM daily WHERE day >= ?", since
        )
        limited, hours = _limits(connection, since)
        return Overview(
            usd,
            int(calls),
            tuple(_models(connection, since)),
            Unknown(int(no_cost), _reasons(connection, "cost", since)),
            Unknown(int(no_usage), _reasons(connection, "usage", since)),
            limited,
            hours,
            int(retries),
            unindexed(connection),
        )


def unindexed(connection: Connection) -> int | None:
    """Calls that the search index is behind, at most; None: it was never begun."""
    sql = """SELECT (SELECT max(number) FROM bodies),
                    (SELECT number FROM progress WHERE name = 'search')"""
    newest, done = _one(connection, sql)
    if done is None:
        return None if newest else 0
    return max(0, (newest or 0) - int(done))


def _models(connection: Connection, since: str) -> Iterator[ModelUse]:
    sql = """
        SELECT nullif(model, ''), sum(calls), sum(input_tokens),
               1.0 * sum(cached_tokens) / sum(input_tokens), sum(output_tokens), sum(cost_usd),
               sum(calls_without_cost)
        FROM daily WHERE day >= ?
        GROUP BY model ORDER BY sum(cost_usd) DESC NULLS LAST, sum(calls) DESC"""
    return (ModelUse(*row) for row in connection.execute(sql, (since,)).fetchall())


def _reasons(connection: Connection, about: str, since: str) -> tuple[tuple[str, int], ...]:
    sql = """SELECT reason, sum(calls) FROM reasons WHERE about = ? AND day >= ?
             GROUP BY reason ORDER BY sum(calls) DESC, reason LIMIT ?"""
    return tuple(tuple(row) for row in connection.execute(sql, (about, since, _TOP_REASONS)))


# A 429 that doesn't say how long holds off until the next call of the same key and model, as
# asked for; limits are per minute, so what comes later than that does not matter.
_LIMITED: Final = """
    SELECT e.key_hash, e.model, julianday(e.started_at) * 86400.0, l.retry_after_s,
           CASE WHEN l.retry_after_s IS NULL THEN (
               SELECT julianday(n.started_at) * 86400.0 FROM exchanges AS n
               WHERE n.started_at > e.started_at
                 AND n.started_at < strftime('%Y-%m-%dT%H:%M:%fZ', e.started_at, '+60 seconds')
                 AND n.key_hash IS e.key_hash AND n.model IS e.model
               ORDER BY n.started_at LIMIT 1) END
    FROM exchanges AS e LEFT JOIN rate_limits AS l ON l.number = e.number
    WHERE e.status = 429 AND e.started_at >= ? ORDER BY e.started_at DESC LIMIT ?"""


def _limits(connection: Connection, since: str) -> tuple[int, float]:
    """How many 429s, and the hours that the newest of them cost."""
    sql = "SELECT count(*) FROM exchanges WHERE status = 429 AND started_at >= ?"
    (limited,) = _one(connection, sql, since)
    found = connection.execute(_LIMITED, (since, _MOST_LIMITED)).fetchall()
    found.sort(key=lambda row: (row[0] or "", row[1] or ""))
    groups = groupby(found, key=lambda row: (row[0], row[1]))
    return int(limited), sum(hours_lost(_answers(group)) for _, group in groups)


def _answers(rows: Iterator[Any]) -> Iterator[tuple[float, int | None, float | None]]:
    """The 429s, and the calls that ended them."""
    for _, _, at, retry_after, next_at in rows:
        yield at, _TOO_MANY, retry_after
        if next_at is not None:
            yield next_at, None, None


def _one(connection: Connection, sql: str, *values: object) -> Any:
    return connection.execute(sql, values).fetchone()
