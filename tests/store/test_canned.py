"""The questions that are shipped, the sums that they read, and what is found by its words."""

from __future__ import annotations

import random
import re
import sqlite3  # Python's own: what a person's tools bring
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from store import daily, database, queries
from store.canned import CANNED
from store.database import transaction
from store.datasette import metadata
from store.hits import BadQuery, find, quoted
from store.overview import Overview, overview
from tests.store.filled import Filled

SAID = {"days": "100000", "task": "", "words": "late", "conversation": "c1"}
NAMES = [one.name for one in CANNED]
ALWAYS = "2000-01-01"


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Filled]:
    with closing(Filled(tmp_path / "home")) as made:
        yield made


def asked(at: Filled, name: str, **said: str) -> list[dict[str, Any]]:
    (sql,) = (one.sql for one in CANNED if one.name == name)
    with closing(sqlite3.connect(f"file:{at.database}?mode=ro", uri=True)) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(sql, SAID | said)]


def seen(at: Filled) -> Overview:
    found = overview(at.database, ALWAYS)
    assert found is not None
    return found


# -- all of them


@pytest.mark.parametrize("name", NAMES)
def test_each_answers_an_empty_record(filled: Filled, name: str) -> None:
    assert asked(filled, name) == []


@pytest.mark.parametrize("name", NAMES)
def test_none_reads_every_exchange(filled: Filled, name: str) -> None:
    """By an index, or from a number on: what grows with the record must not be walked through."""
    (sql,) = (one.sql for one in CANNED if one.name == name)
    plan = filled.connection.execute(f"EXPLAIN QUERY PLAN {sql}", SAID).fetchall()
    scans = [row[3] for row in plan if re.match(r"SCAN (e|n|exchanges|bodies|b)\b", row[3])]
    assert [one for one in scans if "INDEX" not in one] == []


def test_what_datasette_is_told_names_what_there_is(filled: Filled) -> None:
    told = metadata({"id": "root"})
    assert told["allow"] == {"id": "root"}
    tables = told["databases"]["understudy"]["tables"]
    sql = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
    assert set(tables) <= {row[0] for row in filled.connection.execute(sql)}
    for table, said in tables.items():
        there = {row[1] for row in filled.connection.execute(f"PRAGMA table_info({table})")}
        assert {*said.get("columns", ()), *said.get("units", ())} <= there
    for one in CANNED:
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", one.name)
        for parameter in set(re.findall(r"(?<!:):([a-z]+)", one.sql)) - {"words"}:
            assert f":{parameter}" in one.description


# -- money


def test_spend_is_summed_and_what_is_unknown_counted(filled: Filled) -> None:
    day = 86400
    filled.add(
        {"cost_usd": 1.0, "tenant": "acme", "feature": "chat", "input_tokens": 10},
        {"cost_usd": 0.5, "tenant": "acme", "input_tokens": 30, "cached_tokens": 10},
        {"cost_note": "no price", "usage": None, "usage_note": "no usage", "tenant": "beta"},
    )
    filled.add({"cost_usd": 0.25, "at": day, "response_model": "gpt-5"})
    days = asked(filled, "spend-by-day")
    assert [(one["day"], one["model"], one["calls"], one["cost_usd"]) for one in days] == [
        ("2026-05-29", "gpt-5", 1, 0.25),
        ("2026-05-28", "gpt-4o", 3, 1.5),
    ]
    assert days[1]["calls_without_cost"] == 1
    tenants = asked(filled, "spend-by-tenant")
    assert [(one["tenant"], one["cost_usd"]) for one in tenants] == [
        ("acme", 1.5), (None, 0.25), ("beta", None),
    ]  # fmt: skip
    assert asked(filled, "spend-by-feature")[0]["feature"] == "chat"
    (gpt4o,) = (one for one in asked(filled, "tokens-by-model") if one["model"] == "gpt-4o")
    assert (gpt4o["input_tokens"], gpt4o["cache_hit_percent"]) == (40, 25.0)
    unknown = asked(filled, "cost-unknown")
    assert {(one["about"], one["reason"], one["calls"]) for one in unknown} == {
        ("cost", "no price", 1), ("usage", "no usage", 1),
    }  # fmt: skip
    assert asked(filled, "spend-by-day", days="1") == []  # they are long past


def test_the_sums_are_those_of_the_exchanges(filled: Filled) -> None:
    draw = random.Random(7)
    for _ in range(20):
        filled.add(
            *(
                {
                    "at": draw.randrange(5 * 86400),
                    "tenant": draw.choice(["a", "b", None]),
                    "served_by": draw.choice(["upstream", "triage", None]),
                    "task_id": draw.choice(["t1", "t2", None]),
                    "status": draw.choice([200, 429, None]),
                    "retry_count": draw.choice([0, 1, None]),
                    "input_tokens": draw.choice([5, None]),
                    "cost_usd": draw.choice([0.5, None]),
                }
                for _ in range(draw.randrange(1, 9))
            )
        )
    for key in ("tenant", "served_by", "status", "substr(started_at, 1, 10)"):
        assert sums(filled, "exchanges", key) == sums(filled, "daily", key)
    task = """SELECT task_id, count(*), total(served_by = 'triage'), max(started_at),
              sum(cost_usd IS NULL), sum(input_tokens), sum(cost_usd)
              FROM exchanges WHERE task_id IS NOT NULL GROUP BY 1"""
    kept = """SELECT task_id, exchanges, diverted, last_at, calls_without_cost, input_tokens,
              cost_usd FROM task_totals"""
    assert filled.connection.execute(task).fetchall() == (
        filled.connection.execute(kept).fetchall()
    )
    assert (
        sum(one.exchanges for one in queries.counts(filled.database))
        == (filled.connection.execute("SELECT count(*) FROM exchanges").fetchone()[0])
    )


def sums(at: Filled, table: str, key: str) -> list[Any]:
    own = table == "exchanges"
    key = key if own else {"substr(started_at, 1, 10)": "day"}.get(key, key)
    none = 0 if key == "status" else "''"
    calls = "count(*), total(retry_count > 0)" if own else "sum(calls), total(retries)"
    unknown = "sum(cost_usd IS NULL)" if own else "sum(calls_without_cost)"
    sql = f"""SELECT coalesce({key}, {none}), {calls}, {unknown}, sum(input_tokens),
              sum(cost_usd) FROM {table} GROUP BY 1 ORDER BY 1"""
    return at.connection.execute(sql).fetchall()


def test_what_is_ignored_or_rolled_back_is_not_counted(filled: Filled) -> None:
    filled.add({})
    again = "INSERT OR IGNORE INTO exchanges SELECT * FROM exchanges"
    with transaction(filled.connection), daily.counting(filled.connection):
        filled.connection.execute(again)
    with pytest.raises(database.sqlite3.OperationalError):
        filled.add({"cost_usd": 1.0}, {"no_such_column": 1})
    assert [one.exchanges for one in queries.counts(filled.database)] == [1]


def test_counting_looks_at_new_rows_only(filled: Filled) -> None:
    for statement in daily._ADD:
        plan = filled.connection.execute(f"EXPLAIN QUERY PLAN {statement}", (5,)).fetchall()
        assert [row[3] for row in plan if row[3].startswith("SCAN")] == []


# -- limits


LIMITED: dict[str, tuple[list[dict[str, Any]], float]] = {
    "says how long": ([{"at": 0, "status": 429, "retry_after_s": 36.0}], 36),
    "until the next call": ([{"at": 0, "status": 429}, {"at": 18}], 18),
    "nobody calls": ([{"at": 0, "status": 429}], 60),
    "the next is another's": (
        [{"at": 0, "status": 429, "key_hash": "a"}, {"at": 5, "key_hash": "b"}], 60
    ),
    "the next is of another model": ([{"at": 0, "status": 429}, {"at": 5, "model": "m"}], 60),
    "at the same time": (
        [{"at": at, "status": 429, "retry_after_s": 30.0} for at in (0, 10, 20)], 50
    ),
    "two keys": (
        [{"at": 0, "status": 429, "retry_after_s": 30.0, "key_hash": key} for key in "ab"], 60
    ),
    "one says, one doesn't": (
        [{"at": 0, "status": 429}, {"at": 10, "status": 429, "retry_after_s": 20.0}], 30
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LIMITED)
def test_hours_lost_are_the_same_in_sql_and_in_status(filled: Filled, name: str) -> None:
    rows, seconds = LIMITED[name]
    filled.add(*rows)
    lost = sum(one["hours_lost"] for one in asked(filled, "rate-limited"))
    assert lost * 3600 == pytest.approx(seconds, abs=0.4)  # rounded to 4 places
    found = seen(filled)
    assert found.hours_lost * 3600 == pytest.approx(seconds, abs=0.01)
    assert found.limited == sum(row.get("status") == 429 for row in rows)


# -- trouble


def test_errors_by_kind_with_the_last_of_each(filled: Filled) -> None:
    bad = {"status": 500, "error": "old"}
    filled.add(
        bad, bad | {"error": "new", "id": "last"}, {"outcome": "timeout", "status": None}, {}
    )
    kinds = asked(filled, "errors-by-kind")
    assert [(one["status"], one["outcome"], one["calls"]) for one in kinds] == [
        (500, "ok", 2), (None, "timeout", 1),
    ]  # fmt: skip
    assert (kinds[0]["last_error"], kinds[0]["last_id"]) == ("new", "last")


def test_slow_repeated_and_long(filled: Filled) -> None:
    filled.add(
        {"latency_ms": 5.0, "request_hash": "x", "conversation": "c1", "id": "quick"},
        {"latency_ms": 9.0, "request_hash": "x", "conversation": "c1", "id": "slow"},
        {"request_hash": "y", "conversation": "c2"},
    )
    assert [one["id"] for one in asked(filled, "slowest-calls")] == ["slow", "quick"]
    (repeated,) = asked(filled, "repeated-requests")
    assert (repeated["request_hash"], repeated["calls"]) == ("x", 2)
    long = asked(filled, "longest-conversations")
    assert [(one["conversation"], one["calls"]) for one in long] == [("c1", 2), ("c2", 1)]


def test_what_was_not_kept_has_its_kind_without_figures(filled: Filled) -> None:
    filled.add(
        {"response_note": "cut: 9 of 10 bytes"}, {"response_note": "cut: 3 of 20 bytes"},
        {"usage_note": "no body is kept (privacy: metadata)"},
    )  # fmt: skip
    found = {(one["about"], one["reason"], one["calls"]) for one in asked(filled, "not-kept")}
    assert found == {("response", "cut", 2), ("body", "no body is kept (privacy: metadata)", 1)}


# -- texts


def test_turns_and_pairs(filled: Filled) -> None:
    filled.add(
        {"said": "one", "conversation": "c1", "task_id": "ab1"},
        {"said": "two", "conversation": "c1", "task_id": "ab1", "answered": "fine"},
        {"said": "three", "conversation": "c2", "task_id": "cd2"},
    )
    turns = asked(filled, "conversation-turns")
    assert [(one["prompt"], one["answer"]) for one in turns] == [("one", "hi"), ("two", "fine")]
    pairs = asked(filled, "task-pairs", task="ab")
    assert ["two" in one["request"] for one in pairs] == [True, False]
    assert len(asked(filled, "task-pairs", task="")) == 1  # the task that was called last


def test_search_marks_what_it_found(filled: Filled) -> None:
    filled.add(
        {"said": "my parcel is late", "answered": "we are sorry"}, {"said": "all is well"},
        {"said": "a late refund", "id": "b" * 32},
    )  # fmt: skip
    filled.index()
    found = asked(filled, "search")
    assert [one["prompt"] for one in found] == ["a «late» refund", "my parcel is «late»"]
    assert asked(filled, "search", words="") == []
    hits = find(filled.database, quoted("LATE refund"), 5)
    assert [one.id for one in hits.found] == ["b" * 32]
    assert hits.unindexed == 0
    assert len(find(filled.database, "sorry OR well", 5).found) == 2
    assert len(find(filled.database, "is", 1).found) == 1


@pytest.mark.parametrize("bad", ["a AND (", "nowhere: x", '"open', "", "*", "a b NEAR("])
def test_a_query_that_fts5_does_not_take(filled: Filled, bad: str) -> None:
    with pytest.raises(BadQuery):
        find(filled.database, bad, 5)
    if bad:
        assert find(filled.database, quoted(bad), 5).found == ()


def test_how_far_the_index_is_behind(filled: Filled) -> None:
    assert seen(filled).unindexed == 0
    filled.add({"said": "a"}, {"said": "b"})
    assert seen(filled).unindexed is None  # off, or not begun
    filled.index()
    filled.add({"said": "c"})
    assert seen(filled).unindexed == 1
    assert find(filled.database, "a", 5).unindexed == 1


# -- status


def test_the_overview(filled: Filled) -> None:
    filled.add(
        {"cost_usd": 2.0, "input_tokens": 100, "cached_tokens": 25, "retry_count": 2},
        {"cost_note": "n1"}, {"cost_note": "n1"}, {"cost_note": "n2"},
        {"usage": None, "usage_note": "u", "cost_note": "u"},
    )  # fmt: skip
    found = seen(filled)
    (model,) = found.models
    assert (found.usd, found.calls, found.retries) == (2.0, 5, 1)
    assert (model.model, model.calls, model.cached, model.usd) == ("gpt-4o", 5, 0.25, 2.0)
    assert (found.cost.calls, found.cost.reasons) == (4, (("n1", 2), ("n2", 1), ("u", 1)))
    assert (found.usage.calls, found.usage.reasons) == (1, (("u", 1),))
    later = overview(filled.database, "2026-06-01")
    assert later is not None and (later.usd, later.models, later.cost.calls) == (2.0, (), 0)


def test_no_overview_without_a_database(tmp_path: Path) -> None:
    assert overview(tmp_path / "none.db", ALWAYS) is None
    assert find(tmp_path / "none.db", "a", 5).found == ()
