"""Usage that several answers state counts once: in its row, in `usage` and in `daily`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.spool import unpack
from store import schema
from store.counted_once import NOT_CHARGED, NOT_HERE
from store.database import Connection
from store.ingest import Ingest
from store.spool_reader import Piece, Position
from tests.store.making import SSE_HEADERS, Exchange, home, making, stream_of

Row = tuple[Any, ...]

AT = 1_793_534_400.0  # 2026-11-01T12:00:00Z
USAGE = {
    "input_tokens": 1000, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": 300,
    "output_tokens_details": {"reasoning_tokens": 64}, "total_tokens": 1300,
}  # fmt: skip
USD = 0.0055  # gpt-4o: (1000 * 2.5 + 300 * 10) / 10**6
HALF = 0.00275  # in a batch: (1000 * 1.25 + 300 * 5) / 10**6
COUNTED: Row = (1000, 300, pytest.approx(USD, rel=1e-12), None, None)
NOT_COUNTED: Row = (None, None, None, NOT_HERE, NOT_CHARGED)
NOTHING_STATED = "the answer states no usage"
LATER = "not stated yet: the response is made in the background"


class Record:
    """A database, and exchanges for it, each in a piece of its own."""

    def __init__(self, root: Path) -> None:
        at = home(root)
        at.root.mkdir()
        self.connection: Connection = schema.prepare(at.database)
        self._files = at.files
        self._number = 0
        self.open()

    def open(self, **policy: Any) -> None:
        self.ingest = Ingest(self.connection, making(**policy), self._files)

    def exchange(self, method: str, path: str, answer: object, **more: Any) -> Exchange:
        self._number += 1
        response = answer if isinstance(answer, bytes) else orjson.dumps(answer)
        more.setdefault("request", b"")
        at = AT + self._number
        return Exchange(
            self._number, response=response, method=method, target=f"/v1{path}", at=at, **more
        )

    def take(self, *exchanges: Exchange) -> None:
        data = b"".join(one.records() for one in exchanges)
        events = [one for batch in unpack(data) for one in batch.events]
        before = self.ingest.position("run")
        self.ingest.apply("run", 0.0, Piece(events, Position(1, before.offset + 1)))

    def make(self, answer: object, **more: Any) -> None:
        asked = {"model": "gpt-4o", "input": "Go!", "background": True}
        more = {"request": orjson.dumps(asked)} | more
        self.take(self.exchange("POST", "/responses", answer, **more))

    def read(self, answer: object, path: str = "/responses/resp_1", **more: Any) -> None:
        self.take(self.exchange("GET", path, answer, **more))

    def all(self, sql: str) -> list[Row]:
        return [tuple(row) for row in self.connection.execute(sql).fetchall()]

    def rows(self) -> list[Row]:
        return self.all(
            "SELECT input_tokens, output_tokens, cost_usd, usage_note, cost_note "
            "FROM exchanges ORDER BY number"
        )

    def sums(self, source: str) -> Row:
        sums = "sum(calls), sum(input_tokens), sum(output_tokens), sum(reasoning_tokens)"
        (found,) = self.all(f"SELECT {sums}, sum(cost_usd), sum(calls_without_cost) FROM {source}")
        return found


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Record]:
    made = Record(tmp_path)
    yield made
    made.connection.close()


def response(status: str, identity: str = "resp_1", **more: Any) -> dict[str, Any]:
    usage = None if status in ("queued", "in_progress") else USAGE
    said: dict[str, Any] = {"id": identity, "object": "response", "status": status, "output": []}
    return said | {"model": "gpt-4o-2024-08-06", "usage": usage} | more


def streamed(*kinds: str) -> dict[str, Any]:
    """The events of a streamed response, as an answer."""
    status = {"created": "in_progress"}
    events = [
        {"type": f"response.{kind}", "response": response(status.get(kind, kind))} for kind in kinds
    ]
    return {"answer": stream_of(*events, done=False), "response_headers": SSE_HEADERS}


# -- responses made in the background


def test_a_background_response_is_counted_by_the_first_that_reads_it_whole(record: Record) -> None:
    record.make(response("queued"))
    for status in ("queued", "in_progress", "in_progress", "completed", "completed"):
        record.read(response(status))
    waiting = (None, None, None, NOTHING_STATED, NOT_CHARGED)
    assert record.rows() == [
        (None, None, None, LATER, LATER), waiting, waiting, waiting, COUNTED, NOT_COUNTED,
    ]  # fmt: skip
    assert record.sums("daily") == (6, 1000, 300, 64, pytest.approx(USD), 5)
    assert record.sums("usage") == record.sums("daily")
    counted = "SELECT endpoint, model FROM usage WHERE input_tokens > 0"
    assert record.all(counted) == [("responses.stored", "gpt-4o-2024-08-06")]
    assert record.all("SELECT count(*) FROM exchanges WHERE usage IS NOT NULL") == [(2,)]
    notes = f"SELECT calls FROM reasons WHERE about = 'usage' AND reason = '{NOT_HERE}'"
    assert record.all(notes) == [(1,)]
    assert record.all("SELECT * FROM incidents") == []


def test_all_in_one_piece_are_counted_once_too(record: Record) -> None:
    made = record.exchange("POST", "/responses", response("queued"))
    read = [record.exchange("GET", "/responses/resp_1", response("completed")) for _ in range(3)]
    record.take(made, *read)
    assert record.rows()[1:] == [COUNTED, NOT_COUNTED, NOT_COUNTED]
    assert record.sums("daily")[1:5] == (1000, 300, 64, pytest.approx(USD))


def test_the_same_records_once_more_change_nothing(record: Record) -> None:
    made = record.exchange("POST", "/responses", response("queued"))
    read = record.exchange("GET", "/responses/resp_1", response("completed"))
    for _ in range(2):
        record.take(made, read)
    assert record.rows()[1:] == [COUNTED]
    assert record.sums("daily")[:3] == (2, 1000, 300)


def test_each_response_is_counted_for_itself(record: Record) -> None:
    for identity in ("resp_1", "resp_2"):
        record.make(response("queued", identity))
    for identity in ("resp_1", "resp_2", "resp_1"):
        record.read(response("completed", identity), f"/responses/{identity}")
    assert record.rows()[2:] == [COUNTED, COUNTED, NOT_COUNTED]


@pytest.mark.parametrize("status", ["completed", "incomplete", "failed", "cancelled"])
def test_however_it_ended(record: Record, status: str) -> None:
    record.make(response("queued"))
    record.read(response(status))
    assert record.rows()[1] == COUNTED


def test_what_is_used_so_far_is_not_counted(record: Record) -> None:
    record.make(response("queued"))
    record.read(response("in_progress", usage=USAGE | {"output_tokens": 7}))
    record.read(response("completed"))
    assert record.rows()[1:] == [NOT_COUNTED, COUNTED]


def test_whoever_cancels_it_may_be_told_first(record: Record) -> None:
    record.make(response("in_progress"))
    path = "/responses/resp_1/cancel"
    record.take(record.exchange("POST", path, response("cancelled")))
    record.read(response("cancelled"))
    assert record.rows()[1:] == [COUNTED, NOT_COUNTED]


def test_a_stream_that_was_cut_is_counted_by_the_stream_that_takes_it_up(record: Record) -> None:
    record.make(**streamed("created"), outcome="upstream_aborted")
    record.read(**streamed("completed"), path="/responses/resp_1?stream=true&starting_after=3")
    record.read(response("completed"))
    cut, *later = record.rows()
    assert cut == (None, None, None, NOTHING_STATED, NOTHING_STATED)
    assert later == [COUNTED, NOT_COUNTED]


def test_a_stream_that_came_whole_was_counted_itself(record: Record) -> None:
    record.make(**streamed("created", "completed"))
    record.read(response("completed"))
    assert record.rows() == [COUNTED, NOT_COUNTED]


def test_nothing_is_estimated_of_what_is_stated_later(record: Record) -> None:
    estimates = "SELECT estimated_input_tokens FROM exchanges ORDER BY number"
    record.make(response("queued"))
    record.make(**streamed("created"))  # perhaps nobody reads that any more
    (waiting,), (cut,) = record.all(estimates)
    assert waiting is None and cut > 0


# -- what is none of ours, or was counted


def test_a_response_whose_making_stated_its_usage_is_not_counted_again(record: Record) -> None:
    record.make(response("completed"))
    record.read(response("completed"))
    assert record.rows() == [COUNTED, NOT_COUNTED]
    assert record.sums("usage") == (2, 1000, 300, 64, pytest.approx(USD), 1)


def test_usage_that_its_making_stated_in_vain_is_not_counted_later(record: Record) -> None:
    record.make(response("completed", usage={"input_tokens": "many", "output_tokens": -1}))
    record.read(response("completed"))
    assert record.rows()[1] == NOT_COUNTED


def test_a_response_that_was_made_elsewhere_is_not_counted(record: Record) -> None:
    record.make(response("queued", "resp_2"))
    record.read(response("completed"))
    record.read(response("completed"))
    assert record.rows()[1:] == [NOT_COUNTED, NOT_COUNTED]
    assert record.sums("usage")[1:5] == (None,) * 4


def test_a_response_of_which_only_reading_was_recorded_is_not_counted(record: Record) -> None:
    record.read(response("in_progress"))
    record.read(response("completed"))
    assert record.rows()[1] == NOT_COUNTED


def test_an_id_that_looks_private_is_known_by_its_hash(record: Record) -> None:
    record.open(privacy={"mode": "redacted", "recognisers": ["email"]})
    identity = "ann@example.com"
    mode: dict[str, Any] = {"more_opened": {"mode": "redacted"}}
    record.make(response("queued", identity), **mode)
    for _ in range(2):
        record.read(response("completed", identity), **mode)
    assert record.rows()[1:] == [COUNTED, NOT_COUNTED]
    [(kept,)] = record.all("SELECT DISTINCT response_id FROM exchanges")
    assert kept.startswith("hash:")


ODD: list[object] = [
    response("completed", id=None), response("completed", id=7), response("completed", id=["x"]),
    response("completed") | {"status": ["completed"]}, response("completed") | {"status": {}},
]  # fmt: skip


@pytest.mark.parametrize("answer", ODD)
def test_odd_answers_are_not_counted(record: Record, answer: object) -> None:
    record.make(response("queued"))
    record.read(answer)
    assert record.rows()[1] == NOT_COUNTED
    assert record.all("SELECT * FROM incidents") == []


def test_an_error_that_states_usage_is_not_counted(record: Record) -> None:
    record.make(response("queued"))
    record.read(response("failed"), status=500)
    assert record.rows()[1] == NOT_COUNTED


# -- batches


def batch(status: str, **more: Any) -> dict[str, Any]:
    made = {"id": "batch_1", "object": "batch", "endpoint": "/v1/chat/completions"}
    return made | {"model": "gpt-4o-2024-08-06", "status": status, "usage": USAGE} | more


IN_BATCH: Row = (1000, 300, pytest.approx(HALF, rel=1e-12), None, None)
BATCH = "/batches/batch_1"


def test_a_batch_is_counted_once_at_half_the_price(record: Record) -> None:
    record.take(record.exchange("POST", "/batches", batch("validating", usage=None)))
    for status in ("in_progress", "finalizing", "completed", "completed"):
        record.read(batch(status), BATCH)
    assert record.rows()[1:] == [NOT_COUNTED, NOT_COUNTED, IN_BATCH, NOT_COUNTED]
    assert record.sums("daily") == (5, 1000, 300, 64, pytest.approx(HALF), 4)
    assert record.sums("usage") == record.sums("daily")


@pytest.mark.parametrize("status", ["completed", "expired", "cancelled", "failed"])
def test_a_batch_needs_no_making_that_was_recorded(record: Record, status: str) -> None:
    record.read(batch(status), BATCH)
    record.read(batch(status), BATCH)
    assert record.rows() == [IN_BATCH, NOT_COUNTED]


def test_a_batch_without_usage_says_so(record: Record) -> None:
    record.read(batch("completed", usage=None), BATCH)
    record.read(batch("completed"), BATCH)
    assert record.rows() == [(None, None, None, NOTHING_STATED, NOT_CHARGED), IN_BATCH]


def test_a_batch_on_a_list_is_not_counted(record: Record) -> None:
    record.read({"object": "list", "data": [batch("completed")], "usage": USAGE}, "/batches")
    assert record.rows() == [NOT_COUNTED]


@pytest.mark.parametrize("path", ["/v1/images/generations", "/v1/videos", "/v1/new", None, 7])
def test_of_what_tokens_do_not_tell_the_price_they_count_without_cost(
    record: Record, path: object
) -> None:
    record.read(batch("completed", endpoint=path), BATCH)
    why = "what this batch holds is charged apart, at a price not known"
    assert record.rows() == [(1000, 300, None, None, why)]


def test_long_requests_in_a_batch_can_not_be_told_from_many(record: Record) -> None:
    """gpt-5.4 costs more past 272 000 tokens of a request; the batch states their sum."""
    many = USAGE | {"input_tokens": 300_000}
    record.read(batch("completed", model="gpt-5.4", usage=many), BATCH)
    why = "long requests cost more, and a batch does not say how long its requests were"
    assert record.rows() == [(300_000, 300, None, None, why)]
    record.read(batch("completed", model="gpt-5.4", id="batch_2"), "/batches/batch_2")
    # (1000 * 1.25 + 300 * 7.5) / 10**6
    assert record.rows()[1] == (1000, 300, pytest.approx(0.0035, rel=1e-12), None, None)
