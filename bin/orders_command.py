"""Commands that change the record: forget, retention, feedback.

The recorder writes, if it runs. If not, the command holds the home folder's lock meanwhile and
writes itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from bin import receipt
from bin.options import policy_option
from policies import feedback as words
from policies.home import Home
from policies.words import Feedback

if TYPE_CHECKING:
    from store.desk import Json

# What writes the record takes a third of a second to load: only those commands wait for it.


def add_orders(group: click.Group, home: Callable[[Any], Any]) -> None:
    """Each takes the group's own --home option."""
    for name, command in (
        ("forget", _forget_options(forget)),
        (
            "retention",
            click.option("--dry-run", is_flag=True, help="Say what would go.")(retention),
        ),
        ("feedback", _feedback_options(feedback)),
    ):
        chosen = policy_option(command, "; a running sidecar has its own")
        group.add_command(click.command(name)(home(chosen)))


def _forget_options(command: Callable[..., None]) -> Callable[..., None]:
    for name, about in (
        ("id", "One exchange: our id, the answer's, or its x-request-id."),
        ("user", "All that was asked for this user."),
        ("tenant", "All of this tenant's."),
    ):
        option = click.option(f"--{name}", f"of_{name}", metavar=name.upper(), help=about)
        command = option(command)
    return click.option("--yes", is_flag=True, help="Don't ask.")(command)


def _feedback_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--source", help="Who says so.")(command)
    command = click.option(
        "--correction", metavar="TEXT", help="What the answer should have been; @FILE reads it."
    )(command)
    command = click.option("--label", help="A word, such as good or bad.")(command)
    command = click.option("--score", type=float, help="From 0 (bad) to 1 (good).")(command)
    return click.argument("exchange", metavar="ID")(command)


def forget(
    home: Path,
    policy: Path | None,
    of_tenant: str | None,
    of_user: str | None,
    of_id: str | None,
    yes: bool,
) -> None:
    """Remove what was said from every file of the home folder. Counts and costs stay."""
    asked: list[tuple[Literal["tenant", "user", "id"], str | None]] = [
        ("tenant", of_tenant), ("user", of_user), ("id", of_id)
    ]  # fmt: skip
    given = [(by, value) for by, value in asked if value is not None]
    if len(given) != 1:
        raise click.UsageError("name one of --tenant, --user and --id")
    by, value = given[0]
    from bin.record_writer import record_writer
    from store.target import Forget

    with record_writer(home, policy) as writer:
        if not yes:
            _confirm(by, writer.order(Forget(by, value, dry=True)))
        removed = writer.order(Forget(by, value))
    traces = removed.pop("traces")
    found = receipt.search(home, traces, value.strip())
    path = receipt.write(Home(home, home).receipts, writer.key(), (by, value), removed, found)
    click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in removed.items()))
    click.echo(f"receipt: {path}")
    for left in found.name_in:
        if left not in found.found_in:
            click.echo(f"{left}: the name itself still occurs there, in what others said")
    if found.found_in:
        raise click.ClickException(
            f"not all is gone: {', '.join(found.found_in)}; delete what was set aside, and give "
            "the command again"
        )


def _confirm(by: str, counted: Json) -> None:
    click.echo(f"{counted['exchanges']} exchanges of this {by}: texts and files go, counts stay")
    if counted["related"]:
        click.echo(f"{counted['related']} others of its conversation may repeat it, and stay")
    click.confirm("forget them for good?", abort=True)


def retention(home: Path, policy: Path | None, dry_run: bool) -> None:
    """Remove now what the policy does not want kept any longer."""
    from bin.record_writer import record_writer
    from store.retention import Retain

    with record_writer(home, policy) as writer:
        found = writer.order(Retain(dry_run))
    used = _size(found["used_bytes"])
    if not dry_run:
        click.echo(f"removed: {found['bodies']} bodies, {found['rows']} rows; in use: {used}")
        return
    click.echo(f"too old: {found['bodies']} bodies ({_size(found['body_bytes'])} as sent)")
    click.echo(f"too old: {found['rows']} rows, with all that hangs on them")
    click.echo(
        f"too much: {_size(found['over_bytes'])} of {used}, about {found['over_bodies']} bodies"
    )


def _size(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def feedback(
    home: Path,
    policy: Path | None,
    exchange: str,
    score: float | None,
    label: str | None,
    correction: str | None,
    source: str | None,
) -> None:
    """Say how good an answer was. ID: ours or its beginning, the answer's id, its x-request-id."""
    try:
        if correction is not None and correction.startswith("@"):
            correction = Path(correction[1:]).read_text()
        given = {"id": exchange, "score": score, "label": label, "correction": correction}
        said = words.read(given | {"source": source})
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    from bin.record_writer import record_writer

    with record_writer(home, policy) as writer:
        writer.write(
            Feedback(said.id, time.time(), said.score, said.label, said.correction, said.source)
        )
    click.echo("noted")
