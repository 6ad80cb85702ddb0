"""`understudy search`: what was said, found by its words."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.text import Text

from bin.look import database_of
from store.hits import MARKS, BadQuery, Hit, Hits, find, quoted

_MARKED: Final = re.compile(f"{MARKS[0]}(.*?){MARKS[1]}", re.DOTALL)


def add_search(group: click.Group, home_option: Callable[[Any], Any]) -> None:
    """Adds `search`, with the group's own --home option."""
    command = click.argument("words", nargs=-1, required=True)(search)
    command = click.option("--limit", type=click.IntRange(1, 1000), default=10, show_default=True,
                           help="The newest so many.")(command)  # fmt: skip
    command = click.option("--raw", is_flag=True, help='WORDS are FTS5: "a phrase", begin*, '
                           "a OR b, a NOT b, NEAR(a b), answer: a.")(command)  # fmt: skip
    group.add_command(click.command("search")(home_option(command)))


def search(home: Path, words: tuple[str, ...], limit: int, raw: bool) -> None:
    """Find calls by the words of their prompts and answers; the newest first."""
    asked = " ".join(words)
    try:
        hits = find(database_of(home), asked if raw else quoted(asked), limit)
    except BadQuery as error:
        hint = "words are taken as they are without --raw" if raw else "give it a word"
        raise click.ClickException(f"can't search for {asked!r}: {error}; {hint}") from None
    console = Console(highlight=False)
    for hit in hits.found:
        _print(console, hit)
    if not hits.found:
        click.echo("nothing found")
    _say_what_is_missing(hits)


def _print(console: Console, hit: Hit) -> None:
    head = Text(f"{hit.id}  {hit.started_at}  {hit.model or '-'}", style="bold")
    console.print(head, soft_wrap=True)
    for label, snippet in (("prompt", hit.prompt), ("answer", hit.answer)):
        if snippet:
            console.print(Text.assemble(f"  {label}  ", *_marked(snippet)), soft_wrap=True)


def _marked(snippet: str) -> list[str | tuple[str, str]]:
    """What matched in bold; it stays between its marks where there is no colour."""
    pieces: list[str | tuple[str, str]] = []
    for index, piece in enumerate(_MARKED.split(" ".join(snippet.split()))):
        pieces.append((f"{MARKS[0]}{piece}{MARKS[1]}", "bold green") if index % 2 else piece)
    return pieces


def _say_what_is_missing(hits: Hits) -> None:
    if hits.unindexed is None:
        click.echo("the search index is empty: it is off (record: search), or was never begun",
                   err=True)  # fmt: skip
    elif hits.unindexed:
        click.echo(f"the search index is up to {hits.unindexed} calls behind", err=True)
