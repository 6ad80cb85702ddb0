"""Commands that bring an app and the sidecar together: `run` for one command, see `env_command`."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bin.env_command import env
from bin.options import HostPort, PolicyFile, doubled, upstream_of
from bin.run_app import NOT_EXECUTABLE, NOT_FOUND, App
from bin.run_counts import Counters
from bin.run_report import Counts, Ran, conclusion
from bin.run_sidecar import SidecarError, Used, Wish, engage
from bin.run_trust import TrustError, trust_of
from bin.surroundings import (
    Asked,
    Way,
    WayError,
    bypasses,
    choose,
    same_api,
    variables,
    wanted_upstream,
)
from policies.setting import PolicyError


def add_run(group: click.Group, home: Callable[[Any], Any]) -> None:
    """`run` and `env`, with the group's own --home option."""
    settings = {"ignore_unknown_options": True, "allow_interspersed_args": False}
    mode = click.option(
        "--mode",
        type=click.Choice(["auto", "base-url", "proxy"]),
        default="auto",
        show_default=True,
        help="base-url: OPENAI_BASE_URL. proxy: HTTPS_PROXY and certificates, for apps with an "
        "address in their code. auto: base-url, unless the app is pointed at another API.",
    )
    group.add_command(click.command("run", context_settings=settings)(home(mode(_of_run(run)))))
    group.add_command(click.command("env")(home(mode(_of_env(env)))))


def _of_run(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED),
        click.option("--upstream", metavar="URL", help="API to relay to, as for serve."),
        click.option("--policy", type=PolicyFile(exists=True), help="YAML file, as for serve.  "
                     "[default: the one that this home's sidecar was last started with]"),
        click.option("--listen", type=HostPort(), help="Data port.  [default: where this home's "
                     "sidecar is, else 127.0.0.1:4141]"),
    ):  # fmt: skip
        command = option(command)
    return command


def _of_env(command: Callable[..., None]) -> Callable[..., None]:
    for option in (
        click.option("--address", type=HostPort(), help="Where the app finds the sidecar, e.g. "
                     "host.docker.internal:4141; taken as it is.  [default: where it runs]"),
        click.option("--shell", type=click.Choice(["sh", "fish", "powershell", "docker"]),
                     default="sh", show_default=True, help="docker: for --env-file."),
    ):  # fmt: skip
        command = option(command)
    return command


def run(
    home: Path,
    mode: Asked,
    listen: tuple[str, int] | None,
    policy: Path | None,
    upstream: str | None,
    command: tuple[str, ...],
) -> None:
    """Run COMMAND with its calls going through the sidecar of this home.

    A sidecar that runs already is used; otherwise one is started, and stopped when no `run` uses
    it any more. COMMAND gets the signals, and its exit code is passed on.
    """
    found = shutil.which(command[0])
    if found is None:
        there = Path(command[0]).exists() and os.sep in command[0]
        _say(f"{command[0]}: {'is not executable' if there else 'no such command'}")
        sys.exit(NOT_EXECUTABLE if there else NOT_FOUND)
    try:
        wish = _wish(mode, listen, policy, upstream)
        used = engage(home, wish)
    except (SidecarError, PolicyError) as error:
        _say(str(error))
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(_Run(command, used, mode, wish).run())


def _wish(
    mode: Asked, listen: tuple[str, int] | None, policy: Path | None, upstream: str | None
) -> Wish:
    if upstream is not None:
        upstream = upstream_of(upstream)
    host, port = listen or ("127.0.0.1", 4141)
    behind = None
    if upstream is None and policy is None:
        behind = wanted_upstream(mode, os.environ, f"{host}:{port}")
    return Wish(listen, upstream, policy and policy.resolve(), behind)


@dataclass(slots=True)
class _Run:
    command: Sequence[str]
    used: Used
    mode: Asked
    wish: Wish

    def run(self) -> int:
        try:
            way = self._way()
            surroundings = self._surroundings(way)
            return self._play(way, surroundings)
        except (WayError, TrustError) as error:
            _say(str(error))
            return 2
        except KeyboardInterrupt:  # before or after the command: while it runs that is its own
            return 130
        finally:
            with suppress(KeyboardInterrupt):
                self.used.leave()

    def _way(self) -> Way:
        used = self.used
        upstream = used.running.upstream
        return choose(self.mode, os.environ, used.address, upstream, used.no_proxy)

    def _surroundings(self, way: Way) -> dict[str, str]:
        for line in self._notes(way):
            _say(line)
        trust = trust_of(self.used.home, os.environ) if way.mode == "proxy" else None
        return variables(way, self.used.address, trust, os.environ)

    def _notes(self, way: Way) -> list[str]:
        """What a person may not expect."""
        found = [way.why] if way.why else []
        upstream, behind = self.used.running.upstream, self.wish.behind
        if self.used.started and behind and way.mode == "base-url" and same_api(behind, upstream):
            found.append(f"OPENAI_BASE_URL was set: relaying to {upstream}")
        if way.mode == "base-url" and (twice := doubled(upstream, way.base_path)):
            found.append(twice)
        if self.wish.policy is not None and not self.used.started:
            found.append(f"--policy {self.wish.policy}: not read, the sidecar runs already")
        if self._bypassed(way):
            found.append(f"NO_PROXY leads calls to {upstream} past the sidecar")
        return found

    def _bypassed(self, way: Way) -> bool:
        return way.mode == "proxy" and bypasses(os.environ, self.used.running.upstream)

    def _play(self, way: Way, surroundings: Mapping[str, str]) -> int:
        counters = Counters(self.used.running.run_dir, self.used.address)
        before = counters.now() or Counts()
        app = App(self.command, os.environ | surroundings)
        try:
            app.start()
        except OSError as error:
            _say(f"{self.command[0]}: {error.strerror}")
            return NOT_EXECUTABLE
        counters.keep()
        self.used.watch(lambda: self._sidecar_ended(counters))
        code = app.wait()
        with suppress(KeyboardInterrupt):  # by one who has no time to wait
            self._conclude(way, counters, before)
        return code

    def _conclude(self, way: Way, counters: Counters, before: Counts) -> None:
        after = counters.now(settle=True)
        counts = None if after is None else after.since(before)
        ran = Ran(
            self.command,
            way.mode,
            self.used.capturing,
            self.used.shared,
            counters.ended,
            self._bypassed(way),
        )
        _say(conclusion(ran, counts))
        self.used.leave()

    def _sidecar_ended(self, counters: Counters) -> None:
        """The command is left alone: a call of it fails at once, and it may have other work."""
        counters.ended = True
        _say(
            f"the sidecar at {self.used.address} has ended (see "
            f"{self.used.home.root / 'serve.log'}); calls to it are refused from now on. "
            f"To go on without it: {shlex.join(self.command)}"
        )


def _say(line: str) -> None:
    click.echo(f"understudy: {line}", err=True)
