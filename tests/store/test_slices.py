"""What bodies share is stored once, found again, and gone with the last that has it."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from store import schema
from store.cutting import cut
from store.database import Connection
from store.slices import Slices, conversation_of, digests_of


@dataclass
class Bodies:
    connection: Connection
    slices: Slices
    key: bytes = b"k"
    texts: dict[int, str] = field(default_factory=dict)

    def keep(self, text: str) -> str | None:
        """The name of its conversation."""
        found = cut(text)
        assert found is not None
        digests = digests_of(found.parts, self.key)
        parts = self.slices.keep(found.parts, digests)
        number = max(self.texts, default=0) + 1
        self.connection.execute(
            "INSERT INTO bodies (number, request, request_parts) VALUES (?, ?, ?)",
            (number, text if parts is None else None, parts),
        )
        self.texts[number] = text
        return conversation_of(found.parts, digests, self.key)

    def remove(self, number: int) -> None:
        self.slices.settle()
        sql = "DELETE FROM bodies WHERE number = ? RETURNING request_parts"
        [(parts,)] = self.connection.execute(sql, (number,)).fetchall()
        self.slices.release(parts)
        del self.texts[number]

    def check(self) -> None:
        self.slices.settle()
        found = dict(self.connection.execute("SELECT number, request FROM texts").fetchall())
        assert found == self.texts

    def counts(self) -> tuple[int, int]:
        sql = "SELECT (SELECT count(*) FROM slices), (SELECT count(*) FROM prefixes)"
        slices, prefixes = self.connection.execute(sql).fetchone()
        return slices, prefixes


@pytest.fixture
def bodies(tmp_path: Path) -> Iterator[Bodies]:
    connection = schema.prepare(tmp_path / "a.db")
    yield Bodies(connection, Slices(connection))
    connection.close()


def chat(*said: str, system: str = "Be kind.") -> str:
    roles = ("user", "assistant")
    messages: list[dict[str, Any]] = [{"role": "system", "content": system}]
    messages += [{"role": roles[at % 2], "content": text} for at, text in enumerate(said)]
    return json.dumps({"model": "m", "messages": messages, "tools": [{"name": "t" * 300}]})


def test_a_chat_is_one_tree(bodies: Bodies) -> None:
    said = [f"line {number}" for number in range(9)]
    names = {bodies.keep(chat(*said[: length + 1])) for length in range(0, 9, 2)}
    assert len(names) == 1
    assert bodies.counts() == (1 + 9 + 1, 1 + 9 + 1)  # system, lines, tools
    bodies.check()


def test_what_is_said_once_stays_where_it_is(bodies: Bodies) -> None:
    bodies.keep(chat("a"))
    assert bodies.counts() == (0, 0)
    bodies.keep(chat("b"))
    assert bodies.counts() == (2, 2)  # system and tools, which came before
    bodies.keep(chat("a"))
    assert bodies.counts() == (3, 3)
    bodies.keep(chat("c", "d", "e"))
    assert bodies.counts() == (6, 6)  # a talk is sent again
    bodies.check()


def test_what_is_not_shared_of_a_list_is_one_part(bodies: Bodies) -> None:
    """Each part takes who reads it a step."""
    first, *others = [f"text {number}" for number in range(200)]
    bodies.keep(json.dumps({"input": [first]}))
    bodies.keep(json.dumps({"input": [first, *others]}))
    sql = "SELECT json_array_length(request_parts) FROM bodies WHERE number = 2"
    assert bodies.connection.execute(sql).fetchone() == (4,)  # before, the first, the rest, after
    bodies.check()


def test_conversations_part_at_the_users_first_message(bodies: Bodies) -> None:
    first, second = bodies.keep(chat("a", "b", "c")), bodies.keep(chat("a", "x"))
    other, elsewhere = bodies.keep(chat("A")), bodies.keep(chat("a", system="Be terse."))
    assert first == second
    assert len({first, other, elsewhere}) == 3
    assert bodies.keep(json.dumps({"input": [{"type": "message"}], "x": 1})) is None


def test_the_same_message_elsewhere_is_one_slice(bodies: Bodies) -> None:
    """An app that sends the last few messages only has no prefix twice."""
    said = [f"line {number}" for number in range(12)]
    for start in range(8):
        bodies.keep(chat(*said[start : start + 4]))
    slices, prefixes = bodies.counts()
    assert slices < 30 < prefixes
    bodies.check()


def test_another_reader_of_the_same_database_finds_the_same(bodies: Bodies) -> None:
    name = bodies.keep(chat("a", "b"))
    before = bodies.counts()
    bodies.slices.settle()
    bodies.slices = Slices(bodies.connection)
    assert bodies.keep(chat("a", "b")) == name
    assert bodies.counts() == before
    bodies.key = b"another"
    assert bodies.keep(chat("a", "b")) != name


def test_what_is_rolled_back_is_not_remembered(bodies: Bodies) -> None:
    bodies.connection.execute("BEGIN")
    bodies.keep(chat("a", "b"))
    bodies.connection.execute("ROLLBACK")
    bodies.slices.forget()
    bodies.texts.clear()
    bodies.keep(chat("a", "b"))
    bodies.check()


@pytest.mark.parametrize("seed", range(5))
def test_what_nobody_uses_any_more_is_gone(bodies: Bodies, seed: int) -> None:
    chance = random.Random(seed)
    lines = [f"line {number}" for number in range(6)]
    for _ in range(200):
        if bodies.texts and chance.random() < 0.4:
            bodies.remove(chance.choice(list(bodies.texts)))
        else:
            bodies.keep(chat(*chance.choices(lines, k=chance.randrange(1, 7))))
    bodies.check()
    for number in list(bodies.texts):
        bodies.remove(number)
    assert bodies.counts() == (0, 0)
