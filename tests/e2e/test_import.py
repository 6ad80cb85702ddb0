"""Imports through the real command line: beside a sidecar, killed half-way, and begun anew."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

from bin.standin import Standin
from tests.e2e.harness import Sidecar, Upstream, wait_for

FIXTURES = Path(__file__).parents[1] / "store/fixtures_imports"


def understudy(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "bin.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def backlog(path: Path, lines: int) -> Path:
    with path.open("w") as file:
        for number in range(lines):
            asked = {"role": "user", "content": f"ticket {number}"}
            answered = {"role": "assistant", "content": "shipping"}
            file.write(json.dumps({"messages": [asked, answered]}) + "\n")
    return path


def ask(sidecar: Sidecar, text: str) -> None:
    body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"{sidecar.base_url}/chat/completions",
        json.dumps(body).encode(),
        {"Authorization": "Bearer sk-test", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
        answer.read()


def spool_of(home: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(understudy("spool", "--home", home, "--json").stdout)
    return found


def test_a_running_sidecar_takes_in_what_is_imported_beside_what_it_sees(tmp_path: Path) -> None:
    with (
        Upstream(Standin()) as upstream,
        Sidecar(tmp_path / "home", {"upstream": upstream.url}) as sidecar,
    ):
        ask(sidecar, "before")
        result = understudy("import", "--home", sidecar.home, *sorted(FIXTURES.glob("langfuse_*")))
        assert result.returncode == 0, result.stderr
        assert "3 new, 0 already there" in result.stdout
        ask(sidecar, "after")
        wait_for("both calls", lambda: len(sidecar.query("SELECT 1 FROM exchanges")) == 5)
        ids = sidecar.query("SELECT id FROM exchanges ORDER BY id")
        again = understudy("import", "--home", sidecar.home, *sorted(FIXTURES.glob("langfuse_*")))
        assert "0 new, 3 already there" in again.stdout
        assert sidecar.query("SELECT id FROM exchanges ORDER BY id") == ids
        found = spool_of(sidecar.home)
        assert (found["running"], found["unread_bytes"], found["lost"]) == (True, 0, 0)
        counted = {"exchanges": 2, "records_dropped": 0, "write_errors": 0, "bodies_cut": 0}
        wait_for(
            "the proxies' counts",
            lambda: counted.items() <= (spool_of(sidecar.home)["this_run"] or {}).items(),
        )


def test_a_spool_left_by_a_killed_machine_is_recorded_elsewhere(tmp_path: Path) -> None:
    with Upstream(Standin()) as upstream:
        sidecar = Sidecar(tmp_path / "there", {"upstream": upstream.url}).start()
        ask(sidecar, "what is recorded there alone")
        wait_for("the recorder", lambda: sidecar.query("SELECT 1 FROM exchanges"))
        sidecar.signal("recorder", signal.SIGSTOP)
        for number in range(5):
            ask(sidecar, f"ticket {number}")
        wait_for("the spool has them", lambda: spool_of(sidecar.home)["unread_bytes"] > 5000)
        refused = understudy("import-spool", "--home", tmp_path / "here", sidecar.home / "spool")
        assert refused.returncode == 1 and "is writing to it" in refused.stderr
        copy = shutil.copytree(sidecar.home / "spool", tmp_path / "copy")
        brought = understudy("import-spool", "--home", tmp_path / "here", copy)
        assert "5 new, 0 already there" in brought.stdout, brought.stderr
        sidecar.signal("recorder", signal.SIGCONT)
        wait_for("the rest", lambda: len(sidecar.query("SELECT 1 FROM exchanges")) == 6)
        assert sidecar.stop() == 0
    here = Sidecar(tmp_path / "here", {})
    same = "SELECT id, request, response FROM pairs WHERE request LIKE '%ticket%' ORDER BY id"
    assert len(here.query(same)) == 5
    assert here.query(same) == sidecar.query(same)


def test_an_import_killed_at_any_moment_is_made_whole_by_the_next(tmp_path: Path) -> None:
    home, file = tmp_path / "home", backlog(tmp_path / "backlog.jsonl", 3000)
    command = [sys.executable, "-P", "-m", "bin.cli", "import", "--home", str(home), str(file)]
    for seconds in (0.5, 0.8, 1.1):
        killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        killed.kill()
        killed.wait(10)
    result = understudy("import", "--home", home, file)
    assert result.returncode == 0, result.stderr
    found = Sidecar(home, {})
    assert found.query("SELECT count(*), count(DISTINCT id) FROM exchanges") == [(3000, 3000)]
    assert found.query("SELECT count(*) FROM incidents") == [(0,)]
    assert spool_of(home)["runs"] == []
    assert not (home / "importing").exists()


def holding(home: Path, text: str) -> list[Path]:
    return [p for p in home.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


def test_what_the_sidecar_redacts_is_redacted_beside_it_and_after_it(tmp_path: Path) -> None:
    home = tmp_path / "home"
    for name in ("ann", "bob", "cem"):
        asked = {"role": "user", "content": f"write to {name}@example.com"}
        answered = {"role": "assistant", "content": f"done, {name}@example.com has it"}
        line = json.dumps({"messages": [asked, answered]})
        (tmp_path / f"{name}.jsonl").write_text(line + "\n")
    policy = {"privacy": {"mode": "redacted", "recognisers": ["email"]}}
    with Sidecar(home, policy) as sidecar:
        beside = understudy("import", "--home", home, tmp_path / "ann.jsonl")
        assert "1 new" in beside.stdout, beside.stderr
    after = understudy("import", "--home", home, tmp_path / "bob.jsonl")
    assert "1 new" in after.stdout, after.stderr
    pairs = sidecar.query("SELECT request, response FROM pairs")
    assert len(pairs) == 2
    assert all("<EMAIL_1>" in text for pair in pairs for text in pair)
    assert holding(home, "example.com") == []
    named = tmp_path / "home-policy.yaml"
    named.unlink()
    refused = understudy("import", "--home", home, tmp_path / "cem.jsonl")
    assert refused.returncode == 1
    assert str(named) in refused.stderr and "--policy FILE" in refused.stderr
    assert holding(home, "cem") == []
    assert sidecar.query("SELECT count(*) FROM exchanges") == [(2,)]


def test_a_running_sidecar_needs_its_policy_no_more(tmp_path: Path) -> None:
    home = tmp_path / "home"
    file = backlog(tmp_path / "backlog.jsonl", 1)
    with Sidecar(home, {"record": {"keep_bodies": "90d"}}) as sidecar:
        assert "1 new" in understudy("import", "--home", home, file).stdout
        (tmp_path / "home-policy.yaml").unlink()
        [(identity,)] = sidecar.query("SELECT id FROM exchanges")
        noted = understudy("feedback", "--home", home, identity, "--label", "good")
        assert (noted.returncode, noted.stdout) == (0, "noted\n"), noted.stderr
        kept = understudy("retention", "--home", home, "--dry-run")
        assert "too old: 0 bodies" in kept.stdout, kept.stderr
