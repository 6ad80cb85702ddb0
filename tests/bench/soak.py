"""`python -m tests.bench.soak`: a mixed load for long; does anything grow, leak, get lost?"""

from __future__ import annotations

import asyncio
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import click
import uvloop
from rich.console import Console
from rich.table import Table

from tests.bench.machine import biggest_disk
from tests.bench.soak_big import passes
from tests.bench.soak_clients import KINDS, Asker, Kind
from tests.bench.soak_samples import Sample, drawn, fit_of, picture, write
from tests.bench.soak_upstream import Upstream
from tests.hazards.harness import Baseline, Sidecar, calm, sound, wait_for

MIB: Final = 1 << 20
# The pool's is short, so that at the end it is soon seen whether all connections go.
_TIMEOUTS: Final = {"client_head": 2.0, "upstream_idle": 10.0, "upstream_keepalive": 1.5}
_SAMPLE_SECONDS: Final = 5.0
_CALL_SECONDS: Final = 60.0
_MOST_BYTES: Final = 8 * MIB
_MOST_DESCRIPTORS: Final = 8
_SHOWN: Final = 12


@dataclass(slots=True)
class Load:
    """Clients that call, each after a pause, until the time is over."""

    address: tuple[str, int]
    clients: int
    rate: float
    seed: int
    calls: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    async def run(self, seconds: float) -> None:
        ends = time.monotonic() + seconds
        async with asyncio.TaskGroup() as clients:
            for number in range(self.clients):
                clients.create_task(self._client(number, ends), name=f"client {number}")

    async def _client(self, number: int, ends: float) -> None:
        chance = random.Random(self.seed * 1000 + number)
        kinds, weights = list(KINDS), list(KINDS.values())
        while time.monotonic() < ends:
            await asyncio.sleep(chance.expovariate(self.rate / self.clients))
            (kind,) = chance.choices(kinds, weights)
            await self._call(kind, chance)

    async def _call(self, kind: Kind, chance: random.Random) -> None:
        name = getattr(kind, "__name__", "?")
        self.calls[name] += 1
        asker = Asker(self.address, chance, self.calls.total())
        try:
            await asyncio.wait_for(kind(asker), _CALL_SECONDS)
        except Exception as error:
            self.wrong.append(f"{name}: {type(error).__name__}: {error}")
        finally:
            asker.close()


@dataclass(slots=True)
class Soak:
    """`broken`: what did not hold, in words; none is the aim."""

    sidecar: Sidecar
    upstream: Upstream
    show: Console
    broken: list[str] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    async def big(self) -> None:
        table = Table("a gibibyte", "MB/s", "proxy's memory grew by MiB")
        async for passed in passes(self.sidecar.address, self.sidecar.proxy_pid()):
            table.add_row(passed.what, f"{passed.speed:.0f}", f"{passed.growth / MIB:.1f}")
            if passed.growth >= _MOST_BYTES:
                self.broken.append(f"{passed.what}: grew by {passed.growth:,} bytes")
        self.show.print(table)

    async def mixed(self, load: Load, minutes: float) -> None:
        loop = asyncio.get_running_loop()
        sampler = loop.create_task(self._sample(load), name="samples")
        await load.run(minutes * 60)
        sampler.cancel()
        self.broken += load.wrong
        self._judge()
        self.show.print(f"{load.calls.total():,} calls: {dict(load.calls.most_common())}")

    async def _sample(self, load: Load) -> None:
        began, sidecar = time.monotonic(), self.sidecar
        while True:
            self.samples.append(
                Sample(
                    time.monotonic() - began,
                    sidecar.resident(),
                    sidecar.descriptors(),
                    sidecar.resident("recorder"),
                    sidecar.descriptors("recorder"),
                    load.calls.total(),
                )
            )
            await asyncio.sleep(_SAMPLE_SECONDS)

    def _judge(self) -> None:
        table = Table("after the first third", "at first", "grew by", "± (standard error)")
        for name in ("proxy_bytes", "recorder_bytes", "proxy_descriptors", "recorder_descriptors"):
            unit, most = (MIB, _MOST_BYTES) if name.endswith("bytes") else (1, _MOST_DESCRIPTORS)
            found = fit_of(self.samples, name)
            figures = (found.start, found.growth, found.error)
            table.add_row(
                name.replace("_bytes", " MiB").replace("_", " "),
                *(f"{figure / unit:.2f}" for figure in figures),
            )
            if found.growth >= most:
                self.broken.append(f"{name}: grew by {found.growth:,.0f}, less than {most:,} may")
        self.show.print(table)

    async def ended(self, before: Baseline) -> None:
        """The invariants, now that nobody calls; then it stops."""
        await self._holds("calm", lambda: calm(self.sidecar, before))
        await self._holds("upstream", lambda: wait_for(lambda: self.upstream.open == 0, 5))
        counted = await asyncio.to_thread(self.sidecar.health)
        await self._holds("stops", lambda: self._stop(counted["capture"]))
        await self._holds("sound", lambda: sound(self.sidecar))
        self.broken += self.upstream.faults

    def _stop(self, capture: dict[str, int]) -> None:
        assert self.sidecar.stop(90) == 0
        assert capture["records_dropped"] == capture["write_errors"] == 0
        (run,) = self.sidecar.query("SELECT highest_seq, recorded, ended_clean FROM runs")
        # The exchanges that `health` counted are those that the database holds.
        assert run == {
            "highest_seq": capture["exchanges"],
            "recorded": capture["exchanges"],
            "ended_clean": 1,
        }, f"{run}, where the proxy counted {capture}"
        self.show.print(f"{run['recorded']:,} exchanges recorded, all that there were")

    async def _holds(self, what: str, check: Callable[[], object]) -> None:
        try:
            await asyncio.to_thread(check)
        except Exception as error:
            self.broken.append(f"{what}: {type(error).__name__}: {error}")


@asynccontextmanager
async def started(folder: Path, show: Console) -> AsyncIterator[Soak]:
    """A sidecar with its upstream; what must hold at the end is looked at on the way out."""
    upstream = Upstream()
    await upstream.start()
    sidecar = Sidecar(folder, upstream.port, timeouts=_TIMEOUTS)
    try:
        await asyncio.to_thread(sidecar.start)
        soak = Soak(sidecar, upstream, show)
        before = await asyncio.to_thread(Baseline.of, sidecar)
        yield soak
        await soak.ended(before)
    finally:
        sidecar.kill()
        upstream.stop()


def plot(samples: list[Sample], out: Path, show: Console) -> None:
    out.mkdir(parents=True, exist_ok=True)
    write(samples, out / "soak.csv")
    show.print(f"samples: {out / 'soak.csv'}")
    if picture(samples, out / "soak.png"):
        show.print(f"plot: {out / 'soak.png'}")
        return
    for name in ("proxy", "recorder"):
        sizes = [getattr(sample, f"{name}_bytes") / MIB for sample in samples]
        show.print(f"{name}, resident MiB\n{drawn(sizes)}", markup=False)


@click.command()
@click.option("--minutes", default=30.0, show_default=True, help="Of the mixed load.")
@click.option("--only", type=click.Choice(["mixed", "big"]), help="One of the two.")
@click.option("--clients", default=32, show_default=True, type=click.IntRange(min=1))
@click.option("--rate", default=100.0, show_default=True, help="Calls a second, of all clients.")
@click.option("--seed", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path, file_okay=False),
              help="Where soak.csv and soak.png go.  [default: a new folder]")  # fmt: skip
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
              help="Where it writes, 100 MB a minute.  [default: the largest disk]")  # fmt: skip
def main(only: str | None, out: Path | None, folder: Path | None, **load: float) -> None:
    """Relay a mixed load (calls, streams, transfers, WebSocket sessions, clients and upstreams
    that go away, requests that are none), and a gibibyte each way.

    Exit code 1 if anything grew, leaked, was lost, or came out other than it should.
    """
    show = Console(width=120)
    out = out or Path(tempfile.mkdtemp(prefix="soak-"))
    with tempfile.TemporaryDirectory(prefix="soak-", dir=folder or biggest_disk()) as scratch:
        broken = uvloop.run(run(only, Path(scratch) / "sidecar", out, show, load))
    for line, count in Counter(broken).most_common(_SHOWN):
        show.print(f"BROKEN  {line} ({count} times)", markup=False)
    show.print(f"{len(broken)} things broke" if broken else "all held")
    sys.exit(bool(broken))


async def run(
    only: str | None, folder: Path, out: Path, show: Console, options: dict[str, float]
) -> list[str]:
    async with started(folder, show) as soak:
        if only != "mixed":
            await soak.big()
        if only != "big":
            load = Load(
                soak.sidecar.address,
                clients=int(options["clients"]),
                rate=options["rate"],
                seed=int(options["seed"]),
            )
            await soak.mixed(load, options["minutes"])
            plot(soak.samples, out, show)
    return soak.broken


if __name__ == "__main__":
    main()
