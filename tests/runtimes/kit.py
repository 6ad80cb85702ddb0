"""The runtimes that apps are written for: which are here, how to get the others, how to run one.

python -m tests.runtimes.kit              what is here, in which version, and what is missing
python -m tests.runtimes.kit --install    installs what is missing, in that folder
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.runtimes.needs import NEEDS, Need, folder_of

CLIENTS: Final = Path(__file__).with_name("clients")
CHAT: Final = ("chat",)
SDK: Final = ("chat", "stream", "upload", "realtime")
_SEVERAL: Final = ("web", "npm", "npm20")  # needs of more than one package
_KEPT: Final = ("PATH", "HOME", "TMPDIR")  # of our environment: of proxies and trust nothing
_SECONDS: Final = 180.0  # a first `go run` compiles the standard library


@dataclass(frozen=True, slots=True)
class Runtime:
    """`command`: {a need's name} is where that is, {clients} our scripts, {task} one of `tasks`.

    `told`: the variables that lead it through a proxy and make it trust a root, if there are any.
    `deaf`: tasks that nevertheless go past the proxy.
    """

    name: str
    needs: tuple[str, ...]
    command: tuple[str, ...]
    told: tuple[str, ...] = ()
    tasks: tuple[str, ...] = CHAT
    environment: tuple[tuple[str, str], ...] = ()
    deaf: tuple[str, ...] = ()

    def led(self, task: str) -> bool:
        """Can this be led through a proxy without a change to the app?"""
        return bool(self.told) and task not in self.deaf


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not here, what cannot be tried for that reason, and the commands that help."""

    need: str
    runtimes: tuple[str, ...]
    how: str

    def __str__(self) -> str:
        return f"{self.need} (for {', '.join(self.runtimes)}): {self.how}"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a client said on its last line; `raw` is all of it, and what else it said."""

    ok: bool
    status: int | None
    text: str | None
    error: str | None
    raw: str

    @classmethod
    def of(cls, code: int, said: str, complained: str) -> Outcome:
        raw = f"exit code {code}\n{said}\n{complained}"
        try:
            found: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
        except (ValueError, IndexError):
            return cls(False, None, None, f"no outcome: {raw}", raw)
        assert found["ok"] == (code == 0), raw
        return cls(found["ok"], found["status"], found["text"], found["error"], raw)


@dataclass(frozen=True, slots=True)
class Kit:
    """What is installed here. `folder`: where what no system package brings is looked for."""

    folder: Path | None
    found: Mapping[str, Path] = field(default_factory=dict)

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Kit:
        folder = folder_of(environment)
        found = {need.name: need.find(folder) for need in NEEDS.values()}
        return cls(folder, {name: path for name, path in found.items() if path})

    def has(self, runtime: Runtime) -> bool:
        return all(need in self.found for need in runtime.needs)

    def ready(self) -> tuple[Runtime, ...]:
        return tuple(runtime for runtime in RUNTIMES if self.has(runtime))

    def missing(self) -> tuple[Missing, ...]:
        """Whatever of the matrix cannot run here. `ready` and these are all of it."""
        lacking = (need for need in NEEDS.values() if need.name not in self.found)
        return tuple(Missing(need.name, _users(need), need.how(self.folder)) for need in lacking)

    def run(self, runtime: Runtime, task: str, environment: Mapping[str, str]) -> Outcome:
        """The app in an environment that says nothing of proxies and trust but this."""
        done = subprocess.run(
            self.command(runtime, task),
            env=self.environment(runtime) | dict(environment),
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
        return Outcome.of(done.returncode, done.stdout, done.stderr)

    def command(self, runtime: Runtime, task: str) -> list[str]:
        assert task in runtime.tasks, f"{runtime.name} has no {task}"
        return [self._filled(word, task) for word in runtime.command]

    def environment(self, runtime: Runtime) -> dict[str, str]:
        """Without a word of proxies or trust."""
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        own = {name: self._filled(value) for name, value in runtime.environment}
        return {"LANG": "C.UTF-8", **kept, **own}

    def _filled(self, word: str, task: str = "") -> str:
        for name, path in {**self.found, "clients": CLIENTS, "task": task}.items():
            word = word.replace(f"{{{name}}}", str(path))
        return word

    def versions(self) -> Iterator[tuple[str, Path, str]]:
        for name, path in self.found.items():
            yield name, path, NEEDS[name].version_of(path)


def _users(need: Need) -> tuple[str, ...]:
    users = tuple(runtime.name for runtime in RUNTIMES if need.name in runtime.needs)
    return users or ("the way out",)


def install(kit: Kit) -> None:
    assert kit.folder is not None, "UNDERSTUDY_RUNTIMES names no folder"
    for missing in kit.missing():
        print(missing.how, flush=True)
        subprocess.run(missing.how, shell=True, check=True)


def main(*options: str) -> int:
    if "--install" in options:
        install(Kit.here())
    kit = Kit.here()
    for name, path, version in kit.versions():
        told = version if name in _SEVERAL else version.partition("\n")[0]
        print(f"{name:16} {path}  {' '.join(told.split())}")
    for missing in kit.missing():
        print(f"missing: {missing}")
    return 1 if kit.missing() else 0


# -- the matrix: `told` and `deaf` are what was observed, with each variable alone

_PYTHON: Final = ("HTTPS_PROXY", "SSL_CERT_FILE")
_JS: Final = ("HTTPS_PROXY", "NODE_EXTRA_CA_CERTS")
_NODE: Final = ("NODE_USE_ENV_PROXY", *_JS)  # from 22.21 and 24.0 on
_JAVA: Final = ("JAVA_TOOL_OPTIONS",)
_NATIVE: Final = "realtime-native"
_GO: Final = (("GOTOOLCHAIN", "local"), ("GOPROXY", "off"))


def _sdk(need: str, way: str) -> Runtime:
    command = (f"{{{need}}}", "{clients}/sdk.py", "{task}", way)
    name = f"{need}-{way}" if way != "aiohttp" else need
    return Runtime(name, (need,), command, _PYTHON, SDK)


def _web(library: str, *told: str) -> Runtime:
    return Runtime(library, ("web",), ("{web}", "{clients}/plain.py", library), told)


def _ignoring(library: str) -> Runtime:
    command = ("{web}", "{clients}/plain.py", library, "ignoring")
    return Runtime(f"{library}-ignoring", ("web",), command)


def _fetch(program: str, *told: str, words: tuple[str, ...] = ()) -> Runtime:
    command = (f"{{{program}}}", *words, "{clients}/plain.cjs", "fetch")
    return Runtime(f"{program}-fetch", (program,), command, told)


def _undici(program: str, modules: str) -> Runtime:
    command = (f"{{{program}}}", "{clients}/plain.cjs", "undici")
    found = (("NODE_PATH", f"{{{modules}}}"),)
    return Runtime(f"{program}-undici", (program, modules), command, _JS, CHAT, found)


def _sdk_js(program: str, modules: str, *told: str, deaf: tuple[str, ...], native: bool) -> Runtime:
    command = (f"{{{program}}}", "{clients}/sdk.cjs", "{task}")
    tasks = (*SDK, _NATIVE) if native else SDK
    found = (("NODE_PATH", f"{{{modules}}}"),)
    needs = (program, modules)
    return Runtime(f"{program}-openai", needs, command, told, tasks, found, deaf)


def _script(program: str, script: str, *told: str) -> Runtime:
    return Runtime(program, (program,), (f"{{{program}}}", f"{{clients}}/{script}"), told)


def _shell(program: str, *told: str) -> Runtime:
    return Runtime(program, (program,), ("sh", "{clients}/plain.sh", program), told)


def _go(program: str) -> Runtime:
    command = (f"{{{program}}}", "run", "{clients}/plain.go")
    return Runtime(program, (program,), command, _PYTHON, environment=_GO)


def _okhttp() -> Runtime:
    command = ("{java}", "-cp", "{okhttp}/*", "{clients}/OkHttp.java")
    return Runtime("java-okhttp", ("java", "okhttp"), command, _JAVA)


RUNTIMES: Final = (
    *(_sdk(f"openai{major}", way) for major in (1, 2, 3) for way in ("sync", "async")),
    _sdk("openai3-aiohttp", "aiohttp"),
    _web("requests", "HTTPS_PROXY", "REQUESTS_CA_BUNDLE"),
    _web("httpx", *_PYTHON),
    _web("aiohttp", *_PYTHON),
    _web("urllib", *_PYTHON),
    *(_ignoring(library) for library in ("requests", "httpx", "aiohttp", "urllib")),
    _fetch("node20"),
    _fetch("node22", *_NODE),
    _fetch("node24", *_NODE),
    _undici("node20", "npm20"),
    _undici("node24", "npm"),
    _sdk_js("node20", "npm20", deaf=SDK, native=False),
    _sdk_js("node22", "npm", *_NODE, deaf=("realtime",), native=True),
    _sdk_js("node24", "npm", *_NODE, deaf=("realtime",), native=True),
    _fetch("bun", *_JS),
    _sdk_js("bun", "npm", *_JS, deaf=("realtime", _NATIVE), native=True),
    _fetch("deno", "HTTPS_PROXY", "DENO_CERT", words=("run", "--allow-all")),
    _shell("curl", "HTTPS_PROXY", "CURL_CA_BUNDLE"),
    _shell("wget", "https_proxy", "WGETRC"),
    _go("go"),
    _go("go-latest"),
    _script("java", "Plain.java", *_JAVA),
    _okhttp(),
    _script("ruby", "plain.rb", "http_proxy", "SSL_CERT_FILE"),  # for https too
    _script("php", "plain.php", "HTTPS_PROXY", "PHP_INI_SCAN_DIR"),
    _script("perl", "plain.pl", "HTTPS_PROXY", "PERL_LWP_SSL_CA_FILE"),
)

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
