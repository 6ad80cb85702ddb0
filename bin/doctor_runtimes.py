"""Which runtimes are here, in which version and with which libraries; and whose a command is."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import orjson

_SECONDS: Final = 10.0
_FIRST_BYTES: Final = 64 * 1024
_GO_MARK: Final = b"Go build ID:"
_LIBRARIES: Final = ("openai", "requests", "httpx", "aiohttp")
_PYTHON: Final = f"""
import json, sys
from importlib import metadata, util
found = {{}}
for name in {_LIBRARIES!r}:
    try:
        if util.find_spec(name):
            found[name] = metadata.version(name)
    except Exception:
        pass
print(json.dumps({{"version": ".".join(map(str, sys.version_info[:3])), "prefix": sys.prefix,
                  "libraries": found}}))
"""
_NODE: Final = """
const libraries = {};
try { require.resolve('openai'); libraries.openai = require('openai/package.json').version; }
catch (error) { if (error.code !== 'MODULE_NOT_FOUND') libraries.openai = '?'; }
const [version, prefix] = [process.versions.node, process.execPath];
console.log(JSON.stringify({ version, prefix, libraries }));
"""
_ASKED: Final[Mapping[str, tuple[str, ...]]] = {
    "python": ("-c", _PYTHON),
    "node": ("-e", _NODE),
    "curl": ("--version",),
    "wget": ("--version",),
    "go": ("version",),
    "java": ("-version",),
}
_NAMES: Final[Mapping[str, str]] = {
    r"python[\d.]*|pypy[\d.]*": "python",
    r"node|nodejs": "node",
    r"java": "java",
    r"curl": "curl",
    r"wget": "wget",
    r"go": "go",
}
_STARTED_BY: Final[Mapping[str, str]] = {
    r"mvn|mvnw|gradle|gradlew|kotlin|scala|sbt": "java",
}
# Each has a page, and no canary.
_UNTRIED: Final[Mapping[str, str]] = {
    r"ruby[\d.]*|bundle|rails|rake": "ruby",
    r"php[\d.]*|composer": "php",
    r"perl[\d.]*": "perl",
    r"bun|bunx": "bun",
    r"deno": "deno",
    r"docker|podman": "docker",
}
# These start a Python of their own, and can be asked to start that alone.
_PYTHON_STARTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "uv": ("run", "--no-sync", "python"),  # nothing is to be installed by looking
    "poetry": ("run", "python"),
    "pdm": ("run", "python"),
    "hatch": ("run", "python"),
    "pipenv": ("run", "python"),
}


@dataclass(frozen=True, slots=True)
class Found:
    """`command` starts it; `prefix` tells one installation from another."""

    kind: str
    command: tuple[str, ...]
    version: tuple[int, ...] = ()
    prefix: str = ""
    libraries: Mapping[str, str] = field(default_factory=dict)

    @property
    def shown_version(self) -> str:
        return ".".join(map(str, self.version))


Say = Callable[[Sequence[str]], str]


def said(command: Sequence[str]) -> str:
    """What a program prints; empty if it fails."""
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS,
            errors="replace",
        )  # fmt: skip
        if done.returncode == 0:
            return done.stdout or done.stderr
    return ""


def runtimes_here(environment: Mapping[str, str], say: Say = said) -> Iterator[Found]:
    """One of each kind, as PATH has it; of Python the one that has the SDK, if any has."""
    path = environment.get("PATH")
    pythons = [_inspected("python", (at,), say) for at in _pythons(environment)]
    known = {found.prefix: found for found in reversed(pythons) if found}
    best = sorted(known.values(), key=lambda found: "openai" not in found.libraries)
    yield from best[:1]
    for kind in ("node", "curl", "wget", "go", "java"):
        at = shutil.which(kind, path=path)
        found = _inspected(kind, (at,), say) if at else None
        if found:
            yield found


def untried_here(environment: Mapping[str, str]) -> list[str]:
    """Runtimes on PATH that are only explained."""
    path = environment.get("PATH")
    kinds = (kind for kind in _UNTRIED.values() if kind != "docker")
    return [kind for kind in kinds if shutil.which(kind, path=path)]


def untried_of(word: str) -> str:
    """What a command is run by, where that is only explained; else empty."""
    name = Path(word).name.lower()
    return next((kind for names, kind in _UNTRIED.items() if re.fullmatch(names, name)), "")


def _pythons(environment: Mapping[str, str]) -> Iterator[str]:
    if venv := environment.get("VIRTUAL_ENV"):
        yield str(Path(venv) / "bin" / "python")
    for name in ("python", "python3"):
        if at := shutil.which(name, path=environment.get("PATH")):
            yield at


def _inspected(kind: str, command: tuple[str, ...], say: Say) -> Found | None:
    text = say((*command, *_ASKED[kind])).strip()
    if not text:
        return None
    if kind not in ("python", "node"):
        match = re.search(r"\d+(\.\d+)+|(?<=version \")\d+", _without_notes(text))
        return Found(kind, command, _version(match[0] if match else ""))
    try:
        told = orjson.loads(text.splitlines()[-1])
        return Found(kind, command, _version(told["version"]), told["prefix"], told["libraries"])
    except (ValueError, KeyError, TypeError):
        return None


def _without_notes(text: str) -> str:
    """Java first says which options it was given by variables, and those hold numbers, too."""
    return "\n".join(line for line in text.splitlines() if "Picked up " not in line)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def runtime_of(
    command: Sequence[str], environment: Mapping[str, str], say: Say = said
) -> Found | None:
    """The runtime that a command is run by: by its first word, through shims and shebangs."""
    path = environment.get("PATH")
    at = shutil.which(command[0], path=path)
    if at is None:
        return None
    starter = _PYTHON_STARTERS.get(Path(at).name)
    if starter and "run" in command[1:2]:
        return _inspected("python", (at, *starter), say)
    for _ in range(4):  # a script's script's interpreter
        kind = _kind(at)
        if kind is not None:
            program = at if _is_interpreter(at) else shutil.which(kind, path=path)
            return _inspected(kind, (program or kind,), say)
        following = _interpreter(Path(at), path, say)
        if following is None or following == at:
            return None
        at = following
    return None


def _kind(at: str) -> str | None:
    name = Path(at).name.lower()
    for names, kind in {**_NAMES, **_STARTED_BY}.items():
        if re.fullmatch(names, name):
            return kind
    with suppress(OSError), open(at, "rb") as file:
        if _GO_MARK in file.read(_FIRST_BYTES):
            return "go"
    return None


def _is_interpreter(at: str) -> bool:
    return any(re.fullmatch(names, Path(at).name.lower()) for names in _NAMES)


def _interpreter(script: Path, path: str | None, say: Say) -> str | None:
    """Of a script, by its first line; behind a shim of pyenv, what that stands for."""
    with suppress(OSError), script.open("rb") as file:
        text = file.read(4096).decode("latin-1")
        if not text.startswith("#!"):
            return None
        if shim := re.search(r'exec "?([^"\s]*pyenv)"? exec', text):
            return say((shim[1], "which", script.name)).strip() or None
        # Where the path is too long for a first line, pip puts it into the second.
        long = re.match(r"#!/bin/sh\n'''exec' \"?([^\"\n]+?)\"? \"\$0\"", text)
        words = [long[1]] if long else text[2:].split("\n")[0].split()
        if words and os.path.basename(words[0]) == "env":
            words = [word for word in words[1:] if not word.startswith("-") and "=" not in word]
        return shutil.which(words[0], path=path) if words else None
    return None
