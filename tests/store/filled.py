"""Helpers: exchanges put straight into a database, as the recorder would have put them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, Final

import orjson

from store import daily, schema, search
from store.database import Connection, iso, transaction
from tests.store.making import chat_answer, chat_request

BEGIN: Final = 1_780_000_000.0  # 2026-05-28T20:26:40Z
_USUAL: Final = {
    "endpoint": "chat.completions", "method": "POST", "path": "/v1/chat/completions",
    "outcome": "ok", "stream": 0, "complete": 1, "truncated": 0, "privacy": "full",
    "run_id": "run", "status": 200, "served_by": "upstream", "model": "gpt-4o",
    "usage": "{}",
}  # fmt: skip


class Filled:
    """A database, and rows in it that differ from the usual only where a test says so."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.database = folder / "understudy.db"
        self.connection: Connection = schema.prepare(self.database)
        self._numbers = itertools.count(1)

    def add(self, *rows: dict[str, Any]) -> None:
        """A transaction. `at`: seconds after `BEGIN`; `retry_after_s`, `request_note` and
        `response_note` go to the tables that have them; `said`, `answered` make bodies."""
        with transaction(self.connection), daily.counting(self.connection):
            for row in rows:
                self._insert(dict(row))

    def index(self) -> None:
        while search.fill(self.connection):
            pass

    def close(self) -> None:
        self.connection.close()

    def _insert(self, row: dict[str, Any]) -> None:
        number = next(self._numbers)
        at = BEGIN + row.pop("at", number)
        wait = row.pop("retry_after_s", None)
        notes = (row.pop("request_note", None), row.pop("response_note", None))
        texts = _texts(row.pop("said", None), row.pop("answered", "hi"))
        whole = {"id": f"{number:032x}", "started_at": iso(at), **_USUAL, **row}
        self._put("exchanges", {"number": number, **whole})
        if wait is not None:
            self._put("rate_limits", {"number": number, "retry_after_s": wait})
        if texts or any(notes):
            names = ("request", "response", "request_note", "response_note")
            values = (*(texts or (None, None)), *notes)
            self._put("bodies", {"number": number, **dict(zip(names, values, strict=True))})

    def _put(self, table: str, row: dict[str, Any]) -> None:
        places = ", ".join("?" * len(row))
        columns = ", ".join(row)
        self.connection.execute(
            f"INSERT INTO {table} ({columns}) VALUES ({places})", list(row.values())
        )


def _texts(said: str | None, answered: str) -> tuple[str, str] | None:
    if said is None:
        return None
    return orjson.dumps(chat_request(said)).decode(), orjson.dumps(chat_answer(answered)).decode()
