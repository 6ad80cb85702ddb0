"""Who writes for a command: the recorder of the sidecar that runs, or we ourselves.

Without a sidecar the command holds the home folder's lock meanwhile, and none starts.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import click

from bin.home_policy import policy_of
from bin.sidecar_at import running
from bin.supervisor import StartError, open_home, secret_file
from policies.config import ConfigError
from policies.home import Home
from policies.setting import PolicyError
from policies.words import Feedback, UnknownExchange, WriteUnfit
from store import orders, writes
from store.database import DatabaseError
from store.desk import Json
from store.recorder import alone, carry_out
from store.recording import Recording
from store.schema import NewerSchema
from store.writes import OrderError

_PRIVATE: Final = 0o077
_FAULTS: Final = (
    OrderError, UnknownExchange, WriteUnfit, NewerSchema, DatabaseError, OSError, ConfigError,
    PolicyError, StartError,
)  # fmt: skip


class Writer:
    """Through the recorder's socket, or, without one, by hand."""

    def __init__(self, home: Home, recording: Callable[[], Recording], runs: bool) -> None:
        self._home, self._recording, self._runs = home, recording, runs

    def order(self, order: orders.Order) -> Json:
        if self._runs:
            return orders.ask(self._home.recorder_socket, orders.dump(order), _report)
        return alone(self._home, self._recording(), lambda to: carry_out(to, order, _report))

    def write(self, said: Feedback) -> None:
        if self._runs:
            orders.ask(self._home.recorder_socket, writes.dump([said]), _report)
        else:
            alone(self._home, self._recording(), lambda to: to.write([said]))

    def key(self) -> bytes:
        return bytes.fromhex(secret_file(self._home.install_key))


@contextmanager
def record_writer(root: Path, policy: Path | None) -> Iterator[Writer]:
    """What goes wrong in it is said in one line."""
    if not root.is_dir():
        raise click.ClickException(f"--home {root}: no such folder; has 'understudy serve' run?")
    lock, umask = -1, os.umask(_PRIVATE)
    try:
        try:
            root, lock = open_home(root)
        except StartError:
            yield _running(root)
            return
        home = Home(root, root)
        if not home.database.exists() and not home.spool.exists():
            raise OrderError(f"--home {root}: nothing captured there yet")
        yield Writer(home, lambda: _by_hand(home, policy), False)
    except _FAULTS as error:
        raise click.ClickException(str(error)) from None
    finally:
        os.umask(umask)
        if lock >= 0:
            os.close(lock)


def _running(root: Path) -> Writer:
    found = running(Home(root, root))
    if found is None:
        raise OrderError(
            f"--home {root}: another understudy is using it; try again when it is done"
        )
    if "recorder" not in found.processes:
        raise OrderError(f"--home {root}: its sidecar records nothing; stop it first")
    home = Home(root, found.run_dir)
    return Writer(home, lambda: _by_hand(home, None), True)


def _by_hand(home: Home, path: Path | None) -> Recording:
    policy = policy_of(home.root, path)
    return Recording.of(policy, bytes.fromhex(secret_file(home.install_key)))


def _report(progress: Json) -> None:
    if sys.stderr.isatty():
        doing = ", ".join(str(value) for value in progress.values())
        click.echo(f"\r\033[K{doing}", err=True, nl=False)
