"""A worker's slot of counters: written on each tick, read by whoever is asked for the metrics.

The counters themselves are plain integers where the counting is done; a request costs none of this.
Written with `pwrite` and not through a mapping: a mapped file on a disk that is full, or one that
somebody cuts short, kills the process with SIGBUS.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from policies import metrics, spool
from policies.home import Home
from policies.metrics import Copy, Sample

if TYPE_CHECKING:
    from proxy.relay import Relay

_PAGE: Final = os.sysconf("SC_PAGESIZE")
_LOOK_SECONDS: Final = 1.0


def read_samples(run_dir: Path) -> list[Sample]:
    """What all workers have counted, now. Never fails: a slot that can't be read is left out."""
    found: dict[str, bytes] = {}
    for name in _names(run_dir):
        if name.startswith(metrics.PREFIX):
            with suppress(OSError):
                found[name] = (run_dir / name).read_bytes()
    return metrics.samples(found, time.monotonic())


class Slot:
    """The file. Without one (no room, no folder) nothing is counted, and all else goes on."""

    def __init__(self, run_dir: Path, worker: int) -> None:
        self._generation = 0
        self._before: Mapping[str, int] = {}  # of this worker's earlier processes
        self._descriptor: int | None = None
        try:
            self._open(run_dir / f"{metrics.PREFIX}{worker}")
        except OSError as error:
            print(f"understudy: no metrics of worker {worker}: {error}", file=sys.stderr)

    def _open(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        last = metrics.newest(os.pread(self._descriptor, 2 * metrics.COPY_BYTES, 0))
        if last is not None:
            self._generation = last.generation
            self._before = {name: last.values[name] for name in metrics.COUNTERS}

    def write(self, values: Mapping[str, int], at: float) -> None:
        """`at` 0: the worker stops, its gauges mean nothing any more."""
        if self._descriptor is None:
            return
        self._generation += 1
        summed = {name: value + self._before.get(name, 0) for name, value in values.items()}
        copy = Copy(self._generation, at, summed)
        with suppress(OSError):  # a full disk: the other copy is whole, the next tick tries again
            os.pwrite(self._descriptor, metrics.pack(copy), copy.offset)


class Meter:
    """What the worker writes into its slot, and what it must look up for it.

    Descriptors and the spool are looked at by a thread of its own: a folder can be long, and a disk
    slow. Memory is one short read.
    """

    def __init__(self, home: Home, worker: int) -> None:
        self.run_dir = home.run
        self.resident = 0  # bytes; 0 where the system has no /proc
        self._slot = Slot(home.run, worker)
        self._spool_dir = home.spool
        self._journal = home.database.with_name(home.database.name + "-wal")
        self._descriptors = 0
        self._spool_bytes = 0
        self._wal_bytes = 0
        self._statm = _opened("/proc/self/statm")
        threading.Thread(target=self._look, name="meter", daemon=True).start()

    def tick(self, relay: Relay, at: float | None = None) -> None:
        if self._statm is not None:
            self.resident = int(os.pread(self._statm, 256, 0).split()[1]) * _PAGE
        looked_up = {
            "resident_memory_bytes": self.resident,
            "open_fds": self._descriptors,
            "spool_bytes": self._spool_bytes,
            "wal_bytes": self._wal_bytes,
        }
        self._slot.write(counted(relay) | looked_up, time.monotonic() if at is None else at)

    def _look(self) -> None:
        while True:
            with suppress(OSError):  # no such folder, or no descriptor left: what was seen last
                self._descriptors = len(os.listdir("/proc/self/fd")) - 1  # not the one that looks
            self._spool_bytes = _bytes_below(self._spool_dir)
            self._wal_bytes = _size(self._journal)
            time.sleep(_LOOK_SECONDS)


def counted(relay: Relay) -> dict[str, int]:
    """The counters and gauges of this process alone."""
    values = {
        "requests": relay.requests,
        "refused": relay.refused,
        "overloaded": relay.overloaded,
        "diverted": relay.diverted,
        "fallbacks": relay.fallbacks,
        "undecided": relay.diverter.undecided,
        "client_aborts": relay.client_aborts,
        "upstream_opened": relay.upstream_opened,
        "upstream_reused": relay.upstream_reused,
        "intercepted": relay.forward.intercepted,
        "tunnelled": relay.forward.tunnelled,
        "tls_refused": relay.forward.refused,
        "trailers_dropped": relay.pool.trailers_dropped,
        "inject_failed": relay.inject_failed,
        "clients": len(relay.clients),
        "in_flight": relay.in_flight,
        "breakers_open": list(relay.diverter.breakers().values()).count("open"),
    }
    if relay.spool is not None:
        kept = relay.spool.counters
        values |= {
            "exchanges": kept.exchanges,
            "not_recorded": kept.not_recorded,
            "bodies_cut": kept.bodies_cut,
            "records_dropped": kept.records_dropped,
            "write_errors": kept.write_errors,
        }
    return values


def _opened(path: str) -> int | None:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _bytes_below(spool_dir: Path) -> int:
    """Bytes in all segments of all runs; files and folders may go while we look."""
    total = 0
    for run in _names(spool_dir):
        for name in _names(spool_dir / run):
            if name.endswith(spool.SEGMENT_SUFFIX):
                with suppress(OSError):
                    total += (spool_dir / run / name).stat().st_size
    return total


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []
