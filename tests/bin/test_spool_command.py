"""`understudy spool`, `import-spool` and `import`, where no sidecar runs."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import click
import orjson
import pytest
from click.testing import CliRunner, Result

from bin import importing, spool_command
from bin.import_command import FORMATS, add_import
from bin.recorder_at_work import Stopped, recorder_at_work, wait_until_read
from bin.spool_command import add_spool
from bin.supervisor import open_home
from policies.home import Home
from policies.policy import Policy
from policies.spool import pack
from tests.store.making import Exchange, Run, chat_request, record_all, row, rows

TRAINING = Path(__file__).parents[1] / "store/fixtures_imports/openai_chat.jsonl"
PAGE = TRAINING.with_name("openai_stored.json")


@click.group()
def main() -> None:
    """The commands alone."""


_home = click.option("--home", type=click.Path(path_type=Path), required=True)
add_spool(main, _home)
add_import(main, _home)


def called(at: Home, *arguments: object) -> Result:
    command, *rest = map(str, arguments)
    return CliRunner().invoke(main, [command, "--home", str(at.root), *rest])


def looked_at(at: Home) -> dict[str, Any]:
    result = called(at, "spool", "--json")
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = orjson.loads(result.stdout)
    return found


@pytest.fixture
def at(tmp_path: Path) -> Home:
    return Home(tmp_path / "home", tmp_path / "run")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Home:
    """Of another machine."""
    return Home(tmp_path / "elsewhere", tmp_path / "run")


# -- spool


def test_what_waits_is_shown_until_it_is_read(at: Home) -> None:
    run = Run(at)
    run.write(*(Exchange(number).records() for number in (1, 2)))
    run.next_segment()
    run.write(Exchange(3).opening())
    size = sum(path.stat().st_size for path in run.folder.glob("*.seg"))
    before = looked_at(at)
    assert (before["running"], before["segments"], before["unread_bytes"]) == (False, 2, size)
    assert (before["recorded"], before["lag_seconds"] > 0) == (0, True)
    (waiting,) = before["runs"]
    assert (waiting["name"], waiting["over"], waiting["open"]) == ("run-a", False, 0)
    record_all(at)
    after = looked_at(at)
    assert (after["unread_bytes"], after["lag_seconds"], after["recorded"]) == (0, None, 2)
    assert after["runs"][0]["open"] == 1
    run.die()
    record_all(at)
    done = looked_at(at)
    assert (done["runs"], done["recorded"], done["lost"]) == ([], 3, 0)


def test_a_batch_that_is_not_whole_does_not_wait(at: Home) -> None:
    run = Run(at)
    whole = Exchange(1).records()
    run.write(whole, bytes(100))  # a segment that was handed back, written over
    assert looked_at(at)["unread_bytes"] == len(whole)
    run.next_segment()
    run.write(whole, Exchange(2).opening()[:20])
    assert looked_at(at)["unread_bytes"] == 2 * len(whole)
    run.die()
    assert looked_at(at)["runs"][0]["over"]


def test_a_backlog_says_since_when_it_waits(at: Home) -> None:
    run = Run(at, alive=False)
    run.write(Exchange(1).records())
    os.utime(run.segment, (time.time() - 7200,) * 2)
    assert 7200 <= looked_at(at)["lag_seconds"] < 7300


def test_for_people_it_is_a_table(at: Home) -> None:
    Run(at).write(Exchange(1).records())
    result = called(at, "spool")
    assert result.exit_code == 0
    assert "not running; " in result.output and " to be read, since " in result.output
    assert "run-a" in result.output and "recorded: 0 exchanges; lost: 0" in result.output
    assert "this run" not in result.output


def test_what_is_kept_out_is_counted_beside_what_is_not(
    at: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"bodies_cut": 0, "records_dropped": 0, "write_errors": 0}
    live = {"exchanges": 3, "not_recorded": 5, **counts}
    spool_command._show(spool_command._Spool(True, [], live, 3, 0, 0, 0))
    assert "this run: 3 exchanges, 5 kept out by privacy, 0 bodies cut" in capsys.readouterr().out


def test_a_home_that_is_none_is_refused(at: Home) -> None:
    result = called(at, "spool")
    assert result.exit_code == 1 and "no such folder" in result.output


# -- import-spool


def test_a_copied_run_is_recorded_once(at: Home, elsewhere: Home) -> None:
    run = Run(elsewhere)
    run.write(*(Exchange(number).records() for number in (1, 2, 3)))
    run.die()
    first = called(at, "import-spool", run.folder)
    assert first.exit_code == 0, first.output
    assert (
        "3 new, 0 already there, 0 kept out by privacy, 0 folders brought before, 0 torn bytes"
    ) in first.output
    assert run.segment.exists(), "what was given is left as it is"
    (found,) = rows(at, "SELECT * FROM runs")
    assert found["id"].startswith("import-") and found["id"].endswith("-run-a")
    assert (found["recorded"], found["highest_seq"], found["ended_clean"]) == (3, 3, 1)
    everything = rows(at, "SELECT * FROM exchanges")
    renamed = run.folder.rename(elsewhere.spool / "another-name")
    again = called(at, "import-spool", renamed)
    assert "0 new, 0 already there" in again.output
    assert "1 folders brought before" in again.output
    assert rows(at, "SELECT * FROM exchanges") == everything
    assert not (at.root / "importing").exists()


def test_a_spool_of_several_runs_with_one_that_grew(at: Home, elsewhere: Home) -> None:
    one, two = Run(elsewhere, "run-1"), Run(elsewhere, "run-2")
    one.write(Exchange(1).records())
    two.write(Exchange(2).records())
    one.die()
    two.die()
    assert "2 new" in called(at, "import-spool", elsewhere.spool).output
    two.next_segment()
    two.write(Exchange(3).records())
    again = called(at, "import-spool", elsewhere.spool)
    assert "1 new, 1 already there" in again.output
    assert "1 folders brought before" in again.output
    assert len(rows(at, "SELECT 1 FROM exchanges")) == 3


def test_a_torn_tail_is_left_out_and_said(at: Home, elsewhere: Home) -> None:
    run = Run(elsewhere)
    run.write(Exchange(1).records(), Exchange(2).records()[:-7])
    run.die()
    result = called(at, "import-spool", run.folder)
    assert "2 new" in result.output, "what there is of the second is kept"
    torn = row(at, "SELECT torn_bytes FROM runs")["torn_bytes"]
    assert torn > 0 and f"{torn:,} torn bytes left out" in result.output
    assert row(at, "SELECT outcome FROM exchanges WHERE seq = 2")["outcome"] == "proxy_died"


def test_a_run_that_is_being_written_is_refused(at: Home, elsewhere: Home) -> None:
    run = Run(elsewhere)
    run.write(Exchange(1).records())
    result = called(at, "import-spool", elsewhere.spool)
    assert result.exit_code == 1 and "is writing to it; stop that one first" in result.output
    assert rows(at, "SELECT 1 FROM exchanges") == []


@pytest.mark.parametrize("written", [b"", b"no segment at all, but long enough to look like one"])
def test_what_can_not_be_read_is_refused(at: Home, elsewhere: Home, written: bytes) -> None:
    run = Run(elsewhere, alive=False)
    run.write(written)
    result = called(at, "import-spool", run.folder)
    assert result.exit_code == 1 and "no exchange in it that can be read" in result.output
    assert list(at.spool.iterdir()) == []


def test_a_folder_without_segments_is_refused(at: Home, tmp_path: Path) -> None:
    result = called(at, "import-spool", tmp_path)
    assert result.exit_code == 1 and "no segments in it" in result.output


def test_its_own_spool_is_refused(at: Home) -> None:
    run = Run(at, alive=False)
    run.write(Exchange(1).records())
    result = called(at, "import-spool", run.folder)
    assert result.exit_code == 1 and "belongs to this home" in result.output


# -- import-spool, into a home that keeps less


def mail(number: int, **more: Any) -> Exchange:
    """A call that says an address."""
    asked = orjson.dumps(chat_request(f"write to secret{number}@example.com"))
    return Exchange(number, request=asked, **more)


def of_tenant(name: str) -> list[tuple[str, str]]:
    return [("Content-Type", "application/json"), ("X-Understudy-Tenant", name)]


def brought(at: Home, run: Run, policy: dict[str, Any]) -> Result:
    path = at.root.with_name("policy.yaml")
    path.write_bytes(orjson.dumps({"privacy": {"recognisers": ["email"], **policy}}))
    result = called(at, "import-spool", "--policy", path, run.folder)
    assert result.exit_code == 0, result.output
    return result


def modes(at: Home) -> dict[str, str]:
    """By id."""
    found = rows(at, "SELECT id, privacy FROM exchanges")
    return {each["id"]: each["privacy"] for each in found}


def holding(at: Home, text: str) -> list[Path]:
    return [p for p in at.root.rglob("*") if p.is_file() and text.encode() in p.read_bytes()]


@pytest.mark.parametrize("own", ["full", "redacted", "metadata", None])
@pytest.mark.parametrize("here", ["full", "redacted", "metadata"])
def test_the_stricter_mode_holds(at: Home, elsewhere: Home, own: str | None, here: str) -> None:
    call = mail(1, cut={"response": "limit"}, more_opened={} if own is None else {"mode": own})
    if own == "metadata":
        call.request, call.response, call.cut = b"", b"", {}
        call.more_closed = {"task_id": "t1"}
    run = Run(elsewhere, alive=False)
    run.write(call.records())
    # A rule that fits nothing: also where all is kept the run is written anew.
    brought(at, run, {"mode": here, "rules": [{"tenant": "nobody", "mode": "off"}]})
    expected = max(own or "full", here, key=["full", "redacted", "metadata"].index)
    found = row(at, "SELECT privacy, task_id, truncated, outcome, status FROM exchanges")
    assert (found["privacy"], found["outcome"], found["status"]) == (expected, "ok", 200)
    assert len(rows(at, "SELECT 1 FROM bodies")) == found["truncated"] == (expected != "metadata")
    assert bool(holding(at, "secret1@")) == (expected == "full")
    if expected == "metadata":
        assert found["task_id"] == ("t1" if own == "metadata" else None)


def test_rules_see_who_asked_and_for_what(at: Home, elsewhere: Home) -> None:
    run = Run(elsewhere, alive=False)
    calls = [
        mail(1),
        mail(2, request_headers=of_tenant("acme")),
        mail(3, target="/v1/files/f-1?limit=3"),
        mail(4, target="http://api.example.com/v1/files", more_opened={"host": "api.example.com"}),
        mail(5, key="k-5"),
        Exchange(6, b"", b"", target="api.example.com:443", method="CONNECT", key=None),
    ]
    run.write(*(call.records() for call in calls))
    rules = [
        {"tenant": "acme", "mode": "off"},
        {"tenant": "k-*", "path": "/v1/chat/*", "mode": "metadata"},
        {"path": "/v1/files", "mode": "metadata"},
        {"path": "*:443", "mode": "off"},
    ]
    result = brought(at, run, {"mode": "redacted", "rules": rules})
    assert "5 new, 0 already there, 1 kept out by privacy" in result.output
    assert modes(at) == {
        calls[0].uuid: "redacted",
        calls[2].uuid: "metadata",
        calls[3].uuid: "metadata",
        calls[4].uuid: "metadata",
        calls[5].uuid: "redacted",
    }
    assert holding(at, "@example.com") == [] and holding(at, "acme") == []
    assert rows(at, "SELECT 1 FROM incidents") == []


def test_what_is_kept_out_is_not_lost(at: Home, elsewhere: Home) -> None:
    run = Run(elsewhere, alive=False)
    tenants = {2: "acme", 3: "acme", 6: "acme"}  # and number 5 left no record
    calls = [mail(n, request_headers=of_tenant(tenants.get(n, "b"))) for n in (1, 2, 3, 4, 6, 7)]
    run.write(*(call.opening() for call in calls))
    run.next_segment()
    run.write(*(call.rest() for call in calls))
    policy = {"rules": [{"tenant": "acme", "mode": "off"}]}
    first = brought(at, run, policy)
    assert "3 new, 0 already there, 3 kept out by privacy, 0 folders" in first.output
    numbers = [each["seq"] for each in rows(at, "SELECT seq FROM exchanges ORDER BY seq")]
    assert (numbers, looked_at(at)["lost"]) == ([1, 2, 4], 1)
    assert holding(at, "secret2@") == [] and holding(at, "secret7@") != []
    again = brought(at, run, policy)
    assert "0 new, 0 already there, 0 kept out by privacy, 1 folders" in again.output


def test_a_run_of_which_nothing_may_be_kept(at: Home, elsewhere: Home) -> None:
    run = Run(elsewhere, alive=False)
    run.write(mail(1).records(), mail(2).records())
    result = brought(at, run, {"mode": "off"})
    assert "0 new, 0 already there, 2 kept out by privacy, 0 folders" in result.output
    assert rows(at, "SELECT 1 FROM exchanges") == [] and looked_at(at)["lost"] == 0
    assert list(at.spool.iterdir()) == [] and not (at.root / "importing").exists()
    assert "1 folders brought before" in brought(at, run, {"mode": "off"}).output


def test_what_can_not_be_read_is_counted_and_holds_nothing(
    at: Home, elsewhere: Home, tmp_path: Path
) -> None:
    run = Run(elsewhere, alive=False)
    no_opening, no_headers = mail(3), mail(4, more_opened={"headers": "secret4@example.com"})
    run.write(mail(1).records(), pack(200, bytes(16), 1.0, b"secret2@example.com"))
    run.write(no_opening.rest(), no_headers.records(), mail(5).records()[:-9])
    run.next_segment()
    run.write(mail(6).opening(), mail(6).record(6, b"no object"), mail(7).opening()[:-30])
    os.utime(run.folder / "alive")  # as of a copy that was made just now
    kinds = "SELECT kind, detail FROM incidents WHERE kind <> 'torn_tail' ORDER BY kind, detail"
    plain = Home(tmp_path / "plain", tmp_path)
    result = brought(plain, run, {})
    counted, torn = rows(plain, kinds), row(plain, "SELECT torn_bytes FROM runs")["torn_bytes"]
    assert {each["kind"] for each in counted} == {"orphan_record", "unreadable_record"}
    ends = len(mail(5).closing()) - 9, len(mail(7).record(3, mail(7).request)) - 30
    assert torn == sum(ends) and f"{torn:,} torn bytes left out" in result.output
    os.utime(run.folder / "alive")
    result = brought(at, run, {"mode": "redacted"})
    assert f"{torn:,} torn bytes left out" in result.output
    assert row(at, "SELECT torn_bytes FROM runs")["torn_bytes"] == torn
    assert rows(at, kinds) == counted and len(counted) > 3
    assert holding(at, "example.com") == []


# -- import


def test_an_import_says_what_came_of_it(at: Home) -> None:
    first = called(at, "import", TRAINING)
    assert first.exit_code == 0, first.output
    assert "openai-chat: 3 records in 1 files" in first.output
    assert "3 new, 0 already there, 0 kept out by privacy, 0 passed over, 0 unu" in first.output
    assert "3 have no time of their own" in first.output
    assert "3 have no cost" in first.output
    assert "0 new, 3 already there" in called(at, "import", TRAINING).output
    assert list(at.spool.iterdir()) == []
    assert not (at.root / "importing").exists()


def test_what_is_unusable_is_named_and_strict_minds(at: Home, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(TRAINING.read_bytes() + b'{"messages": []}\n{"mess\n')
    result = called(at, "import", path)
    assert result.exit_code == 0
    assert f"{path}:4: messages: no messages" in result.stderr
    assert f"{path}:5: not JSON" in result.stderr
    assert "3 new" in result.stdout and "2 unusable" in result.stdout
    assert called(at, "import", "--strict", path).exit_code == 1


def test_nothing_usable_is_a_failure(at: Home, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(b'{"messages": []}\n')
    assert called(at, "import", path).exit_code == 1
    assert "1 unusable" in called(at, "import", "--format", "openai-chat", path).stdout


def test_the_list_of_complaints_is_bounded(at: Home, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    path.write_bytes(TRAINING.read_bytes() + b"[]\n" * 50)
    result = called(at, "import", path)
    assert result.stderr.count("no JSON object") == 20
    assert "... and 30 more" in result.stderr


def test_a_format_that_nothing_tells_must_be_named(at: Home, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    result = called(at, "import", path)
    assert result.exit_code == 1 and "use --format" in result.output


def test_a_folder_stands_for_its_files(at: Home, tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "2024"
    folder.mkdir(parents=True)
    shutil.copy(PAGE, folder)
    (folder / "notes.txt").write_text("none of it")
    result = called(at, "import", folder.parent)
    assert "openai-stored: 3 records in 1 files" in result.output
    assert "2 new" in result.output


def test_a_policys_privacy_holds(at: Home, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("privacy: {mode: metadata}")
    assert called(at, "import", "--policy", policy, TRAINING).exit_code == 0
    assert rows(at, "SELECT 1 FROM bodies") == []
    assert row(at, "SELECT count(*) AS n FROM exchanges WHERE privacy = 'metadata'")["n"] == 3


class SlowReader:
    """Reads one run each time that somebody asks whether it still works."""

    def __init__(self, spool: Path) -> None:
        self._spool = spool
        self.most = 0

    def check(self) -> None:
        waiting = sorted(self._spool.iterdir())
        self.most = max(self.most, len(waiting))
        shutil.rmtree(waiting[0])


def test_no_more_runs_wait_than_the_spool_has_room_for(
    at: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importing, "_RUN_BYTES", 10)
    reader = SlowReader(at.spool)
    runs = importing._Runs(at, reader)
    for _ in range(12):
        runs.write(Exchange(1).records())
    assert len(list(at.spool.iterdir())) == reader.most - 1 == 3
    runs.close()


def test_a_home_that_another_command_holds_is_not_touched(at: Home) -> None:
    _, lock = open_home(at.root)
    result = called(at, "import", TRAINING)
    os.close(lock)
    assert result.exit_code == 1 and "another understudy is using it" in result.output
    assert not at.spool.exists()


def say_running(at: Home, *processes: str) -> None:
    state: dict[str, Any] = {"pid": os.getpid(), "data": "", "admin": "", "upstream": ""}
    state |= {"run_dir": str(at.run), "processes": dict.fromkeys(processes, 1)}
    at.state.write_bytes(orjson.dumps(state))


def test_a_sidecar_that_stops_meanwhile_is_not_waited_for(at: Home) -> None:
    _, lock = open_home(at.root)
    say_running(at, "recorder", "proxy")
    with recorder_at_work(at.root, Policy()) as reading:
        reading.check()
        at.state.unlink()
        with pytest.raises(Stopped, match="reads when it is back"):
            wait_until_read(reading, [at.root])
    os.close(lock)


def test_a_sidecar_that_records_nothing_is_not_fed(at: Home) -> None:
    _, lock = open_home(at.root)
    say_running(at, "proxy")
    result = called(at, "import", TRAINING)
    os.close(lock)
    assert result.exit_code == 1 and "its sidecar records nothing" in result.output


def test_a_recorder_of_our_own_that_fails_is_not_waited_for(at: Home) -> None:
    at.root.mkdir(mode=0o700)
    header = b"SQLite format 3\0".ljust(60, b"\0") + (99).to_bytes(4, "big") + bytes(4) + b"UDSY"
    at.database.write_bytes(header.ljust(100, b"\0"))
    result = called(at, "import", TRAINING)
    assert result.exit_code == 1 and "is newer than this version of understudy" in result.output


def test_a_database_that_is_none_is_set_aside_for_the_import(at: Home) -> None:
    at.root.mkdir(mode=0o700)
    at.database.write_bytes(b"no database at all, but long enough to be looked at" * 10)
    result = called(at, "import", TRAINING)
    assert "3 new" in result.output, result.output
    assert len(list(at.root.glob("understudy.db.corrupt-*"))) == 1


def test_the_formats_that_are_offered_are_those_there_are() -> None:
    assert sorted(FORMATS) == sorted(importing.FORMATS)
