"""Commands that bring an app and the sidecar together: `run` for one command, `env` for a shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click

from bin.run_app import NOT_EXECUTABLE, NOT_FOUND, App
from bin.run_report import Counts, Ran, conclusion
from bin.run_sidecar import SidecarError, Used, Wish, engage
from bin.run_trust import TrustError, trust_of
from bin.shells import Shell, ShellError, exports
from bin.sidecar_at import METRICS, ask, connectable, install_key, look_at, running
from bin.surroundings import Asked, Way, bypasses, choose, variables, wanted_upstream
from policies.home import Home
from policies.policy import build
from policies.setting import PolicyError
from proxy.metrics import read_samples

_SETTLE_TRIES: Final = 10
_SETTLE_SECONDS: Final = 0.05
_SLOT_SECONDS: Final = 0.3  # a worker that was not asked writes its counts four times a second


class HostPort(click.ParamType[tuple[str, int]]):
    name = "HOST:PORT"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        host, colon, port = str(value).rpartition(":")
        if not colon or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r}: must be HOST:PORT, e.g. 127.0.0.1:4141", param, ctx)
        return host.strip("[]") or "127.0.0.1", int(port)


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
        click.option("--policy", type=click.Path(path_type=Path, dir_okay=False, exists=True),
                     help="YAML file, as for serve."),
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
        try:
            upstream = build({"upstream": upstream}).upstream
        except PolicyError as error:
            raise PolicyError("--upstream", upstream, error.hint) from None
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
    _ended: bool = field(default=False, init=False)

    def run(self) -> int:
        try:
            way = choose(self.mode, os.environ, self.used.address, self.used.running.upstream)
            surroundings = self._surroundings(way)
            return self._play(way, surroundings)
        except TrustError as error:
            _say(str(error))
            return 2
        except KeyboardInterrupt:  # before or after the command: while it runs that is its own
            return 130
        finally:
            with suppress(KeyboardInterrupt):
                self.used.leave()

    def _surroundings(self, way: Way) -> dict[str, str]:
        for line in self._notes(way):
            _say(line)
        trust = trust_of(self.used.home, os.environ) if way.mode == "proxy" else None
        return variables(way, self.used.address, trust, os.environ)

    def _notes(self, way: Way) -> list[str]:
        """What a person may not expect."""
        found = [way.why] if way.why else []
        if self.used.started and self.wish.behind and way.mode == "base-url":
            found.append(f"OPENAI_BASE_URL was set: relaying to {self.used.running.upstream}")
        if self.wish.policy is not None and not self.used.started:
            found.append(f"--policy {self.wish.policy}: not read, the sidecar runs already")
        if self._bypassed(way):
            found.append(f"NO_PROXY leads calls to {self.used.running.upstream} past the sidecar")
        return found

    def _bypassed(self, way: Way) -> bool:
        return way.mode == "proxy" and bypasses(os.environ, self.used.running.upstream)

    def _play(self, way: Way, surroundings: Mapping[str, str]) -> int:
        before = self._count(settle=False)
        app = App(self.command, os.environ | surroundings)
        try:
            app.start()
        except OSError as error:
            _say(f"{self.command[0]}: {error.strerror}")
            return NOT_EXECUTABLE
        self.used.watch(self._sidecar_ended)
        code = app.wait()
        with suppress(KeyboardInterrupt):  # by one who has no time to wait
            self._conclude(way, before)
        return code

    def _conclude(self, way: Way, before: Counts) -> None:
        counts = self._count(settle=True).since(before)
        ran = Ran(
            self.command,
            way.mode,
            self.used.capturing,
            self.used.shared,
            self._ended,
            self._bypassed(way),
        )
        _say(conclusion(ran, counts))
        self.used.leave()

    def _sidecar_ended(self) -> None:
        """The command is left alone: a call of it fails at once, and it may have other work."""
        self._ended = True
        _say(
            f"the sidecar at {self.used.address} has ended (see "
            f"{self.used.home.root / 'serve.log'}); calls to it are refused from now on. "
            f"To go on without it: {shlex.join(self.command)}"
        )

    def _count(self, *, settle: bool) -> Counts:
        """What is on its way into the counts when the command ends is waited for, shortly."""
        last = self._counted()
        for _ in range(_SETTLE_TRIES if settle else 0):
            time.sleep(_SETTLE_SECONDS)
            now = self._counted()
            if now == last:
                break
            last = now
        return last

    def _counted(self) -> Counts:
        run_dir = self.used.running.run_dir
        if not self._ended:
            with suppress(OSError):
                ask(self.used.address, METRICS)  # the worker that answers writes its counts first
        if len(samples := read_samples(run_dir)) > 1:
            time.sleep(_SLOT_SECONDS)
            samples = read_samples(run_dir)
        return Counts.of(samples)


def env(home: Path, mode: Asked, shell: Shell, address: tuple[str, int] | None) -> None:
    """Print the variables that `run` sets, for a shell: eval "$(understudy env)".

    Only of a sidecar that runs, unless --address says where it will be.
    """
    try:
        found = _variables(Home(home.resolve(), Path("/")), mode, shell, address)
        click.echo(exports(shell, found), nl=False)
    except (SidecarError, TrustError, ShellError) as error:
        _say(str(error))
        sys.exit(2)


def _variables(
    home: Home, mode: Asked, shell: Shell, asked: tuple[str, int] | None
) -> dict[str, str]:
    # A container has variables of its own; ours mean nothing there.
    environment: Mapping[str, str] = {} if shell == "docker" else os.environ
    named = running(home)
    upstream = named.upstream if named else ""
    if asked is not None:
        address = f"[{asked[0]}]:{asked[1]}" if ":" in asked[0] else f"{asked[0]}:{asked[1]}"
    elif named is None or not look_at(connectable(named.data), install_key(home)).serving:
        raise SidecarError(
            f"--home {home.root}: no sidecar runs there; start it with 'understudy serve', or say "
            "with --address where it will be"
        )
    else:
        address = connectable(named.data)
    way = choose(mode, environment, address, upstream)
    if way.why:
        _say(way.why)
    if way.mode == "base-url":
        return variables(way, address, None, environment)
    trust = trust_of(home, environment)
    if shell == "docker":
        files = ", ".join(str(path) for path in (trust.root, trust.bundle, trust.java) if path)
        _say(f"the container needs, read-only and under the same paths: {files}")
    return variables(way, address, trust, environment)


def _say(line: str) -> None:
    click.echo(f"understudy: {line}", err=True)
