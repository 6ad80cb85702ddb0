"""The full-text index over prompts and answers, filled behind the recorder.

It holds no text of its own (FTS5, external content): what is deleted must be handed to it once
more, as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from store.database import (
    Connection,
    DatabaseError,
    chance_of_retry,
    is_corrupt,
    transaction,
)

Note = Callable[[str, str], None]

_AT_ONCE: Final = 200
_PROGRESS: Final = "search"
_LEFT_OUT: Final = "unsearched:"  # in `progress`, with the number behind it
_ALL_LEFT_OUT: Final = f"""
    SELECT number FROM progress WHERE name >= '{_LEFT_OUT}' AND name < 'unsearched;'"""
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


def fill(connection: Connection, note: Note | None = None, most: int = _AT_ONCE) -> bool:
    """Index the next exchanges, in a transaction of its own. Are there more? `note` hears, as an
    incident's kind and detail, of each that can't be indexed: it is left out."""
    before = done(connection)
    numbers = [row[0] for row in connection.execute(_NEXT, (before, most))]
    if not numbers:
        return False
    try:
        _add(connection, before, numbers[-1])
    except DatabaseError as error:
        if chance_of_retry(error) or is_corrupt(error):
            raise
        for number in numbers:
            _add_one(connection, number, note)
    return len(numbers) == most


def _add(connection: Connection, before: int, upto: int) -> None:
    with transaction(connection):
        connection.execute(_ADD, (before, upto))
        connection.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", (_PROGRESS, upto))


def _add_one(connection: Connection, number: int, note: Note | None) -> None:
    try:
        _add(connection, number - 1, number)
    except DatabaseError as error:
        if chance_of_retry(error) or is_corrupt(error):
            raise
        with transaction(connection):
            connection.executemany(
                "INSERT OR REPLACE INTO progress VALUES (?, ?)",
                [(f"{_LEFT_OUT}{number}", number), (_PROGRESS, number)],
            )
        if note is not None:
            note("not_searchable", f"number {number}: {error}")


def take_back(connection: Connection, numbers: Iterable[int]) -> None:
    """Before their bodies are deleted, in the same transaction."""
    upto = done(connection)
    left_out = {row[0] for row in connection.execute(_ALL_LEFT_OUT)}
    indexed = [(number,) for number in numbers if number <= upto and number not in left_out]
    connection.executemany(_TAKE_BACK, indexed)
