"""What is measured, and what it is measured with: processes, pinning, CPU time."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROXY_CORE, OTHER_CORE = 0, 1
_TICKS = os.sysconf("SC_CLK_TCK")

_NGINX = """
worker_processes 1; daemon off; pid {folder}/{name}.pid; error_log {folder}/{name}.err;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {folder}/{name}-body;
  proxy_temp_path {folder}/{name}-proxy; fastcgi_temp_path {folder}/{name}-f;
  uwsgi_temp_path {folder}/{name}-u; scgi_temp_path {folder}/{name}-s;
  {blocks}
}}
"""
_CONSTANT = """server {{ listen 127.0.0.1:{port}; location / {{
  default_type application/json; return 200 '{answer}'; }} }}"""
_PROXY = """upstream behind {{ server 127.0.0.1:{upstream}; keepalive 512;
  keepalive_requests 1000000000; }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://behind;
  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
  proxy_request_buffering off; client_max_body_size 0; }} }}"""


class Missing(Exception):
    """A program that the benchmark needs and how to get it."""


def needs(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            raise Missing(f"{program} is missing; on Debian: apt-get install nginx-light wrk")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listening(port: int, seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"nothing listens on {port}")
        time.sleep(0.05)


def pin(pid: int, core: int) -> None:
    """Every thread of the process: the kernel pins threads, not processes."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(task.name), {core})


def warm_memory(folder: Path, size: int = 1 << 30) -> None:
    """Let the kernel have touched the pages that a round will fill.

    A virtual machine may give free memory back to its host; the first touch of such a page then
    costs some 5 µs of the hypervisor's time (7.6 KB appended to a file: 13 µs against 2.5 µs), for
    seconds only. That is no cost of any system that is measured here.
    """
    scratch = folder / "scratch"
    piece = bytes(1 << 20)
    with scratch.open("wb", buffering=0) as file:
        for _ in range(size // len(piece)):
            file.write(piece)
    scratch.unlink()


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


@dataclass(frozen=True)
class Rig:
    """A proxy under test: where it listens, and the process whose time counts."""

    name: str
    port: int
    pid: int
    folder: Path


@contextlib.contextmanager
def process(command: list[str], core: int, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        stdout=subprocess.DEVNULL,
        **options,  # type: ignore[call-overload]
    )
    try:
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.wait(60)


@contextlib.contextmanager
def nginx(folder: Path, name: str, blocks: str, port: int, core: int) -> Iterator[Rig]:
    config = folder / f"{name}.conf"
    config.write_text(_NGINX.format(folder=folder, name=name, blocks=blocks))
    with process(["nginx", "-c", str(config)], core, stderr=subprocess.DEVNULL) as master:
        listening(port)
        children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
        yield Rig("nginx", port, int(children[0]), folder)


@contextlib.contextmanager
def constant(folder: Path, answer: str) -> Iterator[int]:
    """An upstream that gives one JSON answer and is never the bottleneck."""
    port = free_port()
    blocks = _CONSTANT.format(port=port, answer=answer)
    with nginx(folder, "constant", blocks, port, OTHER_CORE):
        yield port


@contextlib.contextmanager
def nginx_proxy(folder: Path, upstream: int) -> Iterator[Rig]:
    port = free_port()
    blocks = _PROXY.format(port=port, upstream=upstream)
    with nginx(folder, f"proxy-{port}", blocks, port, PROXY_CORE) as rig:
        yield rig


@contextlib.contextmanager
def understudy(folder: Path, upstream: int, *options: str) -> Iterator[Rig]:
    """The whole sidecar through its command line; the proxy process on a core of its own."""
    port = free_port()
    name = "understudy" + "".join(options)
    home = folder / f"home-{port}"
    command = [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(home)]
    command += ["--listen", f"127.0.0.1:{port}", "--admin", "127.0.0.1:0"]
    command += ["--upstream", f"http://127.0.0.1:{upstream}", *options]
    with process(command, OTHER_CORE):
        listening(port)
        time.sleep(1)
        pid = int(json.loads((home / "state.json").read_text())["processes"]["proxy"])
        pin(pid, PROXY_CORE)
        yield Rig(name, port, pid, folder)
