"""The official Node SDK, directly and through the sidecar: what the app sees, what arrives."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from tests.compat.compare import Comparison, of_values
from tests.compat.pair import pair
from tests.compat.upstream import Heard

PACKAGES = ("openai@^7", "ws@^8")
_CALLS = Path(__file__).with_name("calls.mjs")


def install(folder: Path) -> str:
    """The SDK in `folder`, with our calls beside it; returns its version."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(folder)]
    subprocess.run([*command, *PACKAGES], check=True, stdout=subprocess.DEVNULL)
    shutil.copy(_CALLS, folder)
    package = folder / "node_modules" / "openai" / "package.json"
    return str(json.loads(package.read_text())["version"])


def compare(folder: Path) -> Comparison:
    version = install(folder / "node")
    with pair(folder / "node-home") as sides:
        seen, through = sides.both(lambda base_url: _call(folder / "node", base_url))
        sides.all_gone()
        gone = sides.direct.gone, sides.behind.gone
        direct, behind = sides.heard()
    rows = {
        "calls": (len(seen), len(through)),
        "requests and messages that arrive": (len(direct), len(behind)),
        "clients that left": gone,
    }
    calls = of_values(seen, through)
    arrivals = of_values(_counted(direct), _counted(behind))
    said = f"calls that differ: {len(calls)}; requests and messages that differ: {len(arrivals)}"
    return Comparison(f"Node SDK {version}", rows, calls + arrivals, (said,))


def _call(folder: Path, base_url: str) -> dict[str, Any]:
    ran = subprocess.run(
        ["node", "calls.mjs", base_url], cwd=folder, capture_output=True, text=True, timeout=180
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def _counted(heard: list[Heard]) -> dict[str, str]:
    """By all that it says: calls made at once arrive in any order."""
    counts = Counter(f"{h.what} {list(h.headers)} {_told(h.body)}" for h in heard)
    return {said: f"{count} times" for said, count in counts.items()}


def _told(body: bytes) -> str:
    return repr(body) if len(body) < 1000 else f"{len(body)} bytes, hash {hash(body)}"
