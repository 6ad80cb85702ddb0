"""`understudy doctor`: is an app's way to the API whole, and do this machine's runtimes take it?"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import click
import orjson

from bin.doctor_checks import chain
from bin.doctor_observed import Finding, observe
from bin.doctor_trial import try_runtimes
from bin.explained import PAGES, page
from bin.options import PolicyFile
from policies.config import ConfigError, load

_MARKS: Final = {True: "ok", False: "WRONG", None: "-"}
_LIST: Final = "?"


def add_doctor(group: click.Group, home_option: Callable[[Any], Any]) -> None:
    """`doctor`, with the group's own --home option."""
    settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    group.add_command(
        click.command("doctor", context_settings=settings)(home_option(_options(doctor)))
    )


def _options(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.argument("command", nargs=-1, type=click.UNPROCESSED),
        click.option("--policy", type=PolicyFile(), help="YAML file, as for serve."),
        click.option("--explain", metavar="RUNTIME", is_flag=False, flag_value=_LIST,
                     help="How a runtime gets to the sidecar; alone, lists them."),
        click.option("--json", "as_json", is_flag=True, help="One JSON object instead of lines."),
    ):  # fmt: skip
        command = option(command)
    return command


def doctor(
    home: Path, as_json: bool, explain: str | None, policy: Path | None, command: tuple[str, ...]
) -> None:
    """Look at each link from an app to the API, and try this machine's runtimes.

    Each that is found sends one request through the sidecar, without a key; with -- COMMAND only
    the runtime of that command. Exit 1 when something is wrong, 0 else.
    """
    if explain is not None:
        sys.exit(_explain(explain))
    try:
        seen = observe(home, None if policy is None else load(policy))
    except ConfigError as error:
        raise click.ClickException(str(error)) from None
    report = _Report(as_json)
    report.take("chain", chain(seen))
    report.take("runtimes", try_runtimes(seen, command))
    sys.exit(report.end(home))


class _Report:
    """Lines as they come, since runtimes take their time; or all of it at the end, as JSON."""

    def __init__(self, as_json: bool) -> None:
        self._as_json = as_json
        self._parts: dict[str, list[Finding]] = {}

    def take(self, part: str, findings: Iterable[Finding]) -> None:
        kept = self._parts.setdefault(part, [])
        for finding in findings:
            kept.append(finding)
            if not self._as_json:
                if part == "runtimes" and len(kept) == 1:
                    click.echo("")
                click.echo(rendered(finding))

    def end(self, home: Path) -> int:
        wrong = sum(finding.ok is False for kept in self._parts.values() for finding in kept)
        if self._as_json:
            lists = {part: [asdict(one) for one in kept] for part, kept in self._parts.items()}
            whole = {"ok": not wrong, "home": str(home.resolve()), **lists}
            click.echo(orjson.dumps(whole, option=orjson.OPT_INDENT_2))
        else:
            click.echo("")
            click.echo(conclusion(wrong))
        return 1 if wrong else 0


def rendered(finding: Finding) -> str:
    """One line, and a second with what to do."""
    line = f"{_MARKS[finding.ok]:>5}  {finding.name}: {finding.said}"
    return f"{line}\n       -> {finding.cure}" if finding.cure else line


def conclusion(wrong: int) -> str:
    if not wrong:
        return "nothing is wrong"
    return "1 thing is wrong" if wrong == 1 else f"{wrong} things are wrong"


def _explain(name: str) -> int:
    if name == _LIST:
        click.echo(_listed(tuple(PAGES)))
        return 0
    found = page(name)
    if found is None:
        click.echo(f"understudy: --explain {name}: no such page; there are:", err=True)
        click.echo(_listed(tuple(PAGES)), err=True)
        return 2
    click.echo(found)
    return 0


def _listed(names: Sequence[str]) -> str:
    return "\n".join(f"  {name:10} {PAGES[name].title}" for name in names)
