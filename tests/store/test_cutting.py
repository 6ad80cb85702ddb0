"""Cutting a body changes nothing of it: joined, the pieces are the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.cutting import Chain, Cut, cut
from tests.fuzz.runs import examples

LONG = "x" * 300


def joined(found: Cut) -> str:
    return "".join(part if isinstance(part, str) else "".join(part.pieces) for part in found.parts)


def chains(found: Cut) -> list[Chain]:
    return [part for part in found.parts if isinstance(part, Chain)]


WHOLE = (
    "{}", " { } ", '{"a":1}\n', '{"messages":[]}', '{"messages": [ ] }', '{"messages":null}',
    '{"messages":"x"}', '{"tools":"short"}', '{"a":[1,{"messages":[1,2]}]}',
    '{"a":"\\ud800","b":123456789012345678901234567890,"c":1.50e+1,"a":2}',
)  # fmt: skip


@pytest.mark.parametrize("text", WHOLE)
def test_what_has_nothing_to_share_stays_whole(text: str) -> None:
    found = cut(text)
    assert found is not None
    assert found.parts == (text,)


def test_messages_are_cut_at_their_borders() -> None:
    text = '{"messages":[ {"role":"system"} ,\n {"role":"user","content":"\\ud800 é"}\t] , "n":1}'
    found = cut(text)
    assert found is not None
    assert found.parts == (
        '{"messages":[ ',
        Chain(('{"role":"system"}', ' ,\n {"role":"user","content":"\\ud800 é"}'), 1),
        '\t] , "n":1}',
    )
    assert found.json["n"] == 1


@pytest.mark.parametrize("role", ["[]", "{}", "null", "1"])
def test_a_role_may_be_anything(role: str) -> None:
    text = f'{{"messages":[{{"role":{role},"content":"a"}},{{"role":"user","content":"b"}}]}}'
    found = cut(text)
    assert found is not None
    assert [part.pieces for part in found.parts if isinstance(part, Chain)] == [
        (f'{{"role":{role},"content":"a"}}', ',{"role":"user","content":"b"}')
    ]


def test_a_turn_begins_with_the_pieces_of_the_one_before() -> None:
    messages: list[Any] = [{"role": "system", "content": "Be kind."}]
    before: tuple[str, ...] = ()
    for turn in range(5):
        messages.append({"role": "user", "content": f"{turn}"})
        found = cut(json.dumps({"model": "m", "messages": messages}))
        assert found is not None
        [chain] = chains(found)
        assert chain.pieces[: len(before)] == before
        assert chain.user == 1
        before = chain.pieces
        messages.append({"role": "assistant", "content": "yes"})


def test_large_elements_are_pieces_of_their_own() -> None:
    body = {"instructions": LONG, "input": "short", "tools": [{"name": LONG}], "text": {"f": LONG}}
    found = cut(json.dumps(body))
    assert found is not None
    assert [len(chain.pieces) for chain in chains(found)] == [1, 1, 1]
    assert (joined(found), found.json) == (json.dumps(body), body)


def test_a_repeated_key_is_cut_each_time_and_the_last_one_counts() -> None:
    text = '{"messages":[1,2],"messages" :[{"role":"user"}]}'
    found = cut(text)
    assert found is not None
    assert [chain.user for chain in chains(found)] == [None, 0]
    assert (joined(found), found.json) == (text, {"messages": [{"role": "user"}]})


NO_OBJECTS = (
    "", " ", "[1]", "1", '"a"', "{", '{"a"', '{"a" 1}', '{"a":}', '{"a":1,}', '{"a":1 "b":2}',
    '{"a":1}x', '{"a":NaN}', '{"a":Infinity}', '{"messages":[1,]}', '{"messages":[1 2]}',
    '{"messages":[1', '{"messages":[NaN]}', "{1:2}", '{"a":"\n"}', '{"a":' + "[" * 100_000,
    '{"a":' + "9" * 5000 + "}", "\ufeff{}",
)  # fmt: skip


@pytest.mark.parametrize("text", NO_OBJECTS, ids=range(len(NO_OBJECTS)))
def test_what_is_no_object_is_not_cut(text: str) -> None:
    assert cut(text) is None


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.just(LONG)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
INDENTS = st.sampled_from([None, 0, 1, "\t"])
NAMES = st.sampled_from(["messages", "input", "tools", "instructions", "model", "text", "é"])


@examples(100)
@given(st.dictionaries(NAMES, VALUES, max_size=5), st.booleans(), INDENTS)
def test_whatever_json_it_is(body: dict[str, Any], ascii_only: bool, indent: Any) -> None:
    text = json.dumps(body, ensure_ascii=ascii_only, indent=indent)
    found = cut(text)
    assert found is not None
    assert (joined(found), found.json) == (text, body)
