"""Training data out of the record: one JSON line a pair, only what a teacher really said.

No errors, no cut answers, none of a candidate's own: the view `teacher_pairs` decides.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final

import orjson

from store.database import Connection, is_ready, reading
from store.queries import NotFound, full_id

_CHUNK: Final = 500
_SELECT: Final = """
    SELECT number, request, response FROM teacher_pairs
    WHERE number > ? {task} ORDER BY number LIMIT ?"""


def export_openai_chat(database: Path, out: Path, task: str | None = None) -> int:
    """Write OpenAI's chat format for fine-tuning to `out`; how many lines it has.

    `task` is an id or a unique prefix of one; raises `NotFound` for anything else. `out` appears
    whole or not at all.
    """
    if not is_ready(database):
        raise NotFound("nothing has been recorded yet")
    with reading(database) as connection:
        identity = None if task is None else full_id(connection, "tasks", task)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            written = _write(file, database, identity)
        os.replace(part, out)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return written


def _write(file: IO[bytes], database: Path, task: str | None) -> int:
    written = after = 0
    while True:
        # A transaction for each chunk: a long export must not hold the journal back.
        with reading(database) as connection:
            rows = _chunk(connection, after, task)
        if not rows:
            return written
        after = rows[-1]["number"]
        for line in _lines(rows):
            file.write(line)
            written += 1


def _chunk(connection: Connection, after: int, task: str | None) -> list[Any]:
    if task is None:
        return connection.execute(_SELECT.format(task=""), (after, _CHUNK)).fetchall()
    # The plus sign keeps SQLite from sorting the whole task again for each chunk.
    sql = _SELECT.format(task="AND +task_id = ?")
    return connection.execute(sql, (after, task, _CHUNK)).fetchall()


def _lines(rows: list[Any]) -> Iterator[bytes]:
    for row in rows:
        if row["request"] is not None and row["response"] is not None:
            line = _line(orjson.loads(row["request"]), orjson.loads(row["response"]))
            if line is not None:
                yield orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE)


def _line(request: dict[str, Any], response: dict[str, Any]) -> dict[str, Any] | None:
    messages = request.get("messages")
    answer = _assistant(response)
    if answer is None or not isinstance(messages, list) or not messages:
        return None
    line: dict[str, Any] = {"messages": [*messages, answer]}
    for key in ("tools", "functions", "parallel_tool_calls"):
        if request.get(key) is not None:
            line[key] = request[key]
    return line


def _assistant(response: dict[str, Any]) -> dict[str, Any] | None:
    """The answer as a message of a training set; None when it says nothing."""
    message = response["choices"][0].get("message")
    if not isinstance(message, dict):
        return None
    kept = {key: message[key] for key in ("tool_calls", "function_call") if message.get(key)}
    content = message.get("content")
    if isinstance(content, str) and content:
        kept["content"] = content
    return {"role": "assistant", **kept} if kept else None
