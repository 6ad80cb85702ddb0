"""`understudy spool`: what waits to be recorded, what was kept, what was lost. `understudy
import-spool`: the spool of another machine into this record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.table import Table

from bin.home_policy import policy_of
from bin.options import policy_option
from bin.sidecar_at import Running, running
from bin.supervisor import StartError
from policies.config import ConfigError
from policies.home import Home
from policies.metrics import total
from policies.policy import Policy
from proxy.metrics import read_samples
from store import queries
from store.spool_state import RunState, states

_LIVE: Final = ("exchanges", "not_recorded", "bodies_cut", "records_dropped", "write_errors")
_MOST_RUNS: Final = 1_000_000
_MOST_FOLDERS: Final = 500  # of which one look asks what came of them


def add_spool(group: click.Group, home: Callable[[Any], Any]) -> None:
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object.")
    folder = click.Path(path_type=Path, exists=True, file_okay=False)
    folders = click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=folder)
    group.add_command(click.command("spool")(home(as_json(spool))))
    group.add_command(click.command("import-spool")(home(policy_option(folders(import_spool)))))


def spool(home: Path, as_json: bool) -> None:
    """What waits to be recorded, and what was kept and lost."""
    if not home.is_dir():
        raise click.ClickException(f"--home {home}: no such folder; has 'understudy serve' run?")
    found = _look(Home(home, home))
    if as_json:
        click.echo(orjson.dumps(_as_json(found), option=orjson.OPT_INDENT_2))
    else:
        _show(found)


@dataclass(frozen=True, slots=True)
class _Spool:
    """`live`: what the running proxies count, None where none run. `kept`, `lost`, `torn`: of all
    runs: rows, exchanges without one, bytes."""

    running: bool
    runs: list[RunState]
    live: dict[str, int] | None
    kept: int
    lost: int
    torn: int
    incidents: int

    @property
    def waits(self) -> float | None:
        """The lag: how long the first of what is unread has waited."""
        return max((run.waits for run in self.runs if run.waits is not None), default=None)


def _look(home: Home) -> _Spool:
    sidecar = running(home)
    recorded = queries.runs(home.database, limit=_MOST_RUNS)
    return _Spool(
        sidecar is not None,
        states(home.spool, home.database),
        None if sidecar is None else _live(sidecar),
        sum(run.recorded for run in recorded),
        sum(run.lost for run in recorded),
        sum(run.torn_bytes for run in recorded),
        len(queries.incidents(home.database, limit=_MOST_RUNS)),
    )


def _live(sidecar: Running) -> dict[str, int] | None:
    found = read_samples(sidecar.run_dir)
    return {name: total(found, name) for name in _LIVE} if found else None


def _as_json(found: _Spool) -> dict[str, Any]:
    return {
        "running": found.running,
        "lag_seconds": found.waits,
        "unread_bytes": sum(run.unread for run in found.runs),
        "bytes": sum(run.bytes for run in found.runs),
        "segments": sum(run.segments for run in found.runs),
        "runs": [asdict(run) for run in found.runs],
        "this_run": found.live,
        "recorded": found.kept,
        "lost": found.lost,
        "torn_bytes": found.torn,
        "incidents": found.incidents,
    }


def _show(found: _Spool) -> None:
    unread = sum(run.unread for run in found.runs)
    state = "running" if found.running else "not running"
    waits = "" if found.waits is None else f", since {found.waits:.1f} s"
    behind = f"{_bytes(unread)} to be read{waits}" if unread else "all is read"
    click.echo(f"{state}; {behind}")
    if found.runs:
        console = Console(width=None if sys.stdout.isatty() else 160)
        console.print(_table(found.runs))
    if found.live is not None:
        live = found.live
        click.echo(
            f"this run: {live['exchanges']:,} exchanges, {live['not_recorded']:,} kept out by "
            f"privacy, {live['bodies_cut']:,} bodies cut, {live['records_dropped']:,} records "
            f"dropped, {live['write_errors']:,} write errors"
        )
    click.echo(
        f"recorded: {found.kept:,} exchanges; lost: {found.lost:,} without a row, "
        f"{found.torn:,} torn bytes; incidents: {found.incidents:,}"
    )


def _table(runs: list[RunState]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("run", "state", "segments", "size", "unread", "since", "open"):
        table.add_column(column, no_wrap=column == "run")
    for run in runs:
        table.add_row(
            run.name,
            "over" if run.over else "written",
            f"{run.segments:,}",
            _bytes(run.bytes),
            _bytes(run.unread),
            "-" if run.waits is None else f"{run.waits:.1f} s",
            f"{run.open:,}",
        )
    return table


def _bytes(size: int) -> str:
    if size < 1 << 10:
        return f"{size} B"
    return f"{size / (1 << 20):.1f} MiB" if size >= 1 << 20 else f"{size / (1 << 10):.1f} KiB"


def import_spool(home: Path, folders: tuple[Path, ...], policy: Path | None) -> None:
    """Record what other machines have spooled: copies of their runs' folders, or of spools."""
    from bin.recorder_at_work import Stopped, recorder_at_work
    from store.foreign_spool import Refused

    try:
        held = policy_of(home, policy)
        with recorder_at_work(home, held) as reading:
            _bring_all(Home(home.resolve(), home), folders, held, reading)
    except (ConfigError, StartError, Stopped, Refused) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None


def _bring_all(home: Home, folders: tuple[Path, ...], policy: Policy, reading: Any) -> None:
    from bin.recorder_at_work import wait_until_read
    from store import foreign_spool
    from store.import_run import end_staging, newest, recorded

    found = [run for folder in folders for run in foreign_spool.find(folder, home)]
    before = newest(home.database)
    brought = []
    try:
        for run in found:
            one = foreign_spool.bring(run, home, policy)
            brought.append(one)
            wait_until_read(reading, [home.spool / one.name])
    finally:
        end_staging(home)
    new = sum(recorded(home.database, before, one.name) for one in brought if not one.before)
    exchanges = sum(one.exchanges for one in brought)
    names = [one.name for one in brought if not one.before]
    torn = sum(
        foreign_spool.torn(home.database, names[at : at + _MOST_FOLDERS])
        for at in range(0, len(names), _MOST_FOLDERS)
    )
    for one in brought:
        what = "brought before" if one.before else f"{one.exchanges:,} exchanges, {one.name}"
        click.echo(f"{one.folder}: {what}")
    click.echo(
        f"{new:,} new, {max(0, exchanges - new):,} already there, "
        f"{sum(one.kept_out for one in brought):,} kept out by privacy, "
        f"{len(brought) - len(names):,} folders brought before, {torn:,} torn bytes left out"
    )
