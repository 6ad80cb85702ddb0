"""The sections of the benchmark that compare systems round by round."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.bench import bodies, rigs
from tests.bench.authority import Authority
from tests.bench.figures import Figures, Row, added, against, pick, rows
from tests.bench.loads import (
    LoadError,
    Measure,
    Measured,
    Progress,
    Requests,
    Streams,
    alternate,
)  # fmt: skip
from tests.bench.machine import BESIDE, LOAD, PROXY_CORE, cpu_seconds, free_port, needs, pin
from tests.bench.rigs import Rig

STREAMS: Final = 200
EVENTS_A_SECOND: Final = 50
_MODELS: Final = Path(__file__).parents[2] / "shadow" / "models"
_BESIDE: Final = " + model"


@dataclass(frozen=True, slots=True)
class Bench:
    """What every section is told. `seconds`: of each round."""

    folder: Path
    rounds: int
    seconds: int
    pairs_seconds: float
    pairs_rate: float
    saturation_seconds: float
    many_streams: int
    level_seconds: float
    growth: float  # exchanges
    progress: Progress


def all_systems(stack: ExitStack, folder: Path, upstream: str) -> list[Rig]:
    return [
        rigs.direct(upstream),
        stack.enter_context(rigs.nginx_proxy(folder, upstream)),
        stack.enter_context(rigs.haproxy(folder, upstream)),
        stack.enter_context(rigs.naive(folder, upstream)),
        stack.enter_context(rigs.bare(folder, upstream)),
        stack.enter_context(rigs.understudy(folder, upstream)),
    ]


def requests(bench: Bench) -> list[Row]:
    needs("nginx", "haproxy", "wrk", "taskset")
    with ExitStack() as stack:
        upstream = stack.enter_context(rigs.constant(bench.folder, bodies.answer()))
        tested = all_systems(stack, bench.folder, upstream)
        load = Requests(bench.folder, bench.seconds)
        return rows("request", alternate(load, tested, bench.rounds, bench.progress))


@contextmanager
def events(folder: Path, rate: float) -> Iterator[str]:
    """An upstream that answers with a stream of so many events a second: its host and port."""
    port = free_port()
    log = folder / f"events-{port}.log"
    command = [sys.executable, "-m", "tests.bench.streams", "upstream", str(port), str(rate)]
    with rigs.process(command, LOAD, log) as started:
        rigs.listening(port, started, log)
        yield f"127.0.0.1:{port}"


def streams(bench: Bench) -> list[Row]:
    needs("nginx", "haproxy", "taskset")
    with ExitStack() as stack:
        upstream = stack.enter_context(events(bench.folder, EVENTS_A_SECOND))
        tested = all_systems(stack, bench.folder, upstream)
        load = Streams(STREAMS, bench.seconds)
        return rows("SSE event", alternate(load, tested, bench.rounds, bench.progress))


def latency(bench: Bench) -> list[Row]:
    """One connection; what matters is what each system adds to the direct way."""
    needs("nginx", "haproxy", "wrk", "taskset")
    with ExitStack() as stack:
        upstream = stack.enter_context(rigs.constant(bench.folder, bodies.answer()))
        tested = all_systems(stack, bench.folder, upstream)
        load = Requests(bench.folder, bench.seconds, connections=1)
        # Warmed memory is written out, and given back to the host, during the round: that would be
        # the slowest hundredth.
        figures = alternate(load, tested, bench.rounds, bench.progress, warm=False)
    waits = pick(figures, "p50 µs", "p99 µs")
    return rows("1 connection", waits) + rows("1 connection", added(waits))


def tls(bench: Bench) -> list[Row]:
    """The upstream speaks TLS; connections are kept, so handshakes hardly count."""
    needs("nginx", "openssl", "wrk", "taskset")
    authority = Authority.make(bench.folder)
    served = f"ssl_certificate {authority.certificate}; ssl_certificate_key {authority.key}"
    trusted = "proxy_ssl_session_reuse on; proxy_ssl_name localhost; proxy_ssl_server_name on;"
    checked = f"{trusted} proxy_ssl_verify on; proxy_ssl_trusted_certificate {authority.root};"
    with ExitStack() as stack:
        upstream = stack.enter_context(
            rigs.constant(bench.folder, bodies.answer(), tls=served)
        )  # fmt: skip
        port = upstream.rpartition(":")[2]
        ours = [("--no-capture",), ()]
        tested = [
            rigs.direct(upstream),
            stack.enter_context(rigs.nginx_proxy(bench.folder, upstream, tls=checked)),
            stack.enter_context(
                rigs.nginx_proxy(bench.folder, upstream, name="nginx, unverified", tls=trusted)
            ),
            *(
                stack.enter_context(
                    rigs.understudy(
                        bench.folder, f"https://localhost:{port}", *options,
                        name=rigs.BARE if options else rigs.OURS,
                        environment={"SSL_CERT_FILE": str(authority.root)},
                    )
                )
                for options in ours
            ),
        ]  # fmt: skip
        load = Requests(bench.folder, bench.seconds, scheme="https")
        return rows("TLS upstream", alternate(load, tested, bench.rounds, bench.progress))


class BesideModel:
    """Lets the model generate while a rig is measured whose name says so, and never else."""

    def __init__(self, measure: Measure, model: subprocess.Popen[bytes]) -> None:
        self._measure, self._model = measure, model

    def __call__(self, rig: Rig) -> Measured:
        if not rig.name.endswith(_BESIDE):
            return self._measure(rig)
        before = cpu_seconds([self._model.pid])
        self._model.send_signal(signal.SIGCONT)
        try:
            found = self._measure(rig)
        finally:
            self._model.send_signal(signal.SIGSTOP)
        if self._model.poll() is not None or cpu_seconds([self._model.pid]) <= before:
            raise LoadError("the model beside did not generate")
        return found


@contextmanager
def model(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Generating, on any core but the proxy's; stopped for now."""
    log = folder / "model.log"
    command = [sys.executable, "-m", "tests.bench.generator"]
    command += [str(_MODELS / "triage.gguf"), str(_MODELS / "triage-heldout.jsonl")]
    threads = {"GOMP_SPINCOUNT": "20000", "OMP_NUM_THREADS": "1"}
    with rigs.process(command, BESIDE, log, threads) as started:
        try:
            rigs.running_for(started, 2.0, log)
            pin(started.pid, os.sched_getaffinity(0) - {PROXY_CORE})
            started.send_signal(signal.SIGSTOP)
            yield started
        finally:
            started.send_signal(signal.SIGCONT)


def shadow(bench: Bench) -> list[Row]:
    """A model that generates flat out next to the proxy, and the same without it."""
    needs("nginx", "wrk", "taskset")
    found: list[Row] = []
    with ExitStack() as stack:
        beside = stack.enter_context(model(bench.folder))
        upstream = stack.enter_context(rigs.constant(bench.folder, bodies.answer()))
        alone = [
            stack.enter_context(rigs.nginx_proxy(bench.folder, upstream)),
            stack.enter_context(rigs.understudy(bench.folder, upstream)),
        ]
        pressed = [replace(rig, name=rig.name + _BESIDE) for rig in alone]
        for what, connections in (("shadow, 1 line", 1), ("shadow, 64 lines", 64)):
            load = BesideModel(Requests(bench.folder, bench.seconds, connections), beside)
            figures = alternate(load, [*alone, *pressed], bench.rounds, bench.progress)
            found += _beside(what, pick(figures, "CPU µs", "p50 µs", "p99 µs"))
    return found


def _beside(what: str, figures: Figures) -> list[Row]:
    """Each against nginx under the same load, and against itself without the model."""
    table: list[Row] = []
    for base in ("nginx", "nginx" + _BESIDE):
        chosen = {
            metric: {
                system: values
                for system, values in of_metric.items()
                if system.endswith(_BESIDE) == base.endswith(_BESIDE)
            }
            for metric, of_metric in figures.items()
        }
        table += rows(what, chosen, base)
    names = ("nginx", rigs.OURS)
    return table + against(what, figures, {name + _BESIDE: name for name in names})
