"""Who is forgotten is in no file any more; what was counted, and what others said, stays."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest

from policies.home import Home
from policies.spool import Kind, unpack
from policies.words import Comparison, Feedback, Observation
from store import forget as forgetting
from store import queries, removal
from store.recorder import alone
from store.target import Forget
from store.writes import OrderError
from tests.store.forgetting import SHARED, count_anew, in_database, order, said_by, seen_in, write
from tests.store.making import Exchange, Run, home, making, record_all, row, rows

CANARY = "quillonbrask"
OTHER = "verdantmoss"
COUNTED = "input_tokens, output_tokens, cost_usd, status, started_at, latency_ms, request_bytes"


def recorded(tmp_path: Path, count: int = 12, tenant: str | None = None, **record: object) -> Home:
    """Every third exchange is the target's; tenants alike but for their words."""
    at = home(tmp_path)
    run = Run(at)
    for number in range(1, count + 1):
        mine = number % 3 == 0
        word = CANARY if mine else OTHER
        of = tenant or f"of {word}"
        run.write(said_by(number, word, of, f"{word}-7", number % 2 == 0).records())
    run.die()
    record_all(at, record=record)
    return at


def verdicts(at: Home, identity: str) -> None:
    """What shadow and people made of it."""
    answered = Observation(
        identity, "small", "sha", 1.0, f"{CANARY}!", "stop", 1, 1, 1.0, 0.1, None
    )
    compared = Comparison(
        identity, "small", "task", "request", 1.0, "mismatched", 0.5, f"said {CANARY}"
    )
    write(at, answered, compared, Feedback(identity, 2.0, 0.25, "bad", f"no {CANARY}", CANARY))


@pytest.mark.parametrize("by", ["tenant", "user"])
def test_nothing_of_the_target_is_left_in_any_file(tmp_path: Path, by: str) -> None:
    at = recorded(tmp_path, 24, "all" if by == "user" else None, stream_events=True)
    verdicts(at, Exchange(number=3).uuid)
    count_anew(at)
    value = f"of {CANARY}" if by == "tenant" else f"{CANARY}-7"
    counted = rows(at, f"SELECT id, {COUNTED} FROM exchanges")
    texts = rows(at, "SELECT * FROM texts WHERE number % 3 != 0")
    assert {path.partition("/")[0] for path in seen_in(at.root, CANARY)} >= {
        "understudy.db", "files"
    }  # fmt: skip
    result = order(at, Forget(by, value))  # type: ignore[arg-type]
    assert seen_in(at.root, CANARY) == []
    assert (result["exchanges"], result["bodies"], result["files"]) == (8, 8, 8)
    assert (result["observations"], result["comparisons"], result["feedback"]) == (1, 1, 1)
    assert result["prompts"] == 1
    assert rows(at, f"SELECT id, {COUNTED} FROM exchanges") == counted
    tenants = rows(at, "SELECT tenant, sum(calls) AS n FROM daily GROUP BY 1 ORDER BY 1")
    assert [tuple(one.values()) for one in tenants] == (
        [("", 8), (f"of {OTHER}", 16)] if by == "tenant" else [("all", 24)]
    )
    assert rows(at, "SELECT * FROM texts") == texts
    assert len(texts) == 16 and all(SHARED in text["request"] for text in texts)
    assert row(at, "SELECT count(*) AS n FROM exchanges WHERE privacy = 'forgotten'") == {"n": 8}
    assert sum(path.is_file() for path in at.files.rglob("*")) == 16


def test_the_index_forgets_and_goes_on(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    found = "SELECT count(*) AS n FROM search WHERE search MATCH ?"
    assert row(at, found, CANARY)["n"] == 4
    order(at, Forget("tenant", f"of {CANARY}"))
    assert row(at, found, CANARY)["n"] == 0
    assert row(at, found, OTHER)["n"] == 8
    in_database(at, lambda db: db.execute("INSERT INTO search(search) VALUES('integrity-check')"))


def test_what_hangs_on_it_keeps_its_verdict(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    identity = Exchange(number=3).uuid
    verdicts(at, identity)
    order(at, Forget("id", identity[:8] + identity[8:]))
    seen = row(at, "SELECT * FROM observations")
    assert (seen["answer"], seen["error"], seen["margin"]) == (None, "forgotten", 0.1)
    judged = row(at, "SELECT * FROM comparisons")
    assert (judged["verdict"], judged["score"], judged["why"]) == ("mismatched", 0.5, "forgotten")
    assert judged["request_hash"].startswith("hash:")
    said = row(at, "SELECT * FROM feedback")
    assert (said["score"], said["label"], said["correction"], said["source"]) == (
        0.25, None, None, None
    )  # fmt: skip


def test_a_name_that_is_kept_as_a_hash(tmp_path: Path) -> None:
    """Redacted, an e-mail address as a user is a hash; who asks knows the address."""
    at = home(tmp_path)
    run = Run(at)
    address = f"{CANARY}@example.com"
    one = said_by(1, OTHER, "t", address)
    opened = {"mode": "redacted"}
    run.write(_with_mode(one, opened), said_by(2, OTHER, "t", "someone").records())
    run.die()
    policy = {"privacy": {"mode": "redacted", "recognisers": ["email"]}}
    record_all(at, **policy)
    assert row(at, "SELECT user FROM exchanges WHERE number = 1")["user"].startswith("hash:")
    assert order(at, Forget("user", address), **policy)["exchanges"] == 1


def _with_mode(exchange: Exchange, more: dict[str, str]) -> bytes:
    [opened] = [
        event
        for batch in unpack(exchange.opening())
        for event in batch.events
        if event.kind is Kind.OPENED
    ]
    opening = exchange.record(Kind.OPENED, orjson.loads(opened.payload) | more)
    body = exchange.record(Kind.REQUEST_BODY, exchange.request, 0.001)
    return opening + body + exchange.rest()


def test_the_spool_is_read_up_first(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    run = Run(at, "run-b")
    run.write(said_by(99, CANARY, f"of {CANARY}").records())
    assert any(path.startswith("spool/") for path in seen_in(at.root, CANARY))
    assert order(at, Forget("tenant", f"of {CANARY}"))["exchanges"] == 5
    assert seen_in(at.root, CANARY) == []
    run.die()


def test_an_exchange_that_is_still_open(tmp_path: Path) -> None:
    """It goes on under no name, and is kept without text; others are not touched."""
    at = home(tmp_path)
    run = Run(at)
    mine, other = said_by(1, CANARY, f"of {CANARY}"), said_by(2, OTHER, "t")
    run.write(mine.opening(), other.opening())
    record_all(at)
    assert seen_in(at.root, CANARY) != []
    assert order(at, Forget("tenant", f"of {CANARY}"))["still_open"] == 1
    assert seen_in(at.root, CANARY) == []
    run.write(mine.rest(), other.rest())
    run.die()
    record_all(at)
    found = rows(at, "SELECT seq, outcome, status, tenant, privacy, response_bytes FROM exchanges")
    assert sorted(found, key=lambda one: one["seq"]) == [
        {"seq": 1, "outcome": "ok", "status": 200, "tenant": None, "privacy": "metadata",
         "response_bytes": len(mine.response)},
        {"seq": 2, "outcome": "ok", "status": 200, "tenant": "t", "privacy": "full",
         "response_bytes": len(other.response)},
    ]  # fmt: skip
    assert [text["number"] for text in rows(at, "SELECT number FROM bodies")] == [2]


@pytest.mark.parametrize("head", [b"{", b"[]", b'{"status": 200}', b'{"headers": [1]}'])
def test_an_open_exchange_with_a_damaged_head(tmp_path: Path, head: bytes) -> None:
    at = home(tmp_path)
    run = Run(at)
    mine = said_by(1, CANARY, f"of {CANARY}")
    run.write(mine.opening(), mine.record(Kind.RESPONSE_HEAD, {"status": 200, "headers": []}))
    record_all(at)
    damage = "UPDATE staged SET payload = ? WHERE kind = ?"
    in_database(at, lambda db: db.execute(damage, (head, int(Kind.RESPONSE_HEAD))))
    assert order(at, Forget("tenant", f"of {CANARY}"))["still_open"] == 1
    assert seen_in(at.root, CANARY) == []
    run.die()


def test_one_exchange_by_any_of_its_names(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    first, second = Exchange(number=3).uuid, f"chatcmpl-{CANARY}-9"
    assert order(at, Forget("id", first))["exchanges"] == 1
    assert order(at, Forget("id", second))["exchanges"] == 1
    left = rows(at, "SELECT seq FROM exchanges WHERE privacy = 'forgotten'")
    assert [one["seq"] for one in left] == [3, 9]
    with pytest.raises(OrderError, match="no exchange goes by 'chatcmpl-none'"):
        order(at, Forget("id", "chatcmpl-none"))
    assert order(at, Forget("id", first))["exchanges"] == 1  # once more changes nothing


def test_to_count_changes_nothing(tmp_path: Path) -> None:
    at = recorded(tmp_path)
    before = at.database.read_bytes()
    found = order(at, Forget("tenant", f"of {CANARY}", dry=True))
    assert found == {"exchanges": 4, "related": 0}
    assert order(at, Forget("tenant", "nobody", dry=True))["exchanges"] == 0
    assert rows(at, "SELECT count(*) AS n FROM bodies") == [{"n": 12}]
    assert len(before) == at.database.stat().st_size


def test_a_name_in_columns_that_others_share(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    one, other = said_by(1, CANARY, CANARY), said_by(2, OTHER, "t")
    one.request = one.request.replace(b'"gpt-4o"', f'"ft:gpt-4o:{CANARY}::x1"'.encode())
    run.write(one.records(), other.records())
    run.die()
    record_all(at)
    order(at, Forget("tenant", CANARY))
    assert seen_in(at.root, CANARY) == []
    assert row(at, "SELECT model FROM exchanges WHERE number = 2") == {"model": "gpt-4o"}


def test_cut_short_it_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between any two steps: what is committed is whole, and the same order ends it."""
    at = recorded(tmp_path, 30)
    monkeypatch.setattr(forgetting, "_AT_ONCE", 3)
    asked = Forget("tenant", f"of {CANARY}")

    def some_steps(to: object, count: int) -> None:
        steps = to.begin(asked)  # type: ignore[attr-defined]
        for _ in range(count):
            next(steps)
        to.end()  # type: ignore[attr-defined]

    alone(at, making(), lambda to: some_steps(to, 2))
    gone = row(at, "SELECT count(*) AS n FROM exchanges WHERE privacy = 'forgotten'")["n"]
    assert 0 < gone < 10
    assert row(at, "SELECT count(*) AS n FROM bodies")["n"] == 30 - gone
    assert rows(at, "SELECT name FROM progress WHERE name = 'forget'") != []
    assert order(at, asked)["exchanges"] == 10 - gone
    assert seen_in(at.root, CANARY) == []
    assert rows(at, "SELECT name FROM progress WHERE name = 'forget'") == []


def test_a_recorder_finishes_what_was_cut_short(tmp_path: Path) -> None:
    """All rows were forgotten, and a crash came before the disk was cleaned."""
    at = recorded(tmp_path)

    def crash(connection: object) -> None:
        connection.execute("INSERT INTO progress VALUES ('forget', 1)")  # type: ignore[attr-defined]
        connection.execute("DELETE FROM bodies")  # type: ignore[attr-defined]

    in_database(at, crash)
    stray = at.files / "ab" / ("0" * 30)
    stray.parent.mkdir(exist_ok=True)
    stray.write_text(CANARY)
    record_all(at)
    assert rows(at, "SELECT name FROM progress WHERE name = 'forget'") == []
    assert not stray.exists()
    assert row(at, "PRAGMA freelist_count") == {"freelist_count": 0}


def test_without_room_it_says_so_and_can_be_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at = recorded(tmp_path)
    asked = Forget("tenant", f"of {CANARY}")
    with monkeypatch.context() as patch:
        patch.setattr(removal, "needed_bytes", lambda _: 1 << 60)
        with pytest.raises(OrderError, match="make room, and give the same command again"):
            order(at, asked)
    assert order(at, asked)["exchanges"] == 0
    assert seen_in(at.root, CANARY) == []


def test_a_prompt_that_others_use_stays(tmp_path: Path) -> None:
    at = home(tmp_path)
    run = Run(at)
    for number, tenant in ((1, "mine"), (2, "theirs"), (3, "mine")):
        headers = [("x-understudy-tenant", tenant)]
        run.write(Exchange(number=number, request_headers=headers).records())
    run.die()
    record_all(at)
    order(at, Forget("tenant", "mine"))
    assert queries.tasks(at.database)[0].system_prompt == "Be kind."
    order(at, Forget("tenant", "theirs"))
    assert queries.tasks(at.database)[0].system_prompt is None
    again = Run(at, "run-b")
    again.write(Exchange(number=4).records())
    again.die()
    record_all(at)
    assert queries.tasks(at.database)[0].system_prompt == "Be kind."
