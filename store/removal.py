"""Bodies and rows out of the record: slices that nobody else uses, index entries and files go with
them.

Where bodies alone go, what was counted stays: the row of the exchange, its tokens and its costs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from store import media, search
from store.database import Connection, transaction
from store.slices import Slices

_PARTS: Final = "SELECT request_parts, response_parts FROM bodies WHERE number = ?"
_RELEASE_FILES: Final = "DELETE FROM file_uses WHERE number = ? RETURNING hash"
_RELEASE_FILE: Final = "UPDATE files SET uses = uses - 1 WHERE hash = ?"
_FORGET_FILE: Final = "DELETE FROM files WHERE hash = ? AND uses <= 0"
# Each distinct one by a search in the index: there are a handful, over millions of rows.
_CANDIDATES: Final = """
    WITH RECURSIVE each (name) AS (
        SELECT min(candidate) FROM {table}
        UNION ALL
        SELECT (SELECT min(candidate) FROM {table} WHERE candidate > name)
        FROM each WHERE name IS NOT NULL)
    SELECT name FROM each WHERE name IS NOT NULL"""
_MERGED_PAGES: Final = 500  # of the search index, in one step: some 10 ms


def remove_bodies(connection: Connection, slices: Slices, numbers: Iterable[int]) -> list[str]:
    """In the open transaction. Hashes of the files that nobody uses any more: `remove_files`
    deletes them, once that is committed."""
    gone, numbers = list[str](), list(numbers)
    slices.settle()
    search.take_back(connection, numbers)
    for number in numbers:
        gone += _release_files(connection, number)
        for parts in connection.execute(_PARTS, (number,)).fetchone() or ():
            slices.release(parts)
        connection.execute("DELETE FROM bodies WHERE number = ?", (number,))
    return gone


def remove_rows(connection: Connection, slices: Slices, numbers: Sequence[int]) -> list[str]:
    """In the open transaction: whole exchanges, with all that hangs on them. As `remove_bodies`."""
    gone = remove_bodies(connection, slices, numbers)
    ids = [(identity,) for identity in ids_of(connection, numbers)]
    connection.executemany("DELETE FROM feedback WHERE exchange_id = ?", ids)
    for table in ("observations", "comparisons"):
        for candidate in candidates(connection, table):
            connection.executemany(
                f"DELETE FROM {table} WHERE candidate = ? AND exchange_id = ?",
                [(candidate, identity) for (identity,) in ids],
            )
    for table in ("rate_limits", "exchanges"):
        connection.executemany(f"DELETE FROM {table} WHERE number = ?", [(n,) for n in numbers])
    return gone


def ids_of(connection: Connection, numbers: Iterable[int]) -> list[str]:
    find = "SELECT id FROM exchanges WHERE number = ?"
    return [connection.execute(find, (number,)).fetchone()[0] for number in numbers]


def candidates(connection: Connection, table: str) -> list[str]:
    """Names in observations or comparisons, whose keys begin with them."""
    return [row[0] for row in connection.execute(_CANDIDATES.format(table=table))]


def _release_files(connection: Connection, number: int) -> list[str]:
    gone = []
    for (name,) in connection.execute(_RELEASE_FILES, (number,)).fetchall():
        connection.execute(_RELEASE_FILE, (name,))
        if connection.execute(_FORGET_FILE, (name,)).rowcount:
            gone.append(name)
    return gone


def remove_files(folder: Path, names: Iterable[str]) -> None:
    for name in names:
        media.remove(folder, name)


def remove_strays(connection: Connection, folder: Path) -> int:
    """Files that no row names: a crash came between a commit and the disk. How many there were."""
    strays = 0
    for path in folder.glob("??/*"):
        known = "SELECT 1 FROM files WHERE hash = ?"
        if connection.execute(known, (path.parent.name + path.name,)).fetchone() is None:
            path.unlink(missing_ok=True)
            strays += 1
    return strays


# -- nothing left on the disk either


def merge_index(connection: Connection) -> bool:
    """A step of the search index towards one piece without what was taken back; is there more?

    Not FTS5's own `secure-delete`: what that has touched can't be read by SQLite before 3.42.
    """
    before = connection.total_changes
    with transaction(connection):
        connection.execute(
            "INSERT INTO search (search, rank) VALUES ('merge', ?)", (-_MERGED_PAGES,)
        )
    return connection.total_changes - before > 1  # a step that finds nothing counts as one


def needed_bytes(connection: Connection) -> int:
    """Of free disk, to write the database anew: once aside, once in the journal."""
    (used,) = connection.execute(
        "SELECT (page_count - freelist_count) * page_size "
        "FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
    ).fetchone()
    return 2 * int(used)


def write_anew(connection: Connection, folder: Path) -> None:
    """The whole database: pages that were split keep remnants of rows that moved, which no delete
    overwrites. Raises OSError when `folder`, where the database is, has not the room for it."""
    needed, free = needed_bytes(connection), shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder}: the database is to be written anew, which takes {needed >> 20} MiB "
            f"of disk, and {free >> 20} are free"
        )
    os.environ["SQLITE_TMPDIR"] = str(folder)  # /var/tmp may be small, and is others' too
    connection.execute("VACUUM")


def empty_journal(connection: Connection) -> bool:
    """Everything into the database, the journal cut to nothing. False: somebody reads from it."""
    (busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def try_empty_journal(connection: Connection) -> bool:
    """As `empty_journal`, but nobody is waited for."""
    (patience,) = connection.execute("PRAGMA busy_timeout").fetchone()
    connection.execute("PRAGMA busy_timeout = 0").fetchall()
    try:
        return empty_journal(connection)
    finally:
        connection.execute(f"PRAGMA busy_timeout = {patience}").fetchall()


def free_pages(connection: Connection) -> int:
    return int(connection.execute("PRAGMA freelist_count").fetchone()[0])


def shrink(connection: Connection, pages: int) -> None:
    """Give free pages back to the file system."""
    connection.execute(f"PRAGMA incremental_vacuum({pages})").fetchall()
