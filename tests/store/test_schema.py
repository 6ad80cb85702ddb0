"""How a database begins, and what happens to one that can't be used."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from policies.home import Home
from store import schema
from store.database import Connection, connect, reading, sqlite3
from tests.store.making import Exchange, Run, home, record_all, recording, rows, wait_for


def recorded(tmp_path: Path) -> Home:
    at = home(tmp_path)
    run = Run(at)
    run.write(*(Exchange(number=number).records() for number in range(1, 60)))
    run.die()
    record_all(at)
    return at


def test_how_it_is_set_up(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    connection = schema.prepare(at.database)

    def pragma(name: str) -> object:
        return connection.execute(f"PRAGMA {name}").fetchone()[0]

    assert (pragma("journal_mode"), pragma("synchronous"), pragma("auto_vacuum")) == ("wal", 1, 2)
    connection.close()
    sql = "SELECT name FROM _sqlite_migrations"
    assert rows(at, sql) == [{"name": "m001_first"}]


PLANS = [
    ("SELECT * FROM exchanges ORDER BY started_at DESC LIMIT 5", "exchanges_by_time"),
    ("SELECT * FROM exchanges WHERE task_id = 'x' ORDER BY started_at DESC", "exchanges_by_task"),
    (
        "SELECT * FROM comparisons WHERE task_id = 'x' AND candidate = 'y' AND at > 1 ORDER BY at",
        "comparisons_by_task",
    ),
    ("SELECT 1 FROM observations WHERE candidate = 'x' AND exchange_id = 'y'", "observations_1"),
]


@pytest.mark.parametrize(("sql", "index"), PLANS)
def test_frequent_questions_have_an_index(tmp_path: Path, sql: str, index: str) -> None:
    at = recorded(tmp_path)
    plan = " ".join(one["detail"] for one in rows(at, f"EXPLAIN QUERY PLAN {sql}"))
    assert index in plan and "TEMP B-TREE" not in plan


def test_a_scan_for_pairs_reads_no_bodies(tmp_path: Path) -> None:
    sql = "EXPLAIN QUERY PLAN SELECT number, started_at FROM teacher_pairs WHERE number > 5"
    plan = rows(recorded(tmp_path), sql)
    assert ["bodies" in one["detail"] for one in plan] == [False]


def no_database(path: Path) -> None:
    path.write_bytes(b"this is not a database at all\n" * 100)


def broken_header(path: Path) -> None:
    path.write_bytes(bytes(30) + path.read_bytes()[30:])


def broken_page(path: Path) -> None:
    data = bytearray(path.read_bytes())
    for at in range(2048, len(data), 2048):
        data[at : at + 40] = b"\xff" * 40
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def no_tables(path: Path) -> None:
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute("DROP VIEW teacher_pairs")
    connection.close()


def odd_version(path: Path) -> None:
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute("PRAGMA user_version = -3")
    connection.close()


def somebody_elses(path: Path) -> None:
    path.unlink()
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()


HARM = [
    no_database, broken_header, broken_page, cut_short, no_tables, odd_version, somebody_elses,
]  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_what_can_not_be_used_is_set_aside(
    tmp_path: Path, harm: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    at = recorded(tmp_path)
    harm(at.database)
    kept = at.database.read_bytes()
    run = Run(at, "run-b")
    run.write(Exchange(number=1).records())
    record_all(at)
    assert len(rows(at, "SELECT * FROM exchanges")) == 1
    (aside,) = at.root.glob("understudy.db.corrupt-*Z")
    assert aside.read_bytes() == kept
    assert "DATABASE UNUSABLE" in capsys.readouterr().err


def test_who_is_killed_while_making_it_leaves_one_that_the_next_finishes(tmp_path: Path) -> None:
    whole = tmp_path / "whole.db"
    schema.prepare(whole).close()
    for statement in (*range(1, 20), *range(20, 500, 7)):  # the most of them in one transaction
        database = tmp_path / f"{statement}.db"
        if not killed_at(statement, database):
            break
        schema.prepare(database).close()
        assert tables(database) == tables(whole), statement
        assert not list(tmp_path.glob("*.corrupt-*")), statement
    assert 50 < statement < 499


def killed_at(statement: int, database: Path) -> bool:
    """Is a process that makes the database killed before this one of its statements?"""
    child = os.fork()
    if child == 0:
        left = itertools.count(statement - 1, -1)

        def kill(_: str) -> None:
            if next(left) == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def traced(path: Path) -> Connection:
            connection = connect(path)
            connection.set_trace_callback(kill)
            return connection

        pytest.MonkeyPatch().setattr(schema, "connect", traced)
        schema.prepare(database)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def tables(database: Path) -> set[str]:
    with reading(database) as connection:
        return {row[0] for row in connection.execute("SELECT sql FROM sqlite_master")}


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    at = home(tmp_path)
    at.root.mkdir()
    at.database.touch()
    record_all(at)
    assert rows(at, "SELECT * FROM exchanges") == []
    assert list(at.root.glob("*corrupt*")) == []


def newer_version(path: Path) -> None:
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute(f"PRAGMA user_version = {schema.VERSION + 1}")
    connection.close()


def newer_migration(path: Path) -> None:
    connection = sqlite3.connect(str(path), isolation_level=None)
    connection.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name) VALUES ('understudy', 'm999')"
    )
    connection.close()


@pytest.mark.parametrize("make_newer", [newer_version, newer_migration])
def test_a_newer_schema_is_refused_and_not_touched(
    tmp_path: Path, make_newer: Callable[[Path], None]
) -> None:
    at = recorded(tmp_path)
    make_newer(at.database)
    for file in at.root.glob("understudy.db-*"):
        file.unlink()
    before = at.database.read_bytes()
    with pytest.raises(schema.NewerSchema, match="newer than this version"):
        record_all(at)
    assert at.database.read_bytes() == before
    assert sorted(file.name for file in at.root.glob("understudy.db*")) == ["understudy.db"]


def test_damage_while_running_starts_a_new_database(tmp_path: Path) -> None:
    at = home(tmp_path)
    large = Run(at)  # larger than SQLite's cache, so that it has to look again
    for number in range(1, 130):
        large.write(Exchange(number=number, request=os.urandom(50_000).hex().encode()).records())
    large.die()
    record_all(at)
    with recording(at):
        wait_for(lambda: rows(at, "SELECT number FROM progress") == [{"number": 129}])
        broken_page(at.database)  # and nobody is at work on it meanwhile
        run = Run(at, "run-b")
        run.write(*(Exchange(number=number).records() for number in range(100, 103)))
        wait_for(lambda: list(at.root.glob("understudy.db.corrupt-*Z")))
        found = "SELECT seq FROM exchanges ORDER BY seq"
        wait_for(lambda: [one["seq"] for one in rows(at, found)] == [100, 101, 102])
