"""What the search index finds, for a person at a terminal. Read-only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from store.database import is_ready, reading, sqlite3
from store.overview import unindexed

MARKS: Final = ("«", "»")
_WORDS: Final = 24  # of a snippet
# The newest first: to rank by relevance, every match has to be read.
_FIND: Final = f"""
    SELECT e.id, e.started_at, coalesce(e.response_model, e.model), e.task_id, e.tenant,
           found.prompt, found.answer
    FROM (SELECT rowid AS number,
                 snippet(search, 0, '{MARKS[0]}', '{MARKS[1]}', '…', {_WORDS}) AS prompt,
                 snippet(search, 1, '{MARKS[0]}', '{MARKS[1]}', '…', {_WORDS}) AS answer
          FROM search WHERE search MATCH ? ORDER BY rowid DESC LIMIT ?) AS found
    JOIN exchanges AS e ON e.number = found.number ORDER BY found.number DESC"""


class BadQuery(ValueError):
    """FTS5 does not take it. The message is for a person."""


@dataclass(frozen=True, slots=True)
class Hit:
    """Snippets have what matched between `MARKS`; None: that side has no text."""

    id: str
    started_at: str
    model: str | None
    task_id: str | None
    tenant: str | None
    prompt: str | None
    answer: str | None


@dataclass(frozen=True, slots=True)
class Hits:
    """The newest first. `unindexed`: see `store.overview.Overview`."""

    found: tuple[Hit, ...]
    unindexed: int | None


def quoted(words: str) -> str:
    """Each word as itself, whatever it means to FTS5; a call must have all of them."""
    return " ".join('"' + word.replace('"', '""') + '"' for word in words.split())


def find(database: Path, query: str, limit: int) -> Hits:
    """`query`: in FTS5's own syntax. Raises `BadQuery`."""
    if not is_ready(database):
        return Hits((), 0)
    with reading(database) as connection:
        try:
            found = connection.execute(_FIND, (query, limit)).fetchall()
        except sqlite3.OperationalError as error:
            if not _is_syntax(str(error)):
                raise
            raise BadQuery(str(error).removeprefix("fts5: ")) from None
        return Hits(tuple(Hit(*row) for row in found), unindexed(connection))


def _is_syntax(said: str) -> bool:
    # SQLite has no code of its own for these (fts5_expr.c, fts5_main.c).
    return said.startswith(("fts5:", "no such column", "unterminated string", "unknown special"))
