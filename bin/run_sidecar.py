"""The sidecar of a `run`: the one that this home has already, or one that is started for it.

Two files in the home make this safe for any number of runs at once. `run.start` is locked while
one of them looks for a sidecar or starts one. `run.users` is locked, shared, by each of them for as
long as its command runs: a sidecar that a run has started goes when the last of them has gone,
whether its own starter still lives or not (see `bin.serve_while_used`). One that somebody started
with `understudy serve` is used and left alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bin.home_policy import policy_file, policy_of
from bin.sidecar_at import Running, Seen, connectable, install_key, look_at, running
from bin.surroundings import same_api
from policies.config import ConfigError
from policies.home import Home
from policies.metrics import total
from proxy.metrics import read_samples

_START_SECONDS: Final = 15.0
_LOOK_SECONDS: Final = 0.05
_STOP_SECONDS: Final = 40.0  # open requests of what the command left behind may take timeouts.drain
_MOST_LOG: Final = 1 << 20


class SidecarError(Exception):
    """There is none to use; one line for a person."""


@dataclass(frozen=True, slots=True)
class Wish:
    """As asked for. `listen`: None for wherever the home's sidecar is. `policy`: None for the one
    that the home's last sidecar had. `behind`: the upstream of a sidecar that is started only now,
    where no policy says it."""

    listen: tuple[str, int] | None = None
    upstream: str | None = None
    policy: Path | None = None
    behind: str | None = None


@dataclass(slots=True)
class Used:
    """A sidecar in use, until `leave`. `started`: by us, for all runs that use it.

    `no_proxy`: see `Seen`.
    """

    home: Home
    running: Running
    capturing: bool
    no_proxy: str
    _users: int
    _arrival: int  # st_mtime_ns of `run.users`, which each run sets when it comes
    _process: subprocess.Popen[bytes] | None = None
    _left: bool = False

    @property
    def address(self) -> str:
        return connectable(self.running.data)

    @property
    def started(self) -> bool:
        return self._process is not None

    def watch(self, on_end: Callable[[], None]) -> None:
        """Have `on_end` called, in a thread, as soon as the sidecar is gone before we `leave`.

        It holds the home's lock as long as it lives, and the kernel takes that back at once.
        """
        lock = os.open(self.home.lock, os.O_RDWR | os.O_CLOEXEC)

        def wait() -> None:
            fcntl.flock(lock, fcntl.LOCK_SH)
            os.close(lock)
            if not self._left:
                on_end()

        threading.Thread(target=wait, name="watch", daemon=True).start()

    @property
    def shared(self) -> bool:
        """Has anybody else used it since we did?"""
        return not self.started or os.fstat(self._users).st_mtime_ns != self._arrival

    def leave(self) -> None:
        """Stop it, if we started it and are the last."""
        if self._left:
            return
        self._left = True
        try:
            # While we have it alone, nobody comes.
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if self._process is not None:
                wait_for_recorder(self.home)
                _stop(self._process)
        except BlockingIOError:  # to others it is of use yet
            return
        finally:
            os.close(self._users)


def engage(root: Path, wish: Wish) -> Used:
    """Find it or start it; it answers when this returns. Raises SidecarError."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        home = Home(root.resolve(), Path("/"))
        with _turn(home):
            users = _opened(home.root / "run.users")
            # Waits for one that is stopping because nobody used it any more.
            fcntl.flock(users, fcntl.LOCK_SH)
            os.utime(users)
            try:
                return _Search(home, wish, users).found()
            except BaseException:
                os.close(users)
                raise
    except OSError as error:
        hint = "name a folder you can write"
        raise SidecarError(f"--home {root}: {error.strerror}; {hint}") from None


class _Search:
    def __init__(self, home: Home, wish: Wish, users: int) -> None:
        self._home = home
        self._wish = wish
        self._users = users
        self._process: subprocess.Popen[bytes] | None = None

    def found(self) -> Used:
        deadline = time.monotonic() + _START_SECONDS
        try:
            while True:
                named = running(self._home)
                address = self._address(named)
                seen = look_at(address, install_key(self._home))
                if named is not None and seen.serving:
                    self._check(named)
                    capturing = seen.health.get("capture") is not None
                    arrival = os.fstat(self._users).st_mtime_ns
                    return Used(
                        self._home,
                        named,
                        capturing,
                        seen.no_proxy,
                        self._users,
                        arrival,
                        self._process,
                    )
                self._go_on(address, seen, named, time.monotonic() > deadline)
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            if self._process is not None:
                _stop(self._process)
            raise

    def _address(self, named: Running | None) -> str:
        asked = self._wish.listen or ("127.0.0.1", 4141)
        return connectable(named.data if named else _shown(asked))

    def _go_on(self, address: str, seen: Seen, named: Running | None, late: bool) -> None:
        """Start one where nobody is, wait for one that starts or stops, else say what is wrong."""
        log = self._home.root / "serve.log"
        if self._process is not None and self._process.poll() is not None:
            raise SidecarError(f"the sidecar did not start: {_last_line(log)}")
        if late:
            raise SidecarError(f"the sidecar at {address} does not answer; see {log}")
        if self._process is not None or seen.who == "ours":
            return
        if seen.who == "nobody":
            self._process = self._start(log)
        elif named is None:
            raise SidecarError(
                f"--listen {address}: what listens there {seen.detail}, so nothing was started; "
                "stop it, or name another address, or 127.0.0.1:0 for a free one"
            )

    def _check(self, named: Running) -> None:
        """Is it the one that was asked for?"""
        if self._process is not None:
            return
        listen, upstream = self._wish.listen, self._wish.upstream
        if listen is not None and listen[1] and _shown(listen) != named.data:
            raise SidecarError(
                f"--listen {_shown(listen)}: the sidecar of this home listens at {named.data}; "
                "leave out --listen, or name another --home"
            )
        if upstream is not None and not same_api(upstream, named.upstream):
            raise SidecarError(
                f"--upstream {upstream}: the sidecar of this home relays to {named.upstream}; "
                "leave out --upstream, or name another --home and --listen"
            )

    def _start(self, log: Path) -> subprocess.Popen[bytes]:
        wish = self._wish
        listen = wish.listen or ("127.0.0.1", 4141)
        command = [sys.executable, "-P", "-m", "bin.serve_while_used"]
        command += [str(self._home.root / "run.users"), "serve", "--home", str(self._home.root)]
        command += ["--listen", _shown(listen), "--admin", _shown(_admin(listen))]
        policy = wish.policy or _remembered(self._home.root)
        upstream = wish.upstream or (wish.behind if policy is None else None)
        command += ["--upstream", upstream] if upstream else []
        command += ["--policy", str(policy)] if policy else []
        output = _log(log)
        try:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a terminal's Ctrl-C is the command's alone
            )
        finally:
            os.close(output)


def _remembered(root: Path) -> Path | None:
    """The policy's file, looked into here: a sidecar would say what is wrong with it in its log
    alone. Raises SidecarError."""
    try:
        policy_of(root, None)
        return policy_file(root)
    except ConfigError as error:
        raise SidecarError(str(error)) from None


def wait_for_recorder(home: Home) -> None:
    """Until it is up, if there is something for it to read.

    Stopped before, it leaves all that to the next start: who looks at what a short command did
    would find nothing.
    """
    deadline = time.monotonic() + _START_SECONDS
    while (named := running(home)) is not None and "recorder" in named.processes:
        ready = Home(home.root, named.run_dir).recorder_socket.exists()
        if ready or not total(read_samples(named.run_dir), "exchanges"):
            return
        if time.monotonic() > deadline:
            return
        time.sleep(_LOOK_SECONDS)


def _admin(listen: tuple[str, int]) -> tuple[str, int]:
    """The port beside it if that is free, else any: no admin site is worth a failed start."""
    port = listen[1] + 1 if 0 < listen[1] < 65535 else 0
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return "127.0.0.1", port
    return "127.0.0.1", 0


@contextlib.contextmanager
def _turn(home: Home) -> Iterator[None]:
    lock = _opened(home.root / "run.start")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _opened(path: Path) -> int:
    return os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)


def _log(path: Path) -> int:
    """Appended to, for what the last one said may explain something; begun anew when it is long."""
    log = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    if os.fstat(log).st_size > _MOST_LOG:
        os.ftruncate(log, 0)
    return log


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = log.read_text(errors="replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("understudy: ")
    return "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Once: to `serve`, a second SIGTERM means now."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_SECONDS)


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
