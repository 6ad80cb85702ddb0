"""Real model processes for tests, and a small synchronous client for their sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from policies.plan import PURPOSE_HEADER
from policies.settings import Settings, dump

ROOT = Path(__file__).parents[2]
GGUF = ROOT / "shadow" / "models" / "triage.gguf"
HELDOUT = ROOT / "shadow" / "models" / "triage-heldout.jsonl"
SHADOW = {PURPOSE_HEADER: "shadow"}
_CHILD = (
    "import asyncio, sys\n"
    "from policies.settings import load\n"
    "{before}\n"
    "from shadow.model import run\n"
    "asyncio.run(run(load(sys.stdin.buffer.readline())))\n"
)
NO_LLAMA = "sys.modules['llama_cpp'] = None"


@cache
def tickets(count: int = 60) -> list[dict[str, Any]]:
    """Held-out requests with the answer that is right."""
    with HELDOUT.open() as file:
        return [json.loads(line) for line, _ in zip(file, range(count), strict=False)]


def labels() -> list[dict[str, Any]]:
    return [ticket for ticket in tickets() if not ticket["reference"].startswith("{")]


def patched_context(folder: Path) -> Path:
    """The small model, made to believe in a long context: its runs can be made to last."""
    data = bytearray(GGUF.read_bytes())
    key = b"llama.context_length"
    at = data.index(key) + len(key) + 4
    struct.pack_into("<I", data, at, 65536)
    path = folder / "long.gguf"
    path.write_bytes(data)
    return path


@dataclass(frozen=True)
class Answer:
    status: int
    body: Any
    headers: dict[str, str]
    raw: bytes


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("model", timeout=60)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


@dataclass
class ModelProcess:
    settings: Settings
    before: str = ""
    process: subprocess.Popen[bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def socket(self) -> Path:
        return self.settings.home.model_socket(str(self.settings.candidate))

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _CHILD.format(before=self.before)],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
        )  # fmt: skip
        assert self.process.stdin is not None
        self.process.stdin.write(dump(self.settings))
        self.process.stdin.flush()

    def status(self) -> dict[str, Any]:
        told: dict[str, Any] = self.get("/status").body
        return told

    def settled(self) -> dict[str, Any]:
        """Its status, once it is no longer loading."""
        until(lambda: self.socket.exists() and self.process.poll() is None)
        until(lambda: reachable(self.socket) and self.status()["state"] != "loading")
        return self.status()

    def get(self, path: str) -> Answer:
        return self._request("GET", path, None, {})

    def chat(self, body: dict[str, Any], headers: dict[str, str] | None = None) -> Answer:
        return self._request("POST", "/v1/chat/completions", body, headers or {})

    def _request(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Answer:
        connection = self.begin(method, path, body, headers)
        try:
            response = connection.getresponse()
            raw = response.read()
            kind = response.headers.get_content_type()
            parsed = json.loads(raw) if kind == "application/json" else None
            return Answer(response.status, parsed, dict(response.headers), raw)
        finally:
            connection.close()

    def begin(
        self, method: str, path: str, body: Any, headers: dict[str, str]
    ) -> http.client.HTTPConnection:
        """Send a request and leave the answer to the caller."""
        connection = _Connection(self.socket)
        connection.request(method, path, json.dumps(body) if body else None, headers)
        return connection

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self) -> tuple[int, bytes]:
        """The exit code of a polite stop, and what was said on stderr."""
        self.signal(signal.SIGCONT)
        self.signal(signal.SIGTERM)
        _, said = self.process.communicate(timeout=10)
        return self.process.returncode, said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def reachable(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def until(condition: Callable[[], bool], patience: float = 20.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def settings(folder: Path, gguf: Path = GGUF, **policy: Any) -> Settings:
    candidate = {"name": "tiny", "gguf": str(gguf), "context": policy.pop("context", 512)}
    (folder / "home").mkdir(exist_ok=True, mode=0o700)
    return Settings(
        role="model", root=str(folder / "home"), run_dir=str(folder), run_id="run",
        policy={"candidates": [candidate], **policy}, candidate="tiny",
    )  # fmt: skip


@contextmanager
def short_folder() -> Iterator[Path]:
    """Sockets need short paths."""
    with tempfile.TemporaryDirectory(prefix="us-", dir="/tmp") as name:
        yield Path(name)


@contextmanager
def model_process(
    gguf: Path = GGUF, context: int = 512, before: str = ""
) -> Iterator[ModelProcess]:
    with short_folder() as folder:
        process = ModelProcess(settings(folder, gguf, context=context), before)
        try:
            yield process
        finally:
            if process.process.poll() is None:
                os.kill(process.process.pid, signal.SIGCONT)
                process.kill()
