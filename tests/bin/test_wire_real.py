"""The real sidecar changes nothing: every shipped request, with capture and without.

T9, T12, T33, T34, T35, T37, T38.
"""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_sidecar_changes_nothing() -> None:
    command = [sys.executable, "-P", "-m", "bin.cli", "verify-wire", "--json"]
    result = subprocess.run(command, capture_output=True, timeout=300, check=False)
    assert result.stderr == b""
    found = json.loads(result.stdout)
    assert found["differences"] == []
    assert result.returncode == 0
    assert found["runs"] == ["without capture", "with capture"]
    assert found["requests"] > 100
    # Every row of the table is there for a request that shows it.
    assert [row["what"] for row in found["allowed"] if not row["seen"]] == ["100 Continue"]
