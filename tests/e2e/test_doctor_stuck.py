"""`understudy doctor` where something hangs, nothing is recorded, or only one way works."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness import Sidecar
from tests.e2e.test_doctor import canaries, doctor, environment, started

NODE = """#!/bin/sh
case "$2" in *process.versions*) echo '{"version": "20.19.1", "prefix": "/n", "libraries": {}}';;
*) case "$3" in
  fetchBase) curl --silent --output /dev/null "$OPENAI_BASE_URL/models?${4#*\\?}";;
  esac; echo '{"status": 401}';; esac
"""


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A port that is bound, and where nobody listens."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{nobody.getsockname()[1]}"


def test_an_error_of_our_own_is_no_call_past_us(tmp_path: Path, nowhere: str) -> None:
    lost = {"UNDERSTUDY_UPSTREAM_PROXY": nowhere}
    with started(tmp_path, lost, None, "--no-capture") as sidecar:
        report = doctor(sidecar.home, "--json", "--", sys.executable)
    assert report.of("upstream")["ok"] is False
    said = {one["name"]: one["said"] for one in report.whole["runtimes"]}
    came = [name for name, text in said.items() if text == "came to the sidecar (502)"]
    assert any("openai (base_url)" in name for name in came), said
    assert any("urllib (HTTPS_PROXY)" in name for name in came), said
    assert report.wrong() == ["upstream"], report.out


def test_a_sidecar_of_this_home_that_is_stuck(tmp_path: Path, nowhere: str) -> None:
    sidecar = Sidecar(tmp_path / "home", {"upstream": nowhere}).start()
    assert sidecar.process is not None
    worker = sidecar.pid("proxy")
    os.kill(worker, signal.SIGSTOP)
    try:
        found = doctor(sidecar.home, "--json").of("sidecar")
    finally:
        os.kill(worker, signal.SIGCONT)
        assert sidecar.stop() == 0
    pid = sidecar.process.pid
    assert found["ok"] is False
    assert f"this home's sidecar (process {pid}) takes connections, but answers" in found["said"]
    assert found["cure"].startswith(f"kill {pid}, wait")


def test_an_old_node_without_the_sdk_still_has_one_way(tmp_path: Path, nowhere: str) -> None:
    """Its part is played: which Node is installed says nothing about what is said of it."""
    node = tmp_path / "bin" / "node"
    node.parent.mkdir()
    node.write_text(NODE)
    node.chmod(0o755)
    path = f"{node.parent}:{environment()['PATH']}"
    with started(tmp_path, {}, {"upstream": nowhere}) as sidecar:
        report = doctor(sidecar.home, "--json", "--", "node", "server.mjs", PATH=path)
    assert canaries(report) == {
        "node 20.19.1 fetch (base_url)": True,
        "node 20.19.1 fetch (HTTPS_PROXY)": None,
    }


def test_what_has_no_canary_is_named(tmp_path: Path, nowhere: str) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("ruby", "php"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    (folder / "curl").symlink_to(shutil.which("curl") or "")
    with started(tmp_path, {}, {"upstream": nowhere}) as sidecar:
        all_of_them = doctor(sidecar.home, "--json", PATH=str(folder))
        one = doctor(sidecar.home, "--json", "--", "ruby", "app.rb", PATH=str(folder)).of("ruby")
    found = all_of_them.of("others")
    assert found["ok"] is None and found["said"].startswith("ruby, php: here, but")
    assert found["cure"].endswith("understudy doctor --explain ruby")
    assert one["ok"] is None and "there is no canary for ruby" in one["said"]
