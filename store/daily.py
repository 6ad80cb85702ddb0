"""Sums by day, by reason and by task, kept up with the record itself.

Over a million exchanges a GROUP BY takes seconds, and more each month; these tables stay as small
as the days, models and tenants are few. They are written in the transaction that writes the
exchanges, from all new rows at once: 4 µs for each, where triggers took 12.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from store.database import Connection

_KEY: Final = (
    "day", "endpoint", "model", "tenant", "feature", "served_by", "outcome", "status"
)  # fmt: skip
_TOKENS: Final = (
    "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
    "audio_input_tokens", "audio_output_tokens", "estimated_input_tokens",
    "estimated_output_tokens",
)  # fmt: skip
_COUNTS: Final = ("calls", "retries", "calls_without_usage", "calls_without_cost")
_KNOWN: Final = (*_TOKENS, "cost_usd")  # NULL until one is known
_TASK_COUNTS: Final = ("exchanges", "diverted", "calls_without_cost")
_TASK_KNOWN: Final = ("input_tokens", "output_tokens", "cost_usd")

TABLES: Final = (
    """
    CREATE TABLE daily (  -- what was used and what it cost. In the key '' and 0 are: not known
        day                     TEXT NOT NULL,     -- UTC
        endpoint                TEXT NOT NULL,
        model                   TEXT NOT NULL,     -- as answered, else as asked for
        tenant                  TEXT NOT NULL,
        feature                 TEXT NOT NULL,
        served_by               TEXT NOT NULL,
        outcome                 TEXT NOT NULL,
        status                  INTEGER NOT NULL,
        calls                   INTEGER NOT NULL,
        retries                 INTEGER NOT NULL,  -- calls that an SDK says are such
        calls_without_usage     INTEGER NOT NULL,
        calls_without_cost      INTEGER NOT NULL,
        input_tokens            INTEGER,           -- cached and cache_write are of these
        cached_tokens           INTEGER,
        cache_write_tokens      INTEGER,
        output_tokens           INTEGER,           -- reasoning is of these
        reasoning_tokens        INTEGER,
        audio_input_tokens      INTEGER,
        audio_output_tokens     INTEGER,
        estimated_input_tokens  INTEGER,           -- of calls whose answer states no usage
        estimated_output_tokens INTEGER,
        cost_usd                REAL,
        PRIMARY KEY (day, endpoint, model, tenant, feature, served_by, outcome, status)
    ) WITHOUT ROWID""",
    """
    CREATE TABLE reasons (  -- why something of a call is not known, or was not kept
        day    TEXT NOT NULL,
        about  TEXT NOT NULL,  -- cost, usage; body (there is none), request, response
        reason TEXT NOT NULL,
        calls  INTEGER NOT NULL,
        PRIMARY KEY (day, about, reason)
    ) WITHOUT ROWID""",
    """
    CREATE TABLE task_totals (
        task_id            TEXT PRIMARY KEY,
        exchanges          INTEGER NOT NULL,
        diverted           INTEGER NOT NULL,  -- of these, a candidate served
        last_at            TEXT NOT NULL,
        calls_without_cost INTEGER NOT NULL,
        input_tokens       INTEGER,
        output_tokens      INTEGER,
        cost_usd           REAL
    ) WITHOUT ROWID""",
)


def _sums(columns: Sequence[str]) -> str:
    return ", ".join(f"sum({name})" for name in columns)


def _grown(counts: Sequence[str], known: Sequence[str]) -> str:
    """What there is already, and the new; of what is NULL, the other."""
    return ", ".join(
        [f"{name} = {name} + excluded.{name}" for name in counts]
        + [f"{name} = coalesce({name} + excluded.{name}, {name}, excluded.{name})"
           for name in known]
    )  # fmt: skip


# NOT INDEXED: but for the rowid. By an index that has the order, SQLite would scan all exchanges
# to group the few new ones.
_DAY: Final = "substr(started_at, 1, 10)"
_ADD_DAILY: Final = f"""
    INSERT INTO daily ({", ".join((*_KEY, *_COUNTS, *_KNOWN))})
    SELECT {_DAY}, endpoint, coalesce(response_model, model, ''), coalesce(tenant, ''),
           coalesce(feature, ''), coalesce(served_by, ''), outcome, coalesce(status, 0),
           count(*), total(retry_count > 0), sum(usage IS NULL), sum(cost_usd IS NULL),
           {_sums(_KNOWN)}
    FROM exchanges NOT INDEXED WHERE number > ? GROUP BY 1, 2, 3, 4, 5, 6, 7, 8
    ON CONFLICT DO UPDATE SET {_grown(_COUNTS, _KNOWN)}"""
_ADD_TASKS: Final = f"""
    INSERT INTO task_totals (task_id, last_at, {", ".join((*_TASK_COUNTS, *_TASK_KNOWN))})
    SELECT task_id, max(started_at), count(*), total(served_by != 'upstream'),
           sum(cost_usd IS NULL), {_sums(_TASK_KNOWN)}
    FROM exchanges NOT INDEXED WHERE number > ? AND task_id IS NOT NULL GROUP BY 1
    ON CONFLICT DO UPDATE SET last_at = max(last_at, excluded.last_at),
                              {_grown(_TASK_COUNTS, _TASK_KNOWN)}"""


def _add_reasons(about: str, reason: str, where: str) -> str:
    return f"""
        INSERT INTO reasons
        SELECT {_DAY}, '{about}', {reason}, count(*)
        FROM exchanges AS e NOT INDEXED LEFT JOIN bodies AS b ON b.number = e.number
        WHERE e.number > ? AND {where} GROUP BY 1, 3
        ON CONFLICT DO UPDATE SET calls = calls + excluded.calls"""


def _kind(note: str) -> str:
    """`cut` of `cut: 89 of 1012 bytes were captured`: figures would make each a reason."""
    return f"substr({note}, 1, instr({note} || ':', ':') - 1)"


# SQLite leaves the join out where nothing is asked of it.
_ADD: Final = (
    _ADD_DAILY,
    _ADD_TASKS,
    _add_reasons("cost", "cost_note", "cost_note IS NOT NULL"),
    _add_reasons("usage", "usage_note", "usage_note IS NOT NULL"),
    _add_reasons("body", "coalesce(usage_note, 'nothing to keep')", "b.number IS NULL"),
    _add_reasons("request", _kind("request_note"), "request_note IS NOT NULL"),
    _add_reasons("response", _kind("response_note"), "response_note IS NOT NULL"),
)


@contextmanager
def counting(connection: Connection) -> Iterator[None]:
    """Counts the exchanges that are inserted inside. In an open transaction."""
    (last,) = connection.execute("SELECT max(number) FROM exchanges").fetchone()
    yield
    add(connection, last or 0)


def add(connection: Connection, after: int) -> None:
    """Count the exchanges behind that number, whose bodies are there, too."""
    for statement in _ADD:
        connection.execute(statement, (after,))


_MERGE_DAILY: Final = f"""
    INSERT INTO daily ({{columns}})
    SELECT {{renamed}} FROM daily WHERE {{column}} = ?1 AND ?1 != ''
    ON CONFLICT DO UPDATE SET {_grown(_COUNTS, _KNOWN)}"""
_MERGE_REASON: Final = """
    INSERT INTO reasons SELECT day, about, ?2, calls FROM reasons WHERE reason = ?1
    ON CONFLICT DO UPDATE SET calls = calls + excluded.calls"""


def unname(
    connection: Connection, column: Literal["model", "tenant", "feature"], name: str
) -> None:
    """What was counted under a name counts as of one that is not known. In an open transaction."""
    columns = (*_KEY, *_COUNTS, *_KNOWN)
    renamed = ", ".join("''" if each == column else each for each in columns)
    sql = _MERGE_DAILY.format(columns=", ".join(columns), renamed=renamed, column=column)
    connection.execute(sql, (name,))
    connection.execute(f"DELETE FROM daily WHERE {column} = ?1 AND ?1 != ''", (name,))


def unname_reason(connection: Connection, reason: str, instead: str) -> None:
    """The same for a reason that holds a name. In an open transaction."""
    connection.execute(_MERGE_REASON, (reason, instead))
    connection.execute("DELETE FROM reasons WHERE reason = ?", (reason,))
