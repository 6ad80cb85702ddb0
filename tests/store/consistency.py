"""Does all that a database says of itself hold? For one that nobody writes to."""

from __future__ import annotations

import hashlib
from collections import Counter
from contextlib import closing
from pathlib import Path

import orjson

from store import search
from store.database import Connection, DatabaseError, sqlite3

_SHOWN = 3


def faults(database: Path, key: bytes) -> list[str]:
    """What does not hold, in words; nothing is the aim. `key`: of the installation, for the hashes
    of slices."""
    with closing(sqlite3.connect(str(database), isolation_level=None)) as connection:
        return [
            *_pages(connection),
            *_uses(connection),
            *_slices(connection, key),
            *_search(connection),
        ]


def _pages(connection: Connection) -> list[str]:
    said = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
    dangling = [
        f"a row of {row[0]} without its {row[2]}"
        for row in connection.execute("PRAGMA foreign_key_check")
    ]
    return [*(line for line in said if line != "ok"), *dangling][:_SHOWN]


def _uses(connection: Connection) -> list[str]:
    """`uses`, counted once more: of the bodies that end with a prefix, and the prefixes behind."""
    counted: Counter[int] = Counter()
    for row in connection.execute("SELECT request_parts, response_parts FROM bodies"):
        for parts in row:
            named = orjson.loads(parts) if parts else []
            counted.update(part for part in named if isinstance(part, int))
    stated = {}
    for identity, parent, uses in connection.execute("SELECT id, parent, uses FROM prefixes"):
        stated[identity] = uses
        if parent:
            counted[parent] += 1
    return [
        f"prefix {one}: {stated.get(one)} uses stated, {counted[one]} counted"
        for one in sorted(stated.keys() | counted.keys())
        if stated.get(one, 0) != counted[one] or not counted[one]
    ][:_SHOWN]


def _slices(connection: Connection, key: bytes) -> list[str]:
    found = [
        f"slice {identity}: another hash than its text"
        for identity, hash_, text in connection.execute("SELECT id, hash, text FROM slices")
        if hashlib.sha256(key + text.encode()).digest()[:16] != hash_
    ]
    unused = "SELECT id FROM slices WHERE id NOT IN (SELECT slice FROM prefixes)"
    found += [f"slice {row[0]}: nobody uses it" for row in connection.execute(unused)]
    return found[:_SHOWN]


def _search(connection: Connection) -> list[str]:
    """Rank 1: its words are compared with the texts, too. It may be behind: that is no fault."""
    while search.fill(connection):
        pass
    try:
        connection.execute("INSERT INTO search (search, rank) VALUES ('integrity-check', 1)")
    except DatabaseError as error:
        return [f"search: {error}"]
    return []
