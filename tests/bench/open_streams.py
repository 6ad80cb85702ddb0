"""The section of many open streams: lateness of events, and memory of each stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from tests.bench import rigs
from tests.bench.figures import Row, rows
from tests.bench.loads import Measured, gather, lateness, listening
from tests.bench.machine import allow_many_files, cpu_seconds, needs, resident
from tests.bench.rigs import Rig
from tests.bench.sections import Bench, events

EVENTS_A_SECOND: Final = 10
_MOST_ROUNDS: Final = 3  # each starts every system anew: memory once used stays with a process
_FILES_A_STREAM: Final = 2
System = Callable[[], AbstractContextManager[Rig]]


def many_streams(bench: Bench) -> list[Row]:
    needs("nginx", "taskset")
    allow_many_files(_FILES_A_STREAM * bench.many_streams + 1000)
    figures: dict[str, dict[str, list[float]]] = {}
    rounds = min(bench.rounds, _MOST_ROUNDS)
    with events(bench.folder, EVENTS_A_SECOND) as upstream:
        for number in range(rounds):
            bench.progress(f"round {number + 1} of {rounds}")
            for system in _systems(bench, upstream):
                with system() as rig:
                    gather(figures, rig.name, _measure(rig, bench))
    return rows(f"{bench.many_streams} streams", figures)


def _systems(bench: Bench, upstream: str) -> list[System]:
    folder = bench.folder
    return [
        lambda: nullcontext(rigs.direct(upstream)),
        lambda: rigs.nginx_proxy(folder, upstream),
        lambda: rigs.bare(folder, upstream),
        lambda: rigs.understudy(folder, upstream),
    ]


def _measure(rig: Rig, bench: Bench) -> Measured:
    before = resident(rig.pids)
    with listening(rig, bench.many_streams, bench.seconds) as load:
        load.begin()
        cpu = cpu_seconds(rig.pids)
        time.sleep(bench.seconds / 2)
        memory = resident(rig.pids) - before
        said = load.summary()
        used = cpu_seconds(rig.pids) - cpu
    figures = lateness(said)
    if rig.pids:
        figures["CPU µs"] = used * 1e6 / said["events"]
        figures["memory of each KB"] = memory / bench.many_streams / 1e3
    return figures
