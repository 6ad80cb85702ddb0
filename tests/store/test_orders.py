"""Orders over the recorder's socket: carried out in steps, while exchanges come in."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.home import Home
from policies.words import Feedback, UnknownExchange
from store import forget as forgetting
from store import keeper, orders, schema, search, writes
from store.database import reading, transaction
from store.orders import ask, dump, load
from store.recorder import alone
from store.retention import Retain
from store.target import Forget
from store.writes import OrderError
from tests.store.forgetting import order as by_hand
from tests.store.forgetting import said_by, seen_in
from tests.store.making import (
    Exchange,
    Run,
    home,
    making,
    record_all,
    recording,
    row,
    rows,
    wait_for,
)


@pytest.mark.parametrize("order", [Forget("user", "a\nü", True), Retain(), Retain(dry=True)])
def test_there_and_back(order: orders.Order) -> None:
    line = dump(order)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert load(line) == order


@pytest.mark.parametrize(
    "line",
    [b"{", b'{"order": 1}', b'{"order": {"type": "drop"}}', b'{"order": {"type": "forget"}}',
     b'{"order": {"type": "forget", "by": "number", "value": "1"}}',
     b'{"order": {"type": "forget", "by": "id", "value": 1}}',
     b'{"order": {"type": "retain", "more": 1}}'],
)  # fmt: skip
def test_what_is_no_order(line: bytes) -> None:
    with pytest.raises(ValueError):
        load(line)


def test_another_line() -> None:
    assert load(b'{"writes": []}') is None


def recorded(tmp_path: Path, count: int) -> Home:
    at = home(tmp_path)
    run = Run(at)
    for number in range(1, count + 1):
        tenant = "gone" if number % 2 else "stays"
        run.write(said_by(number, f"{tenant}word", tenant).records())
    run.die()
    record_all(at)
    return at


def test_a_running_recorder_forgets_while_it_records(tmp_path: Path) -> None:
    at = recorded(tmp_path, 60)
    said: list[dict[str, Any]] = []
    with recording(at):
        wait_for(at.recorder_socket.exists)
        run = Run(at, "run-b")
        run.write(said_by(100, "goneword", "gone").records())

        def more(progress: dict[str, Any]) -> None:
            said.append(progress)
            run.write(said_by(100 + len(said), "staysword", "stays").records())

        done = ask(at.recorder_socket, dump(Forget("tenant", "gone")), more)
        assert done["exchanges"] == 31
        assert seen_in(at.root, "goneword") == []
        wait_for(lambda: len(rows(at, "SELECT id FROM exchanges")) == 61 + len(said))
        assert len(said) > 1
    kept = row(at, "SELECT count(*) AS n FROM bodies")["n"]
    assert kept == 30 + len(said)
    assert row(at, "PRAGMA integrity_check") == {"integrity_check": "ok"}
    run.die()


def test_what_can_not_be_done_is_said(tmp_path: Path) -> None:
    at = recorded(tmp_path, 2)
    with recording(at):
        wait_for(at.recorder_socket.exists)

        def asked(line: bytes) -> dict[str, Any]:
            return ask(at.recorder_socket, line, lambda _: None)

        with pytest.raises(OrderError, match="no exchange goes by 'none'"):
            asked(dump(Forget("id", "none")))
        with pytest.raises(OrderError, match="record: nothing is set"):
            asked(dump(Retain()))
        with pytest.raises(OrderError, match="type must be one of forget, retain"):
            asked(b'{"order": {"type": "drop"}}\n')
        nobody = Feedback("none", 1.0, 1.0, None, None, None)
        with pytest.raises(UnknownExchange, match="no exchange goes by 'none'"):
            asked(writes.dump([nobody]))
        known = Feedback(Exchange(number=1).uuid, 1.0, 1.0, None, None, None)
        assert asked(writes.dump([known])) == {}
    assert row(at, "SELECT count(*) AS n FROM feedback") == {"n": 1}


def test_no_recorder(tmp_path: Path) -> None:
    with pytest.raises(OrderError, match="the recorder is away"):
        ask(tmp_path / "none.sock", dump(Retain()), lambda _: None)


def test_who_leaves_in_the_middle_leaves_a_sound_record(tmp_path: Path) -> None:
    at = recorded(tmp_path, 20)
    with recording(at):
        wait_for(at.recorder_socket.exists)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(at.recorder_socket))
            connection.sendall(dump(Forget("tenant", "gone")))
            connection.recv(1)
        assert ask(at.recorder_socket, dump(Forget("tenant", "gone")), lambda _: None) is not None
        assert seen_in(at.root, "goneword") == []


def test_a_reader_keeps_remnants_alive_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = recorded(tmp_path, 4)
    monkeypatch.setattr(forgetting, "_CHECKPOINT_TRIES", 1)
    with reading(at.database) as reader:
        reader.execute("SELECT count(*) FROM bodies").fetchone()
        with pytest.raises(OrderError, match="another program keeps reading the database"):
            by_hand(at, Forget("tenant", "gone"))
    assert by_hand(at, Forget("tenant", "gone"))["exchanges"] == 0
    assert seen_in(at.root, "goneword") == []


def test_an_answer_is_one_line_of_json(tmp_path: Path) -> None:
    at = recorded(tmp_path, 1)
    with recording(at):
        wait_for(at.recorder_socket.exists)
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(at.recorder_socket))
            connection.sendall(dump(Forget("tenant", "gone", dry=True)))
            lines = connection.makefile("rb")
            said = [orjson.loads(lines.readline()) for _ in range(2)]
    assert said == [
        {"progress": {"doing": "counting", "exchanges": 1}},
        {"ok": True, "result": {"exchanges": 1, "related": 0}},
    ]


def test_what_a_reader_delays_is_not_written_anew_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = recorded(tmp_path, 4)
    monkeypatch.setattr(forgetting, "_CHECKPOINT_TRIES", 1)
    monkeypatch.setattr(keeper, "_TIDY_SECONDS", 0.0)
    anew: list[str] = []
    monkeypatch.setattr(forgetting, "_rewrite", lambda _: anew.append("written"))

    def steps(database: Any) -> bool:
        while database.step():
            pass
        return bool(rows(at, "SELECT 1 FROM progress WHERE name = 'forget'"))

    with reading(at.database) as reader:
        reader.execute("SELECT count(*) FROM bodies").fetchone()
        with pytest.raises(OrderError, match="another program keeps reading the database"):
            by_hand(at, Forget("tenant", "gone"))
        assert anew == ["written"]
        assert alone(at, making(), steps)
    assert not alone(at, making(), steps)
    assert anew == ["written"]


def test_a_forgetting_that_was_cut_short_is_finished_in_steps(tmp_path: Path) -> None:
    at = recorded(tmp_path, 4)
    said: list[bool] = []
    assert seen_in(at.root, "goneword says") == ["understudy.db"]

    def work(database: Any) -> None:
        steps = database.begin(Forget("tenant", "gone"))
        while next(steps)["doing"] != "forgetting":
            pass
        database.end()
        while more := database.step():
            said.append(more)

    alone(at, making(), work)
    assert said
    assert rows(at, "SELECT 1 FROM progress WHERE name = 'forget'") == []
    assert seen_in(at.root, "goneword says") == []


def test_an_order_ends_though_its_database_is_gone(tmp_path: Path) -> None:
    at = recorded(tmp_path, 4)

    def work(database: Any) -> None:
        steps = database.begin(Forget("tenant", "gone"))
        while next(steps)["doing"] != "forgetting":
            pass
        at.database.unlink()
        database.step()
        database.end()
        again = orders.finish(database.begin(Forget("tenant", "gone")), lambda _: None)
        assert again["exchanges"] == 0
        database.end()

    alone(at, making(), work)
    assert row(at, "SELECT count(*) AS n FROM incidents WHERE kind = 'database_gone'") == {"n": 1}


def test_what_was_deleted_does_not_stay_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a reader hold the recorder up."""
    at = recorded(tmp_path, 2)
    monkeypatch.setattr(keeper, "_TIDY_SECONDS", 0.0)
    journal = at.database.with_name(at.database.name + "-wal")

    def work(database: Any) -> None:
        database.step()
        with reading(at.database) as reader:
            reader.execute("SELECT count(*) FROM bodies").fetchone()
            database.note("test", "one")
            assert not database.step()
            assert journal.stat().st_size > 0
        assert not database.step()
        assert journal.stat().st_size == 0

    alone(at, making(), work)
    assert row(at, "SELECT count(*) AS n FROM incidents WHERE kind = 'test'") == {"n": 1}


def test_a_body_that_can_not_be_indexed_stops_no_other(tmp_path: Path) -> None:
    at = recorded(tmp_path, 0)
    run = Run(at, "run-b")
    for number in (1, 2, 3):
        run.write(said_by(number, f"word{number}", "t").records())
    run.die()
    record_all(at, record={"search": False})
    connection = schema.prepare(at.database)
    connection.execute("UPDATE bodies SET request = NULL, request_parts = '[x' WHERE number = 2")
    said: list[str] = []
    assert not search.fill(connection, lambda kind, detail: said.append(f"{kind} {detail}"))
    assert [one.partition(":")[0] for one in said] == ["not_searchable number 2"]
    found = "SELECT rowid FROM search WHERE search MATCH ?"
    assert [connection.execute(found, (f"word{n}",)).fetchone() for n in (1, 3)] == [(1,), (3,)]
    assert not search.fill(connection) and search.done(connection) == 3
    with transaction(connection):
        search.take_back(connection, [1, 2])  # which was never in it
    assert connection.execute(found, ("word1",)).fetchone() is None
    connection.close()
