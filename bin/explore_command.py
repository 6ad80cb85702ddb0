"""`understudy explore`: the record in a browser, by Datasette where it is installed."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import orjson

from bin.look import database_of
from store.database import private
from store.datasette import metadata

_PORT: Final = 4143  # next to the data and the admin port
_LOOPBACK: Final = "127.0.0.1"
_ROOT: Final = {"id": "root"}  # who has opened the address that --root prints
_METADATA: Final = "datasette.json"
_SETTINGS: Final = {
    "sql_time_limit_ms": "5000",  # 1,000 is little for a million exchanges on a slow disk
    "suggest_facets": "off",  # each suggestion is a scan
    "truncate_cells_html": "400",
    "allow_download": "off",
}


def add_explore(group: click.Group, home_option: Callable[[Any], Any]) -> None:
    """Adds `explore`, with the group's own --home option."""
    command = click.option("--port", type=click.IntRange(0, 65535), default=_PORT,
                           show_default=True, help="On 127.0.0.1; 0: any.")(explore)  # fmt: skip
    command = click.option("--open", "browser", is_flag=True, help="Open a browser.")(command)
    group.add_command(click.command("explore")(home_option(command)))


def explore(home: Path, port: int, browser: bool) -> None:
    """Look at the record in a browser. Read-only; ends with Ctrl-C.

    The address that is printed lets in who opens it, once: other users of this machine, and web
    pages that guess the port, see nothing.
    """
    database = database_of(home)
    if importlib.util.find_spec("datasette") is None:
        raise click.ClickException(
            "Datasette is missing; install it with: pip install 'understudy[explore]'"
        )
    described = home / _METADATA
    private(described)
    described.write_bytes(orjson.dumps(metadata(_ROOT), option=orjson.OPT_INDENT_2))
    sys.stdout.flush()
    os.execv(sys.executable, arguments(database, described, port, browser))


def arguments(database: Path, described: Path, port: int, browser: bool) -> list[str]:
    """Datasette's command line. It opens what it is not told to be immutable with mode=ro."""
    given = [sys.executable, "-m", "datasette", "serve", str(database.absolute())]
    given += ["--host", _LOOPBACK, "--port", str(port), "--metadata", str(described.absolute())]
    for name, value in _SETTINGS.items():
        given += ["--setting", name, value]
    return [*given, "--root", *(["--open"] if browser else [])]
