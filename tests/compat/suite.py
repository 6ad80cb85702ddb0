"""The test suite that ships with the official Python SDK, directly and through the sidecar.

Its server is the one that its authors use: Steady, which answers by OpenAI's OpenAPI document and
refuses requests that do not fit it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.compat.compare import Comparison, of_outcomes
from tests.e2e.harness import Sidecar, wait_for

_STEADY: Final = "@stdy/cli@0.22.2"
_SPEC: Final = (
    "https://raw.githubusercontent.com/openai/openai-python/v{version}"
    "/api_reference/openapi.transformed.yml"
)
_EXTRAS: Final = "aiohttp,realtime,datalib"
_NOT_NEEDED: Final = {"ty", "ruff", "mypy", "pyright", "pandas-stubs", "types-requests"}
_PLUGIN: Final = Path(__file__).with_name("outcomes.py")


@dataclass(frozen=True, slots=True)
class Suite:
    """`root`: the unpacked source distribution; `python`: of the environment it runs in."""

    version: str
    root: Path
    python: Path


def compare(folder: Path, version: str | None, spec: str | None, tests: list[str]) -> Comparison:
    suite = install(folder, version)
    with _mock(folder, _document(folder, suite, spec)) as mock:
        direct = _run(folder, suite, mock, tests)
        home = folder / "suite-home"
        with Sidecar(home, {"upstream": mock}) as sidecar:
            through = _run(folder, suite, sidecar.url, tests)
            health = sidecar.health()
    said = f"relayed: {health['requests']} requests, {health['refused']} refused"
    return of_outcomes(f"Python SDK {suite.version}, its own tests", direct, through, said)


# -- setting up


def install(folder: Path, version: str | None) -> Suite:
    """The SDK's source distribution, unpacked, and an environment with what its tests need."""
    wanted = f"openai=={version}" if version else "openai"
    _pip(sys.executable, "download", "--no-deps", "--no-binary", ":all:", "-d", folder, wanted)
    archive = max(folder.glob(f"openai-{version or '*'}.tar.gz"), key=lambda p: p.stat().st_mtime)
    with tarfile.open(archive) as sdist:
        sdist.extractall(folder, filter="data")
    root = folder / archive.name.removesuffix(".tar.gz")
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    _pip(python, "install", f"{root}[{_EXTRAS}]", *_needed(root))
    return Suite(root.name.removeprefix("openai-"), root, python)


def _needed(root: Path) -> list[str]:
    """The requirements of the suite, less its checkers of style and types."""
    groups = tomllib.loads((root / "pyproject.toml").read_text())["dependency-groups"]
    names = {line: re.split(r"[\s=<>!~\[;]", line, maxsplit=1)[0] for line in groups["dev"]}
    return [line for line, name in names.items() if name not in _NOT_NEEDED]


def _pip(python: str | Path, *arguments: str | Path) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    command = [str(python), "-m", "pip", str(arguments[0]), *quiet, *map(str, arguments[1:])]
    ran = subprocess.run(command, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{ran.stderr}")


def _document(folder: Path, suite: Suite, spec: str | None) -> Path:
    """OpenAI's OpenAPI document: `spec` is a file or a URL; else the one of the SDK's release."""
    source = spec or _SPEC.format(version=suite.version)
    if not source.startswith(("http://", "https://")):
        return Path(source).resolve()
    found = folder / "openapi.yml"
    try:
        with urllib.request.urlopen(source, timeout=60) as answer:
            found.write_bytes(answer.read())
    except OSError as error:
        raise SystemExit(f"{source}: {error}; name a file or URL: --spec FILE") from None
    return found


# -- running


@contextmanager
def _mock(folder: Path, document: Path) -> Iterator[str]:
    """The URL of a mock server of the document."""
    tool = folder / "steady"
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "--prefix", str(tool)]
    subprocess.run([*command, _STEADY], check=True, stdout=subprocess.DEVNULL)
    port = _free_port()
    options = [f"--validator-{place}-array-format=brackets" for place in ("query", "form")]
    options += [f"--validator-{place}-object-format=brackets" for place in ("query", "form")]
    run = [str(tool / "node_modules" / ".bin" / "steady"), "--host", "127.0.0.1", "-p", str(port)]
    with (folder / "steady.log").open("wb") as log:
        mock = subprocess.Popen(
            [*run, *options, str(document)], stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for("the mock server answers", lambda: _healthy(url), 60)
        yield url
    finally:
        os.killpg(mock.pid, signal.SIGTERM)
        mock.wait(10)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/_x-steady/health", timeout=5):
            return True
    except OSError:
        return False


def _run(folder: Path, suite: Suite, url: str, tests: list[str]) -> dict[str, Any]:
    """What became of each test, by its id."""
    plugins = folder / "plugins"
    plugins.mkdir(exist_ok=True)
    shutil.copy(_PLUGIN, plugins / "compat_outcomes.py")
    out = folder / "outcomes.json"
    out.unlink(missing_ok=True)
    more = {
        "TEST_API_BASE_URL": url,
        "DEFER_PYDANTIC_BUILD": "false",
        "PYTHONPATH": str(plugins),
        "COMPAT_OUT": str(out),
        "COMPAT_PORT": url.rpartition(":")[2],
    }
    command = [str(suite.python), "-m", "pytest", "-p", "compat_outcomes", "-p", "no:cacheprovider"]
    command += ["-o", "addopts=--tb=short", "-n", "2", "-q", *tests]
    with (folder / "suite.log").open("ab") as log:
        subprocess.run(command, cwd=suite.root, env=os.environ | more, stdout=log, stderr=log)
    if not out.exists():
        raise SystemExit(f"the suite did not run; see {folder / 'suite.log'}")
    found: dict[str, Any] = json.loads(out.read_text())
    return found
