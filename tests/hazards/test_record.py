"""What happens to the record while calls go on: no client notices, and what is lost is counted."""

from __future__ import annotations

import os
import resource
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from store.queries import incidents, runs
from tests.bench import chaos
from tests.bench.chaos import Stage
from tests.hazards.calls import Calls, Tally, tally
from tests.hazards.harness import sound, wait_for
from tests.hazards.peers import get
from tests.store.consistency import faults

_FULL_SECONDS = 0.8


@pytest.fixture(scope="module")
def on_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Whatever was done to it, at the end all that the database says of itself holds. It runs
    under the most careless umask."""
    before = os.umask(0)
    try:
        with chaos.staged(tmp_path_factory.mktemp("stage"), calls=Calls(4, 0.05)) as stage:
            yield stage
            assert stage.sidecar.stop() == 0
            assert faults(stage.database, stage.key) == []
            sound(stage.sidecar)
    finally:
        os.umask(before)


@pytest.fixture
def stage(on_stage: Stage) -> Iterator[Stage]:
    """What is counted is counted from here."""
    on_stage.calls.asked.clear()
    on_stage.kept.clear()
    on_stage.notes.clear()
    yield on_stage
    assert on_stage.calls.wrong == []


@contextmanager
def load(stage: Stage) -> Iterator[None]:
    with stage.calls.to(stage.sidecar):
        wait_for(lambda: len(stage.calls.asked) > 30, 5)
        yield


def recorded(stage: Stage, lost: int = 0) -> Tally:
    """Of all calls, in all that is kept; once they are there, but for so many at most."""

    def found() -> Tally | None:
        now = tally(stage.calls.asked, stage.database, *stage.kept)
        return now if now.lost <= lost else None

    last: Tally = wait_for(found, 10)
    assert (last.doubled, last.altered) == (0, 0)
    return last


def told(stage: Stage, kind: str) -> list[str]:
    return [one.detail for one in incidents(stage.database, 50) if one.kind == kind]


def test_kill_9_loses_and_doubles_nothing(stage: Stage) -> None:
    """T62."""
    with load(stage):
        chaos.kill_often(stage, kills=5, longest=0.1)
    assert recorded(stage).whole == len(stage.calls.asked)
    assert stage.counted_lost() == 0


def test_a_lock_is_waited_for(stage: Stage) -> None:
    """T59."""
    with load(stage):
        chaos.hold_lock(stage, 1.2)
    assert recorded(stage).whole == len(stage.calls.asked)
    assert "locked" in told(stage, "database_trouble")[0]


def test_what_a_full_disk_costs_is_counted(stage: Stage) -> None:
    """T58: the recorder can't write a byte, its standard error included, and the spool's segments
    stay small, for a while."""
    before, recorder = stage.capture()["write_errors"], stage.sidecar.pid("recorder")
    with load(stage), _limited(stage, "recorder", 0), _limited(stage, "proxy", 0):
        time.sleep(_FULL_SECONDS)
    with load(stage):
        stage.back()
    assert stage.capture()["write_errors"] > before
    assert stage.sidecar.pid("recorder") == recorder, "it stood it"
    wait_for(lambda: unrecorded(stage) == without_end(stage) + stage.counted_lost(), 5)
    assert stage.counted_lost() > 0
    found = recorded(stage, lost=len(stage.calls.asked))
    assert found.recorded + found.lost == len(stage.calls.asked)


def unrecorded(stage: Stage) -> int:
    return tally(stage.calls.asked, stage.database).lost


def without_end(stage: Stage) -> int:
    """Of these the opening is known, and the ending was lost: rows when the proxy stops."""
    return sum(run.open for run in runs(stage.database))


@contextmanager
def _limited(stage: Stage, name: str, size: int) -> Iterator[None]:
    """To files of that size."""
    pid, none = stage.sidecar.pid(name), resource.RLIM_INFINITY
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, none))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (none, none))


def test_a_database_damaged_before_the_start_is_set_aside(stage: Stage) -> None:
    """T60."""
    with load(stage):
        chaos.damage_stopped(stage)
    assert "DATABASE UNUSABLE" in stage.sidecar.errors()
    (said,) = told(stage, "database_set_aside")
    name, _, held = said.partition(", exchanges in it: ")
    assert (stage.sidecar.home / name).exists()
    assert int(held) > 0  # the new database lacks them, and says so
    newest = max(stage.calls.asked)
    asked = {newest: stage.calls.asked[newest]}
    wait_for(lambda: tally(asked, stage.database).whole == 1, 5)


@pytest.mark.parametrize("fault", [chaos.remove, chaos.exchange])
def test_a_database_removed_or_replaced_is_begun_anew(stage: Stage, fault: chaos.Fault) -> None:
    """T61: but for calls that were under way, all is in the old file or in the new one."""
    before = len(told(stage, "database_gone"))
    with load(stage):
        fault(stage)
    assert recorded(stage, lost=stage.calls.clients).bare <= stage.calls.clients
    assert len(told(stage, "database_gone")) in (1, before + 1)
    assert stage.database.stat().st_ino != stage.kept[0].stat().st_ino


def test_a_long_read_holds_nobody_up_and_is_shown(stage: Stage) -> None:
    """T65."""
    with load(stage):
        chaos.read_long(stage, 1.0)
        said = stage.sidecar.exchange(get("/_understudy/metrics"), "GET").body.decode()
    (shown,) = [line for line in said.splitlines() if line.startswith("understudy_wal_bytes ")]
    assert int(shown.split()[1]) > 0
    assert recorded(stage).whole == len(stage.calls.asked)


def test_poison_costs_its_own_rows_at_most(stage: Stage) -> None:
    with load(stage):
        chaos.poison(stage)
    assert stage.notes["of them recorded"] == stage.notes["odd calls"] > 40
    assert recorded(stage).whole == len(stage.calls.asked)


def test_nobody_else_can_read_what_lies_in_the_home_folder(stage: Stage) -> None:
    """T68: files 0600, folders 0700."""
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in _below(stage.sidecar.home)}
    assert stage.database in modes
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}


def _below(folder: Path) -> list[Path]:
    return [folder, *folder.rglob("*")]
