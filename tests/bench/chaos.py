"""The section that does to the record what may happen to it, under load, and counts what is lost.

For each fault: what clients noticed (nothing is the aim), what of the calls is in the database,
and how long it takes, once the fault is over, until a new call is in the database again.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3 as sqlite3_of_python
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import orjson

from policies.policy import build
from policies.settings import Settings, dump, plain
from store import queries
from store.database import sqlite3
from tests.bench.figures import Row, single
from tests.bench.machine import needs
from tests.bench.sections import Bench
from tests.hazards.calls import Calls, tally
from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.odd import ODD_RUNS, odd_calls, odd_run
from tests.hazards.test_clock import HOUR, Clock
from tests.store.consistency import faults

KILLS: Final = 100
_HELD_SECONDS: Final = 30.0
_AROUND_SECONDS: Final = 3.0  # of load before a fault, and after it
_READ_SECONDS: Final = 20.0
_BACK_SECONDS: Final = 60.0
_PAGE_BYTES: Final = 2048  # as the database says
_DISK_BYTES: Final = 96 << 20
_JOURNAL_LIMIT: Final = 64 << 20


@dataclass
class Stage:
    """A sidecar under load, and what was done to it. `kept`: databases that are not the sidecar's
    any more, but hold what it recorded. `notes`: figures of the fault itself."""

    sidecar: Sidecar
    calls: Calls
    kept: list[Path] = field(default_factory=list)
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.sidecar.home / "understudy.db"

    @property
    def key(self) -> bytes:
        return bytes.fromhex((self.sidecar.home / "install.key").read_text().strip())

    def capture(self) -> dict[str, int]:
        found: dict[str, int] = self.sidecar.health()["capture"]
        return found

    def counted_lost(self) -> int:
        """Requests that a proxy counted and that have no row in this database."""
        found = queries.runs(self.database)
        return sum(run.lost for run in found if not run.id.startswith(ODD_RUNS))

    def query(self, sql: str, *values: object) -> list[dict[str, Any]]:
        """None while another file lies in the database's place, next to the journal of the first:
        what a reader sees then is nothing that belongs together."""
        with suppress(sqlite3_of_python.DatabaseError):
            return self.sidecar.query(sql, *values)
        return []

    def back(self) -> None:
        """The fault is over: when is a call recorded that began after that?"""
        began = time.monotonic()
        newest = max(self.calls.asked, default=0)
        first = newest + self.calls.clients + 1
        wait_for(lambda: self.query(_SINCE, first), _BACK_SECONDS)
        self.notes["s until it records again"] = time.monotonic() - began


_SINCE: Final = """
    SELECT 1 FROM exchanges WHERE path LIKE '%before=%'
    AND CAST(substr(path, instr(path, 'before=') + 7) AS INTEGER) BETWEEN ? AND 10000000 LIMIT 1"""
Fault = Callable[[Stage], None]


@contextmanager
def staged(
    root: Path,
    policy: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    calls: Calls | None = None,
) -> Iterator[Stage]:
    calls = calls or Calls()
    with calls.upstream():
        sidecar = Sidecar(root, calls.port, policy=policy or {}, environment=environment or {})
        sidecar.start()
        try:
            yield Stage(sidecar, calls)
        finally:
            sidecar.kill()


# -- the faults


def kill_often(stage: Stage, kills: int = KILLS, longest: float = 1.0, seed: int = 5) -> None:
    """kill -9, at any moment of a recorder's life. The supervisor stands still meanwhile: it would
    wait ever longer before it starts what dies so often."""
    chance = random.Random(seed)
    with _frozen(stage.sidecar.process.pid):
        os.kill(stage.sidecar.pid("recorder"), signal.SIGKILL)
        for number in range(kills):
            before = _position(stage)
            recorder = _recorder(stage)
            with _ended(recorder):
                if number % 5:
                    wait_for(lambda before=before: _position(stage) != before, 20)  # type: ignore[misc]
                    time.sleep(chance.uniform(0, longest / 2))
                else:
                    time.sleep(chance.uniform(0, longest))  # it may not have come to anything
    stage.back()


@contextmanager
def _frozen(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _position(stage: Stage) -> list[dict[str, Any]]:
    return stage.query("SELECT * FROM spool_position")


def _recorder(stage: Stage) -> subprocess.Popen[bytes]:
    """One of our own, as the supervisor would start it."""
    policy = plain(build(orjson.loads((stage.sidecar.root / "policy.yaml").read_bytes())))
    settings = Settings(
        "recorder", str(stage.sidecar.home), stage.sidecar.state()["run_dir"], "chaos", policy,
        install_key=stage.key.hex(),
    )  # fmt: skip
    command = [sys.executable, "-P", "-m", "bin.child"]
    recorder = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert recorder.stdin is not None
    recorder.stdin.write(dump(settings))
    recorder.stdin.flush()
    return recorder


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def kill_supervised(stage: Stage) -> None:
    """Once, with the supervisor at work."""
    os.kill(stage.sidecar.pid("recorder"), signal.SIGKILL)
    stage.back()


def fill_disk(stage: Stage, seconds: float = 5.0) -> None:
    """The last byte is taken; the recorder is killed while it is, too."""
    filler = stage.sidecar.home / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    time.sleep(seconds / 2)
    os.kill(stage.sidecar.pid("recorder"), signal.SIGKILL)
    time.sleep(seconds / 2)
    stage.notes["spool's write errors"] = stage.capture()["write_errors"]
    filler.unlink()
    stage.back()


def hold_lock(stage: Stage, seconds: float = _HELD_SECONDS) -> None:
    with closing(sqlite3.connect(str(stage.database), isolation_level=None)) as other:
        wait_for(lambda: _locked(other), 10)
        time.sleep(seconds)
        other.execute("ROLLBACK")
    stage.back()


def _locked(connection: sqlite3.Connection) -> bool:
    with suppress(sqlite3.OperationalError):
        connection.execute("BEGIN EXCLUSIVE")
        return True
    return False


def damage(stage: Stage) -> None:
    """The middle third of the pages, while they are in use; what nobody reads is seen at the next
    start."""
    pages = stage.database.stat().st_size // _PAGE_BYTES
    _overwrite(stage.database, pages // 3, pages // 3)
    time.sleep(_AROUND_SECONDS)
    stage.notes["noticed while running"] = len(_aside(stage))
    if not _aside(stage):
        os.kill(stage.sidecar.pid("recorder"), signal.SIGKILL)
    wait_for(lambda: _aside(stage) and stage.database.exists(), _BACK_SECONDS)
    stage.back()
    stage.notes["told to be in the file set aside"] = _told_aside(stage)
    stage.kept += _aside(stage)


def damage_stopped(stage: Stage) -> None:
    """One page, before a start: one that is in use, since harm to a free one is none."""
    page = _root_page("exchanges", stage)
    with stage.calls.none():
        assert stage.sidecar.stop() == 0
        _overwrite(stage.database, page, 1)
        stage.sidecar.start()
    wait_for(lambda: _aside(stage), 10)
    stage.back()
    stage.notes["told to be in the file set aside"] = _told_aside(stage)
    stage.kept += _aside(stage)


def _root_page(table: str, stage: Stage) -> int:
    """Its number, from 0."""
    found = stage.query("SELECT rootpage FROM sqlite_master WHERE name = ?", table)
    return int(found[0]["rootpage"]) - 1


def _overwrite(database: Path, first: int, count: int) -> None:
    """Pages with random bytes."""
    with database.open("r+b") as file:
        file.seek(first * _PAGE_BYTES)
        file.write(os.urandom(count * _PAGE_BYTES))


def _aside(stage: Stage) -> list[Path]:
    found = stage.sidecar.home.glob("understudy.db.corrupt-*")
    return [path for path in found if not path.name.endswith(("-wal", "-shm"))]


def _told_aside(stage: Stage) -> int:
    """How many exchanges the new database says that it lacks; -1: it does not know."""
    found = stage.query("SELECT detail FROM incidents WHERE kind = 'database_set_aside'")
    said = str(found[0]["detail"]).partition(", exchanges in it: ")[2].partition(":")[0]
    return int(said) if said.isdigit() else -1


def poison(stage: Stage) -> None:
    """What no table has a place for, from clients, from the upstream, and in the spool itself."""
    runs = odd_run(stage.sidecar.home)
    for number, (sent, came) in enumerate(odd_calls(), 10_000_001):
        stage.calls.odd[number] = came
        got = stage.sidecar.raw(sent(number))
        if not got.endswith(came.partition(b"\r\n\r\n")[2]):
            stage.calls.wrong.append(f"odd call {number}: {got[:60]!r}")
    stage.back()
    rows = "SELECT count(*) AS n, count(DISTINCT path) AS one FROM exchanges WHERE path LIKE ?"
    wanted = len(stage.calls.odd)
    found = wait_for(lambda: stage.query(rows, "%before=1000____"), 5)[0]
    with suppress(AssertionError):
        wait_for(lambda: stage.query(rows, "%before=1000____")[0]["n"] >= wanted, 5)
        found = stage.query(rows, "%before=1000____")[0]
    stage.notes |= {"odd calls": wanted, "of them recorded": found["one"], "odd runs": runs}


def jump_back(clock: Clock) -> Fault:
    def fault(stage: Stage) -> None:
        clock.set(-HOUR)
        time.sleep(_AROUND_SECONDS)
        clock.set(0.0)
        stage.back()

    return fault


def remove(stage: Stage) -> None:
    """`rm understudy.db`. What it held goes with it: kept here by another name, to be counted."""
    stage.kept.append(stage.sidecar.root / "removed.db")
    os.link(stage.database, stage.kept[0])
    stage.database.unlink()
    wait_for(stage.database.exists, _BACK_SECONDS)
    stage.back()


def exchange(stage: Stage) -> None:
    """A copy is put in its place, as somebody does who restores one."""
    copy = stage.sidecar.root / "copy.db"
    with closing(sqlite3.connect(str(stage.database))) as connection:
        connection.execute("VACUUM INTO ?", (str(copy),))
    time.sleep(1.0)
    stage.kept.append(stage.sidecar.root / "replaced.db")
    os.link(stage.database, stage.kept[0])
    copy.replace(stage.database)
    stage.back()


def read_long(stage: Stage, seconds: float = _READ_SECONDS) -> None:
    journal = stage.database.with_name("understudy.db-wal")
    with closing(sqlite3.connect(f"file:{stage.database}?mode=ro", uri=True)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM exchanges").fetchone()
        time.sleep(seconds)
        stage.notes["WAL MB while read"] = journal.stat().st_size / 1e6
    wait_for(lambda: journal.stat().st_size <= _JOURNAL_LIMIT, _BACK_SECONDS)
    stage.back()
    stage.notes["WAL MB afterwards"] = journal.stat().st_size / 1e6


# -- what came of them


def judged(stage: Stage, what: str) -> list[Row]:
    """Stops the sidecar. All figures of one fault."""
    counted = stage.capture()
    stopped = stage.sidecar.stop(90)
    found = tally(stage.calls.asked, stage.database, *stage.kept)
    lost = stage.counted_lost()
    broken = faults(stage.database, stage.key)
    if stopped != 0:
        broken.append(f"exit status {stopped}")
    figures: dict[str, float] = {
        "client errors": len(stage.calls.wrong),
        "calls answered": len(stage.calls.asked),
        "calls recorded whole": found.whole,
        "calls recorded in part": found.bare,
        "calls without a row": found.lost,
        "requests counted as lost": lost,
        "records counted as dropped": counted["records_dropped"],
        "calls recorded twice": found.doubled,
        "calls recorded otherwise": found.altered,
        "faults of the database": len(broken),
        **stage.notes,
    }
    told = "; ".join([*stage.calls.wrong[:1], *broken[:1]])[:100]
    return [_row(f"chaos: {what}", name, value, told) for name, value in figures.items()]


def _row(what: str, name: str, value: float, told: str) -> Row:
    note = told if value and name in ("client errors", "faults of the database") else ""
    return single(f"{what}: {name}", "count", "recorder", value, note)


def _under_load(stage: Stage, fault: Fault) -> None:
    with stage.calls.to(stage.sidecar):
        time.sleep(_AROUND_SECONDS)
        fault(stage)
        time.sleep(_AROUND_SECONDS)


def chaos(bench: Bench) -> list[Row]:
    needs("mount", "umount")
    clock = Clock(bench.folder / "clock")
    time_of_day = {"PYTHONPATH": clock.path}
    cases: list[tuple[str, Fault, dict[str, str]]] = [
        (f"kill -9, {KILLS} times", kill_often, {}),
        ("kill -9, supervised", kill_supervised, {}),
        ("locked for 30 s", hold_lock, {}),
        ("damaged while running", damage, {}),
        ("damaged at the start", damage_stopped, {}),
        ("poison", poison, {}),
        ("an hour back", jump_back(clock), time_of_day),
        ("database removed", remove, {}),
        ("database replaced", exchange, {}),
        ("read for long", read_long, {}),
    ]
    found: list[Row] = []
    for number, (what, fault, environment) in enumerate(cases):
        bench.progress(what)
        with staged(bench.folder / str(number), environment=environment) as stage:
            _under_load(stage, fault)
            found += judged(stage, what)
    bench.progress("disk full")
    with small_disk(bench.folder / "full" / "home"):
        with staged(bench.folder / "full", {"capture": {"least_free": 8 << 20}}) as stage:
            _under_load(stage, fill_disk)
            found += judged(stage, "disk full")
    return found


@contextmanager
def small_disk(folder: Path, size: int = _DISK_BYTES) -> Iterator[None]:
    """Needs root."""
    folder.mkdir(parents=True)
    options = ["-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)]
    subprocess.run(["mount", *options], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)
