"""Every runtime that is here, under `understudy run --mode proxy`, with the address in its code.

Which these are, and how to get the others: `python -m tests.runtimes.kit`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.hazards.harness import Sidecar, sound
from tests.proxy.far_ends import Authority
from tests.runtimes.kit import Kit, Outcome, Runtime
from tests.runtimes.openai_host import TARGET, OpenaiHost
from tests.runtimes.redirect import Redirector

KIT = Kit.here()
KEY = {"OPENAI_API_KEY": "sk-of-the-app"}
CASES = [(runtime, task) for runtime in KIT.ready() for task in runtime.tasks]
# What `run` says of those that it does not lead, though a variable for them alone would.
CAUSES = {
    "ruby": "Net::HTTP reads http_proxy alone",
    "php": "refused our certificate: set curl.cainfo",
}
LED = [case for case in CASES if case[0].led(case[1]) and case[0].name not in CAUSES]
DEAF = [case for case in CASES if case not in LED]


def names(value: object) -> str:
    return value.name if isinstance(value, Runtime) else str(value)


@dataclass
class World:
    sidecar: Sidecar
    host: OpenaiHost
    way: Redirector

    def run(self, runtime: Runtime, task: str) -> tuple[Outcome, int]:
        """What the app said, and how many exchanges `run` says it captured."""
        command = [sys.executable, "-P", "-m", "bin.cli", "run", "--home", str(self.sidecar.home)]
        command += ["--mode", "proxy", "--", *KIT.command(runtime, task)]
        done = subprocess.run(
            command, env=KIT.environment(runtime) | KEY, capture_output=True, text=True, timeout=180
        )
        captured = re.search(r"captured (\d+) exchange", done.stderr)
        outcome = Outcome.of(done.returncode, done.stdout, done.stderr)
        return outcome, int(captured[1]) if captured else 0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("matrix")
    with OpenaiHost(Authority.make(root)) as host, Redirector({TARGET: host.port}) as way:
        environment = {"UNDERSTUDY_UPSTREAM_PROXY": way.url, "SSL_CERT_FILE": str(host.root)}
        sidecar = Sidecar(root / "sidecar", 9, environment=environment)
        try:
            sidecar.start()
            yield World(sidecar, host, way)
            assert sidecar.stop() == 0
            sound(sidecar)
        finally:
            sidecar.close_clients()
            sidecar.kill()


@pytest.mark.parametrize(("runtime", "task"), LED, ids=names)
def test_it_is_captured(world: World, runtime: Runtime, task: str) -> None:
    outcome, captured = world.run(runtime, task)
    assert outcome.ok, outcome.raw
    assert captured >= 1


@pytest.mark.parametrize(("runtime", "task"), DEAF, ids=names)
def test_what_reads_no_variable_goes_past_and_run_says_so(
    world: World, runtime: Runtime, task: str
) -> None:
    """The API is not to be reached from a test but through the sidecar: so it fails."""
    outcome, captured = world.run(runtime, task)
    assert not outcome.ok, outcome.raw
    assert captured == 0
    assert CAUSES.get(runtime.name, "no request reached the sidecar") in outcome.raw


def test_something_is_here_to_be_tried() -> None:
    assert {"curl"} <= {runtime.name for runtime, _ in LED}
    assert os.environ.get("UNDERSTUDY_RUNTIMES") is None or not KIT.missing()
