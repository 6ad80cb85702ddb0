"""The section of several proxy processes: what each request costs, and that none is lost."""

from __future__ import annotations

from contextlib import ExitStack

from tests.bench import bodies, record, rigs
from tests.bench.account import account
from tests.bench.figures import Row, pick, rows
from tests.bench.loads import Measure, Measured, Requests, alternate
from tests.bench.machine import cpu_seconds, needs
from tests.bench.recording import CLOSED, account_rows
from tests.bench.rigs import Rig
from tests.bench.sections import Bench


class Workers:
    """Requests, and how much of the work the idlest worker did: 100 % is an even share."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def __call__(self, rig: Rig) -> Measured:
        before = [cpu_seconds([pid]) for pid in rig.pids]
        found = self._measure(rig)
        used = [cpu_seconds([pid]) - was for pid, was in zip(rig.pids, before, strict=True)]
        even = sum(used) / len(used)
        return found | {"idlest worker %": 100 * min(used) / even}


def workers(bench: Bench) -> list[Row]:
    """More of them are faster only where each has a core; on two cores they share one."""
    needs("nginx", "wrk", "taskset")
    found: list[Row] = []
    with ExitStack() as stack:
        upstream = stack.enter_context(rigs.constant(bench.folder, bodies.answer()))
        load = Workers(Requests(bench.folder, bench.seconds))
        for count in (1, 2):
            tested = [
                stack.enter_context(rigs.nginx_proxy(bench.folder, upstream, workers=count)),
                stack.enter_context(
                    rigs.understudy(bench.folder, upstream, policy=f"workers: {count}\n")
                ),
            ]
            if len(tested[1].pids) != count:
                raise RuntimeError(f"workers: {count}: {len(tested[1].pids)} proxy processes run")
            figures = alternate(load, tested, bench.rounds, bench.progress)
            kept = pick(figures, "CPU µs", "rate requests/s", "idlest worker %")
            found += rows(_what(count), kept)
            found += _accounted(bench, upstream, count)
    return found


def _accounted(bench: Bench, upstream: str, count: int) -> list[Row]:
    """A record of its own: every request of it carries a token."""
    policy = f"workers: {count}\n"
    with rigs.understudy(bench.folder, upstream, policy=policy) as rig:
        said, _ = CLOSED(rig, bench.seconds)
        record.level(rig, said["sent"], bench.level_seconds)
        return account_rows(
            _what(count), account(said["sent"], record.rows(rig), record.counted(rig))
        )


def _what(count: int) -> str:
    return f"{count} worker{'s' if count > 1 else ''}"
