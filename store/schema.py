"""The tables, and how a database becomes one of ours. Plain SQL, for a person to read.

Unknown values are NULL, never 0. Times that a person looks at are ISO 8601 in UTC; those that
shadow hands over stay seconds since the epoch, so that they come back exactly as they were.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from store import daily
from store.database import (
    Connection,
    DatabaseError,
    configure,
    connect,
    is_corrupt,
    set_aside,
)  # fmt: skip
from store.views import VIEWS

VERSION: Final = 2
APPLICATION_ID: Final = 0x55445359  # "UDSY"
_MAGIC: Final = b"SQLite format 3\0"
_USER_VERSION_AT: Final = 60  # in the file's header (sqlite.org/fileformat.html)
_HEADER_BYTES: Final = 100
# A whole check reads every page: a second up to here, minutes beyond.
_MOST_CHECKED: Final = 512 << 20

migrations = Migrations("understudy")

_TABLES: Final = (
    """
    CREATE TABLE exchanges (
        number              INTEGER PRIMARY KEY,
        id                  TEXT NOT NULL UNIQUE,  -- UUIDv7
        started_at          TEXT NOT NULL,     -- ISO 8601, UTC, milliseconds
        endpoint            TEXT NOT NULL,
        method              TEXT NOT NULL,
        host                TEXT,              -- the upstream's; NULL for a blind tunnel
        path                TEXT NOT NULL,     -- query values that could be private are hashed
        deployment          TEXT,              -- Azure's name for a model
        model               TEXT,              -- as asked for
        response_model      TEXT,              -- as answered
        status              INTEGER,           -- NULL: no answer began
        outcome             TEXT NOT NULL,
        stream              INTEGER NOT NULL,  -- 1: the response was put together from its events
        complete            INTEGER NOT NULL,  -- 1: the whole answer, known to be whole
        truncated           INTEGER NOT NULL,  -- 1: the record, not the answer, was cut
        privacy             TEXT NOT NULL,     -- full, redacted, metadata, forgotten
        served_by           TEXT,              -- 'upstream' or a candidate; NULL: nobody
        route               TEXT,              -- JSON: last decision to divert or not, and why
        task_id             TEXT,
        request_hash        TEXT,              -- equal for requests that ask the same
        conversation        TEXT,              -- equal for the turns of a chat
        tenant              TEXT,
        feature             TEXT,
        user                TEXT,
        session             TEXT,
        latency_ms          REAL,
        ttft_ms             REAL,
        input_tokens        INTEGER,           -- cached_tokens and cache_write_tokens are of these
        cached_tokens       INTEGER,
        cache_write_tokens  INTEGER,
        output_tokens       INTEGER,           -- reasoning_tokens are of these
        reasoning_tokens    INTEGER,
        audio_input_tokens  INTEGER,
        audio_output_tokens INTEGER,
        usage               TEXT,              -- JSON, as it came
        usage_note          TEXT,              -- why the tokens are NULL
        estimated_input_tokens  INTEGER,       -- where the answer states no usage
        estimated_output_tokens INTEGER,
        estimate_method     TEXT,
        service_tier        TEXT,              -- of the answer
        cost_usd            REAL,
        cost_note           TEXT,              -- why it is NULL
        finish_reason       TEXT,              -- of the first choice
        request_bytes       INTEGER,
        response_bytes      INTEGER,
        key_hash            TEXT,              -- keyed hash over the credentials
        retry_count         INTEGER,           -- x-stainless-retry-count
        idempotency_key     TEXT,
        response_id         TEXT,              -- `id` in the answer
        previous_response_id TEXT,
        upstream_request_id TEXT,              -- x-request-id
        run_id              TEXT NOT NULL,
        seq                 INTEGER,
        error               TEXT
    )""",
    # A side is its text, or `parts`: a JSON list of texts and numbers of prefixes, to be joined.
    """
    CREATE TABLE bodies (
        number         INTEGER PRIMARY KEY REFERENCES exchanges (number),
        request        TEXT,  -- as sent, freed of Content-Encoding, redacted
        request_parts  TEXT,
        response       TEXT,  -- the same; of a stream the JSON that it amounts to
        response_parts TEXT,
        events         TEXT,  -- of a stream as it came, if the policy keeps it
        request_note   TEXT,  -- why it is NULL, or not whole
        response_note  TEXT
    )""",
    """
    CREATE TABLE slices (  -- pieces of bodies, each once
        id   INTEGER PRIMARY KEY,
        hash BLOB NOT NULL UNIQUE,  -- with the install's key
        text TEXT NOT NULL
    )""",
    """
    CREATE TABLE prefixes (  -- a slice behind another prefix; parent 0: the first
        id     INTEGER PRIMARY KEY,
        parent INTEGER NOT NULL,
        slice  INTEGER NOT NULL REFERENCES slices (id),
        uses   INTEGER NOT NULL DEFAULT 0,  -- bodies that end with it, prefixes behind it
        UNIQUE (slice, parent)
    )""",
    """
    CREATE TABLE files (  -- large parts of bodies, below <home>/files
        hash       TEXT PRIMARY KEY,  -- with the install's key; understudy:file/<hash> in a text
        bytes      INTEGER NOT NULL,
        media_type TEXT NOT NULL,
        uses       INTEGER NOT NULL   -- rows of file_uses
    ) WITHOUT ROWID""",
    """
    CREATE TABLE file_uses (  -- not every text that names a file has it: somebody may quote a name
        number INTEGER NOT NULL REFERENCES exchanges (number),
        hash   TEXT NOT NULL REFERENCES files (hash),
        PRIMARY KEY (number, hash)
    ) WITHOUT ROWID""",
    """
    CREATE TABLE rate_limits (  -- as an answer stated them
        number             INTEGER PRIMARY KEY REFERENCES exchanges (number),
        limit_requests     INTEGER,
        remaining_requests INTEGER,
        reset_requests_s   REAL,
        limit_tokens       INTEGER,
        remaining_tokens   INTEGER,
        reset_tokens_s     REAL,
        retry_after_s      REAL
    )""",
    """
    CREATE TABLE feedback (
        number      INTEGER PRIMARY KEY,
        at          TEXT NOT NULL,
        exchange_id TEXT NOT NULL,
        score       REAL,
        label       TEXT,
        correction  TEXT,  -- what the answer should have been
        source      TEXT
    )""",
    """
    CREATE TABLE progress (  -- how far what works behind the recorder has come
        name   TEXT PRIMARY KEY,
        number INTEGER NOT NULL
    ) WITHOUT ROWID""",
    """
    CREATE TABLE tasks (
        id            TEXT PRIMARY KEY,
        endpoint      TEXT NOT NULL,
        model         TEXT,
        system_prompt TEXT,
        first_seen    TEXT NOT NULL
    )""",
    """
    CREATE TABLE observations (
        candidate         TEXT NOT NULL,
        exchange_id       TEXT NOT NULL,
        model_sha256      TEXT NOT NULL,
        at                REAL NOT NULL,  -- seconds since the epoch
        answer            TEXT,
        finish_reason     TEXT,
        prompt_tokens     INTEGER,
        completion_tokens INTEGER,
        latency_ms        REAL NOT NULL,
        margin            REAL,
        error             TEXT,
        PRIMARY KEY (candidate, exchange_id)
    )""",
    """
    CREATE TABLE comparisons (
        candidate    TEXT NOT NULL,
        exchange_id  TEXT NOT NULL,
        task_id      TEXT NOT NULL,
        request_hash TEXT NOT NULL,
        at           REAL NOT NULL,  -- seconds since the epoch
        verdict      TEXT NOT NULL,  -- matched, mismatched, ignored
        score        REAL,           -- NULL when ignored
        why          TEXT NOT NULL,
        PRIMARY KEY (candidate, exchange_id)
    )""",
    """
    CREATE TABLE rollouts (
        task_id   TEXT NOT NULL,
        candidate TEXT NOT NULL,
        phase     TEXT NOT NULL,
        percent   REAL NOT NULL,
        state     TEXT NOT NULL,  -- JSON
        at        REAL NOT NULL,  -- seconds since the epoch
        why       TEXT NOT NULL,  -- of the last line in the log
        PRIMARY KEY (task_id, candidate)
    )""",
    """
    CREATE TABLE rollout_log (
        number    INTEGER PRIMARY KEY,
        task_id   TEXT NOT NULL,
        candidate TEXT NOT NULL,
        at        REAL NOT NULL,
        phase     TEXT NOT NULL,
        percent   REAL NOT NULL,
        why       TEXT NOT NULL
    )""",
    """
    CREATE TABLE runs (
        id          TEXT PRIMARY KEY,
        started_at  TEXT NOT NULL,
        ended_clean INTEGER,                      -- NULL: it runs; 0: exchanges or bytes were cut
        highest_seq INTEGER NOT NULL DEFAULT 0,   -- requests that the proxy counted
        recorded    INTEGER NOT NULL DEFAULT 0,   -- of these, rows in exchanges
        torn_bytes  INTEGER NOT NULL DEFAULT 0
    )""",
    """
    CREATE TABLE incidents (
        at     TEXT NOT NULL,
        kind   TEXT NOT NULL,
        detail TEXT NOT NULL
    )""",
    """
    CREATE TABLE spool_position (
        run       TEXT PRIMARY KEY,
        segment   INTEGER NOT NULL,
        "offset"  INTEGER NOT NULL
    )""",
    """
    CREATE TABLE staged (  -- events of exchanges that are still open
        number   INTEGER PRIMARY KEY,
        run      TEXT NOT NULL,
        exchange BLOB NOT NULL,
        kind     INTEGER NOT NULL,
        at       REAL NOT NULL,
        payload  BLOB NOT NULL
    )""",
)

_INDEXES: Final = (
    "CREATE INDEX exchanges_by_time ON exchanges (started_at)",
    "CREATE INDEX exchanges_by_task ON exchanges (task_id, started_at)",
    "CREATE INDEX exchanges_by_conversation ON exchanges (conversation) "
    "WHERE conversation IS NOT NULL",
    "CREATE INDEX exchanges_by_tenant ON exchanges (tenant, started_at) WHERE tenant IS NOT NULL",
    "CREATE INDEX exchanges_by_response ON exchanges (response_id) WHERE response_id IS NOT NULL",
    "CREATE INDEX exchanges_by_request ON exchanges (upstream_request_id) "
    "WHERE upstream_request_id IS NOT NULL",
    "CREATE INDEX exchanges_in_error ON exchanges (started_at) "  # as the view `errors` says it
    "WHERE outcome != 'ok' OR status >= 400 OR error IS NOT NULL",
    "CREATE INDEX exchanges_limited ON exchanges (started_at) WHERE status = 429",
    "CREATE INDEX feedback_by_exchange ON feedback (exchange_id)",
    "CREATE INDEX comparisons_by_task ON comparisons (task_id, candidate, at, verdict, score)",
    "CREATE INDEX observations_by_exchange ON observations (exchange_id)",
    "CREATE INDEX rollout_log_by_task ON rollout_log (task_id, candidate, at)",
    "CREATE INDEX staged_by_exchange ON staged (exchange)",
)

_SEARCH: Final = (
    """
    CREATE VIEW search_texts AS  -- what is searched: the end of the request, and the answer
    SELECT t.number AS number,
           CASE WHEN json_valid(t.request) THEN coalesce(
               json_extract(t.request, '$.messages[#-1].content'),
               json_extract(t.request, '$.input[#-1].content'),
               json_extract(t.request, '$.input'),
               json_extract(t.request, '$.prompt')) END AS prompt,
           CASE WHEN json_valid(t.response) THEN coalesce(
               json_extract(t.response, '$.choices[0].message.content'),
               json_extract(t.response, '$.choices[0].text'),
               json_extract(t.response, '$.output[#-1].content[0].text'),
               json_extract(t.response, '$.text')) END AS answer
    FROM texts AS t""",
    """
    CREATE VIRTUAL TABLE search USING fts5 (
        prompt, answer, content = 'search_texts', content_rowid = 'number')""",
)


@migrations()
def m001_first(database: Database) -> None:
    for statement in (*_TABLES, *daily.TABLES, *_INDEXES, *VIEWS, *_SEARCH):
        database.execute(statement)


class NewerSchema(RuntimeError):
    """The database was written by a later version; nothing in it was touched."""

    def __init__(self, database: Path, found: str) -> None:
        super().__init__(
            f"{database}: its schema ({found}) is newer than this version of understudy knows "
            f"({VERSION}): install the version that wrote it, or move the file away"
        )


class _NotOurs(Exception):
    pass


def prepare(database: Path, told: Callable[[Path], object] = lambda aside: None) -> Connection:
    """Open for writing, migrated and sound. What can't be used is set aside, and `told` hears as
    which file; newer is refused."""
    _refuse_newer_file(database)
    try:
        return _open(database)
    except _NotOurs as error:
        why = str(error)
    except DatabaseError as error:
        if not is_corrupt(error):
            raise
        why = str(error)
    told(set_aside(database, why))
    return _open(database)


def _refuse_newer_file(database: Path) -> None:
    """By the bytes of its header: to open it would already create files next to it."""
    try:
        with database.open("rb") as file:
            header = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return
    if len(header) < _HEADER_BYTES or not header.startswith(_MAGIC):
        return
    version, _, application = struct.unpack_from(">iii", header, _USER_VERSION_AT)
    if application == APPLICATION_ID and version > VERSION:
        raise NewerSchema(database, str(version))


def _open(database: Path) -> Connection:
    connection = connect(database)
    try:
        new = not _tables(connection)
        if not new:
            _check_origin(connection, database)
            _check_pages(connection, database)
        configure(connection, new)
        _migrate(connection)
        _check_tables(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _tables(connection: Connection) -> set[str]:
    """Names of tables, views and indexes."""
    return {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}


def _check_origin(connection: Connection, database: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION_ID:
        raise _NotOurs("it is a database of something else")
    if version > VERSION:
        raise NewerSchema(database, str(version))
    if version < VERSION:
        raise _NotOurs(f"schema version {version} was never released")
    known = {migration.name for migration in migrations.pending(Database(memory=True))}
    applied = {migration.name for migration in migrations.applied(_utils(connection))}
    if unknown := applied - known:
        raise NewerSchema(database, ", ".join(sorted(unknown)))


def _check_pages(connection: Connection, database: Path) -> None:
    if database.stat().st_size > _MOST_CHECKED:
        return
    (said,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise _NotOurs(str(said).replace("\n", " ")[:200])


def _migrate(connection: Connection) -> None:
    database = _utils(connection)
    if not migrations.pending(database):
        return
    with database.atomic():  # who is killed at it leaves no half of it
        migrations.apply(database)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {VERSION}")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")  # so that the header says it, too


def _check_tables(connection: Connection) -> None:
    if not _tables(connection) >= {
        "exchanges",
        "bodies",
        "file_uses",
        "staged",
        "spool_position",
        "teacher_pairs",
    }:
        raise _NotOurs("its tables are missing")


def _utils(connection: Connection) -> Database:
    return Database(connection, recursive_triggers=False, execute_plugins=False)
