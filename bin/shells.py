"""Variables as a shell sets them, quoted so that each value arrives as it is."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from typing import Final, Literal

Shell = Literal["sh", "fish", "powershell", "docker"]


class ShellError(ValueError):
    """A value that this shell has no way to write; the text says which."""


def exports(shell: Shell, variables: Mapping[str, str]) -> str:
    """One assignment a line, values with line breaks aside. Raises ShellError."""
    return "".join(_LINES[shell](name, value) + "\n" for name, value in variables.items())


def _sh(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _fish(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"set -gx {name} '{escaped}'"


def _powershell(name: str, value: str) -> str:
    # To PowerShell, typographic quotes are quotes.
    for quote in "'\u2018\u2019\u201a\u201b":
        value = value.replace(quote, quote * 2)
    return f"$env:{name} = '{value}'"


def _docker(name: str, value: str) -> str:
    """`docker run --env-file` takes the rest of the line as it is, and knows no quotes."""
    if "\n" in value or "\r" in value:
        raise ShellError(f"{name}: holds a line break, which no --env-file can")
    return f"{name}={value}"


_LINES: Final[Mapping[Shell, Callable[[str, str], str]]] = {
    "sh": _sh,
    "fish": _fish,
    "powershell": _powershell,
    "docker": _docker,
}
