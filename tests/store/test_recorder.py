"""The recorder as a process: latency, exactly once across kill -9, and every kind of trouble."""

from __future__ import annotations

import os
import random
import resource
import signal
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.home import Home
from policies.spool import Event, Kind, pack, unpack
from store import ingest, schema
from store.database import sqlite3, transaction
from store.queries import runs
from store.rows import build
from store.spool_reader import read
from store.steps import whole
from tests.store.making import (
    Exchange,
    Run,
    chat_request,
    exchange_id,
    home,
    making,
    record_all,
    recording,
    row,
    rows,
    start_recorder,
    wait_for,
)


def numbered(number: int, text: str = "") -> Exchange:
    token = f"token-{number}."
    answer = orjson.dumps({"choices": [{"message": {"content": token}, "finish_reason": "stop"}]})
    request = orjson.dumps(chat_request(token + text))
    return Exchange(number=number, request=request, response=answer)


def count(at: Home) -> int:
    found = rows(at, "SELECT count(*) AS n FROM exchanges")
    return int(found[0]["n"]) if found else 0


def test_rows_follow_the_spool_at_once(tmp_path: Path) -> None:
    at = home(tmp_path)
    with recording(at):
        wait_for(at.recorder_socket.exists)
        run = Run(at)
        for number in range(1, 4):
            run.write(numbered(number).records())
            began = time.monotonic()
            wait_for(lambda number=number: count(at) == number)  # type: ignore[misc]
            assert time.monotonic() - began < 2  # 0.25, and what a machine at work adds


def test_a_stop_records_all_that_is_left_and_cleans_up(tmp_path: Path) -> None:
    at = home(tmp_path)
    with recording(at) as process:
        wait_for(at.recorder_socket.exists)
        run = Run(at)
        run.write(*(numbered(number).records() for number in range(1, 3000)))
        run.die()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert not at.database.with_name("understudy.db-wal").exists()
    assert count(at) == 2999
    assert not at.recorder_socket.exists()
    assert list(at.spool.iterdir()) == []
    only = row(at, "SELECT * FROM runs")
    assert (only["ended_clean"], only["highest_seq"], only["recorded"]) == (1, 2999, 2999)


class BusyProxy:
    """Writes exchanges whose beginnings and ends lie far apart, in segments of all sizes."""

    def __init__(self, run: Run, draw: random.Random) -> None:
        self.number = 0
        self.open: list[Exchange] = []
        self._run, self._draw = run, draw

    def write(self) -> None:
        for _ in range(self._draw.randint(1, 20)):
            self.number += 1
            self.open.append(numbered(self.number))
            self._run.write(self.open[-1].opening())
        self._draw.shuffle(self.open)
        while len(self.open) > 15:
            self._run.write(self.open.pop().rest())
        if self._draw.random() < 0.1:
            self._run.next_segment()


def test_exactly_once_under_kill_9(tmp_path: Path) -> None:
    """A proxy writes on while its recorder is killed twenty times, soon after it has begun to
    commit, and now and then while it still starts."""
    at = home(tmp_path)
    run = Run(at)
    draw = random.Random(5)
    proxy = BusyProxy(run, draw)
    for attempt in range(20):
        before = read_up_to(at)
        process = start_recorder(at)
        while attempt % 5 and read_up_to(at) == before:
            proxy.write()
            time.sleep(0.005)
        deadline = time.monotonic() + draw.uniform(0, 0.15)
        while time.monotonic() < deadline:
            proxy.write()
            time.sleep(0.002)
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()
    left_open = {one.uuid for one in proxy.open}
    run.die()
    record_all(at)
    check_each_once(at, proxy.number, left_open)
    assert list(at.spool.iterdir()) == []


def read_up_to(at: Home) -> list[dict[str, Any]]:
    return rows(at, "SELECT * FROM spool_position")


def check_each_once(at: Home, number: int, left_open: set[str]) -> None:
    sql = """SELECT id, seq, outcome, complete, request, response
             FROM exchanges JOIN texts USING (number)"""
    found = rows(at, sql)
    assert sorted(one["seq"] for one in found) == list(range(1, number + 1))
    for one in found:
        token = f'"token-{one["seq"]}."'
        assert token[:-1] in one["request"]
        assert (one["outcome"] == "proxy_died") == (one["id"] in left_open)
        assert one["complete"] == (one["id"] not in left_open)
        assert one["id"] in left_open or one["response"].count(token) == 1
    only = row(at, "SELECT * FROM runs")
    assert (only["highest_seq"], only["recorded"], only["ended_clean"]) == (number, number, 0)
    assert rows(at, "SELECT * FROM staged") == []
    assert row(at, "PRAGMA quick_check") == {"quick_check": "ok"}
    assert rows(at, "SELECT * FROM incidents") == []


def test_open_exchanges_pin_no_segment_and_are_read_back(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    one = numbered(1)
    run.write(one.opening())
    run.next_segment()
    run.write(one.record(Kind.RESPONSE_HEAD, {"status": 200, "headers": []}))
    record_all(at)
    assert sorted(os.listdir(run.folder)) == ["00000001.wiped", "00000002.seg", "alive"]
    assert runs(at.database)[0].open == 1 and runs(at.database)[0].lost == 0
    half = len(one.response) // 2
    run.write(one.record(Kind.RESPONSE_BODY, one.response[:half]))
    record_all(at)
    run.next_segment()
    run.write(one.record(Kind.RESPONSE_BODY, one.response[half:]), one.closing())
    run.die()
    record_all(at)
    assert row(at, "SELECT response FROM bodies")["response"] == one.response.decode()
    assert row(at, "SELECT outcome FROM exchanges")["outcome"] == "ok"


def test_large_open_bodies_leave_the_memory(tmp_path: Path) -> None:
    """Above the bound they are read back from the database when the exchange ends."""
    at = home(tmp_path)
    run = Run(at)
    connection = schema.prepare(at_root(at))
    reader = ingest.Ingest(connection, making(), at.files, most_cached=2000)
    exchanges = [numbered(number, "x" * 1000 * number) for number in range(1, 6)]
    for records in ([one.opening() for one in exchanges], [one.rest() for one in exchanges]):
        for record in records:
            run.write(record)
            reader.apply(run.name, 0.0, read(run.folder, reader.position(run.name)))
            assert reader._cached <= 2000
    connection.close()
    found = rows(at, "SELECT request, response FROM texts ORDER BY number")
    assert [(one["request"], one["response"]) for one in found] == [
        (one.request.decode(), one.response.decode()) for one in exchanges
    ]
    assert rows(at, "SELECT * FROM staged") == []


def test_records_that_can_not_be_read_stop_nothing(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    poison = exchange_id(50)
    bad = [b"", b"{", b"[]", b"\xff", b"null", b'{"at": "now"}', b'{"at": 1e300}']
    for payload in bad:
        run.write(pack(Kind.OPENED, poison, 1.0, payload), pack(Kind.CLOSED, poison, 1.0, b"{}"))
    for kind in Kind:
        run.write(pack(kind, exchange_id(60 + kind), 1.0, b"nonsense"))
    run.write(pack(99, poison, 1.0, b"?"), numbered(1).records())
    odd = Exchange(number=2, request_headers=[1, 2])  # type: ignore[list-item]
    run.write(odd.records(), numbered(3).records())
    run.die()
    record_all(at)
    found = rows(at, "SELECT seq FROM exchanges WHERE complete = 1 ORDER BY seq")
    assert [one["seq"] for one in found] == [1, 3]
    kinds = {one["kind"] for one in rows(at, "SELECT kind FROM incidents")}
    assert kinds == {"unreadable_record", "orphan_record"}


def test_a_value_that_sqlite_has_no_place_for_costs_its_own_row(tmp_path: Path) -> None:
    """Rows are made so that this can't happen: hence by hand."""
    at, one_of = home(tmp_path), dict[int, Exchange]()
    for n in (1, 2, 3):
        messages = [{"role": role, "content": role} for role in ("system", "user", "assistant")]
        messages.append({"role": "user", "content": f"token-{n}."})
        one_of[n] = Exchange(number=n, request=orjson.dumps({"messages": messages}))
    made = [whole(build("r", one_of[n].id, events_of(one_of[n]), making())) for n in (1, 2, 3)]
    assert [len(found) for found in made] == [1, 1, 1]
    made[1][0].exchange["status"] = 2**70
    connection = schema.prepare(at_root(at))
    batch = ingest._Batch("r", rows=[found[0] for found in made])
    reader = ingest.Ingest(connection, making(), at.files)
    with transaction(connection):
        assert reader._insert_rows(batch) == 2
        reader.slices.settle()
    connection.close()
    assert [kind for kind, _ in batch.incidents] == ["unreadable_exchange"]
    assert [one["seq"] for one in rows(at, "SELECT seq FROM exchanges ORDER BY seq")] == [1, 3]
    kept = [one["request"] for one in rows(at, "SELECT request FROM texts ORDER BY number")]
    assert kept == [one_of[n].request.decode() for n in (1, 3)]
    # What the third shares with the first is counted, and nothing is left of the second.
    slices = [one["text"] for one in rows(at, "SELECT text FROM slices ORDER BY id")]
    assert [("token-1." in text, "token-3." in text) for text in slices] == [
        *[(False, False)] * 3, (True, False), (False, True),
    ]  # fmt: skip
    uses = [one["uses"] for one in rows(at, "SELECT uses FROM prefixes ORDER BY id")]
    assert uses == [1, 1, 2, 1, 1]


def events_of(one: Exchange) -> list[Event]:
    return [event for batch in unpack(one.records()) for event in batch.events]


def at_root(at: Home) -> Path:
    at.root.mkdir(exist_ok=True)
    return at.database


def test_a_torn_tail_is_counted_and_the_open_exchange_closed(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    run.write(numbered(1).records(), numbered(2).opening(), numbered(3).records()[:-5])
    run.die()
    record_all(at)
    found = rows(at, "SELECT outcome FROM exchanges ORDER BY seq")
    assert [one["outcome"] for one in found] == ["ok", "proxy_died", "proxy_died"]
    only = runs(at.database)[0]
    assert (only.ended_clean, only.lost) == (0, 0)
    assert only.torn_bytes == len(numbered(3).closing()) - 5


def test_a_gap_in_the_sequence_is_lost(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    run.write(numbered(1).records(), numbered(4).records())
    run.die()
    record_all(at)
    assert runs(at.database)[0].lost == 2


def test_several_runs_at_once(tmp_path: Path) -> None:
    at = home(tmp_path)
    for worker in range(3):
        run = Run(at, f"run-{worker}", alive=worker != 1)
        run.write(*(numbered(worker * 100 + number).records() for number in range(1, 6)))
    record_all(at)
    assert count(at) == 15
    ended = rows(at, "SELECT ended_clean FROM runs ORDER BY id")
    assert [one["ended_clean"] for one in ended] == [None, 1, None]


def test_what_bursts_of_any_run_left_to_be_written_over_is_let_go(tmp_path: Path) -> None:
    at = home(tmp_path)
    runs = [Run(at, name) for name in ("run-a", "run-b")]
    for run in runs:
        for number in range(1, 10):
            wiped = run.folder / f"{number:08d}.wiped"
            wiped.write_bytes(b"")
            os.utime(wiped, (time.time() - 300,) * 2)
    with recording(at):
        wait_for(lambda: [len(list(run.folder.glob("*.wiped"))) for run in runs] == [4, 4])


def test_nobody_else_can_read_anything_whatever_the_umask(tmp_path: Path) -> None:
    at = home(tmp_path)
    with recording(at, umask=0):
        wait_for(at.recorder_socket.exists)
        run = Run(at)
        run.write(numbered(1).records())
        wait_for(lambda: count(at) == 1)
        files = [*at.root.glob("understudy.db*"), at.recorder_socket]
        assert len(files) == 4
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
        folders = {stat.S_IMODE(folder.stat().st_mode) for folder in (at.root, at.run, at.spool)}
        assert folders == {0o700}


@pytest.mark.parametrize("held", [0.3, 1.6])
def test_a_locked_database_is_waited_for(tmp_path: Path, held: float) -> None:
    at = home(tmp_path)
    with recording(at, stderr=subprocess.PIPE) as process:
        wait_for(at.recorder_socket.exists)
        run = Run(at)
        other = sqlite3.connect(str(at.database), isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        run.write(numbered(1).records(), numbered(2).opening())
        time.sleep(held)
        assert count(at) == 0
        other.execute("ROLLBACK")
        other.close()
        wait_for(lambda: count(at) == 1)
        run.write(numbered(2).rest())
        wait_for(lambda: count(at) == 2)
        process.terminate()
        said = process.stderr.read() if process.stderr else b""
    assert said.count(b"database is locked") == int(held > 1)
    noted = rows(at, "SELECT detail FROM incidents WHERE kind = 'database_trouble'")
    assert len(noted) == int(held > 1)


def test_a_full_disk_is_waited_for(tmp_path: Path) -> None:
    """A limit on file sizes, lifted later: what SQLite sees is a write that fails."""
    at = home(tmp_path)
    record_all(at)
    size = at.database.stat().st_size
    limit = (size + 200_000, resource.RLIM_INFINITY)
    with recording(
        at, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    ) as process:
        wait_for(at.recorder_socket.exists)
        run = Run(at)
        run.write(*(numbered(number, text="x" * 2000).records() for number in range(1, 200)))
        time.sleep(0.6)
        assert process.poll() is None
        assert count(at) == 0
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        wait_for(lambda: count(at) == 199)
    only = row(at, "SELECT * FROM runs")
    assert (only["recorded"], only["highest_seq"]) == (199, 199)


def test_a_second_recorder_waits_for_the_first(tmp_path: Path) -> None:
    at = home(tmp_path)
    with recording(at):
        wait_for(at.recorder_socket.exists)
        with recording(at) as second:
            wait_for(lambda: at.spool in open_files(second.pid))
            time.sleep(0.2)
            assert second.poll() is None
        assert second.returncode == 0
        assert at.recorder_socket.exists()


def open_files(pid: int) -> list[Path]:
    found = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(link.readlink())
    return found
