"""Pieces of the spool into the database: copies, files, and what was staged."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.home import Home
from policies.spool import Event, Kind, unpack
from store import schema
from store.database import Connection, reading, transaction
from store.ingest import Ingest
from store.media import place
from store.removal import remove_bodies, remove_files, try_empty_journal
from store.spool_reader import Piece, Position
from tests.store.forgetting import seen_in
from tests.store.making import Exchange, chat_request, home, making
from tests.store.sockets import frame

CANARY = "canary-word"
SECRET = "sk-proj-" + "Zq81canary77Xy" * 3


class Bench:
    """The writing connection, and pieces for it."""

    def __init__(self, at: Home) -> None:
        at.root.mkdir()
        self.at = at
        self.connection: Connection = schema.prepare(at.database)
        self.open()

    def open(self, **policy: Any) -> None:
        """As a recorder that starts anew."""
        self.ingest = Ingest(self.connection, making(**policy), self.at.files)

    def take(self, *records: bytes, run: str = "run-a", finished: bool = False) -> None:
        events = [one for batch in unpack(b"".join(records)) for one in batch.events]
        self.apply(events, run, finished)

    def apply(self, events: list[Event], run: str = "run-a", finished: bool = False) -> None:
        before = self.ingest.position(run)
        after = Position(1, before.offset + 1)
        self.ingest.apply(run, 0.0, Piece(events, after, finished=finished))

    def remove(self, number: int) -> None:
        with transaction(self.connection):
            gone = remove_bodies(self.connection, self.ingest.slices, [number])
        remove_files(self.at.files, gone)

    def all(self, sql: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.connection.execute(sql).fetchall()]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(home(tmp_path))
    yield made
    made.connection.close()


TEXTS = "SELECT request, response FROM texts ORDER BY number"


# -- the same exchange more than once


def test_a_second_copy_in_the_same_piece_is_ignored(bench: Bench) -> None:
    one, other = Exchange(), Exchange(number=2)
    bench.take(one.records(), one.records(), other.records(), one.records())
    said = (one.request.decode(), one.response.decode())
    assert bench.all(TEXTS) == [said, said]
    assert bench.all("SELECT recorded FROM runs") == [(2,)]
    assert bench.all("SELECT * FROM incidents") == []


def test_a_second_copy_behind_the_end_of_an_open_one_is_ignored(bench: Bench) -> None:
    one = Exchange()
    bench.take(one.opening())
    bench.take(one.rest(), one.opening())
    assert bench.all("SELECT count(DISTINCT exchange) FROM staged") == [(1,)]
    bench.take(one.rest(), finished=True)
    assert bench.all(TEXTS) == [(one.request.decode(), one.response.decode())]
    assert bench.all("SELECT * FROM staged") == []


def test_an_end_that_comes_twice_is_an_incident(bench: Bench) -> None:
    one = Exchange()
    bench.take(one.records(), one.closing())
    assert bench.all("SELECT kind FROM incidents") == [("orphan_record",)]
    assert bench.all(TEXTS) == [(one.request.decode(), one.response.decode())]


def test_the_prompt_of_what_was_forgotten_does_not_come_back(bench: Bench) -> None:
    one, other = Exchange(), Exchange(number=2)
    bench.take(one.records(), run="import-1")
    prompts = "SELECT system_prompt FROM tasks"
    assert bench.all(prompts) == [("Be kind.",)]
    with transaction(bench.connection):
        bench.connection.execute("UPDATE tasks SET system_prompt = NULL")
    bench.take(one.records(), run="import-2")
    assert bench.all(prompts) == [(None,)]
    bench.take(other.records(), run="import-2")  # others say it, too
    assert bench.all(prompts) == [("Be kind.",)]


# -- what was staged


def talk_in_pieces(bench: Bench) -> None:
    for number in range(1, 6):
        text = f"mail {CANARY}{number}@example.com with {SECRET}. " + "word " * 2000 * (number % 3)
        one = Exchange(number=number, request=orjson.dumps(chat_request(text)))
        one.more_opened = {"mode": "redacted"}
        bench.take(one.opening())
        bench.take(one.rest())


def test_no_byte_is_left_of_what_was_staged(bench: Bench) -> None:
    bench.open(privacy={"mode": "redacted", "recognisers": ["email"]})
    talk_in_pieces(bench)
    assert seen_in(bench.at.root, CANARY) == ["understudy.db-wal"]
    assert try_empty_journal(bench.connection)
    assert seen_in(bench.at.root, CANARY) == seen_in(bench.at.root, SECRET) == []
    assert bench.all("SELECT count(*) FROM texts WHERE request LIKE '%mail%'") == [(5,)]


def test_zeros_take_the_place_of_what_was_staged_in_the_database(bench: Bench) -> None:
    """Also where the journal had been written back while the exchange was open."""
    bench.open(privacy={"mode": "redacted", "recognisers": ["email"]})
    text = f"mail {CANARY}@example.com. " + "word " * 5000
    one = Exchange(request=orjson.dumps(chat_request(text)), more_opened={"mode": "redacted"})
    bench.take(one.opening())
    bench.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert seen_in(bench.at.root, CANARY) == ["understudy.db"]
    bench.take(one.rest())
    assert try_empty_journal(bench.connection)
    assert seen_in(bench.at.root, CANARY) == []
    assert bench.all("PRAGMA secure_delete") == [(1,)]


def test_the_journal_is_cleared_when_nobody_reads_any_more(bench: Bench) -> None:
    talk_in_pieces(bench)
    with reading(bench.at.database) as other:
        other.execute("SELECT count(*) FROM exchanges").fetchone()
        bench.take(Exchange(number=9).records())
        assert not try_empty_journal(bench.connection)
    assert try_empty_journal(bench.connection)
    journal = bench.at.database.with_name("understudy.db-wal")
    assert journal.stat().st_size == 0
    assert bench.all("PRAGMA busy_timeout") == [(1000,)]


# -- files


def pictured(number: int, data: bytes) -> Exchange:
    url = f"data:image/png;base64,{b64encode(data).decode()}"
    content = [{"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": content}]
    return Exchange(number, orjson.dumps({"model": "gpt-4o", "messages": messages}))


@pytest.mark.parametrize("media", [True, False])
def test_to_quote_the_name_of_a_file_is_not_to_use_it(bench: Bench, media: bool) -> None:
    bench.take(pictured(1, os.urandom(9000)).records())
    [(name,)] = bench.all("SELECT hash FROM files")
    bench.open(record={"media": media})
    quoting = orjson.dumps(chat_request(f"What is understudy:file/{name} ?"))
    bench.take(Exchange(number=2, request=quoting).records())
    bench.remove(2)
    assert bench.all("SELECT hash, uses FROM files") == [(name, 1)]
    assert place(bench.at.files, name).exists()
    bench.remove(1)
    assert bench.all("SELECT * FROM files") == bench.all("SELECT * FROM file_uses") == []
    assert not place(bench.at.files, name).exists()


def test_a_file_goes_with_the_last_who_uses_it(bench: Bench) -> None:
    data = os.urandom(9000)
    bench.take(pictured(1, data).records(), pictured(2, data).records())
    bench.take(pictured(1, data).records())  # once more: ignored
    [(name, uses)] = bench.all("SELECT hash, uses FROM files")
    assert uses == 2
    assert bench.all("SELECT * FROM file_uses") == [(1, name), (2, name)]
    for _ in range(2):  # nothing is released twice
        bench.remove(1)
        assert bench.all("SELECT uses FROM files") == [(1,)]
    bench.remove(2)
    assert not place(bench.at.files, name).exists()


# -- long sockets


def on_socket(kind: Kind, data: bytes, at: float = 1.0) -> Event:
    return Event(kind, Exchange().id, at, data)


def open_socket(bench: Bench, *more: Event) -> Exchange:
    """A socket for Responses, with a request of 300 KB that is not answered yet."""
    one = Exchange(method="GET", target="/v1/responses", request=b"", response=b"")
    bench.take(one.opening(), one.record(Kind.RESPONSE_HEAD, {"status": 101, "headers": []}))
    asked = {"type": "response.create", "model": "gpt-5", "input": "x" * 300_000}
    request = frame(0x81, orjson.dumps(asked), b"\1\2\3\4")
    bench.apply([*more, on_socket(Kind.REQUEST_BODY, request)])
    return one


MARKS = f"SELECT at FROM staged WHERE kind = {Kind.SOCKET.value}"


def test_an_open_request_is_not_written_again_with_every_piece(bench: Bench) -> None:
    open_socket(bench)
    delta = frame(0x81, b'{"type":"response.output_text.delta","delta":"a"}')
    assert bench.all(MARKS) == [(1.0,)]
    for at in range(2, 22):
        bench.apply([on_socket(Kind.RESPONSE_BODY, delta, at)])
    bench.open()
    bench.apply([on_socket(Kind.RESPONSE_BODY, delta, 22.0)])
    assert bench.all(MARKS) == [(1.0,)]
    bench.apply([on_socket(Kind.RESPONSE_BODY, delta * 6000, 23.0)])
    assert bench.all(MARKS) == [(23.0,)]
    assert bench.all("SELECT sum(length(payload)) < 310000 FROM staged") == [(1,)]


def test_a_socket_that_can_not_be_read_costs_its_turns_alone(bench: Bench) -> None:
    said = orjson.dumps({"client": 0, "server": 0, "state": f'{{"{CANARY}'})
    one = open_socket(bench, on_socket(Kind.SOCKET, said))
    bench.take(Exchange(number=2).records())
    bench.take(one.closing())
    found = bench.all("SELECT endpoint, complete, error FROM exchanges ORDER BY id")
    assert found == [
        ("responses.websocket", 0, "unreadable: its bodies"),
        ("chat.completions", 1, None),
    ]
    detail = f"{one.id.hex()}: JSONDecodeError"
    assert bench.all("SELECT kind, detail FROM incidents") == [("unreadable_exchange", detail)] * 2
    assert bench.all("SELECT * FROM staged") == []
