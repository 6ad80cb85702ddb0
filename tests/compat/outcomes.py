"""A pytest plugin for the SDK's own test suite: what became of each test, and did it call.

`COMPAT_OUT` names the file that is written, `COMPAT_PORT` the port of the server under test.
It runs in the suite's environment, by a copy of this file alone: nothing else of ours is there.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

_RANK = ("passed", "xpassed", "xfailed", "skipped", "failed", "error")
_found: dict[str, dict[str, Any]] = {}
_calls = 0


def _count(name: str) -> None:
    """Count what is sent to the port, whichever HTTP client or event loop sends it."""
    original: Callable[..., Any] = getattr(socket.socket, name)
    port = int(os.environ["COMPAT_PORT"])

    def send(self: socket.socket, *args: Any) -> Any:
        global _calls
        if self.family == socket.AF_INET and self.getpeername()[1] == port:
            _calls += 1
        return original(self, *args)

    setattr(socket.socket, name, send)


def pytest_configure() -> None:
    for name in ("send", "sendall", "sendmsg"):
        _count(name)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    global _calls
    _calls = 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    item.user_properties.append(("calls", _calls))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    found = _found.setdefault(report.nodeid, {"outcome": "passed", "reason": "", "calls": False})
    outcome = _outcome(report)
    if _RANK.index(outcome) > _RANK.index(found["outcome"]):
        found["outcome"], found["reason"] = outcome, _reason(report)
    found["calls"] = any(count for _, count in report.user_properties)


def _outcome(report: pytest.TestReport) -> str:
    if hasattr(report, "wasxfail"):
        return "xfailed" if report.skipped else "xpassed"
    if report.failed and report.when != "call":
        return "error"
    return report.outcome


def _reason(report: pytest.TestReport) -> str:
    """The first line of it, without what another run draws anew."""
    crash = getattr(report.longrepr, "reprcrash", None)
    told = crash.message if crash is not None else str(report.longrepr)
    line = next(iter(told.splitlines()), "")
    line = re.sub(r"0x[0-9a-f]+", "0x", line.replace(os.environ["COMPAT_PORT"], "PORT"))
    return re.sub(r"/pytest-of-\w+/pytest-\d+", "/TMP", line)[:300]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):
        Path(os.environ["COMPAT_OUT"]).write_text(json.dumps(_found))
