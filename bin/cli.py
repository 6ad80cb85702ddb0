"""The command line: `understudy serve` and everything that looks at or steers what it does."""

from __future__ import annotations

import asyncio
import importlib
import importlib.metadata
import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from typing import Final

import click

from bin import unfailing
from bin.extras import install
from bin.home_policy import left_behind
from bin.options import HostPort, PolicyFile, doubled, upstream_of
from bin.sidecar_at import connectable
from bin.supervisor import Addresses, StartError, Supervisor, open_home
from policies.config import ConfigError, load
from policies.policy import Policy
from policies.setting import PolicyError

_DEFAULT_HOME: Final = "./understudy-data"
_home = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    default=_DEFAULT_HOME,
    show_default=True,
    envvar="UNDERSTUDY_HOME",
    help="Folder of the database, the spool and the plan.",
)
# The rest, by the module and the function of it that adds them.
_ELSEWHERE: Final = {
    name: place
    for place, names in {
        ("bin.look", "add_commands"): "status exchanges show rollout export",
        ("bin.authority_command", "add_authority"): "ca",
        ("bin.doctor", "add_doctor"): "doctor",
        ("bin.explore_command", "add_explore"): "explore",
        ("bin.orders_command", "add_orders"): "forget retention feedback",
        ("bin.import_command", "add_import"): "import",
        ("bin.run_command", "add_run"): "run env",
        ("bin.search_command", "add_search"): "search",
        ("bin.spool_command", "add_spool"): "spool import-spool",
    }.items()
    for name in names.split()
}


class _Commands(click.Group):
    """Imports what a command needs when it is asked for: all of it takes twice as long."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*self.commands, *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE and cmd_name not in self.commands:
            module, adds = _ELSEWHERE[cmd_name]
            getattr(importlib.import_module(module), adds)(self, _home)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("understudy"), prog_name="understudy")
def main() -> None:
    """A sidecar between an app and the OpenAI API that lets a local model learn the part."""


@main.command()
@_home
@click.option("--listen", type=HostPort(), default="127.0.0.1:4141", show_default=True,
              help="Data port: what OPENAI_BASE_URL points at.")  # fmt: skip
@click.option("--admin", type=HostPort(), default="127.0.0.1:4142", show_default=True,
              help="Admin site.")  # fmt: skip
@click.option("--upstream", metavar="URL", help="API to relay to.  [default: the policy's, else "
              "https://api.openai.com]")  # fmt: skip
@click.option("--policy", type=PolicyFile(), help="YAML file.")
@click.option("--workers", type=click.IntRange(1, 64), help="Proxy processes.  [default: the "
              "policy's, else 1]")  # fmt: skip
@click.option("--no-capture", is_flag=True, help="Relay only; record nothing.")
def serve(
    home: Path,
    listen: tuple[str, int],
    admin: tuple[str, int],
    upstream: str | None,
    policy: Path | None,
    workers: int | None,
    no_capture: bool,
) -> None:
    """Run the sidecar until SIGTERM."""
    try:
        settings = _policy(policy, upstream, workers, no_capture)
        root, _lock = open_home(home)
        left = left_behind(root) if policy is None else None
        supervisor = Supervisor(settings, root, Addresses(listen, admin), policy)
        supervisor.open()
    except (ConfigError, PolicyError, StartError) as error:
        click.echo(f"understudy: {error}", err=True)
        sys.exit(2)
    _announce(supervisor)
    if left is not None:
        before = f"the last start of this home went by {left}"
        click.echo(f"understudy: {before}; this one goes by the defaults", err=True)
    unfailing.install()
    asyncio.run(supervisor.run())


def _policy(
    path: Path | None, upstream: str | None, workers: int | None, no_capture: bool
) -> Policy:
    policy = Policy() if path is None else load(path)
    if upstream is not None:
        policy = replace(policy, upstream=upstream_of(upstream))
    if workers is not None:
        policy = replace(policy, workers=workers)
    if no_capture:
        policy = replace(policy, capture=replace(policy.capture, enabled=False))
    return policy


def _announce(supervisor: Supervisor) -> None:
    data, admin = supervisor.shown_addresses()
    click.echo(f"understudy {importlib.metadata.version('understudy')}")
    here = connectable(data)
    elsewhere = "" if here == data else "    (from elsewhere: by an address of this machine)"
    click.echo(f"  relaying  http://{data} -> {supervisor.policy.upstream}")
    click.echo(f"  app       OPENAI_BASE_URL=http://{here}/v1{elsewhere}")
    click.echo(f"  admin     http://{connectable(admin)}/?token={supervisor.admin_token}")
    click.echo(f"  home      {supervisor.root}")
    if supervisor.policy.candidates and importlib.util.find_spec("llama_cpp") is None:
        missing = "llama-cpp-python is missing; install it with"
        click.echo(f"  candidates are disabled: {missing}: {install('local')}")
    sys.stdout.flush()
    if twice := doubled(supervisor.policy.upstream):
        click.echo(f"understudy: {twice}", err=True)


@main.command()
@_home
def kill(home: Path) -> None:
    """Send everything upstream, within a second, whatever else hangs."""
    _existing(home)
    (home / "kill").touch(mode=0o600)
    click.echo("everything goes upstream until: understudy resume")


@main.command()
@_home
def resume(home: Path) -> None:
    """Take back `kill`."""
    _existing(home)
    (home / "kill").unlink(missing_ok=True)
    click.echo("the plan is followed again")


@main.command()
@click.option("--seconds", type=click.FloatRange(min=30), default=120.0, show_default=True,
              help="Longest run.")  # fmt: skip
@click.option("--home", type=click.Path(path_type=Path, file_okay=False),
              help="Folder to keep the demo's data in.  [default: a new one]")  # fmt: skip
@click.option("--plain", is_flag=True, help="Lines instead of a live table.")
def demo(seconds: float, home: Path | None, plain: bool) -> None:
    """The whole loop in two minutes, without a key or a download."""
    for package, extra in (("openai", "demo"), ("llama_cpp", "local")):
        if importlib.util.find_spec(package) is None:
            click.echo(f"understudy: demo needs {package}: {install(extra)}", err=True)
            sys.exit(2)
    from bin.show import run_demo

    sys.exit(run_demo(seconds, home, plain))


@main.command("verify-wire")
@click.option("--through", metavar="URL", help="A running sidecar.  [default: a private one]")
@click.option("--upstream", metavar="URL", help="The API behind it, asked with OPENAI_API_KEY.  "
              "[default: one of our own]")  # fmt: skip
@click.option("--spend", is_flag=True, help="With --upstream: send what costs money, too.")
@click.option("--requests", type=click.Path(path_type=Path, dir_okay=False),
              help="Send these instead: one JSON object a line.")  # fmt: skip
@click.option("--record", type=click.Path(path_type=Path, dir_okay=False),
              help="Write the shipped requests to this file, and end.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of tables.")
def verify_wire(
    through: str | None,
    upstream: str | None,
    spend: bool,
    requests: Path | None,
    record: Path | None,
    as_json: bool,
) -> None:
    """Prove that the sidecar changes nothing: exit 0 if so, 1 if there is a difference."""
    from bin.wire_command import WireOptions, run_verify_wire

    options = WireOptions(through, upstream, spend, requests, record, as_json)
    sys.exit(run_verify_wire(options))


def _existing(home: Path) -> None:
    if not home.is_dir():
        raise click.ClickException(f"--home {home}: no such folder; has 'understudy serve' run?")


if __name__ == "__main__":
    main()
