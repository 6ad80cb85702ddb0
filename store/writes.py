"""What others hand in: a line of JSON to typed values, and those into their tables.

An observation or a comparison that is there already stays as it is, so a batch whose answer got
lost can be sent again. A rollout's row is replaced and its log grows by a line, unless that very
line is the last one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Final

import orjson

from policies.words import (
    Comparison,
    Feedback,
    Observation,
    RolloutRecord,
    UnknownExchange,
    Write,
    WriteUnfit,
)
from store import feedback
from store.database import Connection, transaction

if TYPE_CHECKING:
    from store.recording import Recording

MOST_LINE: Final = 16 << 20
# How an error is answered that the one who wrote can mend.
_KINDS: Final[dict[str, type[Exception]]] = {"unknown": UnknownExchange, "unfit": WriteUnfit}
_TYPES: Final[dict[str, type[Write]]] = {
    "observation": Observation,
    "comparison": Comparison,
    "rollout": RolloutRecord,
    "feedback": Feedback,
}
_NAMES: Final = {type_: name for name, type_ in _TYPES.items()}


class OrderError(Exception):
    """An order that can't be carried out, or not to its end: one line for a person."""


def refusal(error: Exception) -> dict[str, object]:
    """The answer to what was not done."""
    for kind, type_ in _KINDS.items():
        if isinstance(error, type_):
            return {"ok": False, "error": str(error), "kind": kind}
    said = str(error) if isinstance(error, OrderError) else f"{type(error).__name__}: {error}"
    return {"ok": False, "error": said}


def raise_refusal(said: dict[str, Any]) -> None:
    """The other side of `refusal`; returns where it is nothing that the one who asked can mend."""
    error = _KINDS.get(str(said.get("kind")))
    if error is not None:
        raise error(said.get("error"))


def dump(writes: Sequence[Write]) -> bytes:
    said = [{"type": _NAMES[type(write)], **asdict(write)} for write in writes]
    return orjson.dumps({"writes": said}) + b"\n"


def load(line: bytes) -> list[Write]:
    """Raises ValueError for anything that is not such a line."""
    said = orjson.loads(line)
    writes = said.get("writes") if isinstance(said, dict) else None
    if not isinstance(writes, list):
        raise ValueError("must be an object with a list 'writes'")
    return [_write(item) for item in writes]


def _write(item: Any) -> Write:
    type_ = _TYPES.get(str(item.get("type"))) if isinstance(item, dict) else None
    if type_ is None:
        raise ValueError(f"a write's type must be one of {', '.join(_TYPES)}")
    values = {key: value for key, value in item.items() if key != "type"}
    try:
        return type_(**values)
    except TypeError as error:
        raise ValueError(str(error)) from None


def apply(
    connection: Connection, writes: Sequence[Write], recording: Recording | None = None
) -> None:
    """All of them or none. `recording`: for feedback. Raises UnknownExchange, WriteUnfit."""
    with transaction(connection):
        for write in writes:
            if isinstance(write, RolloutRecord):
                _insert_rollout(connection, write)
            elif isinstance(write, Feedback):
                assert recording is not None
                feedback.add(connection, recording, write)
            else:
                _insert(connection, write)


def _columns(type_: type[Write]) -> str:
    return ", ".join(field.name for field in fields(type_))


def _places(type_: type[Write]) -> str:
    return ", ".join(f":{field.name}" for field in fields(type_))


_INSERTS: Final = {
    type_: f"INSERT INTO {name}s ({_columns(type_)}) VALUES ({_places(type_)}) "
    "ON CONFLICT (candidate, exchange_id) DO NOTHING"
    for type_, name in _NAMES.items()
    if type_ not in (RolloutRecord, Feedback)
}
_UPSERT_ROLLOUT: Final = (
    f"INSERT OR REPLACE INTO rollouts ({_columns(RolloutRecord)}) VALUES ({_places(RolloutRecord)})"
)
_LAST_LINE: Final = """
    SELECT at, phase, percent, why FROM rollout_log
    WHERE task_id = :task_id AND candidate = :candidate ORDER BY number DESC LIMIT 1"""
_LOG_ROLLOUT: Final = """
    INSERT INTO rollout_log (task_id, candidate, at, phase, percent, why)
    VALUES (:task_id, :candidate, :at, :phase, :percent, :why)"""


def _insert(connection: Connection, write: Write) -> None:
    connection.execute(_INSERTS[type(write)], asdict(write))


def _insert_rollout(connection: Connection, record: RolloutRecord) -> None:
    values = asdict(record) | {"state": orjson.dumps(record.state).decode()}
    connection.execute(_UPSERT_ROLLOUT, values)
    line = (record.at, record.phase, record.percent, record.why)
    last = connection.execute(_LAST_LINE, values).fetchone()
    if last is None or tuple(last) != line:
        connection.execute(_LOG_ROLLOUT, values)
