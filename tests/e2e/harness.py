"""The real sidecar through the real command line, and the stand-in upstream in a thread."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import yaml

from bin.standin import Standin

MODEL = Path(__file__).parents[2] / "shadow" / "models" / "triage.gguf"
T = TypeVar("T")


def wait_for(what: str, condition: Callable[[], T], seconds: float = 20.0) -> T:
    """The condition's first true value; fails with `what` when there is none in time."""
    deadline = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < deadline, f"not in {seconds:g} s: {what}"
        time.sleep(0.05)


class Upstream:
    """A `Standin` whose loop runs in a thread of its own, so that tests may block."""

    def __init__(self, standin: Standin) -> None:
        self.standin = standin
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._done: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        async def main() -> None:
            self._done = asyncio.Event()
            async with self.standin:
                self._ready.set()
                await self._done.wait()

        self._loop.run_until_complete(main())
        self._loop.close()

    def __enter__(self) -> Standin:
        self._thread.start()
        assert self._ready.wait(10)
        return self.standin

    def __exit__(self, *_: object) -> None:
        assert self._done is not None
        self._loop.call_soon_threadsafe(self._done.set)
        self._thread.join(10)


class Sidecar:
    """`understudy serve` with a policy, in a home folder of its own."""

    def __init__(self, home: Path, policy: dict[str, Any], *options: str) -> None:
        self.home = home
        self._policy = home.parent / f"{home.name}-policy.yaml"
        self._policy.write_text(yaml.safe_dump(policy))
        self._options = options
        self.log = home.parent / f"{home.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        command = [sys.executable, "-P", "-m", "bin.cli", "serve"]
        command += ["--home", str(self.home), "--policy", str(self._policy)]
        command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *self._options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.home.parent,
            )
        wait_for("the sidecar answers", self.answers)
        return self

    __enter__ = start

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        code = self.stop()
        assert error is not None or code == 0, self.log.read_text()

    def stop(self) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "state.json").read_text())
        return found

    @property
    def url(self) -> str:
        return f"http://{self.state['data']}"

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"

    def pid(self, name: str) -> int:
        """It may just be starting."""
        return int(wait_for(f"{name} runs", lambda: self.state["processes"].get(name)))

    def signal(self, name: str, number: int) -> None:
        os.kill(self.pid(name), number)

    def health(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.url}/_understudy/health", timeout=5) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        return found

    def answers(self) -> bool:
        try:
            return bool(self.health()["status"] == "ok")
        except (OSError, ValueError, KeyError):
            return False

    def query(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of the database; none while there is no database or no such table."""
        database = self.home / "understudy.db"
        try:
            connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=5)
        except sqlite3.OperationalError:
            return []
        try:
            return connection.execute(sql, values).fetchall()
        except sqlite3.OperationalError:
            return []
        finally:
            connection.close()

    def phases(self) -> list[str]:
        return [row[0] for row in self.query("SELECT phase FROM rollouts")]


def fast_rollout(upstream: str, **rollout: object) -> dict[str, Any]:
    """A policy that is at 100 % within seconds, once agreement is there."""
    return {
        "upstream": upstream,
        "candidates": [{"name": "triage", "gguf": str(MODEL), "context": 512}],
        "rollout": {
            "threshold": 0.8,
            "minimum_pairs": 20,
            "steps": [100],
            "step_time": "0s",
            "holdback": 0.1,
            **rollout,
        },
    }
