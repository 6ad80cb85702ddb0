"""The supervisor: binds the sockets, starts the others, starts again what dies, stops in order.

Small and dull on purpose: it parses nothing, scores nothing, and never touches a request.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import resource
import secrets
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import orjson

from bin import runtime
from bin.expiry import expiring
from bin.home_policy import remember
from policies.home import Home
from policies.listeners import Listeners
from policies.policy import Policy
from policies.settings import Settings, dump, plain
from policies.way_out import from_environment
from proxy.authority import Authority, AuthorityError, make
from proxy.bundle import bundle

_BACKLOG: Final = 1024
_CREDENTIALS: Final = "UNDERSTUDY_PROXY_CREDENTIALS"
_STEADY_SECONDS: Final = 10.0  # a child that ran this long starts again without delay
_FIRST_DELAY: Final = 0.1
_LONGEST_DELAY: Final = {"proxy": 2.0}
_LONGEST_DELAY_OTHERS: Final = 30.0
_STOP_SECONDS: Final = 4.5  # in all, behind the drain
_LEAST_STOP_SECONDS: Final = 1.0  # for each
# A model process has no use for an API key, and the others none for anything else of the app's.
_ENVIRONMENT: Final = frozenset(
    """PATH HOME LANG LC_ALL LC_CTYPE TZ TMPDIR PYTHONPATH PYTHONHOME VIRTUAL_ENV LD_LIBRARY_PATH
    SSL_CERT_FILE SSL_CERT_DIR XDG_RUNTIME_DIR""".split()
)
# A spinning OpenMP barrier loses 10 to 20 x as soon as the app next door wants the core.
_MODEL_ENVIRONMENT: Final = {"GOMP_SPINCOUNT": "20000", "OMP_NUM_THREADS": str(os.cpu_count() or 1)}


class StartError(Exception):
    """The sidecar can't start; one line for a person."""


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where to listen: (host, port); port 0 takes a free one."""

    data: tuple[str, int]
    admin: tuple[str, int]


@dataclass(slots=True)
class Child:
    """One process that shall run. `name` is its role, or role:candidate, or proxy:1, proxy:2, ...
    where there are several."""

    role: str
    candidate: str | None = None
    fd: int | None = None
    worker: int = 1
    alone: bool = True  # the only one of its role
    process: asyncio.subprocess.Process | None = None
    starts: int = 0
    delay: float = field(init=False)
    stopping: bool = False

    def __post_init__(self) -> None:
        self.delay = self.first_delay

    @property
    def first_delay(self) -> float:
        """The app is waiting for a proxy: it starts again at once, the first time."""
        return 0.0 if self.role == "proxy" else _FIRST_DELAY

    @property
    def name(self) -> str:
        if self.candidate:
            return f"{self.role}:{self.candidate}"
        return self.role if self.alone else f"{self.role}:{self.worker}"

    @property
    def longest_delay(self) -> float:
        return _LONGEST_DELAY.get(self.role, _LONGEST_DELAY_OTHERS)


def open_home(root: Path) -> tuple[Path, int]:
    """The home folder, made 0700, and the descriptor of its lock. Raises StartError."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(f"--home {root}: {error.strerror}; name a folder you can write") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StartError(
            f"--home {root}: another understudy is using it; stop that one or name another folder"
        ) from None
    mode = root.stat().st_mode & 0o777
    if mode & 0o077:
        cure = f"chmod 700 {shlex.quote(str(root))}"
        _warn(f"--home {root}: others may look into it (mode {mode:04o}); run: {cure}")
    return root.resolve(), lock


def secret_file(path: Path) -> str:
    """A secret made once and kept, 0600: 64 hex digits."""
    with contextlib.suppress(FileExistsError):
        made = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(made, "w") as file:
            file.write(secrets.token_hex(32))
    found = path.read_text().strip()
    if len(found) != 64:
        raise StartError(f"{path}: is not a key of ours; remove it to have a new one made")
    return found


def bind(address: tuple[str, int], option: str) -> socket.socket:
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        bound = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]  # what follows says the address again
        raise StartError(
            f"{option} {host}:{port}: {why}; stop what listens there or name another"
        ) from None
    bound.set_inheritable(True)
    return bound


def _credentials(environment: Mapping[str, str]) -> str:
    """Of strangers who use the forward proxy: user:password, or empty."""
    found = environment.get(_CREDENTIALS, "")
    if found and (":" not in found or not found.isprintable() or found.startswith(":")):
        raise StartError(f"{_CREDENTIALS}: (not shown): must be user:password")
    return found


def _refuse_loops(policy: Policy, listeners: Listeners) -> None:
    """An upstream that is literally ourselves. Names that lead here are seen when dialled."""
    for url in (policy.upstream, *(upstream.url for upstream in policy.upstreams)):
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        if listeners.named(parts.hostname or "", port):
            raise StartError(f"upstream {url}: is this sidecar's own address; name the API itself")


@dataclass(slots=True)
class Supervisor:
    """`open` first, then `run`. After `open`, `addresses` holds the ports that were bound."""

    policy: Policy
    root: Path
    addresses: Addresses
    policy_file: Path | None = None  # that `policy` was read from
    children: list[Child] = field(default_factory=list)
    _run_dir: str = ""
    _run_lock: int = -1  # held as long as we live
    _install_key: str = ""
    admin_token: str = ""
    _way_out: dict[str, str] = field(default_factory=dict, repr=False)
    _credentials: str = field(default="", repr=False)
    _sockets: list[socket.socket] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _stopping: bool = False

    def open(self) -> None:
        """Bind, make secrets and folders: all that can fail for a reason a person can mend."""
        home = Home(self.root, Path("/"))
        data = bind(self.addresses.data, "--listen")
        self._sockets.append(data)
        admin = bind(self.addresses.admin, "--admin")
        self._sockets.append(admin)
        self.addresses = Addresses(data.getsockname()[:2], admin.getsockname()[:2])
        listeners = Listeners.of(self.shown_addresses())
        _refuse_loops(self.policy, listeners)
        # As set for the sidecar itself; of the children only the proxy is told, and by no variable.
        self._way_out = from_environment(os.environ, listeners)
        self._credentials = _credentials(os.environ)
        self._refuse_strangers(data)
        self._install_key = secret_file(home.install_key)
        self._prepare_authority(home)
        self.admin_token = secret_file(home.admin_token)
        try:
            run_dir, self._run_lock = runtime.make()
        except OSError as error:
            hint = "set TMPDIR to a folder you can write"
            raise StartError(f"{error.filename}: {error.strerror}; {hint}") from None
        self._run_dir = str(run_dir)
        home.spool.mkdir(mode=0o700, exist_ok=True)
        self._remember_policy()
        _raise_descriptors()
        workers = self.policy.workers
        proxies = [
            Child("proxy", fd=data.fileno(), worker=number, alone=workers == 1)
            for number in range(1, workers + 1)
        ]
        if not self.policy.capture.enabled:
            # Without a record there is no evidence, so nothing may be diverted either.
            self.children = proxies
            return
        models = [Child("model", candidate=c.name) for c in self.policy.candidates]
        self.children = [Child("recorder"), *proxies, *models, Child("director", fd=admin.fileno())]

    def _refuse_strangers(self, data: socket.socket) -> None:
        """Bound beyond this machine, somebody must say who may come in."""
        host = data.getsockname()[0]
        if ip_address(host).is_loopback or self.policy.clients or self._credentials:
            return
        raise StartError(
            f"--listen {host}: others could use it, and reach what this machine reaches; list "
            f"their networks under 'clients' in the policy, or set {_CREDENTIALS}=user:password"
        )

    def _prepare_authority(self, home: Home) -> None:
        """Made at first use. What is wrong with it keeps nobody from OPENAI_BASE_URL."""
        forward = self.policy.forward
        if not forward.enabled:
            return
        try:
            make(home.authority, forward.intercept)
            Authority.load(home.authority, forward.intercept)
            bundle(home.authority)
            if soon := expiring(home.authority):
                _warn(soon)
        except (AuthorityError, OSError) as error:
            _warn(f"no forward proxy, OPENAI_BASE_URL only: {error}")

    def _remember_policy(self) -> None:
        try:
            remember(self.root, self.policy_file)
        except OSError as error:  # a full disk must not keep the proxy from running
            _warn(f"serve.json is out of date: {error}; give other commands their --policy, too")

    def shown_addresses(self) -> tuple[str, str]:
        return _shown(self.addresses.data), _shown(self.addresses.admin)

    async def run(self) -> None:
        """Until SIGTERM or SIGINT; then stop in order, so that nothing captured is lost."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told_to_stop)
        keepers = [_task(self._keep(child), f"keep {child.name}") for child in self.children]
        try:
            await self._stop.wait()
            await self._stop_all()
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            shutil.rmtree(self._run_dir, ignore_errors=True)
            Home(self.root, Path("/")).state.unlink(missing_ok=True)

    def _told_to_stop(self) -> None:
        if not self._stop.is_set():
            self._stop.set()
            return
        for child in self.children:  # the second time means now, to all workers
            if child.role == "proxy":
                _signal(child, signal.SIGUSR1)

    async def _keep(self, child: Child) -> None:
        """Start the child, and start it again whenever it ends, later each time."""
        while not child.stopping:
            started = time.monotonic()
            try:
                ending = _ending(await self._run_once(child))
            except OSError as error:  # no memory, no descriptors: all of that may pass
                ending = f"could not start: {error}"
            if child.stopping:
                return
            if time.monotonic() - started > _STEADY_SECONDS:
                child.delay = child.first_delay
            _warn(f"{child.name} ended ({ending}); again in {child.delay:g} s")
            await asyncio.sleep(child.delay)
            child.delay = min(max(child.delay * 2, _FIRST_DELAY), child.longest_delay)

    async def _run_once(self, child: Child) -> int:
        child.starts += 1
        settings = self._settings(child)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "bin.child"),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=() if child.fd is None else (child.fd,),
            env=_environment(child.role),
            # A terminal's Ctrl-C goes to the whole group, but the order of stopping is ours. And
            # where the kernel shares the processor out by session, each is to have its own rank.
            start_new_session=True,
        )
        child.process = process
        assert process.stdin is not None
        process.stdin.write(dump(settings))
        try:
            self._write_state()
        except OSError as error:  # a full disk must not keep the proxy from running
            _warn(f"state.json is out of date: {error}")
        try:
            with contextlib.suppress(ConnectionError):
                await process.stdin.drain()
            return await process.wait()
        finally:
            process.stdin.close()

    def _settings(self, child: Child) -> Settings:
        secret = child.role in ("proxy", "recorder")
        return Settings(
            role=child.role,
            root=str(self.root),
            run_dir=self._run_dir,
            run_id=f"{time.time_ns() // 1_000_000:013d}-{child.worker}-{child.starts}",
            policy=plain(self.policy),
            fd=child.fd,
            candidate=child.candidate,
            worker=child.worker,
            install_key=self._install_key if secret else "",
            admin_token=self.admin_token if child.role == "director" else "",
            listening=list(self.shown_addresses()) if child.role == "proxy" else [],
            way_out=self._way_out if child.role == "proxy" else {},
            credentials=self._credentials if child.role == "proxy" else "",
        )

    def _write_state(self) -> None:
        """Who runs where, for `understudy status` and for people. `processes`: pids by name,
        `proxy` for a single worker and `proxy:1`, `proxy:2`, ... for several."""
        state = {
            "pid": os.getpid(),
            "data": _shown(self.addresses.data),
            "admin": _shown(self.addresses.admin),
            "run_dir": self._run_dir,
            "upstream": self.policy.upstream,
            "processes": {c.name: c.process.pid for c in self.children if c.process is not None},
        }
        path = Home(self.root, Path("/")).state
        temporary = path.with_suffix(".tmp")
        descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(state, option=orjson.OPT_INDENT_2))
        temporary.replace(path)

    async def _stop_all(self) -> None:
        """The proxies drain first; models serve what still streams; the recorder reads the rest,
        as far as it comes: what it leaves in the spool is read at the next start."""
        for bound in self._sockets:
            bound.close()
        drained = time.monotonic() + self.policy.timeouts.drain
        for roles, share in (("proxy",), 0.3), (("director", "model"), 0.5), (("recorder",), 1.0):
            chosen = [child for child in self.children if child.role in roles]
            left = drained + share * _STOP_SECONDS - time.monotonic()
            seconds = max(left, _LEAST_STOP_SECONDS)
            await asyncio.gather(*(_stop(child, seconds) for child in chosen))


def _raise_descriptors() -> None:
    """As many as the system lets us: each call takes two. The children inherit it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # no limit, on systems that won't take that
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _stop(child: Child, seconds: float) -> None:
    child.stopping = True
    process = child.process
    if process is None or process.returncode is not None:
        return
    _signal(child, signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), seconds)
    except TimeoutError:
        _warn(f"{child.name} did not stop in {seconds:g} s")
        _signal(child, signal.SIGKILL)
        await process.wait()


def _signal(child: Child, number: signal.Signals) -> None:
    if child.process is not None and child.process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.process.send_signal(number)


def _environment(role: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name in _ENVIRONMENT}
    return kept | _MODEL_ENVIRONMENT if role == "model" else kept


def _warn(message: str) -> None:
    print(f"understudy: {message}", file=sys.stderr, flush=True)


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit {code}"


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _task(coroutine: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(coroutine, name=name)
