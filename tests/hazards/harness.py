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
_BUSY = 4  # times as long may things take beside other tests


@dataclass
class Sidecar:
    """`understudy serve` as a process of its own, with its home folder."""

    root: Path
    upstream_port: int
    scheme: str = "http"
    timeouts: dict[str, float] = field(default_factory=lambda: dict(TIMEOUTS))
    policy: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    listen: str = "127.0.0.1"
    process: subprocess.Popen[bytes] = field(init=False)
    address: tuple[str, int] = field(init=False)
    _clients: list[Peer] = field(default_factory=list)
    _told_secret: bool = False

    @property
    def home(self) -> Path:
        return self.root / "home"

    def start(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        policy = self.root / "policy.yaml"
        upstream = f"{self.scheme}://127.0.0.1:{self.upstream_port}"
        settings = {"upstream": upstream, "timeouts": self.timeouts, **self.policy}
        policy.write_bytes(orjson.dumps(settings))
        with self._errors.open("wb") as errors, (self.root / "stdout.txt").open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(self.home),
                 "--listen", f"{self.listen}:0", "--admin", "127.0.0.1:0", "--policy", str(policy)],
                stdout=said,
                stderr=errors,
                env=os.environ | self.environment,
            )  # fmt: skip
        port = wait_for(self._data_address, 20).rpartition(":")[2]
        self.address = ("127.0.0.1", int(port))
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

    def pid(self, name: str) -> int:
        return int(wait_for(lambda: self.state()["processes"].get(name), 5))

    def proxy_pid(self) -> int:
        return self.pid("proxy")

    def resident(self, name: str = "proxy") -> int:
        """Bytes of memory the process holds."""
        pages = Path(f"/proc/{self.pid(name)}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def descriptors(self, name: str = "proxy") -> int:
        return len(os.listdir(f"/proc/{self.pid(name)}/fd"))

    def connections_to(self, port: int) -> int:
        """Sockets of this machine that are connected to the port."""
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return sum(line[2].endswith(f":{port:04X}") and line[3] == "01" for line in lines)

    def connect(self, seconds: float = 5.0, host: str = "127.0.0.1") -> Peer:
        where = (host, self.address[1])
        return self.keep(Peer(socket.create_connection(where, seconds), seconds))

    def outer_address(self) -> str:
        """One of this machine that is not loopback: no packet is sent to find it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("203.0.113.1", 9))
            return str(probe.getsockname()[0])

    def keep(self, client: Peer) -> Peer:
        """Close it with the others."""
        self._clients.append(client)
        return client

    def close_clients(self) -> None:
        for client in self._clients:
            client.close()
            self._told_secret |= client.heard_secret
        self._clients.clear()

    def told_secret(self) -> bool:
        """Has any client ever been told a secret, in an error's body or anywhere else?"""
        return self._told_secret or any(client.heard_secret for client in self._clients)

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
        found: list[dict[str, Any]] = wait_for(lambda: self.rows(tag), 5)
        assert len(found) == 1
        return found[0]

    def rows(self, tag: str) -> list[dict[str, Any]]:
        """Of all calls whose target ends in `before=` and the tag (`%` stands for anything), in
        the order of their `seq`; with both sides whole."""
        return self.query(
            "SELECT e.*, t.request, t.response, b.events, b.request_note, b.response_note "
            "FROM exchanges AS e LEFT JOIN bodies AS b ON b.number = e.number "
            "LEFT JOIN texts AS t ON t.number = e.number "
            "WHERE e.path LIKE '%before=' || ? ORDER BY e.seq",
            tag,
        )

    def query(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """Rows of the database; none while there is no database, or it is locked."""
        with contextlib.suppress(sqlite3.OperationalError):
            database = sqlite3.connect(f"file:{self.home}/understudy.db?mode=ro", uri=True)
            with contextlib.closing(database):
                database.row_factory = sqlite3.Row
                return [dict(row) for row in database.execute(sql, values)]
        return []

    def checked(self) -> str:
        """What SQLite says of the database's pages."""
        database = sqlite3.connect(f"file:{self.home}/understudy.db?mode=ro", uri=True)
        with contextlib.closing(database):
            return str(database.execute("PRAGMA quick_check").fetchone()[0])

    @contextlib.contextmanager
    def frozen(self, name: str = "proxy") -> Iterator[None]:
        """The process stands still meanwhile: what happens then, it sees all at once."""
        pid = self.pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def stop(self, seconds: float = 20.0) -> int:
        """SIGTERM; its exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)

    def canaries(self) -> list[str]:
        """Files below the home folder (database, spool, ...), standard output and error that hold
        a secret of a client."""
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return [str(path) for path in files if _holds(path, CANARY.encode())]


def _holds(path: Path, secret: bytes) -> bool:
    with path.open("rb") as file:
        seen = b""
        while data := file.read(1 << 20):
            seen = seen[-len(secret) :] + data
            if secret in seen:
                return True
    return False


def wait_for(probe: Callable[[], Any], seconds: float) -> Any:
    """What `probe` finds, once it is something. It may fail to connect before that. `seconds`: of
    a machine that does nothing else.
    """
    deadline = time.monotonic() + _BUSY * seconds
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


MOST_GROWTH = 50 << 20
CALM_SECONDS = 2.0 + TIMEOUTS["upstream_keepalive"]  # two are promised; the pool keeps some


@dataclass(frozen=True)
class Baseline:
    """What a proxy with nothing to do holds. Taken after a good request: the spool is open then."""

    descriptors: int
    resident: int

    @classmethod
    def of(cls, sidecar: Sidecar) -> Baseline:
        good(sidecar)
        wait_for(lambda: sidecar.connections_to(sidecar.upstream_port) == 0, 5)
        wait_for(lambda: sidecar.health()["clients"] == 1, 3)  # the one that asks
        return cls(sidecar.descriptors(), sidecar.resident())


def good(sidecar: Sidecar) -> None:
    """I1: it works, and at once (a second, and what a machine at work adds)."""
    began = time.monotonic()
    reply = sidecar.exchange(post("/v1/chat/completions"))
    assert (reply.status, reply.body) == (200, ANSWER)
    assert time.monotonic() - began < 3


def calm(sidecar: Sidecar, before: Baseline) -> None:
    """I1 to I3: it works, and holds no more than before."""
    sidecar.close_clients()
    good(sidecar)
    wait_for(lambda: sidecar.health()["clients"] == 1, CALM_SECONDS)
    wait_for(lambda: in_flight(sidecar) == 0, CALM_SECONDS)
    wait_for(lambda: sidecar.descriptors() <= before.descriptors, CALM_SECONDS)
    assert sidecar.resident() - before.resident < MOST_GROWTH


def in_flight(sidecar: Sidecar) -> int:
    said = sidecar.exchange(get("/_understudy/metrics"), "GET").body.decode()
    return sum(
        int(line.split()[1])
        for line in said.splitlines()
        if line.startswith("understudy_in_flight{")
    )


def sound(sidecar: Sidecar) -> None:
    """I4 and I5, of one that has stopped: pages are whole, no secret was told or written."""
    assert "Traceback" not in sidecar.errors()
    assert sidecar.canaries() == []
    assert not sidecar.told_secret()
    assert sidecar.checked() == "ok"


@contextlib.contextmanager
def stage(root: Path, policy: dict[str, Any] | None = None) -> Iterator[Stage]:
    """Whatever was done to it, afterwards it works, holds nothing, and has told no secret."""
    upstream = Upstream()
    sidecar = Sidecar(root, upstream.port, policy=policy or {})
    try:
        sidecar.start()
        before = Baseline.of(sidecar)
        yield Stage(sidecar, upstream)
        calm(sidecar, before)
        assert sidecar.stop() == 0
        sound(sidecar)
    finally:
        sidecar.kill()
        upstream.close()
