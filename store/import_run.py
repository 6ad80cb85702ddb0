"""Imported exchanges on their way into the database: as a run of the spool that is over.

The folder is made beside the spool and moved into it when it is whole: the recorder reads all of
it or nothing. What a crash leaves behind is removed by the next import.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final

import orjson

from policies.fingerprint import request_hash, task_id
from policies.home import Home
from policies.identity import (
    SESSION_HEADER,
    TASK_HEADER,
    TENANT_HEADER,
    Sources,
    tenant_of,
)
from policies.privacy import Mode, Privacy, mode_for
from policies.spool import ALIVE_FILE, BATCH, Kind, pack
from store.database import DatabaseError, is_ready, reading
from store.imports import PATH, Format, Imported, NoExchange, Unusable, exchange_id
from store.spool_reader import is_over, segment_path
from store.values import Json

PREFIX: Final = "import-"
_STAGING: Final = "importing"
_SEGMENT_BYTES: Final = 8 << 20
_BODY_BYTES: Final = 8 << 20  # of one record; a longer body has several
# A run's lock is a second old before it says that the run is over: it has been so for long.
_AGED_SECONDS: Final = 60.0
_NO_BATCH: Final = b"\xff" * BATCH.size  # is longer than any
_ENDED: Final[Json] = {"outcome": "ok", "error": None, "cut": {}}
_JSON: Final = [["content-type", "application/json"]]


class RunWriter:
    """A run's folder in the making. `size`: bytes written."""

    def __init__(self, home: Home) -> None:
        self._spool = home.spool
        self.folder = _staged(home)
        self._alive = os.open(self.folder / ALIVE_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._segment: IO[bytes] | None = None
        self._number = 0
        self.size = 0

    def write(self, records: bytes) -> None:
        self._room().write(records)
        self.size += len(records)

    def tear(self, size: int) -> None:
        """A torn tail of so many bytes, which hold nothing: the recorder counts it as one. At the
        end only."""
        segment = self._room()
        segment.write(_NO_BATCH[:size])
        segment.truncate(segment.tell() + max(0, size - len(_NO_BATCH)))
        self.size += size

    def _room(self) -> IO[bytes]:
        """The segment to write to."""
        if self._segment is None or self._segment.tell() >= _SEGMENT_BYTES:
            self._end_segment()
            self._number += 1
            path = segment_path(self.folder, self._number)
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            self._segment = os.fdopen(descriptor, "wb")
        return self._segment

    def _end_segment(self) -> None:
        if self._segment is not None:
            self._segment.flush()
            os.fdatasync(self._segment.fileno())  # who imported may delete the file
            self._segment.close()
            self._segment = None

    def hand_over(self, name: str, at: float | None = None) -> Path:
        """To the recorder, under this name. `at`: when the run began, else some time ago."""
        self._end_segment()
        began = time.time() - _AGED_SECONDS if at is None else at
        os.utime(self.folder / ALIVE_FILE, (began, began))
        self._spool.mkdir(mode=0o700, exist_ok=True)
        place = self._spool / name
        self.folder.rename(place)
        os.close(self._alive)
        return place

    def drop(self) -> None:
        if self._segment is not None:
            self._segment.close()
        os.close(self._alive)
        shutil.rmtree(self.folder, ignore_errors=True)


def _staged(home: Home) -> Path:
    """A folder on the spool's disk that is none of its runs."""
    staging = home.root / _STAGING
    staging.mkdir(mode=0o700, parents=True, exist_ok=True)
    _sweep(staging)
    return Path(tempfile.mkdtemp(prefix="", dir=staging))


def _sweep(staging: Path) -> None:
    """Away with what imports left that were killed."""
    for left in staging.iterdir():
        if is_over(left):
            shutil.rmtree(left, ignore_errors=True)


def end_staging(home: Home) -> None:
    staging = home.root / _STAGING
    with suppress(OSError):  # another import is at it
        _sweep(staging)  # at the beginning, one killed just before was too fresh to be told
        staging.rmdir()


@dataclass(slots=True)
class Tally:
    """Of records. `taken`: given to the recorder. `kept_out`: by the policy's privacy. `timeless`:
    of the taken, those with their file's time. `unpriced`: those whose API nobody named."""

    read: int = 0
    taken: int = 0
    kept_out: int = 0
    timeless: int = 0
    unpriced: int = 0
    unusable: int = 0
    others: Counter[str] = field(default_factory=Counter)  # why passed over


class Importer:
    """Makes exchanges of records. `key`: the install's. `host`: of the API where no file says."""

    def __init__(
        self, format_: Format, key: bytes, privacy: Privacy, sources: Sources, host: str | None
    ) -> None:
        self._format = format_
        self._key = key
        self._privacy = privacy
        self._sources = sources
        self._host = host
        self.tally = Tally()

    def take(self, record: Json, file_time: float, write: Callable[[bytes], None]) -> list[str]:
        """Write what is usable of it; for the rest, why it is not."""
        problems = []
        for each in self._format.split(record):
            self.tally.read += 1
            try:
                self._one(self._format.read(each), file_time, write)
            except NoExchange as error:
                self.tally.others[str(error)] += 1
            except Unusable as error:
                problems.append(str(error))
            except (TypeError, ValueError, RecursionError) as error:  # nested too deep, say
                problems.append(f"{type(error).__name__}: {error}"[:200])
        self.tally.unusable += len(problems)
        return problems

    def _one(self, found: Imported, file_time: float, write: Callable[[bytes], None]) -> None:
        request, response = orjson.dumps(found.request), orjson.dumps(found.response)
        identity = exchange_id(self._key, self._format.name, found, request, response)
        headers = _headers(found)
        tenant = tenant_of(dict(headers), None, self._sources)
        mode = mode_for(self._privacy, tenant, PATH)
        if mode == "off":
            self.tally.kept_out += 1
            return
        host = found.host or self._host or self._format.host
        opened: Json = {
            "at": file_time if found.at is None else found.at,
            "method": "POST",
            "target": PATH,
            "headers": [*headers, *_JSON],
            "key": None,
            "mode": mode,
            "imported": True,
        }
        opened |= {} if host is None else {"host": host}
        write(_events(identity, opened, found, request, response))
        self.tally.taken += 1
        self.tally.timeless += found.at is None
        self.tally.unpriced += host is None


def _headers(found: Imported) -> list[tuple[str, str]]:
    """As an app would have said it."""
    said = (
        (TENANT_HEADER, found.tenant),
        (TASK_HEADER, found.feature),
        (SESSION_HEADER, found.session),
    )
    return [(name, value) for name, value in said if value is not None]


def _events(
    identity: bytes, opened: Json, found: Imported, request: bytes, response: bytes
) -> bytes:
    mode: Mode = opened["mode"]
    named = [] if found.request_id is None else [["x-request-id", found.request_id]]
    head = {"status": found.status, "headers": [*_JSON, *named]}
    ending: Json = dict(_ENDED)
    if mode == "metadata":  # no body may lie in the spool: what it would have said goes along
        ending |= _hashes(found.request)
        request = response = b""
    return b"".join(
        (
            _record(Kind.OPENED, identity, opened),
            *_body(Kind.REQUEST_BODY, identity, request),
            _record(Kind.RESPONSE_HEAD, identity, head),
            *_body(Kind.RESPONSE_BODY, identity, response),
            _record(Kind.CLOSED, identity, ending),
        )
    )


def _record(kind: Kind, identity: bytes, payload: Any) -> bytes:
    return pack(kind, identity, 0.0, orjson.dumps(payload))


def _body(kind: Kind, identity: bytes, body: bytes) -> list[bytes]:
    starts = range(0, len(body), _BODY_BYTES)
    return [pack(kind, identity, 0.0, body[at : at + _BODY_BYTES]) for at in starts]


def _hashes(request: Json) -> Json:
    return {
        "task_id": task_id("chat.completions", request),
        "request_hash": request_hash(request),
    }


# -- what came of it


def is_readable(database: Path) -> bool:
    """One that is damaged is not: the recorder sets it aside and begins anew."""
    try:
        return is_ready(database)
    except DatabaseError:
        return False


def newest(database: Path) -> int:
    """The number of the newest exchange; 0 while there is none."""
    if not is_readable(database):
        return 0
    with reading(database) as connection:
        (found,) = connection.execute("SELECT max(number) FROM exchanges").fetchone()
    return int(found or 0)


def recorded(database: Path, after: int, prefix: str) -> int:
    """How many exchanges behind that number came from runs whose names begin so."""
    if not is_readable(database):
        return 0
    sql = "SELECT count(*) FROM exchanges WHERE number > ? AND substr(run_id, 1, ?) = ?"
    with reading(database) as connection:
        (found,) = connection.execute(sql, (after, len(prefix), prefix)).fetchone()
    return int(found)
