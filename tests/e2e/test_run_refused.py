"""A sidecar that is no forward proxy: no app is told that it is one. And what one left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bin.sidecar_at import running
from bin.standin import Standin
from policies.home import Home
from policies.policy import Forward
from proxy import authority
from proxy.bundle import bundle
from tests.e2e.harness import Sidecar, Upstream, wait_for
from tests.e2e.test_run import CLI, Run, env, environment, sidecar_of

# Calls, says so, and ends when it is told to.
CALLER = """
import openai, pathlib, sys, time
client = openai.OpenAI(max_retries=0, timeout=20)
for number in range(7):
    client.chat.completions.create(model="gpt-4o-mini", messages=[{"role": "user", "content": "x"}])
print("called", flush=True)
while not pathlib.Path(sys.argv[1]).exists():
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[Standin]:
    with Upstream(Standin(latency=0.0)) as standin:
        yield standin


def written(folder: Path, text: str) -> str:
    path = folder / "policy.yaml"
    path.write_text(text)
    return str(path)


def bundle_of(home: Path) -> None:
    """What a sidecar of other settings has left there: all that an app would need."""
    home.mkdir(0o700)
    authority.make(home / "ca", ["api.openai.com"])
    assert bundle(home / "ca").is_file()


def refused(run: Run, ran: Path) -> str:
    with run:
        assert run.end() == 2, run.complaint
    assert not ran.exists()
    return run.complaint


def test_proxy_mode_of_a_sidecar_that_shall_be_no_proxy(tmp_path: Path, upstream: Standin) -> None:
    home, ran = tmp_path / "home", tmp_path / "ran"
    bundle_of(home)
    policy = written(tmp_path, f"upstream: {upstream.url}\nforward: false\n")
    words = ("--policy", policy, "--mode", "proxy", "--", "touch", str(ran))
    said = refused(Run(home, *words), ran)
    assert "its policy says 'forward: false', so HTTPS_PROXY can't work; take that out" in said
    assert "--mode base-url" in said and sidecar_of(home) is None


def test_proxy_mode_with_an_authority_for_other_domains(tmp_path: Path) -> None:
    home, ran = tmp_path / "home", tmp_path / "ran"
    bundle_of(home)
    policy = written(tmp_path, "forward: {intercept: [api.example.com]}\n")
    words = ("--policy", policy, "--mode", "proxy", "--", "touch", str(ran))
    said = refused(Run(home, *words), ran)
    assert "the policy intercepts api.example.com" in said
    assert "understudy ca renew" in said and "start the sidecar again" in said


def test_no_way_is_chosen_that_does_not_work(tmp_path: Path, upstream: Standin) -> None:
    ran, elsewhere = tmp_path / "ran", "https://gw.example/v1"
    with Sidecar(tmp_path / "home", {"upstream": upstream.url, "forward": False}) as sidecar:
        touch = ("--", "touch", str(ran))
        said = refused(Run(sidecar.home, *touch, OPENAI_BASE_URL=elsewhere), ran)
        assert f"OPENAI_BASE_URL is {elsewhere}, but this sidecar relays to {upstream.url}" in said
        assert "HTTPS_PROXY would not do either" in said
        with Run(sidecar.home, "--mode", "base-url", *touch, OPENAI_BASE_URL=elsewhere) as run:
            assert run.end() == 0 and ran.exists()
        for options, more in (("--mode", "proxy"), {}), ((), {"OPENAI_BASE_URL": elsewhere}):
            found = env(sidecar.home, *options, **more)
            assert (found.returncode, found.stdout) == (2, "")
            assert "its policy says 'forward: false'" in found.stderr
        assert env(sidecar.home).stdout == f"export OPENAI_BASE_URL={sidecar.base_url}\n"


def test_what_was_captured_before_the_sidecar_stopped_is_known(
    tmp_path: Path, upstream: Standin
) -> None:
    home, go = tmp_path / "home", tmp_path / "go"
    words = ("--", sys.executable, "-c", CALLER, str(go))
    with Run(home, *words, upstream=upstream.url) as run:
        run.wait_until_said("called")
        found = running(Home(home, home))
        assert found is not None
        os.kill(found.pid, signal.SIGTERM)
        run.wait_until_said("has ended")
        assert not found.run_dir.exists()
        go.touch()
        assert run.end() == 0
    assert "the sidecar ended before the command; captured until then: 7\n" in run.complaint


def test_an_upstream_that_ends_as_base_urls_do(tmp_path: Path, upstream: Standin) -> None:
    with Run(tmp_path / "home", "--", "true", upstream=f"{upstream.url}/v1") as run:
        assert run.end() == 0
    assert f"/v1/v1/... is what is called; most likely you mean {upstream.url}" in run.complaint


def test_variables_are_waited_for(tmp_path: Path, upstream: Standin) -> None:
    """What the README says: start it, and take its variables at once."""
    home = tmp_path / "home"
    asking = subprocess.Popen(
        [*CLI, "env", "--home", str(home)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    with Sidecar(home, {"upstream": upstream.url}) as sidecar:
        out, complaint = asking.communicate(timeout=20)
        assert (out, complaint) == (f"export OPENAI_BASE_URL={sidecar.base_url}\n", "")


def test_a_container_is_told_what_it_needs(tmp_path: Path, upstream: Standin) -> None:
    with Sidecar(tmp_path / "home", {"upstream": upstream.url}) as sidecar:
        address = sidecar.state["data"]
        here = env(sidecar.home, "--shell", "docker")
        options = ("--shell", "docker", "--mode", "proxy", "--address", "sidecar:4141")
        there = env(sidecar.home, *options)
    assert f"inside a container {address} is the container itself" in here.stderr
    assert "is the container itself" not in there.stderr
    named = {line.partition("=")[2] for line in there.stdout.splitlines() if "/ca/" in line}
    files = {value for value in named if value.startswith("/")}
    assert len(files) == 3 and all(file in there.stderr for file in files)
    assert "ca/truststore.p12" in there.stderr and "they are 0600" in there.stderr


def test_a_folder_that_others_may_look_into_is_told_of(tmp_path: Path, upstream: Standin) -> None:
    home = tmp_path / "home"
    home.mkdir(0o755)
    with Sidecar(home, {"upstream": upstream.url}) as sidecar:
        assert sidecar.answers()
    told = f"--home {home}: others may look into it (mode 0755); run: chmod 700 {home}"
    assert sidecar.log.read_text().count(told) == 1
    home.chmod(0o700)
    sidecar.log.unlink()
    with sidecar:
        wait_for("it answers", sidecar.answers)
    assert "others may" not in sidecar.log.read_text()


def test_an_authority_that_ends_soon_is_told_of(tmp_path: Path, upstream: Standin) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    authority.make(home / "ca", Forward().intercept, lambda: time.time() - 340 * 86400)
    told = f"{home / 'ca'}: the authority has 22 days left: understudy ca renew --home {home}"
    with Sidecar(home, {"upstream": upstream.url}) as sidecar:
        assert sidecar.health()["forward"]["on"] is True
        status = subprocess.check_output([*CLI, "status", "--home", str(home)], text=True)
    assert told in sidecar.log.read_text() and told in status
