"""`understudy import`: what other tools have logged, into the record."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from bin.home_policy import policy_of
from bin.options import policy_option
from bin.supervisor import StartError
from policies.config import ConfigError

if TYPE_CHECKING:
    from bin.importing import Result

FORMATS: Final = ("openai-chat", "openai-stored", "litellm", "langfuse", "helicone", "openpipe")
_AUTO: Final = "auto"
_MOST_SHOWN: Final = 20


def add_import(group: click.Group, home: Callable[[Any], Any]) -> None:
    names = click.Choice([_AUTO, *FORMATS])
    command: Any = import_
    for option in (
        click.option("--format", "format_", type=names, default=_AUTO, show_default=True,
                     help="auto: as the first records look."),
        policy_option,
        click.option("--host", metavar="NAME", help="API that was called, where the files don't "
                     "say; without one there is no cost."),
        click.option("--strict", is_flag=True, help="Exit 1 if any record can't be used."),
        click.argument("files", nargs=-1, required=True,
                       type=click.Path(path_type=Path, exists=True)),
    ):  # fmt: skip
        command = option(command)
    group.add_command(click.command("import")(home(command)))


def import_(
    home: Path,
    files: tuple[Path, ...],
    format_: str,
    policy: Path | None,
    host: str | None,
    strict: bool,
) -> None:
    """Take in logs of other tools: OpenAI's fine-tuning files and stored completions, LiteLLM,
    Langfuse, Helicone, OpenPipe. JSON or JSON lines, gzip or not; a folder stands for its files."""
    from bin.importing import UnknownFormat, run_import
    from bin.recorder_at_work import Stopped

    try:
        held = policy_of(home, policy)
        result = run_import(home, files, None if format_ == _AUTO else format_, held, host)
    except (ConfigError, StartError, Stopped, UnknownFormat) as error:
        raise click.ClickException(str(error)) from None
    except OSError as error:
        raise click.ClickException(f"{error.filename}: {error.strerror}") from None
    _report(result)
    used = result.tally.taken + result.tally.kept_out
    sys.exit(1 if not used or (strict and result.tally.unusable) else 0)


def _report(result: Result) -> None:
    tally = result.tally
    for line in result.shown:
        click.echo(line, err=True)
    if tally.unusable > len(result.shown):
        click.echo(f"... and {tally.unusable - len(result.shown):,} more", err=True)
    rate = tally.read / result.seconds if result.seconds else 0.0
    click.echo(
        f"{result.format}: {tally.read:,} records in {result.files:,} files, "
        f"{result.seconds:.1f} s, {rate:,.0f} a second"
    )
    click.echo(
        f"  {result.new:,} new, {max(0, tally.taken - result.new):,} already there, "
        f"{tally.kept_out:,} kept out by privacy, {sum(tally.others.values()):,} passed over, "
        f"{tally.unusable:,} unusable"
    )
    for why, count in tally.others.most_common(_MOST_SHOWN):
        click.echo(f"  passed over: {count:,} {why}")
    if tally.timeless:
        click.echo(f"  {tally.timeless:,} have no time of their own: they carry their file's")
    if tally.unpriced:
        click.echo(f"  {tally.unpriced:,} have no cost: nobody says which API it was (--host)")
