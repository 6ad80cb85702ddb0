"""How much of the spool is yet to be read, and since when it waits. Only looks; changes nothing."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from policies.spool import BATCH, RECORD, WIPED
from store.database import is_ready, reading
from store.spool_reader import MOST_BATCH, Position, is_over, runs, segment_path, segments

_NOBODY: Final = Position()


@dataclass(frozen=True, slots=True)
class RunState:
    """`over`: no proxy writes to it. `unread`: bytes of whole batches behind the recorder.
    `waits`: seconds that the first of them has waited, None where nothing does. `open`: exchanges
    of it that have not ended, as far as it was read."""

    name: str
    over: bool
    segments: int
    bytes: int
    unread: int
    waits: float | None
    open: int


def states(spool: Path, database: Path) -> list[RunState]:
    positions, opened = _read_so_far(database)
    found = []
    for run in runs(spool):
        with suppress(FileNotFoundError):  # it has just been read to its end
            found.append(_state(run, positions.get(run.name, _NOBODY), opened.get(run.name, 0)))
    return found


def _read_so_far(database: Path) -> tuple[dict[str, Position], dict[str, int]]:
    if not is_ready(database):
        return {}, {}
    with reading(database) as connection:
        positions = {
            run: Position(segment, offset)
            for run, segment, offset in connection.execute("SELECT * FROM spool_position")
        }
        counted = "SELECT run, count(DISTINCT exchange) FROM staged GROUP BY run"
        return positions, dict(connection.execute(counted).fetchall())


def _state(run: Path, position: Position, opened: int) -> RunState:
    over = is_over(run)
    numbers = segments(run)
    total = unread = 0
    waits: float | None = None
    for number in numbers:
        path = segment_path(run, number)
        with suppress(FileNotFoundError), path.open("rb") as file:
            status = os.fstat(file.fileno())
            total += status.st_size
            if number < position.segment:
                continue
            offset = position.offset if number == position.segment else 0
            found, first = _waiting(file, offset, status.st_size)
            unread += found
            if waits is None and first is not None:
                # The clock of the events is this machine's since it started.
                waits = time.time() - status.st_mtime if over else time.monotonic() - first
    waits = None if waits is None else max(0.0, waits)
    return RunState(run.name, over, len(numbers), total, unread, waits, opened)


def _waiting(file: IO[bytes], offset: int, size: int) -> tuple[int, float | None]:
    """Bytes of whole batches from `offset` on, by their heads alone, and the time of the first."""
    unread = 0
    first: float | None = None
    while offset + BATCH.size <= size:
        file.seek(offset)
        head = file.read(BATCH.size + RECORD.size)
        length, checksum = BATCH.unpack_from(head)
        if not 0 < length <= MOST_BATCH or offset + BATCH.size + length > size:
            break
        if checksum != WIPED:
            unread += BATCH.size + length
            if first is None and len(head) == BATCH.size + RECORD.size:
                first = RECORD.unpack_from(head, BATCH.size)[3]
        offset += BATCH.size + length
    return unread, first
