"""The record as the director sees it: short reads of its own, writes through the recorder.

To find pairs without an observation must stay cheap with a million rows, all of them observed. So a
`Record` remembers, for each candidate, which rows it has looked at and which of them still wait:
every row is looked at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import orjson

from policies.words import Comparison, Pair, RolloutRecord, Write
from store.database import Connection, is_ready, iso, reading
from store.values import json_object, text_of
from store.writes import MOST_LINE, dump, raise_refusal

_OLDEST_SECONDS: Final = 7 * 86400
_CHUNK: Final = 1000
_MOST_CHUNKS_BACK: Final = 20  # of history, in one call
_MOST_WAITING: Final = 50_000

# The view's own conditions hold; an answer of tool calls is no text to compare.
_WAITS: Final = """
    finish_reason = 'stop' AND NOT EXISTS (
        SELECT 1 FROM observations AS o WHERE o.candidate = :candidate AND o.exchange_id = id)"""
_LOOK: Final = f"""
    SELECT number FROM teacher_pairs
    WHERE number > :low AND number <= :high AND started_at >= :oldest AND {_WAITS}"""
_YOUNGEST: Final = "SELECT max(started_at) FROM exchanges WHERE number > ? AND number <= ?"
_FETCH: Final = f"""
    SELECT number, id, task_id, request_hash, started_at, request, response
    FROM teacher_pairs WHERE number = :number AND {_WAITS}"""


class WriteRefused(ConnectionError):
    """The recorder is there, but did not commit: its reason is the message."""


@dataclass(slots=True)
class _Seen:
    """Rows after `low`, up to `high`, were looked at; `waiting` are those without observation."""

    low: int
    high: int
    waiting: set[int] = field(default_factory=set)
    reached_old: bool = False


class Record:
    """Implements what the director needs of the record."""

    def __init__(self, database: Path, recorder_socket: Path) -> None:
        self._database = database
        self._socket = recorder_socket
        self._seen: dict[str, _Seen] = {}
        self._file: tuple[int, int] | None = None

    def unobserved(self, candidate: str, limit: int) -> list[Pair]:
        if not self._is_there():
            return []
        since = time.time() - _OLDEST_SECONDS
        with reading(self._database) as connection:
            seen = self._look(connection, candidate, iso(since), limit)
            return _take(connection, candidate, seen, since, limit)

    def comparisons(
        self, candidate: str, task_id: str, since: float, limit: int
    ) -> list[Comparison]:
        if not self._is_there():
            return []
        columns = ", ".join(field.name for field in fields(Comparison))
        with reading(self._database) as connection:
            found = connection.execute(
                f"SELECT {columns} FROM comparisons WHERE candidate = ? AND task_id = ? "
                "AND at >= ? ORDER BY at DESC, rowid DESC LIMIT ?",
                (candidate, task_id, since, limit),
            ).fetchall()
        return [Comparison(*row) for row in reversed(found)]

    def rollouts(self) -> list[RolloutRecord]:
        if not self._is_there():
            return []
        with reading(self._database) as connection:
            found = connection.execute("SELECT * FROM rollouts ORDER BY task_id, candidate")
            return [_rollout(row) for row in found]

    async def write(self, writes: Sequence[Write]) -> None:
        """Raises ConnectionError: nothing was written, try again; UnknownExchange, WriteUnfit."""
        line = dump(writes)
        if len(line) > MOST_LINE:
            raise ValueError(f"{len(writes)} writes are over 16 MiB together: write fewer at once")
        answer = await self._ask(line)
        if not answer.get("ok"):
            raise_refusal(answer)
            raise WriteRefused(f"the recorder did not write: {answer.get('error')}")

    async def _ask(self, line: bytes) -> dict[str, Any]:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError as error:
            raise ConnectionError(f"the recorder is away: {error}") from None
        try:
            writer.write(line)
            await writer.drain()
            said: dict[str, Any] = orjson.loads(await reader.readline())
            return said
        except (OSError, ValueError) as error:
            raise ConnectionError(f"the recorder went away: {error}") from None
        finally:
            writer.close()

    def _is_there(self) -> bool:
        """Is there a database? Another file than before is a new start."""
        if not is_ready(self._database):
            return False
        status = self._database.stat()
        file = (status.st_dev, status.st_ino)
        if file != self._file:
            self._file = file
            self._seen = {}
        return True

    def _look(self, connection: Connection, candidate: str, oldest: str, limit: int) -> _Seen:
        """Look at what is new, then at as much of the past as is needed for `limit` pairs."""
        top = connection.execute("SELECT coalesce(max(number), 0) FROM exchanges").fetchone()[0]
        seen = self._seen.get(candidate)
        if seen is None or top < seen.high:
            seen = self._seen[candidate] = _Seen(top, top)
        seen.waiting |= _waiting(connection, candidate, seen.high, top, oldest)
        seen.high = top
        for _ in range(_MOST_CHUNKS_BACK):
            if seen.reached_old or len(seen.waiting) >= limit:
                break
            _look_down(connection, candidate, seen, oldest)
        _shed(seen)
        return seen


def _waiting(connection: Connection, candidate: str, low: int, high: int, oldest: str) -> set[int]:
    values = {"candidate": candidate, "low": low, "high": high, "oldest": oldest}
    return {row["number"] for row in connection.execute(_LOOK, values)}


def _look_down(connection: Connection, candidate: str, seen: _Seen, oldest: str) -> None:
    low = max(0, seen.low - _CHUNK)
    seen.waiting |= _waiting(connection, candidate, low, seen.low, oldest)
    youngest = connection.execute(_YOUNGEST, (low, seen.low)).fetchone()[0]
    # Rows lie in the order of their ends: a long exchange may be older than its neighbours.
    seen.reached_old = low == 0 or (youngest is not None and youngest < oldest)
    seen.low = low


def _shed(seen: _Seen) -> None:
    if len(seen.waiting) > _MOST_WAITING:
        kept = sorted(seen.waiting)[-_MOST_WAITING // 2 :]
        seen.waiting = set(kept)
        seen.low = kept[0] - 1
        seen.reached_old = False


def _take(
    connection: Connection, candidate: str, seen: _Seen, since: float, limit: int
) -> list[Pair]:
    """The newest of those that wait; what needs no observation (any more) stops waiting."""
    pairs: list[Pair] = []
    for number in sorted(seen.waiting, reverse=True):
        if len(pairs) >= limit:
            break
        row = connection.execute(_FETCH, {"candidate": candidate, "number": number}).fetchone()
        pair = _pair(row) if row is not None else None
        if pair is None or pair.started_at < since:
            seen.waiting.discard(number)
        else:
            pairs.append(pair)
    return pairs


def _pair(row: Any) -> Pair | None:
    """None when there is no text to compare, or a body is gone or can't be read."""
    request, response = json_object(row["request"]), json_object(row["response"])
    control = None if response is None else _text(response)
    if request is None or control is None:
        return None
    return Pair(
        exchange_id=row["id"],
        rowid=row["number"],
        task_id=row["task_id"],
        request_hash=row["request_hash"],
        started_at=datetime.fromisoformat(row["started_at"]).timestamp(),
        request=request,
        control=control,
    )


def _text(response: dict[str, Any]) -> str | None:
    """What an answer says. The view vouches for its first choice and for no more than that."""
    message = response["choices"][0].get("message")
    if not isinstance(message, dict) or message.get("tool_calls"):
        return None
    content = message.get("content")
    # With a lone surrogate it is another text as soon as anyone says it.
    return content if isinstance(content, str) and content == text_of(content) else None


def _rollout(row: Any) -> RolloutRecord:
    values = {name: row[name] for name in row.keys()}
    return RolloutRecord(**values | {"state": orjson.loads(row["state"])})
