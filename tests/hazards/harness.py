"""The real sidecar as a process of its own, and what must hold when a test is done with it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.hazards.peers import ANSWER, CANARY, Message, Peer, Upstream, get, post

TIMEOUTS = {
    "client_head": 1.5,
    "client_body": 1.5,
    "upstream_connect": 2,
    "upstream_idle": 2,
    "upstream_keepalive": 1.5,
    "drain": 5,
}


@dataclass
class Sidecar:
    """`understudy serve` as a process of its own, with its home folder."""

    root: Path
    upstream_port: int
    scheme: str = "http"
    timeouts: dict[str, float] = field(default_factory=lambda: dict(TIMEOUTS))
    process: subprocess.Popen[bytes] = field(init=False)
    address: tuple[str, int] = field(init=False)
    _clients: list[Peer] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.root / "home"

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        policy = self.root / "policy.yaml"
        upstream = f"{self.scheme}://127.0.0.1:{self.upstream_port}"
        policy.write_bytes(orjson.dumps({"upstream": upstream, "timeouts": self.timeouts}))
        with self._errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(self.home),
                 "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--policy", str(policy)],
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )  # fmt: skip
        host, _, port = wait_for(self._data_address, 20).rpartition(":")
        self.address = (host, int(port))
        wait_for(lambda: self.health() if self.health()["status"] == "ok" else None, 20)
        wait_for((self.home / "understudy.db").exists, 20)  # the recorder is up too

    def _data_address(self) -> str | None:
        with contextlib.suppress(OSError, orjson.JSONDecodeError):
            return str(self.state()["data"])
        return None

    @property
    def _errors(self) -> Path:
        return self.root / "stderr.txt"

    def errors(self) -> str:
        return self._errors.read_text(errors="replace")

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = orjson.loads((self.home / "state.json").read_bytes())
        return state

    def proxy_pid(self) -> int:
        return int(self.state()["processes"]["proxy"])

    def resident(self) -> int:
        """Bytes of memory the proxy process holds."""
        pages = Path(f"/proc/{self.proxy_pid()}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.proxy_pid()}/fd"))

    def connect(self, seconds: float = 5.0) -> Peer:
        client = Peer(socket.create_connection(self.address, seconds), seconds)
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()
        self._clients.clear()

    def exchange(self, data: bytes, method: str = "POST") -> Message:
        """One reply to these bytes, on a connection of its own."""
        client = self.connect()
        with contextlib.closing(client):
            client.send(data)
            return client.reply(method)

    def raw(self, data: bytes) -> bytes:
        """All that comes back until the sidecar ends the connection."""
        client = self.connect()
        with contextlib.closing(client):
            client.send(data)
            return client.rest()

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = orjson.loads(self.exchange(get("/_understudy/health"), "GET").body)
        return found

    def row(self, tag: str) -> dict[str, Any]:
        """The one row of the call that `chat(tag)` named, once it is there."""
        found: list[dict[str, Any]] = wait_for(lambda: self._rows(tag), 5)
        assert len(found) == 1
        return found[0]

    def _rows(self, tag: str) -> list[dict[str, Any]]:
        asked = (
            "SELECT * FROM exchanges JOIN bodies ON exchange_id = id "
            "WHERE path LIKE '%before=' || ?"
        )
        with contextlib.suppress(sqlite3.OperationalError):
            database = sqlite3.connect(f"file:{self.home}/understudy.db?mode=ro", uri=True)
            with contextlib.closing(database):
                database.row_factory = sqlite3.Row
                return [dict(row) for row in database.execute(asked, (tag,))]
        return []

    def checked(self) -> str:
        """What SQLite says of the database's pages."""
        database = sqlite3.connect(f"file:{self.home}/understudy.db?mode=ro", uri=True)
        with contextlib.closing(database):
            return str(database.execute("PRAGMA quick_check").fetchone()[0])

    def stop(self) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def canaries(self) -> list[str]:
        """Places below the home folder, and standard error, that hold a secret of a client."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [str(path) for path in files if CANARY.encode() in path.read_bytes()]


def wait_for(probe: Callable[[], Any], seconds: float) -> Any:
    """What `probe` finds, once it is something. It may fail to connect before that."""
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(ConnectionError):
            if found := probe():
                return found
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@dataclass
class Stage:
    """A sidecar with its upstream."""

    sidecar: Sidecar
    upstream: Upstream


@contextlib.contextmanager
def stage(root: Path) -> Iterator[Stage]:
    """Whatever was done to it, afterwards it works, holds nothing, and has told no secret."""
    upstream = Upstream()
    sidecar = Sidecar(root, upstream.port)
    try:
        sidecar.start()
        before = sidecar.descriptors()
        yield Stage(sidecar, upstream)
        good = sidecar.exchange(post("/v1/chat/completions"))
        assert (good.status, good.body) == (200, ANSWER)
        wait_for(lambda: sidecar.health()["clients"] == 1, 3)  # the one that asks
        wait_for(lambda: sidecar.descriptors() <= before + 2, 5)
        assert sidecar.stop() == 0
        assert "Traceback" not in sidecar.errors()
        assert sidecar.canaries() == []
        assert sidecar.checked() == "ok"
    finally:
        sidecar.kill()
        upstream.close()
