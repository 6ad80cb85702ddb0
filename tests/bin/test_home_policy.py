"""Commands go by the policy that the home's sidecar was last started with."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import click
import orjson
import pytest
from click.testing import CliRunner, Result

from bin.authority_command import add_authority
from bin.doctor import add_doctor
from bin.doctor_observed import observe
from bin.home_policy import policy_file, policy_of, remember
from bin.import_command import add_import
from bin.orders_command import add_orders
from bin.run_command import add_run
from bin.spool_command import add_spool
from policies.config import ConfigError
from policies.home import Home
from policies.policy import Policy
from proxy import authority
from tests.e2e.harness import Sidecar, wait_for
from tests.e2e.test_run import Run as Running
from tests.store.making import Exchange, Run, recorded, row, rows
from tests.store.making import home as making_home

MONTH = 30 * 86400


@click.group()
def main() -> None:
    """The commands alone."""


_home = click.option("--home", type=click.Path(path_type=Path), required=True)
for add in (add_authority, add_doctor, add_import, add_orders, add_run, add_spool):
    add(main, _home)


def called(at: Home, *arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments), "--home", str(at.root)])


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def at(tmp_path: Path) -> Home:
    found = making_home(tmp_path)
    found.root.mkdir(exist_ok=True)
    return found


# -- what is remembered


def test_without_a_home_or_a_sidecar_it_is_the_default(at: Home, tmp_path: Path) -> None:
    assert policy_of(at.root, None) == Policy()
    assert policy_of(tmp_path / "none", None) == Policy()
    assert policy_of(written(tmp_path / "file", ""), None) == Policy()
    remember(at.root, None)
    assert policy_of(at.root, None) == Policy()


def test_the_file_is_named_in_full_and_read_anew(
    at: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path / "policy.yaml", "workers: 2")
    monkeypatch.chdir(tmp_path)
    remember(at.root, Path("policy.yaml"))
    monkeypatch.chdir("/")
    assert policy_file(at.root) == file
    assert policy_of(at.root, None).workers == 2
    file.write_text("workers: 3")
    assert policy_of(at.root, None).workers == 3
    other = written(tmp_path / "other.yaml", "workers: 4")
    assert policy_of(at.root, other).workers == 4
    remember(at.root, None)
    assert policy_of(at.root, None).workers == 1
    (kept,) = at.root.iterdir()
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_link_is_kept_as_a_link(at: Home, tmp_path: Path) -> None:
    link = tmp_path / "policy.yaml"
    link.symlink_to(written(tmp_path / "first.yaml", "workers: 2"))
    remember(at.root, link)
    (tmp_path / "first.yaml").unlink()
    link.unlink()
    link.symlink_to(written(tmp_path / "second.yaml", "workers: 3"))
    assert policy_of(at.root, None).workers == 3


def test_a_name_of_any_bytes(at: Home, tmp_path: Path) -> None:
    file = written(Path(os.fsdecode(os.fsencode(tmp_path) + b'/\xff".yaml')), "workers: 2")
    remember(at.root, file)
    assert policy_of(at.root, None).workers == 2


@pytest.mark.parametrize("text", [None, "privacy: {mode: some}", "a: [", "workers: 0"])
def test_a_file_that_can_not_be_used_any_more_is_named(
    at: Home, tmp_path: Path, text: str | None
) -> None:
    file = tmp_path / "policy.yaml"
    remember(at.root, file)
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        policy_of(at.root, None)
    said = str(caught.value)
    assert said.startswith(f"{file}: ") and "\n" not in said
    assert f"the sidecar of {at.root} was last started with this file" in said
    assert said.endswith("mend it, or name the one to go by with --policy FILE")


@pytest.mark.parametrize("kept", [b"", b'{"policy": "/etc/pol', b"{}", b"[]", b'{"policy": 1}'])
def test_what_was_cut_short_is_not_taken_for_the_default(at: Home, kept: bytes) -> None:
    (at.root / "serve.json").write_bytes(kept)
    with pytest.raises(ConfigError, match=r"serve.json: does not say which .* --policy FILE"):
        policy_of(at.root, None)


def test_what_can_not_be_read_is_not_taken_for_the_default(at: Home) -> None:
    (at.root / "serve.json").mkdir()
    with pytest.raises(ConfigError, match=r"serve.json: can't be read: .* --policy FILE"):
        policy_of(at.root, None)


def test_a_serve_that_could_start_is_remembered(at: Home, tmp_path: Path) -> None:
    with Sidecar(at.root, {}):
        pass
    served = tmp_path / f"{at.root.name}-policy.yaml"
    assert policy_file(at.root) == served
    other = written(tmp_path / "other.yaml", "")
    command = [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(at.root)]
    command += ["--policy", str(other), "--listen", "0.0.0.0:0"]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert refused.returncode == 2 and "others could use it" in refused.stderr
    assert policy_file(at.root) == served


def test_a_serve_that_can_not_be_remembered_starts_and_says_so(at: Home) -> None:
    (at.root / "serve.json").mkdir()
    with Sidecar(at.root, {}) as sidecar:
        assert sidecar.health()["status"] == "ok"
    assert "serve.json is out of date: " in sidecar.log.read_text()


def test_a_serve_that_goes_by_less_than_the_last_says_so(at: Home, tmp_path: Path) -> None:
    at.root.chmod(0o700)
    with Sidecar(at.root, {}) as sidecar:
        pass
    assert "the defaults" not in sidecar.log.read_text()
    served = tmp_path / f"{at.root.name}-policy.yaml"
    command = [sys.executable, "-P", "-m", "bin.cli", "serve", "--home", str(at.root)]
    command += ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]
    log = tmp_path / "plain.log"
    with log.open("wb") as errors:
        plain = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        wait_for("it says so", log.read_text)
    finally:
        plain.terminate()
        plain.wait(30)
    assert log.read_text() == (
        f"understudy: the last start of this home went by {served}; this one goes by the defaults\n"
    )
    assert policy_file(at.root) is None


def test_a_run_starts_the_sidecar_as_it_was_started_last(at: Home, tmp_path: Path) -> None:
    policy = "upstream: http://127.0.0.1:9\nprivacy: {mode: redacted}"
    file = written(tmp_path / "policy.yaml", policy)
    remember(at.root, file)
    state = ("--mode", "base-url", "--", "cat", str(at.state))
    with Running(at.root, *state, OPENAI_BASE_URL="http://127.0.0.1:8/v1") as run:
        assert run.end() == 0, run.complaint
    assert orjson.loads(run.out.read_bytes())["upstream"] == "http://127.0.0.1:9"
    assert "it is replaced" in run.complaint and "relaying to" not in run.complaint
    assert policy_file(at.root) == file
    assert "the defaults" not in (at.root / "serve.log").read_text()


def test_a_run_whose_policy_is_gone_starts_nothing(at: Home, tmp_path: Path) -> None:
    gone, ran = tmp_path / "gone.yaml", tmp_path / "ran"
    remember(at.root, gone)
    words = ["run", "--home", str(at.root), "--listen", "127.0.0.1:0", "--", "touch", str(ran)]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 2 and not ran.exists()
    assert f"understudy: {gone}: can't be read: No such file" in result.stderr
    assert "--policy FILE" in result.stderr
    assert not (at.root / "serve.log").exists() and not at.state.exists()


def test_the_doctor_judges_by_what_will_hold(at: Home, tmp_path: Path) -> None:
    file = written(tmp_path / "policy.yaml", "forward: {intercept: [llm.example.com]}")
    authority.make(at.authority, ["llm.example.com"])
    remember(at.root, file)
    seen = observe(at.root, None)
    assert seen.policy == policy_of(at.root, None)
    assert (seen.authority_error, seen.issuer is None) == ("", False)
    assert "intercepts api.openai.com" in observe(at.root, Policy()).authority_error
    file.unlink()
    result = called(at, "doctor")
    assert result.exit_code == 1 and f"{file}: can't be read" in result.stderr


# -- the commands


def test_each_is_refused_before_it_has_done_anything(at: Home, tmp_path: Path) -> None:
    recorded(tmp_path, Exchange(1))
    authority.make(at.authority, ["llm.example.com"])
    gone = tmp_path / "gone.yaml"
    remember(at.root, gone)
    run = Run(Home(tmp_path / "elsewhere", tmp_path), "run-b", alive=False)
    run.write(Exchange(2).records())
    logged = written(tmp_path / "logged.jsonl", "{}\n")
    before = {path: path.read_bytes() for path in at.root.rglob("*") if path.is_file()}
    for line in (
        ("import", logged),
        ("import-spool", run.folder),
        ("retention",),
        ("forget", "--id", Exchange(1).uuid, "--yes"),
        ("feedback", Exchange(1).uuid, "--score", "1"),
        ("ca", "renew"),
    ):
        result = called(at, *line)
        assert result.exit_code == 1, line
        assert f"{gone}: can't be read: No such file" in result.stderr, line
        assert "--policy FILE" in result.stderr
    assert {path: path.read_bytes() for path in before} == before
    default = written(tmp_path / "empty.yaml", "")
    said = called(at, "feedback", Exchange(1).uuid, "--score", "1", "--policy", default)
    assert said.exit_code == 0, said.output


def test_retention_is_the_homes(at: Home, tmp_path: Path) -> None:
    recorded(tmp_path, Exchange(1, at=time.time() - 2 * MONTH), Exchange(2))
    remember(at.root, written(tmp_path / "policy.yaml", "record: {keep_bodies: 30d}"))
    assert "too old: 1 bodies" in called(at, "retention", "--dry-run").output
    longer = written(tmp_path / "longer.yaml", "record: {keep_bodies: 90d}")
    assert "too old: 0 bodies" in called(at, "retention", "--dry-run", "--policy", longer).output
    assert "removed: 1 bodies" in called(at, "retention").output


def test_a_correction_is_redacted_as_the_home_says(at: Home, tmp_path: Path) -> None:
    recorded(tmp_path, Exchange(1, more_opened={"mode": "redacted"}))
    policy = "privacy: {mode: redacted, recognisers: [ip]}"
    remember(at.root, written(tmp_path / "policy.yaml", policy))
    said = called(at, "feedback", Exchange(1).uuid, "--correction", "a@b.example 192.0.2.7")
    assert said.exit_code == 0, said.output
    assert row(at, "SELECT correction FROM feedback")["correction"] == "a@b.example <IP_1>"


def test_an_import_keeps_what_the_home_keeps(at: Home, tmp_path: Path) -> None:
    told = {"role": "user", "content": "write to ann@example.com"}
    answered = {"role": "assistant", "content": "done"}
    line = orjson.dumps({"messages": [told, answered]}).decode()
    logged = written(tmp_path / "logged.jsonl", line + "\n")
    remember(at.root, written(tmp_path / "policy.yaml", "privacy: {mode: metadata}"))
    assert called(at, "import", logged).exit_code == 0
    assert row(at, "SELECT privacy FROM exchanges") == {"privacy": "metadata"}
    assert rows(at, "SELECT 1 FROM bodies") == []


def test_a_new_authority_signs_for_the_domains_of_the_home(at: Home, tmp_path: Path) -> None:
    policy = "forward: {intercept: [llm.example.com]}"
    remember(at.root, written(tmp_path / "policy.yaml", policy))
    made = called(at, "ca", "renew")
    assert made.exit_code == 0, made.output
    assert authority.read(at.authority).domains == {"llm.example.com"}
