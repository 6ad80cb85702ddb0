"""The spool as its reader sees it: folders of runs, segments, and how far they were read.

A proxy holds a lock on its run's `alive` file as long as it lives. Whether it is gone, and whether
a higher segment exists, is asked *before* the read: what was written in between is then still read.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from policies.spool import (
    ALIVE_FILE,
    BATCH,
    SEGMENT_SUFFIX,
    WIPED,
    WIPED_SUFFIX,
    Event,
    unpack,
)
from store.locks import is_held

PIECE_BYTES: Final = 4 << 20
# No batch is near this long; a length above it is damage, not a batch to wait for.
MOST_BATCH: Final = 64 << 20
_MOST_WIPED: Final = 64  # segments handed back and not yet taken
_FEW_WIPED: Final = 4
_WIPED_SECONDS: Final = 120.0
# One system call's worth: the kernel copies it in one go, and whoever wants the core waits.
_AT_ONCE: Final = 64 << 10
_ZEROS: Final = memoryview(bytes(_AT_ONCE))
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
        return not (is_held(alive) or _young(alive))
    except FileNotFoundError:
        return not _young(run)
    except OSError:
        return False


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
    torn = max(0, scan.size - scan.end) if scan.torn else 0
    after = Position(current, scan.end + torn) if last else Position(numbers[1])
    return Piece(scan.events, after, not last, last, torn, scan.unreadable)


def wipe_read(run: Path, before: Position, after: Position) -> None:
    """Leave nothing of what was read between the two. Only after `after` was committed.

    What is wiped reads as a batch to skip, for a database that begins anew. A whole segment is
    handed back to the proxy, which writes over it: see `SegmentWriter`.
    """
    start = before.offset if before.segment == after.segment else 0
    _wipe(segment_path(run, after.segment), start, after.offset)
    for number in segments(run):
        if number < after.segment:
            _hand_back(run, segment_path(run, number))


def _wipe(path: Path, start: int, end: int) -> None:
    length = end - start - BATCH.size
    if length <= 0:
        return
    with path.open("r+b", buffering=0) as file:
        file.seek(start)
        file.write(BATCH.pack(length, WIPED))
        _write_zeros(file, length)


def _hand_back(run: Path, path: Path) -> None:
    if len(list(run.glob(f"*{WIPED_SUFFIX}"))) >= _MOST_WIPED:
        path.unlink(missing_ok=True)
        return
    with path.open("r+b", buffering=0) as file:
        _write_zeros(file, os.fstat(file.fileno()).st_size)
    path.rename(path.with_suffix(WIPED_SUFFIX))


def let_go(run: Path, now: float) -> None:
    """A burst is over: of the segments that it left to be written over, a few are enough."""
    for path in sorted(run.glob(f"*{WIPED_SUFFIX}"))[:-_FEW_WIPED]:
        with suppress(FileNotFoundError):  # the proxy has just taken it
            if now - path.stat().st_mtime > _WIPED_SECONDS:
                path.unlink()


def _write_zeros(file: IO[bytes], size: int) -> None:
    while size > 0:
        size -= file.write(_ZEROS[:size])


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
    """`exhausted`: no whole, sound batch follows `end` in a file of `size` bytes. `torn`: something
    does, and not the zeros of a segment that was handed back."""

    events: list[Event]
    end: int
    size: int
    exhausted: bool
    unreadable: int
    torn: bool


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
                torn = data[end : end + BATCH.size].count(0) < BATCH.size
                return _Scan(events, offset + end, size, exhausted, unreadable, torn)
            limit = needed  # one batch longer than a piece


def _read(descriptor: int, size: int) -> bytes:
    pieces = []
    while size > 0 and (piece := os.read(descriptor, min(size, _AT_ONCE))):
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
