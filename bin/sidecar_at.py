"""Is that our sidecar? Asked before an app, or a person, is pointed at an address.

Whoever answers must prove that it holds the home's install key: a port can be anyone's by now.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from policies.home import Home
from policies.proof import proves
from store.locks import is_held

HEALTH: Final = "/_understudy/health"
METRICS: Final = "/_understudy/metrics"
_SECONDS: Final = 2.0
_MOST_BYTES: Final = 1 << 20
_LOOPBACK: Final = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}


@dataclass(frozen=True, slots=True)
class Seen:
    """Who is at an address. `detail`: of somebody else, as the end of a sentence about it.

    `silent`: nothing was said by which to tell whose it is.
    """

    who: Literal["ours", "foreign", "nobody"]
    detail: str = ""
    health: Mapping[str, Any] = field(default_factory=dict)
    silent: bool = False

    @property
    def serving(self) -> bool:
        return self.who == "ours" and self.health.get("status") == "ok"

    @property
    def no_proxy(self) -> str:
        """Why HTTPS_PROXY can't lead there; empty if it can, or nothing is known of it."""
        forward = self.health.get("forward") or {"on": True}
        return "" if forward["on"] else str(forward.get("why_off") or "its forward proxy is off")


@dataclass(frozen=True, slots=True)
class Running:
    """What a home's sidecar says of itself in its state file."""

    pid: int
    data: str
    admin: str
    upstream: str
    run_dir: Path
    processes: frozenset[str]


def install_key(home: Home) -> bytes | None:
    """None where no sidecar has ever run, or the file is no key."""
    with contextlib.suppress(OSError, ValueError):
        return bytes.fromhex(home.install_key.read_text().strip()) or None
    return None


def running(home: Home) -> Running | None:
    """The sidecar that the state file names, if a process of that number lives. No proof yet."""
    try:
        state = orjson.loads(home.state.read_bytes())
        found = Running(
            int(state["pid"]),
            str(state["data"]),
            str(state["admin"]),
            str(state["upstream"]),
            Path(state["run_dir"]),
            frozenset(state["processes"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if _lives(found.pid) else None


def owned(home: Home) -> bool:
    """Does a sidecar hold the home's lock? Looking takes it for a moment where none does: only for
    a home whose sidecar lives by its state file, so that it keeps none from starting."""
    try:
        return is_held(home.lock)
    except OSError:
        return False


def look_at(address: str, key: bytes | None, seconds: float = _SECONDS) -> Seen:
    """Who answers at this HOST:PORT? Never takes longer than `seconds`, and never a proxy."""
    nonce = secrets.token_hex(16)
    try:
        answer = ask(address, f"{HEALTH}?nonce={nonce}", seconds)
    except ConnectionRefusedError:
        return Seen("nobody")
    except TimeoutError:
        return Seen("foreign", "takes connections, but answers nothing", silent=True)
    except OSError as error:
        return Seen("nobody", f"{error.strerror or error}")
    try:
        health = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return Seen("foreign", "is not an understudy")
    if not isinstance(health, dict) or not {"status", "pid", "worker"} <= health.keys():
        return Seen("foreign", "is not an understudy")
    if key is None or not proves(health.get("proof"), key, nonce.encode()):
        return Seen("foreign", "is an understudy of another home")
    return Seen("ours", health=health)


def ask(address: str, target: str, seconds: float = _SECONDS) -> bytes:
    """The body of the answer, whatever its status. TimeoutError if there is none in time."""
    deadline = time.monotonic() + seconds
    host, _, port = address.rpartition(":")
    head = f"GET {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n"
    with socket.create_connection((host.strip("[]"), int(port)), seconds) as connection:
        connection.sendall(head.encode())
        received = _received(connection, deadline)
    return received.partition(b"\r\n\r\n")[2]


def _received(connection: socket.socket, deadline: float) -> bytes:
    """Until the end, or as much as came in time: a foreign server may drip, or never close."""
    received = b""
    while len(received) < _MOST_BYTES:
        left = deadline - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            connection.settimeout(left)
            piece = connection.recv(65536)
        except TimeoutError:
            if received:
                break
            raise
        except ConnectionError:
            break
        if not piece:
            break
        received += piece
    return received


def connectable(address: str) -> str:
    """Where to call what listens at HOST:PORT: 0.0.0.0 and [::] stand for all of the machine's."""
    host, _, port = address.rpartition(":")
    return f"{_LOOPBACK.get(host, host)}:{port}"


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True
