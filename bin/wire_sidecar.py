"""A private sidecar: `understudy serve` in a folder of its own, gone when it is done with."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

_PR_SET_PDEATHSIG: Final = 1
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 30.0
# The direct run knows of no proxy, and the sidecar has no use for a key of its own.
_PRIVATE: Final = ("OPENAI_API_KEY", "UNDERSTUDY_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")


class SidecarError(Exception):
    """It did not start; one line for a person."""


class PrivateSidecar:
    """Runs from `start` or `with` on; `url` is its data port."""

    def __init__(self, upstream: str, capture: bool) -> None:
        self._upstream = upstream
        self._capture = capture
        self.url = ""

    def __enter__(self) -> Self:
        self._root = Path(tempfile.mkdtemp(prefix="understudy-wire-"))
        command = [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(self._home)]
        command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
        command += ["--upstream", self._upstream, *([] if self._capture else ["--no-capture"])]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                start_new_session=True,  # Ctrl-C is for us; we then stop it in order
                preexec_fn=_ends_with_parent(),
            )
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._end()

    @property
    def _home(self) -> Path:
        return self._root / "home"

    @property
    def _log(self) -> Path:
        return self._root / "log"

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                said = self._log.read_text(errors="replace").strip().splitlines()
                why = said[-1] if said else "it said nothing"
                raise SidecarError(f"the private sidecar did not start: {why}")
            time.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, ValueError, KeyError, urllib.error.URLError):
            state = json.loads((self._home / "state.json").read_bytes())
            self.url = f"http://{state['data']}"
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{self.url}/_understudy/health", timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def _end(self) -> None:
        try:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()  # its children end with it
            self._process.wait()
        finally:
            shutil.rmtree(self._root, ignore_errors=True)


def _ends_with_parent() -> Callable[[], None] | None:
    """However we end, no sidecar is left behind."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "prctl"):
        return None
    return lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _environment() -> dict[str, str]:
    return {
        name: value for name, value in os.environ.items() if not name.upper().startswith(_PRIVATE)
    }
