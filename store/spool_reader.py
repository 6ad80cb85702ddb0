"""The spool as its reader sees it: folders of runs, segments, and how far they were read.

A proxy holds a lock on its run's `alive` file as long as it lives. Whether it is gone, and whether
a higher segment exists, is asked *before* the read: what was written in between is then still read.
"""

from __future__ import annotations

import fcntl
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from policies.spool import ALIVE_FILE, BATCH, SEGMENT_SUFFIX, Event, unpack

PIECE_BYTES: Final = 4 << 20
# No batch is near this long; a length above it is damage, not a batch to wait for.
MOST_BATCH: Final = 64 << 20
# A proxy creates its folder, then `alive`, then locks it: give it that time.
_YOUNG_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """Everything before it was read. Segments count from 1."""

    segment: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What one read gave. `position` is where the next one starts; `more`: it will find something.

    `torn`: bytes given up at the end of a segment that will not grow any more. `unreadable`:
    records of a kind we don't know. `finished`: the run is over and nothing of it is left.
    """

    events: list[Event]
    position: Position
    more: bool = False
    finished: bool = False
    torn: int = 0
    unreadable: int = 0


def runs(spool: Path) -> list[Path]:
    """Folders of runs, oldest name first; none while there is no spool."""
    try:
        return sorted(entry for entry in spool.iterdir() if entry.is_dir())
    except FileNotFoundError:
        return []


def is_over(run: Path) -> bool:
    """Does no proxy write to this run any more?"""
    alive = run / ALIVE_FILE
    try:
        descriptor = os.open(alive, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return not _young(run)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return not _young(alive)


def _young(path: Path) -> bool:
    try:
        return 0 <= time.time() - path.stat().st_mtime < _YOUNG_SECONDS
    except FileNotFoundError:
        return True


def started_at(run: Path) -> float:
    try:
        return (run / ALIVE_FILE).stat().st_mtime
    except FileNotFoundError:
        return time.time()


def segments(run: Path) -> list[int]:
    try:
        names = os.listdir(run)
    except FileNotFoundError:
        return []
    stems = [name.removesuffix(SEGMENT_SUFFIX) for name in names if name.endswith(SEGMENT_SUFFIX)]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def segment_path(run: Path, number: int) -> Path:
    return run / f"{number:08d}{SEGMENT_SUFFIX}"


def read(run: Path, at: Position, limit: int = PIECE_BYTES) -> Piece:
    """The next whole batches after `at`, at most about `limit` bytes of them."""
    over = is_over(run)
    numbers = [number for number in segments(run) if number >= at.segment]
    if not numbers:
        return Piece([], at, finished=over)
    current = numbers[0]
    offset = at.offset if current == at.segment else 0
    scan = _scan(segment_path(run, current), offset, limit)
    here = Position(current, scan.end)
    last = len(numbers) == 1
    if not scan.exhausted or (last and not over):
        return Piece(scan.events, here, more=not scan.exhausted, unreadable=scan.unreadable)
    torn = max(0, scan.size - scan.end)
    after = Position(current, scan.end + torn) if last else Position(numbers[1])
    return Piece(scan.events, after, not last, last, torn, scan.unreadable)


def delete_read(run: Path, position: Position) -> None:
    """Delete the segments before `position`. Only after it was committed."""
    for number in segments(run):
        if number < position.segment:
            segment_path(run, number).unlink(missing_ok=True)


def delete_run(run: Path) -> None:
    """Delete a finished run. Its segments first: without them a crash leaves an empty run."""
    for number in segments(run):
        segment_path(run, number).unlink(missing_ok=True)
    (run / ALIVE_FILE).unlink(missing_ok=True)
    for rest in run.iterdir():
        rest.unlink()
    run.rmdir()


@dataclass(frozen=True, slots=True)
class _Scan:
    """`exhausted`: no whole, sound batch follows `end` in a file of `size` bytes."""

    events: list[Event]
    end: int
    size: int
    exhausted: bool
    unreadable: int


def _scan(path: Path, offset: int, limit: int) -> _Scan:
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        while True:
            file.seek(offset)
            data = _read(file.fileno(), limit)
            events, end, unreadable = _records(data)
            needed = _needed(data, end)
            exhausted = needed <= len(data) or needed > min(size - offset, end + MOST_BATCH)
            if exhausted or end > 0:
                return _Scan(events, offset + end, size, exhausted, unreadable)
            limit = needed  # one batch longer than a piece


def _read(descriptor: int, size: int) -> bytes:
    pieces = []
    while size > 0 and (piece := os.read(descriptor, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def _records(data: bytes) -> tuple[list[Event], int, int]:
    """Events, the offset after the last batch, and how many were of a kind we don't know."""
    events: list[Event] = []
    offset = unknown = 0
    for batch in unpack(data):
        events += batch.events
        unknown += batch.unknown
        offset = batch.end
    return events, offset, unknown


def _needed(data: bytes, offset: int) -> int:
    """How long `data` must be to hold the batch at `offset`."""
    if offset + BATCH.size > len(data):
        return offset + BATCH.size
    return offset + BATCH.size + int(BATCH.unpack_from(data, offset)[0])
