"""The machine as the benchmarks use it: cores, CPU time, memory, descriptors, disks, ports."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Final

PROXY_CORE: Final = 0
OTHER_CORE: Final = 1
# Prefixes of commands: what is measured, what runs beside it, and the load.
RELAY: Final = ("taskset", "-c", str(PROXY_CORE))
BESIDE: Final = ("taskset", "-c", str(OTHER_CORE))
# What makes load and answers it goes first on its core: elsewhere they would be other machines, and
# a recorder at work must not slow them down. Without the right to do so, `nice` only says so.
LOAD: Final = ("taskset", "-c", str(OTHER_CORE), "nice", "-n", "-10")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Missing(Exception):
    """Something that a section needs and this machine lacks; says how to get it."""


def needs(*programs: str) -> None:
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise Missing(
            f"{', '.join(missing)}: not found; "
            "on Debian: apt-get install nginx-light haproxy wrk openssl util-linux"
        )
    if len(os.sched_getaffinity(0)) < 2:
        raise Missing("a second core: the load must not take the time of what it measures")


def needs_disk(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        raise Missing(
            f"{size / 1e9:.1f} GB on the disk of {folder}, where {free / 1e9:.1f} GB are free; "
            "name another: --folder"
        )


def biggest_disk() -> Path:
    """Of the usual places for scratch files, the one with the most room."""
    places = {Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()}
    writable = [place for place in sorted(places) if os.access(place, os.W_OK)]
    return max(writable, key=lambda place: shutil.disk_usage(place).free)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def pin(pid: int, cores: set[int]) -> None:
    """Every thread of the process: the kernel pins threads, not processes."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), cores)


def worker_cores(workers: int) -> list[int]:
    """A core for each worker where there are enough; the load keeps one for itself."""
    free = sorted(os.sched_getaffinity(0) - {OTHER_CORE}) or [PROXY_CORE]
    return [free[number % len(free)] for number in range(workers)]


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes."""
    return sum(_cpu_ticks(pid) for pid in pids) / _TICKS


def _cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def resident(pids: Iterable[int]) -> int:
    """Bytes of memory in use."""
    return sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE for pid in pids)


def allow_many_files(wanted: int) -> None:
    """Raise our own limit of open files, which children inherit, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = hard if hard != resource.RLIM_INFINITY else max(soft, wanted)
    if most < wanted:
        raise Missing(f"{wanted} open files, where the hard limit is {most}: ulimit -Hn")
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def warm_memory(folder: Path, size: int = 1 << 30) -> None:
    """Let the kernel have touched the pages that a round will fill.

    A virtual machine may give free memory back to its host; the first touch of such a page then
    costs some 5 µs of the hypervisor's time (7.6 KB appended to a file: 13 µs against 2.5 µs), for
    seconds only. That is no cost of any system that is measured here.
    """
    scratch = folder / "scratch"
    piece = bytes(1 << 20)
    with scratch.open("wb", buffering=0) as file:
        for _ in range(size // len(piece)):
            file.write(piece)
    scratch.unlink()


def quiet(pids: Iterable[int], seconds: float = 60.0) -> None:
    """Wait until these processes hardly run any more, at most so long."""
    chosen = list(pids)
    deadline = time.monotonic() + seconds
    while chosen and time.monotonic() < deadline:
        before = cpu_seconds(chosen)
        time.sleep(0.3)
        if cpu_seconds(chosen) - before < 0.05:
            return


class Neighbours:
    """How much of the machine others use meanwhile. Ask when what we started has ended."""

    def __init__(self) -> None:
        self._began, self._foreign = time.monotonic(), _foreign_seconds()

    def percent(self) -> float:
        """Of all cores."""
        elapsed = max(0.01, time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, 100 * (_foreign_seconds() - self._foreign) / elapsed)


def _foreign_seconds() -> float:
    """CPU time of the whole machine, and what its host kept from it, less our own."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = fields
    ours = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    busy = (user + nice + system + irq + softirq + steal) / _TICKS
    return busy - sum(used.ru_utime + used.ru_stime for used in ours)
