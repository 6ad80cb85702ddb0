"""What the command line reads, and what leaves as training data."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.home import Home
from policies.words import Write
from store import queries, schema, writes
from store.export import export_openai_chat
from store.queries import Agreement, Count, LogLine, NotFound
from tests.store.making import (
    SSE_HEADERS,
    Exchange,
    Run,
    chat_answer,
    chat_request,
    delta,
    home,
    record_all,
    stream_of,
)
from tests.store.test_record import comparison, observation, rollout, said, spooled

CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{}"}}


PREFIXES = (("0", "several"), ("f", "no exchange"), ("", "no id"), ("%", "no id"))
READS: tuple[Callable[[Path], Sequence[object]], ...] = (
    queries.counts, queries.newest, queries.tasks, queries.rollouts, queries.runs,
    queries.incidents,
)  # fmt: skip


def write(at: Home, *asked: Write) -> None:
    connection = schema.prepare(at.database)
    writes.apply(connection, asked)
    connection.close()


def test_nothing_recorded_yet(tmp_path: Path) -> None:
    none = tmp_path / "none.db"
    for empty in (none, tmp_path / "empty.db"):
        for question in READS:
            assert question(empty) == []
        with pytest.raises(NotFound):
            queries.exchange(empty, "0")
        with pytest.raises(NotFound):
            export_openai_chat(empty, tmp_path / "out.jsonl", None)
        (tmp_path / "empty.db").touch()
    assert not none.exists()


def test_counts_and_newest(tmp_path: Path) -> None:
    at = home(tmp_path)
    other = Exchange(number=3, at=2e9, request=orjson.dumps(chat_request() | {"model": "other"}))
    spooled(at, said(1, "a"), Exchange(number=2, at=1e9, outcome="client_abort"), other)
    assert queries.counts(at.database) == [
        Count("ok", "upstream", 2),
        Count("client_abort", "upstream", 1),
    ]
    newest = queries.newest(at.database)
    assert [one.started_at[:4] for one in newest][::2] == ["2033", "2001"]
    assert len(queries.newest(at.database, limit=1)) == 1
    task = next(one.task_id for one in newest if one.model == "other")
    assert task is not None
    assert [one.id for one in queries.newest(at.database, task=task[:9])] == [other.uuid]


def test_one_exchange_by_a_prefix(tmp_path: Path) -> None:
    at = home(tmp_path)
    spooled(at, said(1, "a"), said(0xABC000000000 >> 4, "b"))
    one, two = said(1, "a"), said(0xABC000000000 >> 4, "b")
    write(at, observation(two.uuid), comparison(two.uuid))
    found = queries.exchange(at.database, two.uuid[:4].upper())
    assert found.exchange["id"] == two.uuid
    assert (found.request, found.response) == (two.request.decode(), two.response.decode())
    assert found.observations[0]["answer"] == "hi"
    assert found.comparisons[0]["verdict"] == "matched"
    assert queries.exchange(at.database, one.uuid).comparisons == []
    for prefix, said_of_it in PREFIXES:
        with pytest.raises(NotFound, match=said_of_it):
            queries.exchange(at.database, prefix)


def test_tasks_with_volume_and_agreement(tmp_path: Path) -> None:
    at = home(tmp_path)
    spooled(at, said(1, "a"), Exchange(number=2, routed=[{"to": "small", "why": "live"}]))
    (task,) = queries.tasks(at.database)
    assert (task.exchanges, task.diverted, task.system_prompt) == (2, 1, "Be kind.")
    assert task.agreement == []
    connection = schema.prepare(at.database)
    sql = "INSERT INTO comparisons VALUES ('small', ?, ?, 'h', 1.0, ?, ?, '')"
    values = [("e1", "matched", 1.0), ("e2", "mismatched", 0.5), ("e3", "ignored", None)]
    for exchange, verdict, score in values:
        connection.execute(sql, (exchange, task.id, verdict, score))
    connection.close()
    (task,) = queries.tasks(at.database)
    assert task.agreement == [Agreement(task.id, "small", 1, 1, 1, 0.75)]


def test_rollouts_with_the_last_lines_of_their_log(tmp_path: Path) -> None:
    at = home(tmp_path)
    at.root.mkdir()
    write(at, *(rollout(f"reason {n}", float(n)) for n in range(9)))
    (found,) = queries.rollouts(at.database, lines=2)
    assert (found.phase, found.percent, found.why) == ("shadow", 0.0, "reason 8")
    assert found.log == [
        LogLine(8.0, "shadow", 0.0, "reason 8"),
        LogLine(7.0, "shadow", 0.0, "reason 7"),
    ]


def test_runs_and_incidents(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    run.write(said(1, "a").records(), said(2, "b").opening(), said(5, "c").records(), b"torn")
    record_all(at)
    (alive,) = queries.runs(at.database)
    assert (alive.ended_clean, alive.open, alive.lost) == (None, 1, 2)
    run.die()
    record_all(at)
    (over,) = queries.runs(at.database)
    assert (over.ended_clean, over.open, over.lost, over.torn_bytes) == (0, 0, 2, 4)
    assert [one.kind for one in queries.incidents(at.database)] == ["torn_tail"]


# -- export


def exported(at: Home, task: str | None = None) -> list[dict[str, Any]]:
    out = at.root / "out.jsonl"
    written = export_openai_chat(at.database, out, task)
    lines = [orjson.loads(line) for line in out.read_bytes().splitlines()]
    assert written == len(lines)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    return lines


def test_only_what_the_teacher_said_whole(tmp_path: Path) -> None:
    at = home(tmp_path)
    tools = [{"type": "function", "function": {"name": "f"}}]
    answer = chat_answer(None, "tool_calls", tool_calls=[CALL])
    clean = [
        said(1, "one"),
        Exchange(
            number=2,
            request=orjson.dumps(chat_request(tools=tools)),
            response=orjson.dumps(answer),
        ),
        Exchange(
            number=3,
            response=stream_of(delta(content="stre"), delta(content="amed", finish="stop")),
            response_headers=SSE_HEADERS,
        ),
    ]
    unclean = [
        Exchange(number=10, status=400),
        Exchange(number=11, outcome="upstream_truncated"),
        Exchange(number=12, cut={"response": "limit"}),
        Exchange(number=13, cut={"request": "limit"}),
        Exchange(number=14, routed=[{"to": "small", "why": "live"}]),
        Exchange(number=15, response=orjson.dumps(chat_answer("x", "length"))),
        Exchange(number=16, response=orjson.dumps(chat_answer("x", "content_filter"))),
        Exchange(number=17, response=orjson.dumps(chat_answer(None))),
        Exchange(number=18, response=b"not json"),
        Exchange(number=19, request=b"not json"),
        Exchange(number=20, request=b"{}"),
        Exchange(
            number=21,
            response=stream_of(delta(content="x"), done=False),
            response_headers=SSE_HEADERS,
        ),
        Exchange(number=22, target="/v1/completions"),
    ]
    spooled(at, *clean, *unclean)
    asked = chat_request()["messages"]
    assert exported(at) == [
        {"messages": [*chat_request("one")["messages"], {"role": "assistant", "content": "one"}]},
        {"messages": [*asked, {"role": "assistant", "tool_calls": [CALL]}], "tools": tools},
        {"messages": [*asked, {"role": "assistant", "content": "streamed"}]},
    ]


def test_one_task_by_a_prefix(tmp_path: Path) -> None:
    at = home(tmp_path)
    other = Exchange(number=2, request=orjson.dumps(chat_request() | {"model": "other"}))
    spooled(at, said(1, "a"), other, said(3, "c"))
    tasks = queries.tasks(at.database)
    assert [len(exported(at, task.id[:12])) for task in tasks] == [2, 1]
    with pytest.raises(NotFound, match="no task has an id"):
        exported(at, "0" * 32)


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path) -> None:
    at = home(tmp_path)
    spooled(at, said(1, "a"))
    out = tmp_path / "folder"
    out.mkdir()
    with pytest.raises(OSError):
        export_openai_chat(at.database, out, None)
    assert sorted(os.listdir(tmp_path)) == ["folder", "home", "run"]


def test_a_long_export_in_chunks(tmp_path: Path) -> None:
    at = home(tmp_path)
    spooled(at, *(said(number, f"{number}") for number in range(1, 1203)))
    contents = [line["messages"][-1]["content"] for line in exported(at)]
    assert contents == [f"{number}" for number in range(1, 1203)]
