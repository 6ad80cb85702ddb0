"""Runs of another machine's spool, brought here: each once, as a run that is over.

A run goes by what it holds: its name here begins with a hash of its segments. A name that is in the
spool or in the table of runs was brought before, and is not again; and whatever is brought, an
exchange that is in the record is not recorded twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from policies.home import Home
from policies.spool import ALIVE_FILE, Kind
from store.database import reading
from store.import_run import PREFIX, RunWriter, is_readable
from store.locks import is_held
from store.spool_reader import Position, read, segment_path, segments

_CHUNK: Final = 1 << 20
_DIGEST_BYTES: Final = 8
_NAME: Final = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME: Final = 60


class Refused(ValueError):
    """Not a spool's folder that can be taken. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Brought:
    """`name`: of the run here; `before`: it had been brought already."""

    folder: Path
    name: str
    before: bool = False
    exchanges: int = 0
    segments: int = 0
    bytes: int = 0


def find(folder: Path, home: Home) -> list[Path]:
    """The folder itself, or those in it that hold segments. Raises Refused."""
    own = home.root.resolve()
    if folder.resolve() == own or own in folder.resolve().parents:
        raise Refused(f"{folder}: belongs to this home; its recorder reads it by itself")
    found = [folder] if segments(folder) else []
    if not found:
        found = sorted(each for each in folder.iterdir() if each.is_dir() and segments(each))
    if not found:
        raise Refused(f"{folder}: no segments in it; give a run's folder, or a spool's")
    for run in found:
        if _is_written(run):
            raise Refused(f"{run}: a proxy of this machine is writing to it; stop that one first")
    return found


def _is_written(run: Path) -> bool:
    try:
        return is_held(run / ALIVE_FILE)
    except FileNotFoundError:
        return False


def bring(run: Path, home: Home) -> Brought:
    """Copy it into the spool, checked. Raises Refused, OSError."""
    prefix = f"{PREFIX}{_digest(run)}-"
    known = _known(home, prefix)
    if known is not None:
        return Brought(run, known, before=True)
    writer = RunWriter(home)
    try:
        size = _copy(run, writer.folder)
        exchanges = _exchanges(writer.folder)
        if not exchanges:
            raise Refused(f"{run}: no exchange in it that can be read")
        number = len(segments(writer.folder))
        name = prefix + _NAME.sub("_", run.resolve().name)[:_LONGEST_NAME]
        writer.hand_over(name, _began(run))
    except BaseException:
        writer.drop()
        raise
    return Brought(run, name, False, exchanges, number, size)


def _digest(run: Path) -> str:
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for number in segments(run):
        digest.update(number.to_bytes(8, "big"))
        for piece in _pieces(segment_path(run, number)):
            digest.update(piece)
    return digest.hexdigest()


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(_CHUNK):
            yield piece


def _known(home: Home, prefix: str) -> str | None:
    if home.spool.is_dir():
        for name in os.listdir(home.spool):
            if name.startswith(prefix):
                return name
    if not is_readable(home.database):
        return None
    sql = "SELECT id FROM runs WHERE id >= ? AND id < ? LIMIT 1"
    with reading(home.database) as connection:
        row = connection.execute(sql, (prefix, prefix + "\x7f")).fetchone()
    return None if row is None else str(row[0])


def _copy(run: Path, to: Path) -> int:
    size = 0
    for number in segments(run):
        path = segment_path(to, number)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for piece in _pieces(segment_path(run, number)):
                size += file.write(piece)
            file.flush()
            os.fdatasync(file.fileno())
    return size


def _exchanges(folder: Path) -> int:
    """How many begin in what can be read of it."""
    found = 0
    at, more = Position(), True
    while more:
        piece = read(folder, at)
        found += sum(event.kind is Kind.OPENED for event in piece.events)
        at, more = piece.position, piece.more
    return found


def _began(run: Path) -> float:
    """As its proxy's lock file says, else its first segment."""
    named = run / ALIVE_FILE
    path = named if named.exists() else segment_path(run, segments(run)[0])
    return path.stat().st_mtime


def torn(database: Path, names: list[str]) -> int:
    """Bytes of these runs that the recorder had to leave out."""
    if not names or not is_readable(database):
        return 0
    sql = f"SELECT sum(torn_bytes) FROM runs WHERE id IN ({', '.join('?' * len(names))})"
    with reading(database) as connection:
        (found,) = connection.execute(sql, names).fetchone()
    return int(found or 0)
