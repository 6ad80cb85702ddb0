"""The sections that ask what the record holds: pairs at a steady rate, and saturation."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from tests.bench import bodies, record, rigs
from tests.bench.account import Account, account
from tests.bench.figures import Row, single
from tests.bench.loads import LoadError
from tests.bench.machine import (
    LOAD,
    cpu_seconds,
    needs,
    needs_disk,
    resident,
    warm_memory,
)  # fmt: skip
from tests.bench.rigs import OURS, Rig
from tests.bench.sections import Bench

_FASTEST: Final = 12_000  # requests a second that one core may reach
_PAIR_BYTES: Final = 10_000
_SPOOL_BYTES: Final = 1 << 30
_YARDSTICK_SECONDS: Final = 10.0
_WRONGS: Final = ("silent", "doubled", "strange", "uncounted")


@dataclass(frozen=True, slots=True)
class Load:
    """Arguments of tests.bench.pairs, without port and seconds."""

    role: str
    amount: float

    def __call__(self, rig: Rig, seconds: float) -> tuple[dict[str, Any], float]:
        """What the client said, and the CPU seconds of the rig meanwhile."""
        command = [*LOAD, sys.executable, "-m", "tests.bench.pairs"]
        command += [self.role, str(rig.port), f"{self.amount:g}", str(seconds)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            if client.stdout.readline() != "go\n":
                raise LoadError(f"{rig.name}: the client of pairs did not begin")
            before = cpu_seconds(rig.pids)
            line = client.stdout.readline()
            used = cpu_seconds(rig.pids) - before
        said = json.loads(line) if line else {"broken": ["the client failed"]}
        if said["broken"]:
            raise LoadError(f"{rig.name}: {said}")
        return said, used


CLOSED: Final = Load("closed", 64)


def pairs(bench: Bench) -> list[Row]:
    """At a steady rate nothing may be dropped, and the recorder must keep level."""
    needs("nginx", "taskset")
    needs_disk(bench.folder, _needed(bench.pairs_rate, bench.pairs_seconds))
    return _measured(bench, "pairs", Load("steady", bench.pairs_rate), bench.pairs_seconds)


def saturation(bench: Bench) -> list[Row]:
    """As fast as it goes: every pair is kept, or counted as cut or dropped."""
    needs("nginx", "taskset")
    needs_disk(bench.folder, _needed(_FASTEST, bench.saturation_seconds))
    return _measured(bench, "saturation", CLOSED, bench.saturation_seconds)


def _needed(rate: float, seconds: float) -> int:
    return int(rate * seconds * _PAIR_BYTES * 1.3) + 2 * _SPOOL_BYTES


def _measured(bench: Bench, what: str, load: Load, seconds: float) -> list[Row]:
    with rigs.constant(bench.folder, bodies.DISTINCT_ANSWER) as upstream:
        bench.progress("nginx")
        with rigs.nginx_proxy(bench.folder, upstream) as rig:
            yardstick = _relayed(rig, load, min(seconds, _YARDSTICK_SECONDS))
        bench.progress(f"{OURS}, {seconds:g} s")
        warm_memory(bench.folder)
        with rigs.understudy(bench.folder, upstream) as rig:
            return _rows(what, yardstick, _Run.of(rig, load, seconds, bench))


@dataclass(frozen=True, slots=True)
class _Relayed:
    """What a client of pairs saw of one system."""

    system: str
    sent: int
    cpu: float  # µs of the proxy for each request
    busy: float  # share of a core
    rate: float
    p50: float
    p99: float


def _relayed(rig: Rig, load: Load, seconds: float) -> _Relayed:
    said, used = load(rig, seconds)
    return _Relayed(
        system=rig.name,
        sent=said["sent"],
        cpu=used * 1e6 / said["sent"],
        busy=used / said["seconds"],
        rate=said["answered"] / said["seconds"],
        p50=said["p50"] * 1e6,
        p99=said["p99"] * 1e6,
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """A run of the sidecar, until its recorder had nothing left to do."""

    relayed: _Relayed
    account: Account
    level_seconds: float
    recorder_cpu: float  # seconds
    memory: int  # of the proxy, at the end of the load
    kept_bytes: int
    raw_bytes: int

    @classmethod
    def of(cls, rig: Rig, load: Load, seconds: float, bench: Bench) -> _Run:
        before = cpu_seconds(rig.others)
        relayed = _relayed(rig, load, seconds)
        memory = resident(rig.pids)
        bench.progress("waiting for the recorder")
        level = record.level(rig, relayed.sent, bench.level_seconds)
        recorder_cpu = cpu_seconds(rig.others) - before
        bench.progress("accounting")
        found = account(relayed.sent, record.rows(rig), record.counted(rig))
        kept, raw = record.bytes_kept(rig)
        return cls(relayed, found, level, recorder_cpu, memory, kept, raw)


def _rows(what: str, yardstick: _Relayed, run: _Run) -> list[Row]:
    figure = partial(single, what)
    table: list[Row] = []
    for metric, name in (("CPU µs", "cpu"), ("busy core", "busy"), ("rate requests/s", "rate"),
                         ("p50 µs", "p50"), ("p99 µs", "p99")):  # fmt: skip
        for relayed in (yardstick, run.relayed):
            value, base = getattr(relayed, name), getattr(yardstick, name)
            row = figure(metric, relayed.system, value)
            table.append(replace(row, ratio=value / base if base else None))
    recorded = max(1, run.account.sent - run.account.dropped)
    table += [
        figure("level after s", OURS, run.level_seconds),
        figure("recorder CPU µs", OURS, run.recorder_cpu * 1e6 / recorded),
        figure("recorder rows/CPU-second", OURS, recorded / max(run.recorder_cpu, 0.01)),
        figure("proxy memory MB", OURS, run.memory / 1e6),
        figure("disk / raw bytes x", OURS, run.kept_bytes / max(1, run.raw_bytes)),
    ]
    return table + account_rows(what, run.account)


def account_rows(what: str, found: Account) -> list[Row]:
    verdict = "balances" if found.balances else "DOES NOT BALANCE"
    table = [single(what, "sent requests", OURS, found.sent, verdict)]
    for name in ("whole", "cut", "dropped", "open", "missing", *_WRONGS):
        value = getattr(found, name)
        if value or name not in _WRONGS:
            table.append(single(what, f"{name} requests", OURS, value))
    return table
