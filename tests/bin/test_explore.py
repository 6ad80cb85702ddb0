"""`explore` with a real Datasette, `search`, and what `status` says of money and privacy."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http.cookiejar import CookieJar
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner, Result

from bin.cli import main
from proxy.metrics import Slot
from store.canned import CANNED
from tests.store.filled import Filled

ROOT = Path(__file__).parents[2]


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    with closing(Filled(tmp_path / "home")) as made:
        made.add(
            {"said": "my parcel is late", "cost_usd": 0.5, "input_tokens": 7, "task_id": "ab"},
            {"said": "it's an OR gate", "cost_note": "no price", "conversation": "c1"},
            {"status": 429, "retry_after_s": 36.0, "retry_count": 1, "cost_note": "nothing came"},
        )
        yield made


def ran(at: Filled, *words: str) -> Result:
    command, *rest = words
    return CliRunner().invoke(main, [command, "--home", str(at.database.parent), *rest])


# -- explore


class Explorer:
    """The command's process. `address` lets in who opens it; `base` alone doesn't."""

    def __init__(self, at: Filled) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as free:
            port = free.getsockname()[1]
        self.base = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "bin.cli", "explore", "--home", str(at.database.parent)]
        self.process = subprocess.Popen(
            [*command, "--port", str(port)], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
        self.browser = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(CookieJar()), urllib.request.ProxyHandler({})
        )

    def __enter__(self) -> Explorer:
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().decode().strip()
        deadline = time.monotonic() + 20
        while self.status("/") is None:
            assert self.process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def status(self, path: str) -> int | None:
        """None: nobody answers there yet."""
        try:
            with self.browser.open(self.base + path, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except OSError:
            return None

    def rows(self, name: str, **said: str) -> list[dict[str, Any]]:
        asked = urllib.parse.urlencode({**said, "_shape": "array"})
        with self.browser.open(f"{self.base}/understudy/{name}.json?{asked}") as answer:
            found: list[dict[str, Any]] = json.load(answer)
        return found


def test_datasette_answers_every_question_to_who_was_let_in(filled: Filled) -> None:
    filled.index()
    with Explorer(filled) as explorer:
        assert explorer.address.startswith(f"{explorer.base}/-/auth-token?token=")
        for closed in ("/", "/understudy/spend-by-task.json", "/understudy/exchanges.json"):
            assert explorer.status(closed) == 403
        explorer.browser.open(explorer.address).close()
        answers = {one.name: explorer.rows(one.name, words="late", task="") for one in CANNED}
        assert answers["search"][0]["prompt"] == "my parcel is «late»"
        assert answers["spend-by-task"][0]["cost_usd"] == 0.5
        assert answers["rate-limited"][0]["hours_lost"] == 0.01
        assert [one["prompt"] for one in explorer.rows("conversation-turns", conversation="c1")]
        assert explorer.status("/understudy/slowest-calls") == 200
        assert explorer.status("/understudy.db") == 403  # not as a whole
        with explorer.browser.open(f"{explorer.base}/understudy") as page:
            shown = page.read().decode()
        assert all(one.title in shown for one in CANNED)
    described = filled.database.with_name("datasette.json")
    assert described.stat().st_mode & 0o777 == 0o600


def test_explore_says_what_is_missing(
    filled: Filled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "datasette", None)
    said = ran(filled, "explore")
    assert said.exit_code == 1 and "pip install 'understudy[explore]'" in said.output
    (tmp_path / "none").mkdir()
    nothing = CliRunner().invoke(main, ["explore", "--home", str(tmp_path / "none")])
    assert nothing.exit_code == 1 and "nothing captured there yet" in nothing.output


# -- search


def test_words_are_taken_as_they_are(filled: Filled) -> None:
    filled.index()
    said = ran(filled, "search", "it's", "or")
    assert said.exit_code == 0, said.output
    assert "«it's» an «OR» gate" in said.output and "late" not in said.output
    assert "nothing found" in ran(filled, "search", "parcel", "gate").output
    assert "«late»" in ran(filled, "search", "--raw", "lat* NOT gate").output


@pytest.mark.parametrize(
    ("words", "hint"),
    [(["--raw", "late AND ("], "without --raw"), (["--raw", "x: y"], "without --raw"),
     ([" "], "give it a word")],
)  # fmt: skip
def test_a_bad_query_is_one_clear_line(filled: Filled, words: list[str], hint: str) -> None:
    said = ran(filled, "search", *words)
    assert said.exit_code == 1 and hint in said.output
    assert said.output.startswith("Error: can't search for") and said.output.count("\n") == 1


def test_search_says_that_the_index_is_not_whole(filled: Filled) -> None:
    assert "is off" in ran(filled, "search", "late").output
    filled.index()
    assert "behind" not in ran(filled, "search", "late").output
    filled.add({"said": "late again"})
    assert "up to 2 calls behind" in ran(filled, "search", "late").output


# -- status


def test_status_tells_money_limits_and_lag(filled: Filled) -> None:
    filled.add({"cost_usd": 1.5, "at": time.time() - 1_780_000_000, "said": "now"})
    said = ran(filled, "status").output
    assert "cost so far: $2.0000 of 4 calls" in said
    assert "search: the index is off, or was never begun" in said
    assert "$1.5000" in said.partition("cost so far")[0]  # by model, the last 30 days
    filled.index()
    assert "search:" not in ran(filled, "status").output


def test_status_tells_what_privacy_kept_out(filled: Filled) -> None:
    """Of all workers, while a sidecar runs."""
    root = filled.database.parent
    for worker, counts in enumerate(({"exchanges": 40, "not_recorded": 2}, {"not_recorded": 1}), 1):
        Slot(root, worker).write(counts, at=time.monotonic())
    state = {"pid": os.getpid(), "data": "127.0.0.1:1", "upstream": "-", "processes": {}}
    (root / "state.json").write_bytes(orjson.dumps(state | {"run_dir": str(root)}))
    said = ran(filled, "status").output
    assert "capture: 40 exchanges, 3 kept out by privacy, 0 bodies cut" in said
    (root / "state.json").unlink()
    assert "kept out" not in ran(filled, "status").output


def test_status_says_why_a_cost_is_not_known(tmp_path: Path) -> None:
    now = time.time() - 1_780_000_000
    with closing(Filled(tmp_path / "home")) as made:
        made.add(
            {"at": now, "cost_note": "no price for 'x'"},
            {"at": now, "usage": None, "usage_note": "there is no usage", "cost_note": "none"},
            {"at": now, "status": 429, "retry_after_s": 36.0, "retry_count": 1, "cost_usd": 0.1},
        )
        said = ran(made, "status").output
    assert "no cost: 2 calls: no price for 'x' (1); none (1)" in said
    assert "no usage: 1 calls: there is no usage (1)" in said
    assert "limits: 1 calls got 429 (0.01 hours lost), 1 were retries" in said
