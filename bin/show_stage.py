"""The demo's two processes: the sidecar, started as a user would, and the app beside it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bin.show_app import Call
from policies.home import Home

_PR_SET_PDEATHSIG: Final = 1
_STOP_SECONDS: Final = 25.0
# A proxy or a key that the person running the demo has set must not leak into it.
_ENVIRONMENT: Final = (
    "PATH HOME LANG LC_ALL TZ TMPDIR PYTHONPATH VIRTUAL_ENV LD_LIBRARY_PATH".split()
)


@dataclass(slots=True)
class Sidecar:
    """`understudy serve` as a process of its own; what it prints goes to a file."""

    home: Home
    process: asyncio.subprocess.Process

    @classmethod
    async def start(cls, home: Home, policy: Path, log: Path) -> Sidecar:
        arguments = ["-P", "-m", "bin.cli", "serve", "--home", str(home.root)]
        arguments += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--policy", str(policy)]
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=file,
                stderr=asyncio.subprocess.STDOUT,
                env=_environment({}),
                start_new_session=True,  # Ctrl-C is for the show, which then stops it in order
                preexec_fn=_ends_with_parent(),
            )
        return cls(home, process)

    @property
    def state(self) -> dict[str, Any]:
        """What the supervisor says of itself; empty until it has begun."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads(self.home.state.read_bytes())
            return found
        return {}

    def kill_model(self, candidate: str) -> int:
        pid: int = self.state["processes"][f"model:{candidate}"]
        os.kill(pid, signal.SIGKILL)
        return pid

    async def stop(self) -> int:
        """Its exit code; it has time to record what is still in the spool."""
        if self.process.returncode is None:
            self.process.terminate()
        return await _ended(self.process)


@dataclass(slots=True)
class App:
    """The app's process, and every call that it has reported, oldest first."""

    process: asyncio.subprocess.Process
    calls: list[Call] = field(default_factory=list)
    _reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, base_url: str, key: str, options: list[str], log: Path) -> App:
        with log.open("wb") as file:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "bin.show_app", *options),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                env=_environment({"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": key}),
                start_new_session=True,
            )
        app = cls(process)
        app._reader = asyncio.get_running_loop().create_task(app._read(), name="app's calls")
        return app

    async def _read(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.calls.append(Call(**json.loads(line)))

    def say(self, word: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n".encode())

    async def stop(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        code = await _ended(self.process)
        if self._reader is not None:
            await self._reader
        return code


async def _ended(process: asyncio.subprocess.Process) -> int:
    try:
        return await asyncio.wait_for(process.wait(), _STOP_SECONDS)
    except TimeoutError:
        process.kill()
        return await process.wait()


def _environment(more: dict[str, str]) -> dict[str, str]:
    return {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ} | more


def _ends_with_parent() -> Callable[[], None] | None:
    """A show that is killed leaves no sidecar behind."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "prctl"):
        return None
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
