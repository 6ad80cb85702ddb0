"""Spool segments on disk, and the thread that writes them: the loop never waits for a disk.

(A write in the loop stalls it for up to 14 ms now and then, measured.)
"""

from __future__ import annotations

import errno
import fcntl
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple, cast

from policies import spool
from policies.policy import Capture as CapturePolicy

_SEGMENT_BYTES: Final = 8 << 20
# Joined they are in memory twice, and nothing else runs all the while.
_BATCH_BYTES: Final = 128 << 10
_FSYNC_SECONDS: Final = 1.0
_LOOK_SECONDS: Final = 0.5


@dataclass(slots=True)
class Counters:
    """Of this run. `records_dropped`: heads and endings; `bodies_cut`: bodies not kept whole;
    `not_recorded`: exchanges that the policy, or their client, wants nothing kept of."""

    exchanges: int = 0
    not_recorded: int = 0
    bodies_cut: int = 0
    records_dropped: int = 0
    write_errors: int = 0
    last_error: str | None = None


class Records(NamedTuple):
    """Some that follow each other, joined: the writer holds the interpreter for next to nothing."""

    number: int
    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


class Late(NamedTuple):
    """What the writer has yet to make, since it would keep the loop busy: `number` records, none
    where only the work is wanted. `size`: bytes that it holds until then."""

    number: int
    size: int
    make: Callable[[], bytes]


Batches = list[Records | Late]


@dataclass(slots=True)
class _Segment:
    file: IO[bytes]
    size: int = 0


class SegmentWriter:
    """The writer thread and its segments.

    `busy` and `refuses` are plain values that one side sets and the other reads: a stale one costs
    one flush interval, a lock would cost every record. `refuses`: why no bodies are taken now.
    """

    def __init__(self, folder: Path, policy: CapturePolicy, counters: Counters) -> None:
        self.busy = False
        self.refuses: Literal["high_water", "low_disk"] | None = None
        self._disk_full = False
        self._folder = folder
        self._policy = policy
        self._counters = counters
        self._number = 0
        self._segment: _Segment | None = None
        self._warned = 0.0
        self._synced = time.monotonic()
        self._due = False  # is anything to be synced?
        self._looked = 0.0
        self._alive: int | None = None
        self._queue: queue.SimpleQueue[Batches | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="spool-writer", daemon=True)
        self._thread.start()

    def submit(self, records: Batches) -> None:
        self.busy = True
        self._queue.put(records)

    def close(self, records: Batches) -> None:
        self._queue.put(records)
        self._queue.put(None)
        self._thread.join()
        if self._alive is not None:
            os.close(self._alive)

    def _open_run(self) -> None:
        """Here and not at start: a disk that is full then must not keep the relay from running."""
        if self._alive is not None and self._folder.is_dir():
            return
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._alive is not None:  # somebody removed the folder under us
            os.close(self._alive)
            self._alive = self._segment = None
        alive = os.open(self._folder / spool.ALIVE_FILE, os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.flock(alive, fcntl.LOCK_EX)
        self._alive = alive

    def _run(self) -> None:
        while (records := self._next()) is not None:
            submitted = bool(records)
            try:
                self._write(records)
            except Exception as error:  # whatever it is, the next batch is tried
                self._lost(records, error)
            if submitted:
                self.busy = False
        if self._segment is not None:
            self._segment.file.close()

    def _next(self) -> Batches | None:
        """The next batch; an empty one when a quiet spool is to be looked after."""
        try:
            return self._queue.get(timeout=_LOOK_SECONDS if self.refuses or self._due else None)
        except queue.Empty:
            return []

    def _write(self, waiting: Batches) -> None:
        records = _make(waiting)
        looks = time.monotonic() - self._looked >= _LOOK_SECONDS
        if looks:
            self._look()
        if records and self._disk_full:
            raise OSError(errno.ENOSPC, "capture has left the last of the disk to others")
        if records:
            self._open_run()
        while records:  # what is written goes, so that what is left is what was lost
            segment = self._segment or self._next_segment()
            count = _batch(records)
            joined = b"".join([some.data for some in records[:count]])
            segment.size += _write_all(segment.file.fileno(), [spool.seal(joined), joined])
            del records[:count]
            self._due = self._policy.fsync != "none"
        self._sync()
        # At high water soon: only whole segments can be deleted, and make room.
        full = self._segment is not None and self._segment.size >= _SEGMENT_BYTES
        if full or (looks and self.refuses):
            self._end_segment()
            self._look()

    def _sync(self) -> None:
        if not self._due or self._segment is None:
            return
        now = time.monotonic()
        if self._policy.fsync == "always" or now - self._synced >= _FSYNC_SECONDS:
            os.fdatasync(self._segment.file.fileno())
            self._synced = now
            self._due = False

    def _next_segment(self) -> _Segment:
        """A file that the recorder has read and wiped is written over: its pages are there
        already, where each page of a new file costs more than what is written to it."""
        self._number += 1
        path = self._folder / f"{self._number:08d}{spool.SEGMENT_SUFFIX}"
        for wiped in self._folder.glob(f"*{spool.WIPED_SUFFIX}"):
            wiped.rename(path)
            descriptor = os.open(path, os.O_WRONLY)
            break
        else:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        self._segment = _Segment(os.fdopen(descriptor, "wb", buffering=0))
        return self._segment

    def _end_segment(self) -> None:
        """The next batch starts a new file, so that the recorder can delete this one."""
        if self._segment is not None:
            self._segment.file.truncate(self._segment.size)  # a wiped file may have been longer
            if self._due:
                os.fdatasync(self._segment.file.fileno())
                self._due = False
            self._segment.file.close()
            self._segment = None

    def _look(self) -> None:
        """Is there room? Once there is none, only well within it again: or bodies would come and
        go by the batch."""
        self._looked = time.monotonic()
        most, least = self._policy.spool_bytes, self._policy.least_free
        free = _free_bytes(self._folder)
        self._disk_full = free < least // (2 if self._disk_full else 4)
        # Counting the files takes a millisecond: only where that may change something.
        counts = self._segment is None or self.refuses is not None
        if counts and self._on_disk() > (most // 2 if self.refuses == "high_water" else most):
            self.refuses = "high_water"
        elif free < (least * 2 if self.refuses == "low_disk" else least):
            self.refuses = "low_disk"
        else:
            self.refuses = None

    def _on_disk(self) -> int:
        """Bytes in all segments of all runs; a file may go while we look."""
        total = 0
        for path in self._folder.parent.glob(f"*/*{spool.SEGMENT_SUFFIX}"):
            try:
                total += path.stat().st_size
            except FileNotFoundError:
                continue
        return total

    def _lost(self, records: Batches, error: Exception) -> None:
        """A batch could not be written: cut the torn part off, go on in a new segment."""
        self._counters.write_errors += 1
        lost = sum(some.number for some in records)
        self._counters.records_dropped += lost
        self._counters.last_error = str(error)
        segment, self._segment = self._segment, None
        self._due = False
        if segment is not None:
            try:
                segment.file.truncate(segment.size)
                segment.file.close()
            except OSError:
                pass  # the reader stops at the torn record; nothing more can be done here
        if time.monotonic() - self._warned > 60:
            self._warned = time.monotonic()
            print(f"understudy: capture lost {lost} records: {error}", file=sys.stderr)


def _make(waiting: Batches) -> list[Records]:
    """The same, with nothing left to make; an empty batch would read as the segment's end."""
    for index, some in enumerate(waiting):
        if isinstance(some, Late):
            waiting[index] = Records(some.number, some.make())
            time.sleep(0)  # there may be many: the loop has its turn in between
    waiting[:] = [some for some in waiting if some.size]
    return cast("list[Records]", waiting)


def _batch(records: list[Records]) -> int:
    """How many of these make a batch: till there are bytes enough."""
    size = 0
    for count, some in enumerate(records, 1):
        size += len(some.data)
        if size >= _BATCH_BYTES:
            return count
    return len(records)


def _free_bytes(folder: Path) -> int:
    """Where the folder is, or will be."""
    while not folder.exists():
        folder = folder.parent
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def _write_all(descriptor: int, buffers: list[bytes]) -> int:
    """Bytes written: all of them, without joining them first."""
    size = sum(map(len, buffers))
    written = os.writev(descriptor, buffers)
    if written < size:
        rest = memoryview(b"".join(buffers))[written:]
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    return size
