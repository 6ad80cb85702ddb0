"""What the rows of forgotten exchanges, and all that hangs on them, may still say: counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from store import daily
from store.database import Connection
from store.desk import Desk
from store.removal import candidates, ids_of
from store.target import Target

FORGOTTEN: Final = "forgotten"

_SCRUB: Final = f"""
    UPDATE exchanges SET privacy = '{FORGOTTEN}', path = '/', route = NULL, conversation = NULL,
        request_hash = NULL, user = NULL, session = NULL, idempotency_key = NULL,
        response_id = NULL, previous_response_id = NULL, upstream_request_id = NULL,
        error = CASE WHEN error IS NOT NULL THEN '{FORGOTTEN}' END
    WHERE number = ?"""
# What says whose money it was, and may be the name, or hold it: kept where it does not.
_NAMED_COLUMNS: Final = (
    "tenant", "feature", "key_hash", "host", "deployment", "model", "response_model", "usage",
    "usage_note", "service_tier", "cost_note", "finish_reason",
)  # fmt: skip
_COUNTED_BY: Final[tuple[Literal["model", "tenant", "feature"], ...]] = (
    "model", "tenant", "feature",
)  # fmt: skip
_OBSERVATIONS: Final = f"""
    UPDATE observations SET answer = NULL, error = '{FORGOTTEN}'
    WHERE candidate = ? AND exchange_id = ?"""
_FEEDBACK: Final = """
    UPDATE feedback SET label = NULL, correction = NULL, source = NULL WHERE exchange_id = ?"""
_PROMPTS: Final = f"""
    UPDATE tasks SET system_prompt = NULL WHERE system_prompt IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM exchanges AS e WHERE e.task_id = tasks.id AND e.privacy != '{FORGOTTEN}')"""


@dataclass(slots=True)
class Tally:
    """What was removed so far. `traces`: words that only the forgotten said."""

    exchanges: int = 0
    bodies: int = 0
    still_open: int = 0
    files: int = 0
    observations: int = 0
    comparisons: int = 0
    feedback: int = 0
    prompts: int = 0
    traces: list[str] = field(default_factory=list)


def scrub(desk: Desk, target: Target, tally: Tally, numbers: Sequence[int]) -> None:
    """In the open transaction: the rows of exchanges whose bodies are gone."""
    connection = desk.connection
    for number in numbers:
        _scrub_named(connection, target, number)
    connection.executemany(_SCRUB, [(number,) for number in numbers])
    ids = ids_of(connection, numbers)
    for identity in ids:
        tally.feedback += connection.execute(_FEEDBACK, (identity,)).rowcount
    for candidate in candidates(connection, "observations"):
        for identity in ids:
            found = connection.execute(_OBSERVATIONS, (candidate, identity))
            tally.observations += found.rowcount
    for candidate in candidates(connection, "comparisons"):
        for identity in ids:
            tally.comparisons += _scrub_comparison(desk, candidate, identity)
    _scrub_incidents(connection, ids)


def _scrub_named(connection: Connection, target: Target, number: int) -> None:
    columns = ", ".join(_NAMED_COLUMNS)
    row = connection.execute(f"SELECT {columns} FROM exchanges WHERE number = ?", (number,))
    for column, value in zip(_NAMED_COLUMNS, row.fetchone(), strict=True):
        if isinstance(value, str) and target.said_in(value):
            connection.execute(f"UPDATE exchanges SET {column} = NULL WHERE number = ?", (number,))


def _scrub_comparison(desk: Desk, candidate: str, identity: str) -> int:
    """Its verdict is evidence and stays. The request's hash says what was asked to whoever guesses
    it: another one in its place still tells distinct requests apart."""
    key = (candidate, identity)
    where = "WHERE candidate = ? AND exchange_id = ?"
    execute = desk.connection.execute
    row = execute(f"SELECT request_hash FROM comparisons {where}", key).fetchone()
    if row is None:
        return 0
    hashed = desk.recording.hashed(row[0])
    execute(f"UPDATE comparisons SET why = ?, request_hash = ? {where}", (FORGOTTEN, hashed, *key))
    return 1


def _scrub_incidents(connection: Connection, ids: Sequence[str]) -> None:
    """An error's text may quote what it stumbled over."""
    known = {identity.replace("-", "") for identity in ids}
    sql = "SELECT rowid, detail FROM incidents WHERE kind LIKE 'unreadable%'"
    for number, detail in connection.execute(sql).fetchall():
        said = detail.partition(":")[0].replace("-", "")
        if said in known:
            connection.execute(
                "UPDATE incidents SET detail = ? WHERE rowid = ?", (FORGOTTEN, number)
            )


def scrub_prompts(connection: Connection) -> int:
    """Of tasks that only the forgotten had. In an open transaction."""
    return int(connection.execute(_PROMPTS).rowcount)


def scrub_names(connection: Connection, target: Target) -> None:
    """In the sums, whose keys may be the name, or hold it. In an open transaction."""
    for column in _COUNTED_BY:
        for (name,) in connection.execute(f"SELECT DISTINCT {column} FROM daily").fetchall():
            if target.said_in(name):
                daily.unname(connection, column, name)
    for (reason,) in connection.execute("SELECT DISTINCT reason FROM reasons").fetchall():
        if target.said_in(reason):
            daily.unname_reason(connection, reason, FORGOTTEN)
    for (model,) in connection.execute("SELECT DISTINCT model FROM tasks").fetchall():
        if model is not None and target.said_in(model):
            connection.execute("UPDATE tasks SET model = NULL WHERE model = ?", (model,))
