"""`understudy env`: the variables that `run` sets, for a shell or a container."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click

from bin.options import doubled
from bin.run_sidecar import SidecarError
from bin.run_trust import TrustError, trust_of
from bin.shells import Shell, ShellError, exports
from bin.sidecar_at import Running, Seen, connectable, install_key, look_at, running
from bin.surroundings import Asked, Trust, WayError, choose, variables
from policies.home import Home
from policies.listeners import address_of

_START_SECONDS: Final = 5.0
_LOOK_SECONDS: Final = 0.1


def env(home: Path, mode: Asked, shell: Shell, address: tuple[str, int] | None) -> None:
    """Print the variables that `run` sets, for a shell: eval "$(understudy env)".

    Only of a sidecar that runs, unless --address says where it will be; one that is starting is
    waited for, for a few seconds.
    """
    try:
        found = _variables(Home(home.resolve(), Path("/")), mode, shell, address)
        click.echo(exports(shell, found), nl=False)
    except (SidecarError, WayError, TrustError, ShellError) as error:
        _say(str(error))
        sys.exit(2)


def _variables(
    home: Home, mode: Asked, shell: Shell, asked: tuple[str, int] | None
) -> dict[str, str]:
    # A container has variables of its own; ours mean nothing there.
    environment: Mapping[str, str] = {} if shell == "docker" else os.environ
    named: Running | None
    if asked is None:
        named, seen = awaited(home)
        address = connectable(named.data)
    else:
        named, seen = _seen(home)
        address = f"[{asked[0]}]:{asked[1]}" if ":" in asked[0] else f"{asked[0]}:{asked[1]}"
    upstream = named.upstream if named else ""
    way = choose(mode, environment, address, upstream, seen.no_proxy)
    notes = [way.why, doubled(upstream, way.base_path) if way.mode == "base-url" else ""]
    if shell == "docker" and asked is None and _is_loopback(address):
        notes.append(
            f"inside a container {address} is the container itself, unless it has this machine's "
            "network: say with --address where it finds the sidecar, e.g. host.docker.internal:4141"
        )
    trust = trust_of(home, environment) if way.mode == "proxy" else None
    if shell == "docker" and trust is not None:
        notes += _mounts(trust)
    for note in filter(None, notes):
        _say(note)
    return variables(way, address, trust, environment)


def awaited(home: Home, seconds: float = _START_SECONDS) -> tuple[Running, Seen]:
    """The home's sidecar, once it answers; it may be starting just now. Raises SidecarError."""
    deadline = time.monotonic() + seconds
    while True:
        named, seen = _seen(home)
        if named is not None and seen.serving:
            return named, seen
        if time.monotonic() > deadline:
            raise SidecarError(_absent(home, named, seen, seconds))
        time.sleep(_LOOK_SECONDS)


def _seen(home: Home) -> tuple[Running | None, Seen]:
    named = running(home)
    if named is None:
        return None, Seen("nobody")
    return named, look_at(connectable(named.data), install_key(home))


def _absent(home: Home, named: Running | None, seen: Seen, seconds: float) -> str:
    if named is None:
        return (
            f"--home {home.root}: no sidecar runs there, and none came within {seconds:g} s; start "
            "it with 'understudy serve', or say with --address where it will be"
        )
    what = "is stopping" if seen.who == "ours" else "does not answer"
    return (
        f"--home {home.root}: its sidecar (process {named.pid}, {named.data}) {what}; ask "
        "'understudy doctor', or say with --address where one will be"
    )


def _mounts(trust: Trust) -> list[str]:
    paths = (trust.root, trust.bundle, trust.java, trust.wgetrc, *trust.joined.values())
    files = ", ".join(str(path) for path in paths if path)
    return [
        f"the container needs these files, read-only and under the same paths: {files}",
        "they are 0600: run the container as their owner (--user), or mount copies that its user "
        "may read (chmod 644). Not the folder, which holds the authority's key",
    ]


def _is_loopback(address: str) -> bool:
    found = address_of(address.rpartition(":")[0])
    return found is not None and found.is_loopback


def _say(line: str) -> None:
    click.echo(f"understudy: {line}", err=True)
