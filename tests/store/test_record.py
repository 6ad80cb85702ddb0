"""The record as the director uses it: through the recorder's socket and its own reads."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

import shadow.record
from policies.home import Home
from policies.words import Comparison, Observation, RolloutRecord, Write
from store import record as store_record
from store import schema
from store.database import sqlite3, transaction
from store.record import Record, WriteRefused
from store.writes import MOST_LINE
from tests.store.making import (
    Exchange,
    Run,
    chat_answer,
    chat_request,
    home,
    record_all,
    recording,
    row,
    rows,
    wait_for,
)

NOW = 1_763_000_000.123456


def observation(exchange: str, answer: str = "hi") -> Observation:
    return Observation(exchange, "small", "sha", NOW, answer, "stop", 5, 2, 12.5, 0.25, None)


def comparison(exchange: str, at: float = NOW) -> Comparison:
    return Comparison(exchange, "small", "t1", "h1", at, "matched", 1.0, "the same text")


def rollout(why: str, at: float = NOW, percent: float = 0.0) -> RolloutRecord:
    return RolloutRecord("t1", "small", "shadow", percent, {"seen": [1, 2.5]}, at, why)


def record(at: Home) -> Record:
    return Record(at.database, at.recorder_socket)


def write(at: Home, *writes: Write) -> None:
    asyncio.run(record(at).write(writes))


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Home]:
    place = home(tmp_path)
    with recording(place):
        wait_for(place.recorder_socket.exists)
        yield place


def test_it_is_what_the_director_asks_for(tmp_path: Path) -> None:
    asked: shadow.record.Record = record(home(tmp_path))
    assert asked.unobserved("small", 5) == []
    assert asked.comparisons("small", "t1", 0.0, 5) == []
    assert asked.rollouts() == []
    with pytest.raises(ConnectionError, match="away"):
        asyncio.run(asked.write([observation("e1")]))


def test_values_come_back_as_they_were(at: Home) -> None:
    sent = [comparison(f"e{n}", NOW + n) for n in range(5)]
    write(at, observation("e1"), *sent, rollout("began"))
    assert record(at).comparisons("small", "t1", 0.0, 100) == sent
    assert record(at).comparisons("small", "t1", NOW + 2, 100) == sent[2:]
    assert record(at).comparisons("small", "t1", 0.0, 2) == sent[3:]
    assert record(at).comparisons("large", "t1", 0.0, 2) == []
    assert record(at).rollouts() == [rollout("began")]
    stored = row(at, "SELECT * FROM observations")
    assert Observation(**stored) == observation("e1")


def test_the_same_writes_twice_are_harmless(at: Home) -> None:
    for _ in range(2):
        write(at, observation("e1"), comparison("e1"), rollout("began"))
    write(at, observation("e1", "other"))
    assert [one["answer"] for one in rows(at, "SELECT answer FROM observations")] == ["hi"]
    assert len(rows(at, "SELECT * FROM comparisons")) == 1
    assert len(rows(at, "SELECT * FROM rollout_log")) == 1


def test_a_rollout_is_replaced_and_its_log_grows(at: Home) -> None:
    write(at, rollout("began"), rollout("proven", NOW + 1, 10.0))
    assert record(at).rollouts() == [rollout("proven", NOW + 1, 10.0)]
    log = rows(at, "SELECT why, percent FROM rollout_log ORDER BY number")
    assert log == [{"why": "began", "percent": 0.0}, {"why": "proven", "percent": 10.0}]


def test_all_or_nothing(at: Home) -> None:
    bad = replace(comparison("e2"), score=object())  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write(at, bad)
    with pytest.raises(WriteRefused):
        write(at, observation("e1"), replace(comparison("e2"), why=None))  # type: ignore[arg-type]
    assert rows(at, "SELECT * FROM observations") == []
    write(at, observation("e1"))


BAD_LINES = [
    b"{",
    b"[]",
    b"{}",
    b'{"writes": 5}',
    b'{"writes": [5]}',
    b'{"writes": [{"type": "drop"}]}',
    b'{"writes": [{"type": []}]}',
    b'{"writes": [{"type": "comparison", "nonsense": 1}]}',
    b'{"writes": [{"type": "observation"}]}',
]


def test_nonsense_is_refused_and_the_connection_goes_on(at: Home) -> None:
    *refused, last = ask(at, *BAD_LINES, b'{"writes": []}')
    assert len(refused) == len(BAD_LINES)
    assert all(answer["ok"] is False and answer["error"] for answer in refused)
    assert last == {"ok": True}


def test_a_line_over_the_limit_is_refused(at: Home) -> None:
    (answer,) = ask(at, b'{"writes": "' + b"x" * MOST_LINE)
    assert answer["ok"] is False
    with pytest.raises(ValueError, match="16 MiB"):
        write(at, observation("e1", "x" * MOST_LINE))
    write(at, observation("e1", "x" * (MOST_LINE - 1000)))


def ask(at: Home, *lines: bytes) -> list[dict[str, Any]]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(at.recorder_socket))
        file = connection.makefile("rwb")
        answers = []
        for line in lines:
            file.write(line + b"\n")
            file.flush()
            answers.append(orjson.loads(file.readline()))
        return answers


def test_a_write_waits_for_a_locked_database(at: Home) -> None:
    other = sqlite3.connect(str(at.database), isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")

    async def meanwhile() -> None:
        writing = asyncio.gather(record(at).write([observation("e1")]))
        await asyncio.sleep(1.3)
        assert not writing.done()
        other.execute("ROLLBACK")
        await writing

    asyncio.run(meanwhile())
    other.close()
    assert len(rows(at, "SELECT * FROM observations")) == 1


# -- unobserved


def spooled(at: Home, *exchanges: Exchange, name: str = "run-a") -> None:
    run = Run(at, name)
    run.write(*(one.records() for one in exchanges))
    run.die()
    record_all(at)


def observe(at: Home, *exchanges: str) -> None:
    connection = schema.prepare(at.database)
    with transaction(connection):
        connection.executemany(
            "INSERT INTO observations (candidate, exchange_id, model_sha256, at, latency_ms) "
            "VALUES ('small', ?, '', 0, 0)",
            [(one,) for one in exchanges],
        )
    connection.close()


def said(number: int, text: str) -> Exchange:
    request = orjson.dumps(chat_request(text))
    return Exchange(number=number, request=request, response=orjson.dumps(chat_answer(text)))


def test_newest_first_and_only_what_can_be_compared(tmp_path: Path) -> None:
    at = home(tmp_path)
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    spooled(
        at,
        said(1, "one"),
        Exchange(
            number=2, response=orjson.dumps(chat_answer(None, "tool_calls", tool_calls=[call]))
        ),
        Exchange(number=3, response=orjson.dumps(chat_answer("x", tool_calls=[call]))),
        Exchange(number=4, response=orjson.dumps(chat_answer(None, refusal="no"))),
        Exchange(number=5, response=orjson.dumps(chat_answer("cut", "length"))),
        Exchange(number=6, routed=[{"to": "small", "why": "live"}]),
        Exchange(number=7, status=500),
        Exchange(number=8, outcome="client_abort"),
        Exchange(number=9, at=time.time() - 8 * 86400),
        said(10, "ten"),
    )
    found = record(at).unobserved("small", 10)
    assert [pair.control for pair in found] == ["ten", "one"]
    first = found[0]
    exchange = row(at, "SELECT * FROM exchanges WHERE seq = 10")
    assert (first.exchange_id, first.rowid) == (exchange["id"], exchange["number"])
    assert (first.task_id, first.request_hash) == (exchange["task_id"], exchange["request_hash"])
    assert first.request == chat_request("ten")
    assert abs(first.started_at - time.time()) < 60
    assert [pair.control for pair in record(at).unobserved("small", 1)] == ["ten"]


@pytest.mark.parametrize("message", ["text", ["text"], 5, None, {"content": ["text"]}])
def test_an_answer_of_another_shape_is_no_pair_and_hides_none(
    tmp_path: Path, message: object
) -> None:
    at = home(tmp_path)
    answer = {"choices": [{"message": message, "finish_reason": "stop"}]}
    spooled(at, said(1, "one"), Exchange(number=2, response=orjson.dumps(answer)))
    assert [pair.control for pair in record(at).unobserved("small", 10)] == ["one"]


def test_a_lone_surrogate_hides_no_pair(tmp_path: Path) -> None:
    at = home(tmp_path)
    broken = orjson.dumps(chat_answer("a_")).replace(b"a_", b"a\\ud83d")
    spooled(at, said(1, "one"), Exchange(number=2, response=broken), said(3, "three"))
    connection = schema.prepare(at.database)
    sql = "UPDATE bodies SET request = ?, request_parts = NULL WHERE number = 3"
    connection.execute(sql, ('{"model": "gpt-4o", "messages": [], "user": "\\ud83d"}',))
    connection.close()
    asked = record(at)
    for _ in range(2):
        assert [pair.control for pair in asked.unobserved("small", 10)] == ["three", "one"]


def test_what_can_not_be_read_stops_waiting(tmp_path: Path) -> None:
    at = home(tmp_path)
    spooled(at, said(1, "one"), said(2, "two"), said(3, "three"))
    connection = schema.prepare(at.database)
    connection.execute("UPDATE bodies SET response = '[1', response_parts = NULL WHERE number = 2")
    connection.execute("UPDATE bodies SET request = '1', request_parts = NULL WHERE number = 3")
    connection.close()
    asked = record(at)
    for _ in range(2):
        assert [pair.control for pair in asked.unobserved("small", 10)] == ["one"]


def test_what_is_observed_is_not_given_again(tmp_path: Path) -> None:
    at = home(tmp_path)
    asked = record(at)
    spooled(at, *(said(number, f"text {number}") for number in range(1, 6)))
    assert len(asked.unobserved("small", 3)) == 3
    observe(at, *(one.exchange_id for one in asked.unobserved("small", 2)))
    controls = [one.control for one in asked.unobserved("small", 10)]
    assert controls == ["text 3", "text 2", "text 1"]
    assert len(asked.unobserved("large", 10)) == 5
    spooled(at, said(6, "text 6"), name="run-b")
    assert [one.control for one in asked.unobserved("small", 2)] == ["text 6", "text 3"]


def test_every_row_is_looked_at_once(tmp_path: Path) -> None:
    """However many are observed, another look costs what is new."""
    at = home(tmp_path)
    many = fill(at, 21_000)
    observe(at, *many[100:])
    asked = record(at)
    began = time.perf_counter()
    found = wait_until_found(asked)
    all_of_it = time.perf_counter() - began
    assert {one.exchange_id for one in found} == set(many[:100])
    observe(at, *many[:100])
    assert asked.unobserved("small", 200) == []
    assert min(seconds_of_a_look(asked) for _ in range(5)) < all_of_it / 3


def seconds_of_a_look(asked: Record) -> float:
    began = time.perf_counter()
    assert asked.unobserved("small", 200) == []
    return time.perf_counter() - began


def wait_until_found(asked: Record) -> list[Any]:
    for _ in range(10):  # each call looks at a bounded part of the past
        found = asked.unobserved("small", 200)
        if found:
            return asked.unobserved("small", 200)
    raise AssertionError("nothing found")


def fill(at: Home, many: int) -> list[str]:
    """Copies of one recorded pair, straight into the tables."""
    spooled(at, said(1, "one"))
    connection = schema.prepare(at.database)
    names = [f"{number:08x}" for number in range(many)]
    columns = [one[1] for one in connection.execute("PRAGMA table_info(exchanges)")]
    rest = ", ".join(name for name in columns if name not in ("number", "id"))
    sides = "request, request_parts, response, response_parts"
    with transaction(connection):
        connection.executemany(
            f"INSERT INTO exchanges (id, {rest}) SELECT ?, {rest} FROM exchanges WHERE number = 1",
            [(name,) for name in names],
        )
        connection.executemany(
            f"INSERT INTO bodies (number, {sides}) SELECT ?, {sides} FROM bodies WHERE number = 1",
            [(number,) for number in range(2, many + 2)],
        )
        connection.execute("DELETE FROM exchanges WHERE number = 1")
    connection.close()
    return names


def test_more_waiting_than_can_be_remembered(tmp_path: Path) -> None:
    at = home(tmp_path)
    spooled(at, *(said(number, f"{number}") for number in range(1, 31)))
    asked = record(at)
    asked.unobserved("small", 30)
    seen = asked._seen["small"]
    seen.waiting |= set(range(-store_record._MOST_WAITING, 0))
    store_record._shed(seen)
    assert len(seen.waiting) == store_record._MOST_WAITING // 2
    assert len(asked.unobserved("small", 100)) == 30


def test_another_database_is_a_new_start(tmp_path: Path) -> None:
    at = home(tmp_path)
    asked = record(at)
    spooled(at, *(said(number, f"old {number}") for number in range(1, 4)))
    assert len(asked.unobserved("small", 5)) == 3
    at.database.rename(at.database.with_suffix(".aside"))
    spooled(at, *(said(number, f"new {number}") for number in range(1, 6)), name="run-b")
    assert [one.control for one in asked.unobserved("small", 1)] == ["new 5"]
    assert len(asked.unobserved("small", 9)) == 5
