"""Loads: each is put on one rig for one round, and gives figures by metric. Errors raise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.bench import bodies
from tests.bench.machine import LOAD, cpu_seconds, quiet, warm_memory
from tests.bench.rigs import Rig

Measured = dict[str, float]


class Measure(Protocol):
    def __call__(self, rig: Rig, /) -> Measured: ...


class LoadError(RuntimeError):
    """A load met an error or lost something: its figures would be worth nothing."""


class Requests:
    """wrk: keep-alive, 5 KB up and 2 KB down. CPU only of what has processes of its own."""

    def __init__(self, folder: Path, seconds: int, connections: int = 64, scheme: str = "http"):
        self._script = folder / "post.lua"
        self._script.write_text(bodies.wrk_script())
        self._seconds, self._connections, self._scheme = seconds, connections, scheme

    def __call__(self, rig: Rig) -> Measured:
        before = cpu_seconds(rig.pids)
        said = self._wrk(rig)
        used = cpu_seconds(rig.pids) - before
        if said["errors"] or not said["requests"]:
            raise LoadError(f"{rig.name}: wrk met {said['errors']} errors: {said}")
        cpu = {"CPU µs": used * 1e6 / said["requests"]} if rig.pids else {}
        return cpu | {
            "p50 µs": said["p50"],
            "p99 µs": said["p99"],
            "rate requests/s": said["requests"] * 1e6 / said["microseconds"],
        }

    def _wrk(self, rig: Rig) -> dict[str, int]:
        scheme = self._scheme if rig.name == "direct" else "http"
        done = subprocess.run(
            [*LOAD, "wrk", "-t1", f"-c{self._connections}",
             f"-d{self._seconds}", "--latency", "-s", str(self._script),
             f"{scheme}://127.0.0.1:{rig.port}{bodies.PATH}"],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        result = done.stdout.partition("\nRESULT ")[2]
        if not result:
            raise LoadError(f"{rig.name}: wrk gave no result: {done.stdout}{done.stderr}")
        found: dict[str, int] = json.loads(result)
        return found


class Listening:
    """The client process of streams: `begin` when all are open; its summary at the end."""

    def __init__(self, client: subprocess.Popen[str], rig: Rig) -> None:
        self._client, self._rig = client, rig

    def said(self) -> str:
        assert self._client.stdout is not None
        line = self._client.stdout.readline()
        if not line:
            raise LoadError(f"{self._rig.name}: the client of streams failed")
        return line.strip()

    def begin(self) -> None:
        assert self._client.stdin is not None
        self._client.stdin.write("\n")
        self._client.stdin.flush()
        if self.said() != "go":
            raise LoadError(f"{self._rig.name}: the client of streams did not begin")

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.said())
        if found["lost"] or found["silent"] or found["broken"] or not found["events"]:
            raise LoadError(f"{self._rig.name}: streams lost events: {found}")
        return found


@contextmanager
def listening(rig: Rig, streams: int, seconds: float) -> Iterator[Listening]:
    """All streams are open and have had their first event."""
    command = [*LOAD, sys.executable, "-m", "tests.bench.streams", "client"]
    command += [str(rig.port), str(streams), str(seconds)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        try:
            load = Listening(client, rig)
            if load.said() != "open":
                raise LoadError(f"{rig.name}: the streams did not open")
            yield load
        finally:
            client.terminate()


class Streams:
    """Steady events on open streams: CPU of each relayed event, and how late they come."""

    def __init__(self, streams: int, seconds: float) -> None:
        self._streams, self._seconds = streams, seconds

    def __call__(self, rig: Rig) -> Measured:
        with listening(rig, self._streams, self._seconds) as load:
            load.begin()
            before = cpu_seconds(rig.pids)
            said = load.summary()
            used = cpu_seconds(rig.pids) - before
        cpu = {"CPU µs": used * 1e6 / said["events"]} if rig.pids else {}
        return cpu | lateness(said)


def lateness(said: dict[str, Any]) -> Measured:
    return {
        "late p50 µs": said["p50"] * 1e6,
        "late p99 µs": said["p99"] * 1e6,
        "late max µs": said["longest"] * 1e6,
    }


class Progress(Protocol):
    def __call__(self, text: str, /) -> None: ...


def alternate(
    measure: Measure, tested: Sequence[Rig], rounds: int, progress: Progress, warm: bool = True
) -> dict[str, dict[str, list[float]]]:
    """Every rig in turn, round by round: drift of the machine hits all alike.

    By metric, then by system.
    """
    for rig in tested:
        measure(rig)  # caches, pools and the page cache are warm in use; measure that
    figures: dict[str, dict[str, list[float]]] = {}
    for number in range(rounds):
        progress(f"round {number + 1} of {rounds}")
        for rig in tested:
            settle(rig, tested, warm)
            gather(figures, rig.name, measure(rig))
    return figures


def settle(rig: Rig, tested: Sequence[Rig], warm: bool) -> None:
    """What rounds of others left behind is done, and with `warm` memory is in use."""
    quiet({pid for other in tested for pid in other.others})
    if warm and rig.home is not None:
        warm_memory(rig.home)


def gather(figures: dict[str, dict[str, list[float]]], system: str, measured: Measured) -> None:
    for metric, value in measured.items():
        figures.setdefault(metric, {}).setdefault(system, []).append(value)
