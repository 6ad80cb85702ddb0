"""`python -m tests.bench`: one table of what relaying and recording cost, against nginx."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.table import Table

from tests.bench import chaos, interception, open_streams, recording, sections, storing, workers
from tests.bench.figures import Row, single
from tests.bench.machine import Missing, Neighbours, biggest_disk, needs_disk
from tests.bench.sections import Bench

SECTIONS: Final[dict[str, Callable[[Bench], list[Row]]]] = {
    "requests": sections.requests,
    "streams": sections.streams,
    "latency": sections.latency,
    "tls": sections.tls,
    "interception": interception.interception,
    "shadow": sections.shadow,
    "workers": workers.workers,
    "saturation": recording.saturation,
    "pairs": recording.pairs,
    "many-streams": open_streams.many_streams,
    "store": storing.store,
    "growth": storing.growth,
    "chaos": chaos.chaos,
}
_LEAST_FREE: Final = 6 << 30  # what a section of rounds may write, and room for `warm_memory`

_MOST_NEIGHBOURS: Final = 10.0  # percent of the machine


def _chosen(_context: click.Context, _option: click.Parameter, value: str | None) -> list[str]:
    names = list(SECTIONS) if value is None else [name.strip() for name in value.split(",")]
    for name in names:
        if name not in SECTIONS:
            raise click.BadParameter(f"{name!r}: choose from {', '.join(SECTIONS)}")
    return names


@click.command()
@click.option("--only", callback=_chosen, metavar="A,B", help=f"Of: {', '.join(SECTIONS)}.")
@click.option("--rounds", default=9, type=click.IntRange(min=1), show_default=True)
@click.option("--seconds", default=2, type=click.IntRange(min=1), show_default=True,
              help="Of each round.")  # fmt: skip
@click.option("--pairs-seconds", default=60.0, show_default=True)
@click.option("--pairs-rate", default=2000.0, show_default=True, help="Requests a second.")
@click.option("--saturation-seconds", default=60.0, show_default=True)
@click.option("--many-streams", default=2000, show_default=True, help="Streams open at once.")
@click.option("--growth", default=100_000, show_default=True,
              type=click.IntRange(min=1000), help="Exchanges in the largest record.")  # fmt: skip
@click.option("--level-seconds", default=900.0, show_default=True,
              help="Longest wait for the recorder.")  # fmt: skip
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True),
              help="Where to write.  [default: the disk with the most room]")  # fmt: skip
@click.option("--json", "file", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the rows there, too.")  # fmt: skip
def main(only: list[str], folder: Path | None, file: Path | None, **options: float) -> None:
    """Print what the proxy costs, as ratios to nginx within this run.

    Exit code 0 unless a section failed to run; then the others are printed all the same.
    """
    place = folder or biggest_disk()
    failed: dict[str, str] = {}
    found: list[Row] = []
    for section in only:
        try:
            found += _run(section, place, options)
        except Missing as missing:
            failed[section] = f"needs {missing}"
        except Exception as error:  # one that can't run must not cost the others' figures
            traceback.print_exc()
            notes = getattr(error, "__notes__", [])
            failed[section] = "; ".join([f"{type(error).__name__}: {error}", *notes])
    _show(found, failed)
    if file is not None:
        file.write_text(json.dumps(_document(found, failed, options), indent=1) + "\n")
    sys.exit(bool(failed))


def _run(section: str, place: Path, options: dict[str, float]) -> list[Row]:
    needs_disk(place, _LEAST_FREE)
    with tempfile.TemporaryDirectory(prefix="understudy-bench-", dir=place) as folder:
        progress = _progress(section)
        free = shutil.disk_usage(place).free
        progress(f"in {folder}, {free / 1e9:.0f} GB free")
        bench = Bench(folder=Path(folder), progress=progress, **options)  # type: ignore[arg-type]
        neighbours = Neighbours()
        try:
            found = SECTIONS[section](bench)
        except Exception as error:
            error.add_note(f"others used {neighbours.percent():.0f} % of the machine meanwhile")
            raise
        share = neighbours.percent()
    note = "TOO BUSY: measure again" if share > _MOST_NEIGHBOURS else ""
    return [*found, single(section, "used by others %", "machine", share, note)]


def _progress(section: str) -> Callable[[str], None]:
    return lambda text: click.echo(f"{section}: {text}", err=True)


def _document(found: list[Row], failed: dict[str, str], options: dict[str, float]) -> object:
    machine = {"cores": os.cpu_count(), "system": platform.platform(),
               "python": platform.python_version()}  # fmt: skip
    rows = [asdict(row) for row in found]
    return {"machine": machine, "options": options, "rows": rows, "failed": failed}


def _show(found: list[Row], failed: dict[str, str]) -> None:
    table = Table("what", "system", "unit")
    for title in ("median", "min", "max", "to nginx"):
        table.add_column(title, justify="right")
    table.add_column("")
    last = ""
    for row in found:
        topic = row.what.partition(":")[0]
        if last not in ("", topic):
            table.add_section()
        last = topic
        ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
        figures = (_short(row.median), _short(row.low), _short(row.high), ratio)
        table.add_row(row.what, row.system, row.unit, *figures, row.note)
    Console(width=144).print(table)
    for section, why in failed.items():
        click.echo(f"{section} failed: {why}", err=True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.2f}"


if __name__ == "__main__":
    main()
