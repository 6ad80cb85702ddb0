"""What the policy does not want kept any longer goes: bodies before rows, the oldest first."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.home import Home
from policies.words import Comparison, Feedback, Observation
from store import retention, schema
from store.desk import Desk
from store.ingest import Ingest
from store.retention import Retain, Retention, used_bytes
from store.writes import OrderError
from tests.store.forgetting import count_anew, in_database, order, said_by, seen_in, write
from tests.store.making import Exchange, Run, chat_request, home, making, record_all, row, rows

DAY = 86400.0


def recorded(tmp_path: Path, ages: list[float]) -> Home:
    """Exchange n is ages[n - 1] days old."""
    at = home(tmp_path)
    run = Run(at)
    for number, age in enumerate(ages, 1):
        one = said_by(number, f"word{number}", "t")
        one.at = time.time() - age * DAY
        run.write(one.records())
    run.die()
    record_all(at)
    return at


def kept(at: Home, table: str) -> list[int]:
    return [one["number"] for one in rows(at, f"SELECT number FROM {table} ORDER BY number")]


def keeping(**record: Any) -> dict[str, Any]:
    return {"record": record}


def test_old_bodies_go_and_their_rows_stay(tmp_path: Path) -> None:
    at = recorded(tmp_path, [50, 40, 29, 1])
    policy = keeping(keep_bodies="30d")
    expected = order(at, Retain(dry=True), **policy)
    assert (expected["bodies"], expected["rows"], expected["over_bodies"]) == (2, 0, 0)
    assert kept(at, "bodies") == [1, 2, 3, 4]
    done = order(at, Retain(), **policy)
    assert (done["bodies"], done["rows"]) == (2, 0)
    assert kept(at, "bodies") == [3, 4] and kept(at, "exchanges") == [1, 2, 3, 4]
    assert not any(path.startswith("files") for path in seen_in(at.root, "word1"))
    assert row(at, "SELECT count(*) AS n FROM search WHERE search MATCH 'word2'") == {"n": 0}
    assert row(at, "SELECT count(*) AS n FROM files") == {"n": 2}
    assert order(at, Retain(), **policy)["bodies"] == 0


def test_old_rows_go_with_all_that_hangs_on_them(tmp_path: Path) -> None:
    at = recorded(tmp_path, [500, 450, 300, 1])
    for number in (1, 3):
        identity = Exchange(number=number).uuid
        write(
            at,
            Observation(identity, "small", "sha", 1.0, "a", "stop", 1, 1, 1.0, None, None),
            Comparison(identity, "small", "task", "r", 1.0, "matched", 1.0, "same"),
            Feedback(identity, 1.0, 1.0, None, None, None),
        )
    count_anew(at)
    policy = keeping(keep_bodies="30d", keep_rows="400d")
    assert order(at, Retain(dry=True), **policy)["rows"] == 2
    assert order(at, Retain(), **policy)["rows"] == 2
    assert kept(at, "exchanges") == [3, 4] and kept(at, "bodies") == [4]
    third = Exchange(number=3).uuid
    for table in ("observations", "comparisons", "feedback"):
        assert rows(at, f"SELECT exchange_id FROM {table}") == [{"exchange_id": third}]
    assert row(at, "SELECT sum(calls) AS n FROM daily") == {"n": 4}


def test_what_stands_for_a_body_goes_with_it(tmp_path: Path) -> None:
    """System prompts, what a candidate answered, what people would have answered."""
    at = recorded(tmp_path, [50, 40, 1])
    for number in (1, 3):
        identity = Exchange(number=number).uuid
        write(
            at,
            Observation(identity, "small", "sha", 1.0, "a", "stop", 1, 1, 1.0, 0.5, None),
            Feedback(identity, 1.0, 1.0, "good", "better", None),
        )
    order(at, Retain(), **keeping(keep_bodies="30d"))
    third = Exchange(number=3).uuid
    seen = rows(at, "SELECT exchange_id, margin FROM observations WHERE answer IS NOT NULL")
    assert seen == [{"exchange_id": third, "margin": 0.5}]
    said = rows(at, "SELECT exchange_id, label FROM feedback WHERE correction IS NOT NULL")
    assert said == [{"exchange_id": third, "label": "good"}]
    assert row(at, "SELECT count(*) AS n FROM feedback WHERE label = 'good'") == {"n": 2}
    prompts = rows(at, "SELECT system_prompt AS said FROM tasks ORDER BY system_prompt")
    assert [one["said"] is None for one in prompts] == [True, True, False]
    assert "word3" in prompts[2]["said"]


def test_a_prompt_stays_as_long_as_one_body_has_it(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    for number, age in enumerate([500, 50, 1], 1):
        one = said_by(number, "word", "t")
        one.at = time.time() - age * DAY
        run.write(one.records())
    run.die()
    record_all(at)
    policy = keeping(keep_bodies="30d", keep_rows="400d")
    assert order(at, Retain(), **policy)["bodies"] == 1
    kept_prompts = "SELECT count(system_prompt) AS n, count(*) AS tasks FROM tasks"
    assert row(at, kept_prompts) == {"n": 1, "tasks": 1}
    in_database(at, lambda db: db.execute("UPDATE exchanges SET started_at = '2001-01-01'"))
    order(at, Retain(), **policy)
    assert row(at, kept_prompts) == {"n": 0, "tasks": 1}


def test_who_leaves_while_it_merges_does_not_stop_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = recorded(tmp_path, [50, 1])
    monkeypatch.setattr(retention, "_UNMERGED_SHARE", 0.0)
    monkeypatch.setattr(retention, "merge_index", lambda _: True)
    recording = making(record={"keep_bodies": "30d"})
    connection = schema.prepare(at.database)
    desk = Desk(connection, Ingest(connection, recording, at.files), recording, at, lambda: False)
    steps = retention.retain(desk, Retain())
    while desk.indexing:
        next(steps)
    steps.close()
    assert desk.indexing
    connection.close()


def test_the_newest_row_stays_so_that_no_number_comes_again(tmp_path: Path) -> None:
    at = recorded(tmp_path, [500, 450])
    policy = keeping(keep_rows="400d")
    assert order(at, Retain(), **policy)["rows"] == 1
    assert kept(at, "exchanges") == [2]
    run = Run(at, "run-b")
    run.write(Exchange(number=9).records())
    run.die()
    record_all(at)
    assert kept(at, "exchanges") == [2, 3]
    assert row(at, "SELECT count(*) AS n FROM search WHERE search MATCH 'hello'") == {"n": 1}


def test_the_oldest_bodies_go_until_the_rest_has_room(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    for number in range(1, 61):
        text = "".join(f"{number * 7919 + place:x} " for place in range(2000))
        one = Exchange(number=number, request=orjson.dumps(chat_request(text)))
        one.at = time.time() - (100 - number) * DAY
        run.write(one.records())
    run.die()
    record_all(at)
    connection = schema.prepare(at.database)
    most = used_bytes(connection) * 2 // 3
    connection.close()
    policy = keeping(most_bytes=most)
    expected = order(at, Retain(dry=True), **policy)
    assert expected["over_bytes"] > 0 and 15 <= expected["over_bodies"] <= 30
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "_AT_ONCE", 5)
        done = order(at, Retain(), **policy)
    assert 0.75 * most <= done["used_bytes"] <= most  # the index gives its share back, too
    left = kept(at, "bodies")
    assert left == list(range(61 - len(left), 61)) and len(left) >= 15
    assert len(kept(at, "exchanges")) == 60


def test_without_a_setting_it_says_so(tmp_path: Path) -> None:
    at = recorded(tmp_path, [500])
    with pytest.raises(OrderError, match="put keep_bodies, keep_rows or most_bytes below"):
        order(at, Retain())
    assert kept(at, "bodies") == [1]


def test_a_recorder_does_it_by_itself_and_gives_pages_back(tmp_path: Path) -> None:
    at = recorded(tmp_path, [50.0] * 40 + [1.0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retention, "_SPARE_PAGES", 0)
        patch.setattr(retention, "_AT_ONCE", 7)
        record_all(at, **keeping(keep_bodies="30d"))
    assert kept(at, "bodies") == [41]
    assert row(at, "PRAGMA freelist_count") == {"freelist_count": 0}


def test_what_it_has_looked_at_it_looks_at_again_later(tmp_path: Path) -> None:
    """An import may bring exchanges that are older than those that were looked at."""
    at = recorded(tmp_path, [50, 1])
    recording = making(record={"keep_bodies": "30d"})
    connection = schema.prepare(at.database)
    desk = Desk(connection, Ingest(connection, recording, at.files), recording, at, lambda: False)
    keeper = Retention(recording.record)

    def run(monotonic: float) -> int:
        before = keeper.bodies
        while keeper.step(desk, time.time(), monotonic):
            pass
        return keeper.bodies - before

    assert run(100.0) == 1
    old = connection.execute("SELECT id FROM exchanges WHERE number = 2").fetchone()
    assert old is not None
    connection.execute("UPDATE exchanges SET started_at = '2001-01-01' WHERE number = 2")
    assert run(105.0) == 0  # not due
    assert run(200.0) == 0  # due, from where it was
    assert run(100.0 + 3700.0) == 1
    connection.close()
