"""Responses over WebSocket: each turn an exchange of its own, whatever the cuts and restarts."""

from __future__ import annotations

import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.turns import Turn, TurnReader
from store.values import json_object
from tests.store.sockets import AGREEMENTS, NO_TAKEOVER, PLAIN, TAKEOVER, Talk, frame

USAGE = {"input_tokens": 9, "output_tokens": 3, "total_tokens": 12}


def create(text: str, **more: Any) -> str:
    """As an SDK writes it: `json.dumps`, spaces and all."""
    return json.dumps({"type": "response.create", "model": "gpt-5", "input": text, **more})


def event(kind: str, identity: str | None = None, **more: Any) -> str:
    message: dict[str, Any] = {"type": kind, "sequence_number": 1, **more}
    if identity is not None:
        message["response"] = {"id": identity, "object": "response", **more.pop("response", {})}
    return json.dumps(message)


def answer(talk: Talk, identity: str, kind: str = "response.completed", **lane: Any) -> str:
    """Say a whole answer; its final event."""
    talk.say("server", event("response.created", identity, **lane))
    talk.say("server", event("response.output_text.delta", delta="Héllo", obfuscation="x", **lane))
    talk.say("server", event("response.output_text.done", text="Héllo there", **lane), 2)
    final = event(kind, identity, response={"usage": USAGE, "status": kind[9:]}, **lane)
    talk.say("server", final)
    return final


def fed(talk: Talk, reader: TurnReader) -> list[Turn]:
    return [turn for side, at, data in talk.pieces for turn in reader.feed(side, at, data)]


def sequence(agreement: str) -> tuple[Talk, list[str], list[str]]:
    """Three turns, one after the other; the requests, the final events."""
    talk = Talk(agreement)
    requests = [create("one"), create("dwa żółwie " * 30), create("one", store=False)]
    finals = []
    for number, request in enumerate(requests):
        talk.say("client", request, 2 if number == 1 else 1)
        talk.ping("server")
        kind = ("response.completed", "response.incomplete", "response.failed")[number]
        finals.append(answer(talk, f"resp_{number}", kind))
    return talk, requests, finals


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_turns_in_sequence(agreement: str) -> None:
    talk, requests, finals = sequence(agreement)
    reader = TurnReader(talk.extensions)
    turns = fed(talk, reader)
    assert [turn.index for turn in turns] == [0, 1, 2]
    assert [turn.request.decode() for turn in turns] == requests
    assert [turn.final and turn.final.decode() for turn in turns] == finals
    assert [turn.response for turn in turns] == [json.loads(final)["response"] for final in finals]
    assert [turn.response_id for turn in turns] == ["resp_0", "resp_1", "resp_2"]
    assert all(turn.finished and turn.error is None for turn in turns)
    assert (reader.notes(), reader.end()) == ({}, [])


def test_times_of_a_turn() -> None:
    talk, *_ = sequence(PLAIN)
    turn = fed(talk, TurnReader(None))[0]
    # The pieces: the request, a ping, then four events of the answer.
    times = [at for _, at, _ in talk.pieces]
    assert (turn.opened_at, turn.first_at, turn.closed_at) == (times[0], times[2], times[5])


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_turns_are_the_same_byte_by_byte(agreement: str) -> None:
    talk, *_ = sequence(agreement)
    reader = TurnReader(talk.extensions)
    turns = [
        turn
        for side, at, data in talk.pieces
        for offset in range(len(data))
        for turn in reader.feed(side, at, data[offset : offset + 1])
    ]
    assert turns == fed(talk, TurnReader(talk.extensions))


# -- several at a time


def lanes(agreement: str) -> tuple[Talk, list[str]]:
    """Two lanes side by side, and a request that waits in the first."""
    talk = Talk(agreement)
    requests = [
        create("a1", stream_id="a"),
        create("b", stream_id="b"),
        create("a2", stream_id="a"),
    ]
    for request in requests:
        talk.say("client", request)
    talk.say("server", event("response.created", "resp_b", stream_id="b"))
    talk.say("server", event("response.created", "resp_a1", stream_id="a"))
    talk.say("server", event("response.output_text.delta", delta="x", stream_id="b"))
    talk.say("server", event("response.completed", "resp_b", stream_id="b"))
    talk.say("server", event("response.completed", "resp_a1", stream_id="a"))
    answer(talk, "resp_a2", stream_id="a")
    return talk, requests


def test_turns_of_several_lanes() -> None:
    talk, requests = lanes(TAKEOVER)
    turns = fed(talk, TurnReader(talk.extensions))
    assert [(turn.index, turn.response_id) for turn in turns] == [
        (1, "resp_b"),
        (0, "resp_a1"),
        (2, "resp_a2"),
    ]
    assert [turn.request.decode() for turn in turns] == [requests[1], requests[0], requests[2]]


def test_turns_that_overlap_without_lanes_are_told_by_their_ids() -> None:
    talk = Talk()
    talk.say("client", create("one"))
    talk.say("client", create("two"))
    for kind, identity in [
        ("response.created", "resp_1"),
        ("response.created", "resp_2"),
        ("response.completed", "resp_2"),
        ("response.in_progress", "resp_2"),  # late: nobody's
        ("response.completed", "resp_1"),
    ]:
        talk.say("server", event(kind, identity))
    turns = fed(talk, TurnReader(None))
    assert [(turn.index, turn.response_id) for turn in turns] == [(1, "resp_2"), (0, "resp_1")]


def test_a_server_that_does_not_echo_the_lane() -> None:
    talk = Talk()
    talk.say("client", create("one", stream_id="a"))
    answer(talk, "resp_1")
    talk.say("client", create("two", stream_id="b"))
    talk.say("server", event("error", error={"message": "no"}))
    first, second = fed(talk, TurnReader(None))
    assert (first.index, first.finished) == (0, True)
    assert (second.index, second.error) == (1, "stream: no")


# -- errors


@pytest.mark.parametrize(
    ("message", "error", "status"),
    [
        (
            {"type": "error", "status": 400, "error": {"code": "c", "message": "not found"}},
            "stream: not found",
            400,
        ),
        ({"type": "error", "code": "too_late", "message": ""}, "stream: too_late", None),
        ({"type": "error", "status": True, "error": "plain"}, "stream: plain", None),
        ({"type": "error"}, "stream: error", None),
        ({"type": "error", "message": "a\ud800b"}, "stream: a?b", None),
        ({"type": "error", "message": "long" * 200}, "stream: " + "long" * 125, None),
        ({"error": {"message": "no type"}}, "stream: no type", None),
    ],
)
def test_an_error_ends_its_turn(message: dict[str, Any], error: str, status: int | None) -> None:
    talk = Talk()
    talk.say("client", create("one"))
    talk.say("server", event("response.created", "resp_1"))
    talk.say("server", json.dumps(message))
    talk.say("server", event("response.failed", "resp_1"))  # late
    talk.say("client", create("two"))
    answer(talk, "resp_2")
    first, second = fed(talk, TurnReader(None))
    assert (first.error, first.status, first.response_id) == (error, status, "resp_1")
    assert (first.finished, first.response) == (False, None)
    assert first.final == json.dumps(message).encode()
    assert (second.index, second.finished, second.error) == (1, True, None)


def test_an_error_of_several_lanes_that_names_none_is_nobodys() -> None:
    talk = Talk()
    talk.say("client", create("one", stream_id="a"))
    talk.say("client", create("two", stream_id="b"))
    talk.say("server", event("error", error={"message": "soon full"}))
    reader = TurnReader(None)
    assert fed(talk, reader) == []
    assert [turn.error for turn in reader.end()] == ["the connection ended first"] * 2


def test_what_is_no_event_changes_nothing() -> None:
    talk = Talk()
    talk.say("client", "not JSON")
    talk.say("client", json.dumps({"type": "other"}))
    talk.say("client", create("one"))
    for message in (
        "[1]",
        "{",
        "\x00",
        "NaN",
        '{"type": 3}',
        '{"type": "rate_limits"}',
        "[" * 5000,
    ):
        talk.say("server", message)
    talk.say("server", event("response.steer.accepted", steer={"id": "s"}))
    talk.say("server", event("response.output_text.delta", response="resp"))
    reader = TurnReader(None)
    assert fed(talk, reader) == []
    (turn,) = reader.end(7.0)
    assert (turn.index, turn.closed_at, turn.finished) == (0, 7.0, False)


# -- steering


def test_a_steered_response_has_a_successor_of_its_own() -> None:
    talk = Talk()
    steer = json.dumps(
        {"type": "response.steer", "previous_response_id": "resp_1", "input": "shorter"}
    )
    talk.say("client", create("one"))
    talk.say("server", event("response.created", "resp_1"))
    talk.say("client", steer)
    talk.say("client", create("two"))  # waits for its turn
    talk.say("server", event("response.incomplete", "resp_1"))
    successor = {"response": {"previous_response_id": "resp_1"}}
    talk.say("server", event("response.created", "resp_1b", **successor))
    talk.say("server", event("response.completed", "resp_1b", **successor))
    answer(talk, "resp_2")
    turns = fed(talk, TurnReader(None))
    assert [(turn.index, turn.response_id) for turn in turns] == [
        (0, "resp_1"),
        (2, "resp_1b"),
        (1, "resp_2"),
    ]
    assert turns[1].request.decode() == steer


def test_a_steer_that_failed_or_went_in_with_a_request_is_no_request() -> None:
    talk = Talk()
    steer = {"type": "response.steer", "previous_response_id": "resp_1", "input": "x"}
    talk.say("client", json.dumps(steer))
    talk.say("server", event("response.steer.failed", steer=steer, error={"message": "no"}))
    talk.say("client", json.dumps(steer))
    talk.say("client", create("one", previous_response_id="resp_1"))
    created = {"response": {"previous_response_id": "resp_1"}}
    talk.say("server", event("response.completed", "resp_2", **created))
    (turn,) = fed(talk, TurnReader(None))
    assert (turn.index, json_object(turn.request)) == (
        0,
        json_object(create("one", **created["response"]).encode()),
    )


def test_steers_that_nothing_came_of_are_bounded() -> None:
    reader = TurnReader(None)
    for number in range(40):
        steer = {"type": "response.steer", "previous_response_id": f"resp_{number}"}
        reader.feed("client", 1.0, frame(0x81, orjson.dumps(steer), b"\1\2\3\4"))
    kept = orjson.loads(reader.checkpoint().state)["steers"]
    assert list(kept) == [f"resp_{number}" for number in range(24, 40)]


# -- what is missing


def test_turns_that_nobody_answered() -> None:
    talk = Talk()
    talk.say("client", create("one"))
    talk.say("server", event("response.created", "resp_1"))
    talk.say("client", create("two"))
    reader = TurnReader(None)
    assert fed(talk, reader) == []
    first, second = reader.end(200.0)
    assert (first.finished, first.error) == (False, "the connection ended first")
    assert (first.final, second.final) == (None, None)
    assert (first.response_id, first.first_at, second.first_at) == ("resp_1", 101.0, None)
    assert reader.end() == []


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("server", "the server closed the socket: 1011 out of order"),
        ("client", "the client closed the socket: 1011 out of order"),
    ],
)
def test_a_close_frame_says_why(who: Any, why: str) -> None:
    talk = Talk()
    talk.say("client", create("one"))
    talk.close(who, 1011, "out of order")
    reader = TurnReader(None)
    assert [turn.error for turn in fed(talk, reader) + reader.end()] == [why]


BROKEN = "a frame that begins with 0xff"


def test_once_the_servers_side_is_broken_turns_end_at_once() -> None:
    talk, requests, _ = sequence(PLAIN)
    reader = TurnReader(None)
    turns: list[Turn] = []
    for number, (side, at, data) in enumerate(talk.pieces):
        if number == 7:  # within the second turn
            turns += reader.feed("server", at, b"\xff\xff")
        turns += reader.feed(side, at, data)
    assert [turn.finished for turn in turns] == [True, False, False]
    why = "the server's side could not be read on: " + BROKEN
    assert [turn.error for turn in turns] == [None, why, why]
    assert [turn.request.decode() for turn in turns] == requests
    assert reader.notes() == {"server": BROKEN}


def test_once_the_clients_side_is_broken_answers_are_kept() -> None:
    talk, requests, finals = sequence(PLAIN)
    reader = TurnReader(None)
    turns = fed(Talk(pieces=talk.pieces[:6]), reader) + reader.feed("client", 1.0, b"\xff\xff")
    turns += fed(Talk(pieces=talk.pieces[6:]), reader)
    assert [turn.request.decode() for turn in turns] == [requests[0], "", ""]
    assert [turn.error for turn in turns] == [None] + ["its request was not captured"] * 2
    assert [turn.response for turn in turns] == [json.loads(final)["response"] for final in finals]


def test_a_hole_that_nobody_told_of_costs_no_other_turn_its_answer() -> None:
    """Whatever is missing: a finished turn has its own request and its own answer."""
    talk, requests, finals = sequence(PLAIN)
    pairs = set(zip(requests, finals, strict=True))
    for number in range(len(talk.pieces)):
        side, at, data = talk.pieces[number]
        if side == "client":
            continue
        for start in range(0, len(data), 5):
            cut = (side, at, data[:start] + data[start + 11 :])
            pieces = [*talk.pieces[:number], cut, *talk.pieces[number + 1 :]]
            reader = TurnReader(None)
            found = fed(Talk(pieces=pieces), reader) + reader.end(0.0)
            done = {
                (turn.request.decode(), (turn.final or b"").decode())
                for turn in found
                if turn.finished
            }
            assert done <= pairs


def test_open_turns_are_bounded() -> None:
    reader = TurnReader(None)
    data = b"".join(frame(0x81, create("x").encode(), b"\1\2\3\4") for _ in range(300))
    assert len(reader.feed("client", 1.0, data)) == 300 - 256
    big = frame(0x81, create("x" * (15 << 20)).encode(), b"\0\0\0\0")
    turns = [turn for _ in range(6) for turn in reader.feed("client", 2.0, big)]
    assert {turn.error for turn in turns} == {"too many turns are open"}
    assert (len(turns), len(reader.end())) == (256 + 6 - 4, 4)


# -- restarts


@pytest.mark.parametrize("agreement", AGREEMENTS)
@pytest.mark.parametrize("made", [sequence, lanes])
def test_a_restart_at_any_piece_loses_and_doubles_nothing(made: Any, agreement: str) -> None:
    talk: Talk = made(agreement)[0]
    expected = fed(talk, TurnReader(talk.extensions))
    for cut in range(len(talk.pieces) + 1):
        first = TurnReader(talk.extensions)
        turns = fed(Talk(pieces=talk.pieces[:cut]), first)
        checkpoint = first.checkpoint()
        sizes = {"client": checkpoint.client, "server": checkpoint.server}
        for side, _, data in talk.pieces[:cut]:
            sizes[side] -= len(data)
        assert sizes == {"client": 0, "server": 0}  # of whole messages nothing needs to be kept
        second = TurnReader(talk.extensions, checkpoint.state)
        assert turns + fed(Talk(pieces=talk.pieces[cut:]), second) == expected


def test_a_restart_within_a_message_needs_that_message_again() -> None:
    talk, *_ = sequence(NO_TAKEOVER)
    expected = fed(talk, TurnReader(talk.extensions))
    at = 5  # the piece of a final event
    side, when, data = talk.pieces[at]
    first = TurnReader(talk.extensions)
    turns = fed(Talk(pieces=talk.pieces[:at]), first) + first.feed(side, when, data[:-3])
    checkpoint = first.checkpoint()
    assert checkpoint.server == sum(len(d) for s, _, d in talk.pieces[:at] if s == "server")
    second = TurnReader(talk.extensions, checkpoint.state)
    turns += second.feed(side, when, data[:-3])
    assert turns + fed(Talk(pieces=[(side, when, data[-3:]), *talk.pieces[at + 1 :]]), second) == (
        expected
    )


def test_a_turn_met_again_has_its_old_index() -> None:
    talk, *_ = sequence(TAKEOVER)
    first = TurnReader(talk.extensions)
    early = fed(Talk(pieces=talk.pieces[:6]), first)
    state = first.checkpoint().state
    again = [
        fed(Talk(pieces=talk.pieces[6:]), TurnReader(talk.extensions, state)) for _ in range(2)
    ]
    assert again[0] == again[1]
    assert [turn.index for turn in early + again[0]] == [0, 1, 2]


def test_a_state_is_small_between_turns_and_survives_odd_texts() -> None:
    talk = Talk()
    talk.say("client", '{"type":"response.create","stream_id":"\\ud800","input":"\\udfff"}')
    talk.say(
        "server", '{"type":"response.created","stream_id":"\\ud800","response":{"id":"\\ud801"}}'
    )
    reader = TurnReader(None)
    assert fed(talk, reader) == []
    state = reader.checkpoint().state
    final = b'{"type":"response.completed","stream_id":"\\ud800","response":{"id":"\\ud801","x":1}}'
    (turn,) = TurnReader(None, state).feed("server", 5.0, frame(0x81, final))
    assert (turn.response, turn.final) == ({"id": "\ud801", "x": 1}, final)
    assert turn.request == b'{"type":"response.create","stream_id":"\\ud800","input":"\\udfff"}'
    reader.feed("server", 5.0, frame(0x81, final))
    assert len(reader.checkpoint().state) < 300
    assert orjson.loads(reader.checkpoint().state)["open"] == []


IDS = st.sampled_from([None, "r1", "r2", "r3", "\ud800"])
LANES = st.sampled_from([None, "a", "b", 7])
KINDS = st.sampled_from(
    ["response.create", "response.steer", "response.created", "response.output_text.delta",
     "response.completed", "response.failed", "response.steer.failed", "error", None]
)  # fmt: skip
EVENTS = st.fixed_dictionaries(
    {"type": KINDS, "stream_id": LANES, "previous_response_id": IDS},
    optional={
        "response": st.fixed_dictionaries({"id": IDS, "previous_response_id": IDS}),
        "error": st.sampled_from([None, "x", {"message": 3}, {"code": "c"}]),
        "status": st.sampled_from([None, 400, 10**30, "x"]),
        "steer": st.sampled_from([None, {"previous_response_id": "r1"}]),
    },
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(("client", "server")), EVENTS), max_size=25))
def test_every_request_is_one_turn_whatever_is_said_and_with_any_restarts(said: Any) -> None:
    straight, restarted = TurnReader(None), TurnReader(None)
    turns: list[Turn] = []
    again: list[Turn] = []
    requests = []
    for at, (side, message) in enumerate(said):
        text = json.dumps(message).encode()
        if side == "client" and message["type"] == "response.create":
            requests.append(text)
        data = frame(0x81, text, b"\1\2\3\4" if side == "client" else b"")
        turns += straight.feed(side, at, data)
        again += restarted.feed(side, at, data)
        restarted = TurnReader(None, restarted.checkpoint().state)
    turns += straight.end()
    assert again + restarted.end() == turns
    assert sorted(turn.index for turn in turns) == list(range(len(turns)))
    creates = [turn.request for turn in turns if b'"response.create"' in turn.request]
    assert sorted(creates) == sorted(requests)
