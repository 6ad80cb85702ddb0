"""The small pure parts of shadow: cutting answers, schemas, plans, hosts, turns."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.home import Home
from policies.policy import build as build_policy
from policies.rollout import State
from shadow import planner, runner
from shadow.admin import host_is_ours
from shadow.engine import Piece
from shadow.observe import Failed
from shadow.planner import Reachable
from shadow.runner import share
from shadow.schema import unsupported
from shadow.stops import Cutter
from shadow.turns import Turns, Worker
from shadow.wire import Refusal


@given(
    st.text(alphabet="ab€<|", max_size=30),
    st.lists(st.text(alphabet="ab€<|", min_size=1, max_size=4), max_size=3),
    st.integers(1, 4),
)
def test_a_cut_answer_does_not_depend_on_how_it_came(
    text: str, stops: list[str], size: int
) -> None:
    cutter = Cutter(stops)
    data = text.encode()
    said = "".join(cutter.feed(data[i : i + size]) for i in range(0, len(data), size))
    said += cutter.flush()
    assert text.startswith(said) and not any(stop in said for stop in stops)
    if not any(stop in text for stop in stops):
        assert said == text and not cutter.stopped


def test_what_may_become_a_stop_text_is_held_back() -> None:
    cutter = Cutter(["END"])
    assert [cutter.feed(part) for part in (b"aE", b"N", b"x")] == ["a", "", "ENx"]
    assert cutter.feed(b"EN") + cutter.flush() == "EN"
    assert cutter.feed(b"yEND more") == "y" and cutter.stopped and cutter.feed(b"z") == ""


def test_half_a_character_waits_for_its_other_half() -> None:
    cutter = Cutter([])
    assert [cutter.feed(b"\xe2\x82"), cutter.feed(b"\xac"), cutter.flush()] == ["", "€", ""]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": "object", "properties": {"a": {"enum": [1, "x"]}}, "required": ["a"]},
        {"type": "array", "items": {"type": ["string", "null"]}, "maxItems": 3},
        {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"type": "number"}}},
    ],
)
def test_schemas_that_are_enforced(schema: dict[str, object]) -> None:
    assert unsupported(schema) is None


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string", "maxLength": 3}, "'maxLength'"),
        ({"type": "integer", "minimum": 3}, "'minimum'"),
        ({"type": "object", "properties": {"a": {"pattern": "x"}}}, "'pattern'"),
        ({"type": "object", "properties": ["a"]}, "properties must be dict"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "additionalProperties"),
        ({"type": "array", "items": True}, "must be an object"),
        ({"anyOf": [{}], "type": "object"}, "beside other keywords"),
        ({"$ref": "https://example.com/x"}, "$ref"),
        ({"type": "tuple"}, "'tuple'"),
        ([], "must be an object"),
    ],
)
def test_schemas_that_are_not(schema: object, why: str) -> None:
    assert why in str(unsupported(schema))


def test_a_schema_without_end_is_refused() -> None:
    deep: dict[str, object] = {"type": "string"}
    for _ in range(2000):
        deep = {"type": "array", "items": deep}
    assert "deep" in str(unsupported(deep))


POLICY = build_policy(
    {"candidates": [{"name": "one", "gguf": "1"}, {"name": "two", "gguf": "2"}]}
)  # fmt: skip
HOME = Home(Path("/h"), Path("/r"))


def serving(percent: float, sha256: str = "sha") -> State:
    return State("canary", 1, percent, 0.0, 0.0, sha256)


@pytest.mark.parametrize(
    ("states", "reachable", "expected"),
    [
        ({("t", "one"): serving(10)}, {"one": "sha"}, {"t": "one"}),
        ({("t", "one"): serving(0)}, {"one": "sha"}, {}),
        ({("t", "one"): serving(10)}, {}, {}),
        ({("t", "one"): serving(10)}, {"one": "another file"}, {}),
        (
            {("t", "one"): serving(10), ("t", "two"): serving(50)},
            {"one": "sha", "two": "sha"},
            {"t": "two"},
        ),
        (
            {("t", "two"): serving(10), ("t", "one"): serving(10)},
            {"one": "sha", "two": "sha"},
            {"t": "one"},
        ),
    ],
    ids=["serves", "0 %", "away", "changed", "further first", "named first"],
)
def test_the_plan_of_rollouts(
    states: dict[tuple[str, str], State], reachable: dict[str, str], expected: dict[str, str]
) -> None:
    there = {name: Reachable(512, 7.0, sha256) for name, sha256 in reachable.items()}
    made = planner.build(POLICY, HOME, states, there, 100.0)
    assert {task: planned.candidate for task, planned in made.tasks.items()} == expected
    assert made.valid_until == 130.0
    assert {name: c.probed for name, c in made.candidates.items()} == dict.fromkeys(reachable, 7.0)


def test_salts_are_stable_and_differ() -> None:
    assert planner.salt(("t", "one")) == planner.salt(("t", "one"))
    assert len({planner.salt(key) for key in (("t", "one"), ("t", "two"), ("u", "one"))}) == 3


OURS = ["localhost", "localhost:4142", "127.0.0.1:1", "[::1]:4142", "10.1.2.3:4142"]
OTHERS = ["", "attacker.example", "10.1.2.4", "localhost.evil.example", "evil@localhost",
          "localhost/x", "[::1", "localhost:x"]  # fmt: skip


@pytest.mark.parametrize("host", OURS)
def test_hosts_of_ours(host: str) -> None:
    assert host_is_ours(host, "10.1.2.3")


@pytest.mark.parametrize("host", OTHERS)
def test_hosts_of_others(host: str) -> None:
    assert not host_is_ours(host, "10.1.2.3")


def test_the_share_of_an_exchange_is_uniform_and_fixed() -> None:
    shares = [share(f"exchange-{number}") for number in range(2000)]
    assert shares == [share(f"exchange-{number}") for number in range(2000)]
    assert 0.46 < sum(value < 50 for value in shares) / 2000 < 0.54


@pytest.mark.parametrize(
    ("outcome", "counts"),
    [
        (Failed("deadline", later=False), True),
        (Failed("engine: it broke", later=False), True),
        (Failed("garbled: 'choices'", later=False), True),
        (Failed("crash: ServerDisconnectedError", later=True, away=True, crashed=True), True),
        (Failed("away", later=True, away=True), False),
        (Failed("busy: the model is at work", later=True), False),
        (Failed("skipped:field:tools", later=False), False),
    ],
    ids=lambda value: value.error if isinstance(value, Failed) else "",
)
def test_which_failures_the_gate_hears_of(outcome: Failed, counts: bool) -> None:
    assert runner._counts(outcome) is counts


def until_told(flag: threading.Event) -> Iterator[Piece]:
    """Work that lasts until it is aborted."""
    while not flag.is_set():
        time.sleep(0.005)
    return
    yield  # a generator, like an engine's answer


def short(_flag: threading.Event) -> Iterator[Piece]:
    yield Piece("yes", 9.0, 1)
    yield Piece("", 9.0, 1, "stop")


async def refusal(turns: Turns, shadow: bool, patience: float) -> str:
    with pytest.raises(Refusal) as refused:
        await turns.start(shadow, patience, short)
    return refused.value.code


def test_turns() -> None:
    async def play() -> None:
        turns = Turns(Worker())
        shadow = await turns.start(True, 1, until_told)
        assert await refusal(turns, True, 1) == "busy"
        diverted = await turns.start(False, 10, until_told)
        with pytest.raises(Refusal) as refused:
            await shadow.next()
        assert refused.value.code == "preempted"
        assert await refusal(turns, False, 0.1) == "busy"
        waiting = asyncio.gather(*(turns.start(False, 10, short) for _ in range(3)))
        await asyncio.sleep(0.05)
        diverted.abort()
        for job in await waiting:
            assert [(await job.next()), (await job.next())] == [*short(threading.Event())]
        assert not turns.busy
        turns.stop()
        assert await refusal(turns, False, 1) == "busy"
        assert not turns.busy

    asyncio.run(play())
