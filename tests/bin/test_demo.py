"""The show, whole: real command line, real SDK, real model, three acts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bin.show import run_demo

SECONDS = 100


def test_all_three_acts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    shown = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "bin.cli", "demo", "--plain"),
            *("--seconds", str(SECONDS), "--home", str(home)),
        ],
        capture_output=True,
        text=True,
        timeout=SECONDS + 30,
        env={**os.environ, "COLUMNS": "200"},
    )
    told = shown.stdout + shown.stderr
    assert shown.returncode == 0, told
    assert _figure(told, r"failed calls +(\d+)$") == 0
    assert _figure(told, r"calls +(\d+)$") > 300
    assert _figure(told, r"served locally .* (\d+)% at 100 %") > 50
    assert _figure(told, r"agreement +([\d.]+)% of \d+ distinct requests \(between 0\.9") > 90
    assert _figure(told, r"cost avoided +\$([\d.]+) estimated") > 0
    assert "All three acts went as they should" in told
    assert f"understudy status --home {home}" in told
    assert not (home / "state.json").exists()  # the sidecar has gone, in order


def _figure(told: str, pattern: str) -> float:
    found = re.search(f"^{pattern}", told, re.MULTILINE)
    assert found is not None, f"{pattern} is not in:\n{told}"
    return float(found[1])


def test_a_folder_with_a_database_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "understudy.db").write_bytes(b"mine")
    assert run_demo(30, tmp_path, plain=True) == 2
    assert "needs a new folder" in capsys.readouterr().out
    assert (tmp_path / "understudy.db").read_bytes() == b"mine"
