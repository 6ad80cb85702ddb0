"""Commands that look: status, exchanges, show, rollout, export. They only read."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.table import Table

from bin.expiry import expiring
from policies.home import Home
from policies.metrics import Sample, total
from proxy.metrics import read_samples
from store import queries
from store.export import export_openai_chat
from store.overview import ModelUse, Unknown, overview

_RECENT_DAYS: Final = 30
_console = Console(width=None if sys.stdout.isatty() else 160)


def add_commands(group: click.Group, home: Callable[[Any], Any]) -> None:
    """Each takes the group's own --home option."""
    task = click.option("--task", help="A task's id, or its beginning.")
    for command in (
        click.command("status")(home(status)),
        click.command("exchanges")(
            home(task(click.option("--limit", default=20, show_default=True)(exchanges)))
        ),
        click.command("show")(home(click.argument("exchange_id", metavar="ID")(show))),
        click.command("rollout")(home(rollout)),
        click.command("export")(home(task(_export_options(export)))),
    ):
        group.add_command(command)


def _export_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option(
        "--out", type=click.Path(path_type=Path, dir_okay=False), required=True, help="File."
    )(command)
    return click.option(
        "--format", "_format", type=click.Choice(["openai-chat"]), default="openai-chat"
    )(command)


def status(home: Path) -> None:
    """What runs, what was captured, what is served locally."""
    state = _state(home)
    if state is None:
        click.echo(f"not running (home {home})")
    else:
        click.echo(f"running: http://{state['data']} -> {state['upstream']}")
        _print_health(state["data"])
        _print_workers(read_samples(Path(state["run_dir"])))
        processes = ", ".join(f"{name} {pid}" for name, pid in state["processes"].items())
        click.echo(f"processes: {processes}")
    if soon := expiring(Home(home, home).authority):
        click.echo(soon)
    if (home / "kill").exists():
        click.echo("KILLED: everything goes upstream; take it back with: understudy resume")
    database = _database(home, required=False)
    if database is None:
        click.echo("nothing captured yet")
        return
    table = _table("outcome", "served by", "exchanges")
    for count in queries.counts(database):
        table.add_row(count.outcome, count.served_by or "-", str(count.exchanges))
    _console.print(table)
    _print_tasks(database)
    _print_overview(database)
    _print_losses(database)


def _print_health(address: str) -> None:
    try:
        with urllib.request.urlopen(f"http://{address}/_understudy/health", timeout=2) as answer:
            health = orjson.loads(answer.read())
    except (OSError, urllib.error.URLError, orjson.JSONDecodeError) as error:
        click.echo(f"the proxy does not answer: {error}")
        return
    if health["capture"] is None:
        click.echo("capture is off")
    for name, breaker in health["breakers"].items():
        click.echo(f"breaker of {name}: {breaker}")


def _print_workers(found: list[Sample]) -> None:
    """What all proxy workers have counted since the sidecar started, and how each one is."""
    if not found:
        return
    counts = {name: total(found, name) for name in found[0].values}
    click.echo(
        f"this run: {counts['requests']} requests, {counts['refused']} refused, "
        f"{counts['diverted']} diverted, {counts['fallbacks']} fell back; "
        f"capture: {counts['exchanges']} exchanges, {counts['not_recorded']} kept out by privacy, "
        f"{counts['bodies_cut']} bodies cut, "
        f"{counts['records_dropped']} records dropped, {counts['write_errors']} write errors"
    )
    for one in found if len(found) > 1 else []:
        memory = one.values["resident_memory_bytes"] / (1 << 20)
        state = f"{one.values['clients']} clients, {memory:.0f} MiB" if one.up else "not running"
        click.echo(f"worker {one.worker}: {one.values['requests']} requests, {state}")


def _print_tasks(database: Path) -> None:
    table = _table("task", "model", "exchanges", "diverted", "agreement", "system prompt")
    for task in queries.tasks(database):
        table.add_row(
            task.id[:12],
            task.model or "-",
            str(task.exchanges),
            str(task.diverted),
            "; ".join(_agreement(found) for found in task.agreement) or "-",
            (task.system_prompt or "-")[:60],
        )
    _console.print(table)


def _agreement(found: queries.Agreement) -> str:
    judged = found.matched + found.mismatched
    share = "-" if not judged else f"{found.matched / judged:.1%}"
    return f"{found.candidate} {share} of {judged}"


def _print_overview(database: Path) -> None:
    """Money, limits and the index; days are UTC's, as those of the record are."""
    since = datetime.now(UTC) - timedelta(days=_RECENT_DAYS - 1)
    found = overview(database, f"{since:%Y-%m-%d}")
    if found is None or not found.calls:
        return
    table = _table(f"{_RECENT_DAYS} days", "calls", "input", "cached", "output", "USD", "no cost")
    for one in found.models:
        table.add_row(*_model_row(one))
    _console.print(table)
    click.echo(f"cost so far: {_usd(found.usd)} of {found.calls} calls")
    _print_unknown("cost", found.cost)
    _print_unknown("usage", found.usage)
    click.echo(
        f"limits: {found.limited} calls got 429 ({found.hours_lost:.2f} hours lost), "
        f"{found.retries} were retries"
    )
    if found.unindexed is None:
        click.echo("search: the index is off, or was never begun")
    elif found.unindexed:
        click.echo(f"search: up to {found.unindexed} calls are not in the index yet")


def _model_row(one: ModelUse) -> tuple[str, ...]:
    return (
        one.model or "-",
        str(one.calls),
        "-" if one.input_tokens is None else str(one.input_tokens),
        "-" if one.cached is None else f"{one.cached:.1%}",
        "-" if one.output_tokens is None else str(one.output_tokens),
        _usd(one.usd),
        str(one.calls_without_cost or "-"),
    )


def _usd(value: float | None) -> str:
    return "-" if value is None else f"${value:,.4f}"


def _print_unknown(what: str, found: Unknown) -> None:
    if found.calls:
        reasons = "; ".join(f"{reason} ({calls})" for reason, calls in found.reasons)
        click.echo(f"no {what}: {found.calls} calls: {reasons}")


def _print_losses(database: Path) -> None:
    runs = queries.runs(database, limit=1000)
    lost = sum(run.lost for run in runs)
    torn = sum(run.torn_bytes for run in runs)
    if lost or torn:
        click.echo(f"lost: {lost} exchanges without a row, {torn} bytes of torn records")
    for incident in queries.incidents(database, limit=5):
        click.echo(f"incident {incident.at}: {incident.kind}: {incident.detail}")


def exchanges(home: Path, limit: int, task: str | None) -> None:
    """The newest exchanges."""
    database = database_of(home)
    table = _table("id", "started", "endpoint", "model", "status", "outcome", "served by", "ms")
    with _explained():
        for line in queries.newest(database, limit, task):
            table.add_row(
                line.id,
                line.started_at,
                line.endpoint,
                line.model or "-",
                str(line.status or "-"),
                line.outcome,
                line.served_by or "-",
                "-" if line.latency_ms is None else f"{line.latency_ms:.0f}",
            )
    _console.print(table)


def show(home: Path, exchange_id: str) -> None:
    """One exchange in full, as JSON. ID may be shortened to a unique beginning."""
    with _explained():
        detail = asdict(queries.exchange(database_of(home), exchange_id))
    for side in ("request", "response"):
        if detail[side] is not None:
            detail[side] = orjson.Fragment(detail[side])
    click.echo(orjson.dumps(detail, option=orjson.OPT_INDENT_2))


def rollout(home: Path) -> None:
    """Where each task stands with each candidate, and why."""
    found = queries.rollouts(database_of(home))
    if not found:
        click.echo("no rollouts yet: nothing has been compared")
    for line in found:
        click.echo(f"{line.task_id[:12]}  {line.candidate}  {line.phase}  {line.percent:g} %")
        for entry in line.log:
            at = datetime.fromtimestamp(entry.at, UTC).isoformat(timespec="seconds")
            click.echo(f"    {at}  {entry.phase}  {entry.percent:g} %  {entry.why}")


def export(home: Path, task: str | None, out: Path, _format: str) -> None:
    """Clean teacher pairs as JSONL: no errors, no truncation, no diverted answers."""
    with _explained():
        written = export_openai_chat(database_of(home), out, task)
    click.echo(f"{written} pairs in {out}")


class _explained:
    """A look-up that finds nothing, or too much, is the user's to mend: one line, no traceback."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, queries.NotFound | OSError):
            raise click.ClickException(str(error)) from None


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column in ("id", "task"))
    return table


def _state(home: Path) -> dict[str, Any] | None:
    try:
        state: dict[str, Any] = orjson.loads(Home(home, home).state.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    return state if Path(f"/proc/{state['pid']}").exists() else None


def database_of(home: Path) -> Path:
    """The record below `home`; an error for the user where there is none yet."""
    database = _database(home, required=True)
    assert database is not None
    return database


def _database(home: Path, *, required: bool) -> Path | None:
    database = Home(home, home).database
    if database.exists():
        return database
    if required:
        raise click.ClickException(f"--home {home}: nothing captured there yet")
    return None
