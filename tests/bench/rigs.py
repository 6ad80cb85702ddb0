"""What is measured: the sidecar, and the systems that it is measured against, each started anew."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.machine import (
    BESIDE,
    LOAD,
    OTHER_CORE,
    RELAY,
    accepts,
    cpu_seconds,
    free_port,
    pin,
    quiet,
    worker_cores,
)

OURS: Final = "understudy"
BARE: Final = "understudy, no capture"
_START_SECONDS: Final = 20.0
_STOP_SECONDS: Final = 90.0  # the recorder reads what is left of the spool

_NGINX = """
worker_processes {workers}; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.err;
worker_rlimit_nofile 16384;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/{name}-body;
  proxy_temp_path {folder}/{name}-proxy; fastcgi_temp_path {folder}/{name}-f;
  uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s;
  {blocks}
}}
"""
_CONSTANT = """server {{ listen 127.0.0.1:{port}{tls}; location / {{
  default_type application/json; return 200 '{answer}'; }} }}"""
_PROXY = """upstream behind {{ server {upstream}; keepalive 512;
  keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port}{shared}; location / {{ proxy_pass {scheme}://behind;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
  proxy_request_buffering off; client_max_body_size 0; {more} }} }}"""
_HAPROXY = """
global
  nbthread 1
  maxconn 8192
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  http-reuse always
  option http-no-delay  # or it gathers the events of a stream for up to 200 ms
listen relay
  bind 127.0.0.1:{port}
  server behind {upstream}
"""


@dataclass(frozen=True, slots=True)
class Rig:
    """A system under test: where it listens, and the processes whose time counts.

    `others`: processes that go on working after a round, and are waited for. `home`: where it
    writes, None when it keeps nothing.
    """

    name: str
    port: int
    pids: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    home: Path | None = None


def direct(upstream: str) -> Rig:
    """No proxy at all: what the load and the upstream cost by themselves."""
    return Rig("direct", int(upstream.rpartition(":")[2]))


@contextlib.contextmanager
def process(
    command: Sequence[str],
    pinned: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is `pinned` (a prefix) to a core; stopped at the end. stderr: `log`."""
    with log.open("wb") as stderr:
        started = subprocess.Popen(
            [*pinned, *command],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield started
    finally:
        stop(started)


def stop(started: subprocess.Popen[bytes]) -> None:
    if started.poll() is None:
        started.send_signal(signal.SIGTERM)
    try:
        started.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


def listening(port: int, started: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until `started` accepts on `port`. Raises with what it said when it does not."""
    deadline = time.monotonic() + _START_SECONDS
    while not accepts(port):
        if started.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()[-500:]
            raise RuntimeError(f"nothing listens on {port}: {said or 'and no reason was given'}")
        time.sleep(0.02)


def running_for(started: subprocess.Popen[bytes], seconds: float, log: Path) -> None:
    """Wait until `started` has run for so many seconds of CPU time. Raises if it ends."""
    deadline = time.monotonic() + 3 * _START_SECONDS
    while cpu_seconds([started.pid]) < seconds:
        if started.poll() is not None or time.monotonic() > deadline:
            said = log.read_text(errors="replace").strip()[-500:]
            raise RuntimeError(f"a process of the benchmark ended: {said}")
        time.sleep(0.1)


@contextlib.contextmanager
def nginx(
    folder: Path, name: str, blocks: str, port: int, cores: list[int], pinned: Sequence[str]
) -> Iterator[tuple[int, ...]]:
    """Its worker processes, one for each of `cores`."""
    config, log = folder / f"{name}.conf", folder / f"{name}.log"
    config.write_text(_NGINX.format(folder=folder, name=name, blocks=blocks, workers=len(cores)))
    with process(["nginx", "-c", str(config)], pinned, log) as master:
        listening(port, master, log)
        pids = _workers(master.pid, len(cores))
        for pid, core in zip(pids, cores, strict=True):
            pin(pid, {core})
        yield pids


def _workers(master: int, wanted: int) -> tuple[int, ...]:
    """Its children, once all are there: it listens before it starts them."""
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        if len(children) == wanted:
            return tuple(int(child) for child in children)
        time.sleep(0.02)
    raise RuntimeError(f"nginx did not start {wanted} workers")


@contextlib.contextmanager
def constant(folder: Path, answer: str, tls: str = "") -> Iterator[str]:
    """An upstream that gives one JSON answer and is never the bottleneck: its host and port.

    `tls`: directives of its certificate, without the last semicolon; none: it speaks plain HTTP.
    """
    port = free_port()
    blocks = _CONSTANT.format(port=port, answer=answer, tls=tls and f" ssl; {tls}")
    with nginx(folder, f"constant-{port}", blocks, port, [OTHER_CORE], LOAD):
        yield f"127.0.0.1:{port}"


@contextlib.contextmanager
def nginx_proxy(
    folder: Path, upstream: str, *, name: str = "nginx", tls: str = "", workers: int = 1
) -> Iterator[Rig]:
    """`tls`: directives for an upstream that speaks TLS."""
    port = free_port()
    blocks = _PROXY.format(
        port=port, upstream=upstream, scheme="https" if tls else "http", more=tls,
        shared=" reuseport" if workers > 1 else "",
    )  # fmt: skip
    with nginx(folder, f"proxy-{port}", blocks, port, worker_cores(workers), RELAY) as pids:
        yield Rig(name, port, pids)


@contextlib.contextmanager
def haproxy(folder: Path, upstream: str) -> Iterator[Rig]:
    port = free_port()
    config, log = folder / f"haproxy-{port}.conf", folder / f"haproxy-{port}.log"
    config.write_text(_HAPROXY.format(port=port, upstream=upstream))
    with process(["haproxy", "-db", "-f", str(config)], RELAY, log) as started:
        listening(port, started, log)
        yield Rig("haproxy", port, (started.pid,))


@contextlib.contextmanager
def naive(folder: Path, upstream: str) -> Iterator[Rig]:
    """What one would write first: aiohttp's server and client."""
    port = free_port()
    log = folder / f"naive-{port}.log"
    command = [sys.executable, "-m", "tests.bench.naive", str(port), f"http://{upstream}"]
    with process(command, RELAY, log) as started:
        listening(port, started, log)
        yield Rig("aiohttp", port, (started.pid,))


@contextlib.contextmanager
def understudy(
    folder: Path,
    upstream: str,
    *options: str,
    name: str = OURS,
    policy: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Rig]:
    """The whole sidecar through its command line; each proxy process on a core of its own.

    `upstream`: a URL, or host and port. `policy`: YAML.
    """
    port = free_port()
    home, log = folder / f"home-{port}", folder / f"understudy-{port}.log"
    file = folder / f"policy-{port}.yaml"
    file.write_text(policy or "{}\n")
    command = [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(home)]
    command += ["--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0", "--policy", str(file)]
    command += ["--upstream", upstream if "://" in upstream else f"http://{upstream}", *options]
    with process(command, BESIDE, log, environment) as started:
        listening(port, started, log)
        capturing = "--no-capture" not in options
        pids = _processes(home, started, log, capturing)
        proxies = tuple(pid for role, pid in pids.items() if role.startswith("proxy"))
        for pid, core in zip(proxies, worker_cores(len(proxies)), strict=True):
            pin(pid, {core})
        others = (pids["recorder"],) if capturing else ()
        yield Rig(name, port, proxies, others, home if capturing else None)


def bare(folder: Path, upstream: str) -> contextlib.AbstractContextManager[Rig]:
    return understudy(folder, upstream, "--no-capture", name=BARE)


def _processes(
    home: Path, started: subprocess.Popen[bytes], log: Path, capturing: bool
) -> dict[str, int]:
    """The sidecar's processes by name, once all of them run and have come to rest."""
    wanted = {"proxy", "recorder", "director"} if capturing else {"proxy"}
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and started.poll() is None:
        with contextlib.suppress(OSError, ValueError, KeyError):
            state = json.loads((home / "state.json").read_text())
            found = {str(name): int(pid) for name, pid in state["processes"].items()}
            if wanted <= {_role(name) for name in found}:
                quiet(found.values(), 10)
                return found
        time.sleep(0.05)
    raise RuntimeError(f"the sidecar did not start: {log.read_text(errors='replace')[-500:]}")


def _role(name: str) -> str:
    """`proxy` of `proxy:1`, and so on."""
    return next((role for role in ("proxy", "recorder", "director") if name.startswith(role)), name)
