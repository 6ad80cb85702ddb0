"""The command line as a whole."""

from __future__ import annotations

import click
from click.testing import CliRunner

from bin.cli import main


def test_every_command_that_is_listed_is_there_and_says_what_it_does() -> None:
    context = click.Context(main)
    names = main.list_commands(context)
    listed = CliRunner().invoke(main, ["--help"]).output
    for name in names:
        command = main.get_command(context, name)
        assert command is not None, name
        assert command.name == name
        assert f"\n  {name} " in listed
    assert set(main.commands) == set(names)  # whatever a module adds is listed


def test_what_is_no_command_is_refused() -> None:
    result = CliRunner().invoke(main, ["serv"])
    assert result.exit_code == 2
    assert "No such command 'serv'" in result.output
