"""`understudy ca`: the certificate authority that apps must trust to be intercepted."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from bin.home_policy import policy_of
from bin.options import policy_option
from policies.config import ConfigError
from policies.home import Home
from proxy import authority
from proxy.authority import ROOT, AuthorityError
from proxy.bundle import bundle
from proxy.leaves import Issuer


def add_authority(group: click.Group, home_option: Callable[[Any], Any]) -> None:
    """Adds `ca`. Each command takes the group's own --home option."""
    ca = click.Group("ca", help="The certificate authority for intercepted hosts.")
    for name, command in (
        ("show", show),
        ("path", _path_options(path)),
        ("renew", policy_option(renew)),
        ("remove", remove),
    ):
        ca.add_command(click.command(name)(home_option(command)))
    group.add_command(ca)


def _path_options(command: Callable[..., None]) -> Callable[..., None]:
    command = click.option("--root", "what", flag_value="root", help="Our root alone, e.g. for "
                           "NODE_EXTRA_CA_CERTS.")(command)  # fmt: skip
    return click.option("--bundle", "what", flag_value="bundle", default="bundle",
                        help="The system's roots and ours, e.g. for SSL_CERT_FILE.  "
                        "[default]")(command)  # fmt: skip


def show(home: Path) -> None:
    """What it signs for, until when, its fingerprint and where it is."""
    folder = _folder(home)
    with _explained():
        found = authority.read(folder)
        _print(folder, found)


def path(home: Path, what: str) -> None:
    """Print a path and nothing else: SSL_CERT_FILE=$(understudy ca path)"""
    folder = _folder(home)
    with _explained():
        authority.read(folder)
        click.echo(bundle(folder) if what == "bundle" else folder / ROOT)


def renew(home: Path, policy: Path | None) -> None:
    """Make a new authority for the policy's domains; the old one ends with it."""
    folder = _folder(home)
    with _explained():
        settings = policy_of(home, policy)
        authority.renew(folder, settings.forward.intercept)
        click.echo("a new authority; whatever trusted the one before must now trust this one")
        _print(folder, authority.read(folder))
    click.echo("restart apps with")
    click.echo(f"  SSL_CERT_FILE={shlex.quote(str(folder / 'bundle.pem'))}    Python, Go, curl")
    click.echo(f"  NODE_EXTRA_CA_CERTS={shlex.quote(str(folder / ROOT))}    Node")
    click.echo(
        f"and where {ROOT} was put into a store (of the system, of Java, of an image), take the "
        "old one out and put this one in. A running sidecar takes it over by itself, unless its "
        "policy intercepts other domains: then restart it."
    )


def remove(home: Path) -> None:
    """Delete it. Stores that it was put into keep its root until you take it out."""
    folder = _folder(home)
    with _explained():
        removed = authority.remove(folder)
    click.echo(
        "removed; a running sidecar still has it: restart that, too"
        if removed
        else f"nothing to remove in {folder}"
    )


def _print(folder: Path, found: Issuer) -> None:
    pairs = (found.fingerprint[i : i + 2].upper() for i in range(0, 64, 2))
    domains = ", ".join(sorted(found.domains))
    click.echo(f"  signs for    {domains}, and what is below")
    click.echo(f"  valid        {_time(found.begins)} to {_time(found.expires)}{_stale(found)}")
    click.echo(f"  fingerprint  {':'.join(pairs)}  (SHA-256)")
    click.echo(f"  root         {folder / ROOT}")
    try:
        click.echo(f"  bundle       {bundle(folder)}")
    except AuthorityError as error:
        click.echo(f"  bundle       none: {error}")


def _stale(found: Issuer) -> str:
    now = datetime.now(UTC).timestamp()
    return "" if found.begins <= now < found.expires else "  NOT VALID NOW"


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _folder(home: Path) -> Path:
    home = home.resolve()
    return Home(home, home).authority


@contextmanager
def _explained() -> Iterator[None]:
    """What can't be done is said in one line, without a traceback."""
    try:
        yield
    except (AuthorityError, ConfigError) as error:
        raise click.ClickException(str(error)) from None
