"""The full-text index over prompts and answers, filled behind the recorder.

It holds no text of its own (FTS5, external content): what is deleted must be handed to it once
more, as it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from store.database import Connection, transaction

_AT_ONCE: Final = 200
_PROGRESS: Final = "search"
_DONE: Final = "SELECT number FROM progress WHERE name = ?"
_NEXT: Final = "SELECT number FROM bodies WHERE number > ? ORDER BY number LIMIT ?"
_ADD: Final = """
    INSERT INTO search (rowid, prompt, answer)
    SELECT number, prompt, answer FROM search_texts WHERE number > ? AND number <= ?"""
_TAKE_BACK: Final = """
    INSERT INTO search (search, rowid, prompt, answer)
    SELECT 'delete', number, prompt, answer FROM search_texts WHERE number = ?"""


def done(connection: Connection) -> int:
    """Exchanges up to this number are in the index."""
    row = connection.execute(_DONE, (_PROGRESS,)).fetchone()
    return 0 if row is None else int(row[0])


def fill(connection: Connection, most: int = _AT_ONCE) -> bool:
    """Index the next exchanges, in a transaction of its own. Are there more?"""
    before = done(connection)
    numbers = [row[0] for row in connection.execute(_NEXT, (before, most))]
    if not numbers:
        return False
    with transaction(connection):
        connection.execute(_ADD, (before, numbers[-1]))
        connection.execute(
            "INSERT OR REPLACE INTO progress VALUES (?, ?)", (_PROGRESS, numbers[-1])
        )
    return len(numbers) == most


def take_back(connection: Connection, numbers: Iterable[int]) -> None:
    """Before their bodies are deleted, in the same transaction."""
    upto = done(connection)
    indexed = [(number,) for number in numbers if number <= upto]
    connection.executemany(_TAKE_BACK, indexed)
