"""The real sidecar between raw sockets: a scripted upstream, and clients that send exact bytes."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

CANARY = "sk-canary-3f9c17d2e8"
SECRETS = f"Authorization: Bearer {CANARY}-key\r\nCookie: session={CANARY}-cookie\r\n"
QUESTION = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}'
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[]}'
EVENTS = [
    b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"two"}}]}\n\n',
]
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
GONE_SECONDS = 1.5  # a second is promised; the rest is for a busy test machine


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def sized(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def post(target: str, body: bytes = QUESTION, headers: str = "", framing: str = "") -> bytes:
    framing = framing or f"Content-Length: {len(body)}\r\n"
    head = (
        f"POST {target} HTTP/1.1\r\nHost: app\r\n{SECRETS}"
        f"Content-Type: application/json\r\n{headers}{framing}\r\n"
    )
    return head.encode("latin-1") + body


def get(target: str, headers: str = "") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: app\r\n{SECRETS}{headers}\r\n".encode("latin-1")


def chat(tag: str) -> str:
    """A chat call's target that its row can be found by."""
    return f"/v1/chat/completions?before={tag}"


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass
class Message:
    """A request or reply as it came: its start line, headers, and body as far as it got."""

    start: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    whole: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])


class Peer:
    """One end of a connection, with a buffer. Never raises for a peer that went away."""

    def __init__(self, connection: socket.socket, seconds: float = 5.0) -> None:
        self.socket = connection
        self.socket.settimeout(seconds)
        self.buffer = b""
        self.ended: str | None = None  # "closed" or "reset" once the peer is gone

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def fill(self) -> bool:
        """Read once more. False: there is no more."""
        try:
            data = self.socket.recv(256 * 1024)
        except ConnectionError:
            self.ended = "reset"
            return False
        if not data:
            self.ended = "closed"
        self.buffer += data
        return bool(data)

    def until(self, mark: bytes) -> bytes:
        """All up to and with `mark`; less when the peer ends."""
        while mark not in self.buffer and self.fill():
            pass
        end = self.buffer.find(mark)
        return self.take(len(self.buffer) if end < 0 else end + len(mark))

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size and self.fill():
            pass
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def rest(self) -> bytes:
        while self.fill():
            pass
        return self.take(len(self.buffer))

    def wait_ended(self, seconds: float = GONE_SECONDS) -> bool:
        """Does the peer go away in time?"""
        self.socket.settimeout(seconds)
        try:
            self.rest()
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(OSError):
                self.socket.settimeout(5.0)
        return True

    def message_head(self) -> Message:
        head = self.until(b"\r\n\r\n")
        lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        pairs = [line.partition(b":") for line in lines[1:]]
        return Message(lines[0], [(name, value.strip()) for name, _, value in pairs])

    def message_body(self, message: Message, until_close: bool) -> Message:
        if message.all(b"transfer-encoding") == [b"chunked"]:
            self._chunks(message)
        elif lengths := message.all(b"content-length"):
            message.body = self.take(int(lengths[0]))
            message.whole = len(message.body) == int(lengths[0])
        elif until_close:
            message.body = self.rest()
            message.whole = self.ended == "closed"
        else:
            message.whole = True
        return message

    def _chunks(self, message: Message) -> None:
        while line := self.until(b"\r\n"):
            if not line.endswith(b"\r\n"):
                return
            size = int(line, 16)
            data = self.take(size + 2)
            if size == 0:
                message.whole = data == b"\r\n"
                return
            message.body += data[:size]
            if len(data) < size + 2:
                return

    def reply(self, method: str = "POST") -> Message:
        """The next final reply, whole or as far as it came."""
        message = self.message_head()
        bodiless = method == "HEAD" or message.start.split(b" ")[1:2] in ([b"204"], [b"304"])
        if bodiless or not message.start:
            message.whole = bool(message.start)
            return message
        return self.message_body(message, until_close=True)

    def close(self) -> None:
        self.socket.close()


class Call(Peer):
    """A request as the upstream gets it. Play its part with `send`, `reset` and `close`."""

    def __init__(self, connection: socket.socket, buffer: bytes) -> None:
        super().__init__(connection, 10.0)
        self.buffer = buffer
        self.request = self.message_head()

    @property
    def target(self) -> bytes:
        return self.request.start.split(b" ")[1]

    def read_body(self) -> bytes:
        return self.message_body(self.request, until_close=False).body

    def reset(self) -> None:
        reset(self.socket)


Answer = Callable[[Call], None]


def plain(call: Call) -> None:
    call.read_body()
    call.send(sized(ANSWER, headers=b"Content-Type: application/json\r\n"))


class Upstream:
    """Accepts connections; each request on them is answered by what `answer` is at that time."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.answer: Answer = plain
        self.calls: queue.Queue[Call] = queue.Queue()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        with contextlib.suppress(OSError), connection:
            while True:
                connection.settimeout(None)
                while b"\r\n\r\n" not in buffer:
                    data = connection.recv(65536)
                    if not data:
                        return
                    buffer += data
                call = Call(connection, buffer)
                self.calls.put(call)
                self.answer(call)
                buffer = call.buffer

    def next_call(self) -> Call:
        return self.calls.get(timeout=5)

    @contextlib.contextmanager
    def playing(self, answer: Answer) -> Iterator[None]:
        """Answer so for the time being."""
        self.forget_calls()
        self.answer = answer
        try:
            yield
        finally:
            self.answer = plain

    def saying(self, *parts: bytes) -> contextlib.AbstractContextManager[None]:
        """Read the request, send these bytes and close."""

        def answer(call: Call) -> None:
            call.read_body()
            for part in parts:
                call.send(part)
            call.socket.close()

        return self.playing(answer)

    def forget_calls(self) -> None:
        while not self.calls.empty():
            self.calls.get_nowait()

    def close(self) -> None:
        self.listener.close()


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
        upstream = f"http://127.0.0.1:{self.upstream_port}"
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
    finally:
        sidecar.kill()
        upstream.close()
