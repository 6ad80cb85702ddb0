"""Connections to the database: the one that writes, those that read, and what their errors mean.

SQLite before 3.51.3 can corrupt a WAL file when two connections write or checkpoint at once: so
only the recorder writes, and `pysqlite3` brings a newer SQLite than Python's where it is installed.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    import sqlite3
else:
    try:
        import pysqlite3 as sqlite3
    except ImportError:  # no wheel for this platform
        import sqlite3

__all__ = [
    "Connection", "DatabaseError", "chance_of_retry", "configure", "connect", "file_of",
    "files_of", "is_corrupt", "is_ready", "iso", "leave_behind", "private",
    "reading", "recorded_in", "say", "set_aside", "sqlite3", "transaction",
]  # fmt: skip

Connection = sqlite3.Connection
DatabaseError = sqlite3.DatabaseError

_BUSY_MS: Final = 1000
# Bodies of 5 KB and 2 KB take 1.12 times their bytes on these pages, 1.33 times on those of 4 KB.
_PAGE_BYTES: Final = 2048
_CHECKPOINT_PAGES: Final = 16_000
_JOURNAL_LIMIT: Final = 64 << 20
_CACHE_KIB: Final = 8 << 10  # the inner pages of the indexes of some million exchanges
_SAFE_VERSION: Final = (3, 51, 3)

_JOURNALS: Final = ("-wal", "-shm")
_SUFFIXES: Final = ("", *_JOURNALS)

# Primary result codes (sqlite.org/rescode.html); an extended code has them in its low byte.
_CORRUPT: Final = (11, 26)  # CORRUPT, NOTADB
_PASSING: Final = (5, 6, 7, 8, 10, 13, 14)  # BUSY LOCKED NOMEM READONLY IOERR FULL CANTOPEN


def _code(error: BaseException) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def is_corrupt(error: BaseException) -> bool:
    return _code(error) in _CORRUPT


def chance_of_retry(error: BaseException) -> bool:
    """Locked, full, out of memory: the same write may succeed later."""
    return isinstance(error, OSError) or _code(error) in _PASSING


def private(path: Path) -> None:
    """Make `path` a file that its owner alone can read, whatever the umask.

    SQLite gives -wal and -shm the mode of the database.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    os.chmod(path, 0o600)


def connect(database: Path) -> Connection:
    """The one connection that writes. Transactions are begun by `transaction` alone."""
    if sqlite3.sqlite_version_info < _SAFE_VERSION:
        say(
            f"SQLite {sqlite3.sqlite_version} is older than 3.51.3: never let a second program "
            "write to the database while the sidecar runs"
        )
    private(database)
    return sqlite3.connect(
        str(database), timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False
    )


def configure(connection: Connection, new: bool) -> None:
    """`new`: without any table yet. Later, these settings would only be written once more."""
    if new:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
    connection.execute(f"PRAGMA journal_size_limit = {_JOURNAL_LIMIT}")
    connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
    connection.execute("PRAGMA trusted_schema = OFF")
    # What was staged is not redacted yet: deleted, it is overwritten with zeros. FAST would spare
    # the pages that become free.
    connection.execute("PRAGMA secure_delete = ON").fetchall()


@contextmanager
def transaction(connection: Connection) -> Iterator[None]:
    """All of it or nothing, for whatever reason it ends."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def reading(database: Path) -> Iterator[Connection]:
    """A read-only connection in one short transaction: all that is read belongs together."""
    uri = f"file:{quote(str(database))}?mode=ro"
    with closing(
        sqlite3.connect(uri, uri=True, timeout=_BUSY_MS / 1000, isolation_level=None)
    ) as connection:
        connection.row_factory = sqlite3.Row
        connection.execute("BEGIN")
        yield connection


def is_ready(database: Path) -> bool:
    """Is there a database, with its tables? The recorder may just be making it."""
    if not database.exists():
        return False
    try:
        with reading(database) as connection:
            connection.execute("SELECT 1 FROM teacher_pairs LIMIT 0")
    except sqlite3.OperationalError:
        return False
    return True


def set_aside(database: Path, why: str) -> Path:
    """Move an unusable database out of the way, with its journal, and say so."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    aside = database.with_name(f"{database.name}.corrupt-{stamp}")
    for suffix in _SUFFIXES:
        part = database.with_name(database.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    say(f"DATABASE UNUSABLE ({why}): kept as {aside}; starting a new, empty one")
    return aside


def recorded_in(aside: Path) -> int | None:
    """How many exchanges an unusable database says it holds. None: it can't say that any more."""
    try:
        with reading(aside) as connection:
            return int(connection.execute("SELECT total(recorded) FROM runs").fetchone()[0])
    except DatabaseError:
        return None


def say(text: str) -> None:
    """To whoever reads standard error. It may be a file, on the very disk that is full."""
    with suppress(OSError):
        print(f"understudy: {text}", file=sys.stderr, flush=True)


def file_of(path: Path) -> tuple[int, int] | None:
    """Which file goes by that name: its device and number. None: no file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def files_of(database: Path) -> dict[str, tuple[int, int] | None]:
    """Of the database and its journal, by suffix."""
    return {suffix: file_of(database.with_name(database.name + suffix)) for suffix in _SUFFIXES}


def leave_behind(connection: Connection, database: Path, opened: Mapping[str, object]) -> None:
    """Close the connection to a database whose name another file has taken, or none. `opened`: its
    `files_of`, of when it was opened.

    SQLite would play a journal that is left there into a file that it does not belong to.
    """
    with closing(connection), suppress(DatabaseError):  # the file may live on by another name
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for suffix in _JOURNALS:
        journal = database.with_name(database.name + suffix)
        if file_of(journal) not in (None, opened[suffix]):
            continue  # it came with the other file
        journal.unlink(missing_ok=True)


def iso(at: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC, with milliseconds."""
    fraction, second = math.modf(at)
    micro = round(fraction * 1e6)
    if micro == 1_000_000:
        second, micro = second + 1, 0
    return f"{_second(int(second))}.{micro // 1000:03d}Z"


@lru_cache(maxsize=256)
def _second(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()[:-6]
