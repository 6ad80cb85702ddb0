"""What of a socket was not captured, or can't be read, is told: by its row and by its turns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from policies.spool import Kind
from store.deflate import Side
from tests.store.making import Exchange, Run, home, record_all, rows
from tests.store.sockets import Talk, frame
from tests.store.test_rows_kept import USED, talked, turn

Pieces = list[tuple[Side, float, bytes]]

RESPONSES, REALTIME = "/v1/responses", "/v1/realtime"
BROKEN: Final = b"\xff\xff"
WHY_BROKEN: Final = "a frame that begins with 0xff"
SIDES: Final[dict[str, Side]] = {"request": "client", "response": "server"}
ROWS: Final = """
    SELECT e.*, t.request, t.response, b.request_note, b.response_note, b.events
    FROM exchanges AS e LEFT JOIN texts AS t USING (number) LEFT JOIN bodies AS b USING (number)
    ORDER BY e.seq IS NULL, e.started_at"""


def size(pieces: Pieces, side: Side) -> int:
    return sum(len(data) for who, _, data in pieces if who == side)


def captured(kept: Pieces, said: Pieces, side: Side) -> str:
    return f"{size(kept, side)} of {size(said, side)} bytes were captured"


def changed(pieces: Pieces, place: int, data: bytes = b"") -> Pieces:
    side, at, _ = pieces[place]
    return [*pieces[:place], (side, at, data), *pieces[place + 1 :]]


def records(kept: Pieces, said: Pieces, target: str, **more: Any) -> bytes:
    """Of a socket on which `said` went by, and `kept` was spooled."""
    counts = {f"{name}_bytes": size(said, side) for name, side in SIDES.items()}
    return talked(Talk(pieces=kept), target, more_closed=counts, **more)


def found_in(root: Path, written: bytes, **policy: Any) -> list[dict[str, Any]]:
    """The socket's row, then those of its turns."""
    run = Run(home(root))
    run.write(written)
    run.die()
    record_all(home(root), **policy)
    return rows(home(root), ROWS)


def incidents(root: Path) -> list[tuple[str, str]]:
    found = rows(home(root), "SELECT kind, detail FROM incidents")
    return [(one["kind"], one["detail"]) for one in found]


def picked(row: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(row[name] for name in names)


def fate(row: dict[str, Any]) -> tuple[Any, ...]:
    return picked(row, "outcome", "truncated", "complete", "error")


def is_told(root: Path, socket: dict[str, Any], error: str) -> None:
    """Once, and by the socket's row."""
    assert fate(socket) == ("ok", 1, 0, error)
    assert incidents(root) == [("unreadable_record", error)]


# -- turns of Responses

ASKED, BEGAN, ENDED = 3, 4, 5  # pieces of the second turn


def two_turns() -> Pieces:
    talk = Talk()
    for number in (1, 2):
        response = f'{{"id":"r{number}","status":"completed","model":"gpt-5","é":"ż",{USED}}}'
        turn(talk, f"r{number}", f"turn {number}", response)
    talk.say("server", '{"type":"keepalive"}')
    return talk.pieces


SAID: Final = two_turns()
LAST: Final = SAID[ENDED][2]
WITHIN: Final = LAST.index("ż".encode())
HOLED: Final = changed(SAID, ENDED, LAST[:WITHIN] + LAST[WITHIN + 1 :])
UNASKED: Final = changed(SAID, ASKED)
UNENDED: Final = changed(SAID, ENDED)
MISREAD: Final = changed(SAID, BEGAN, BROKEN)
MISREAD_REQUEST: Final = changed(SAID, ASKED, BROKEN)


def test_of_a_whole_socket_nothing_is_told(tmp_path: Path) -> None:
    found = found_in(tmp_path, records(SAID, SAID, RESPONSES))
    assert [fate(one) for one in found] == [("ok", 0, 1, None)] * 3
    assert incidents(tmp_path) == []


@pytest.mark.parametrize(
    ("kept", "said", "cut", "why"),
    [
        pytest.param(SAID[:BEGAN], SAID, "dropped", "dropped", id="our cut"),
        pytest.param(
            changed(SAID[:ENDED], BEGAN, SAID[BEGAN][2][:20]), SAID, "limit", "limit",
            id="our cut within a message",
        ),
        pytest.param(UNENDED, SAID, None, captured(UNENDED, SAID, "server"), id="a lost batch"),
        pytest.param(
            HOLED, SAID, None, captured(HOLED, SAID, "server") + "; a text that is not UTF-8",
            id="a hole",
        ),
        pytest.param(MISREAD, MISREAD, None, WHY_BROKEN, id="a broken frame"),
    ],
)  # fmt: skip
def test_of_an_answer_that_was_lost_the_upstream_is_not_blamed(
    tmp_path: Path, kept: Pieces, said: Pieces, cut: str | None, why: str
) -> None:
    told = {} if cut is None else {"response": cut}
    socket, first, second = found_in(tmp_path, records(kept, said, RESPONSES, cut=told))
    assert fate(first) == ("ok", 0, 1, None)
    assert fate(second) == ("ok", 1, 0, "lost: a part of the response")
    assert picked(second, "response", "response_note") == (None, f"cut: {why}")
    assert '"turn 2"' in second["request"]
    is_told(tmp_path, socket, f"lost: a part of the server's side: {why}")


@pytest.mark.parametrize(
    ("kept", "said", "cut", "why"),
    [
        pytest.param(UNASKED, SAID, "low_disk", "low_disk", id="our cut"),
        pytest.param(UNASKED, SAID, None, captured(UNASKED, SAID, "client"), id="a lost batch"),
        pytest.param(MISREAD_REQUEST, MISREAD_REQUEST, None, WHY_BROKEN, id="a broken frame"),
    ],
)
def test_of_a_request_that_was_lost_it_is_said_why(
    tmp_path: Path, kept: Pieces, said: Pieces, cut: str | None, why: str
) -> None:
    told = {} if cut is None else {"request": cut}
    socket, first, second = found_in(tmp_path, records(kept, said, RESPONSES, cut=told))
    assert fate(first) == ("ok", 0, 1, None)
    assert fate(second) == ("ok", 1, 0, "its request was not captured")
    assert picked(second, "request", "request_note") == (None, f"cut: {why}")
    assert '"r2"' in second["response"]
    is_told(tmp_path, socket, f"lost: a part of the client's side: {why}")


def test_both_sides_cut(tmp_path: Path) -> None:
    cut = {"request": "dropped", "response": "dropped"}
    socket, first = found_in(tmp_path, records(SAID[:ASKED], SAID, RESPONSES, cut=cut))
    assert fate(first) == ("ok", 0, 1, None)
    lost = [f"lost: a part of the {side}'s side: dropped" for side in ("client", "server")]
    is_told(tmp_path, socket, "; ".join(lost))


def test_a_client_that_left_is_still_said_to_have_left(tmp_path: Path) -> None:
    cut = {"response": "dropped"}
    written = records(SAID[:BEGAN], SAID, RESPONSES, cut=cut, outcome="client_abort")
    second = found_in(tmp_path, written)[2]
    assert fate(second) == ("client_abort", 1, 0, "lost: a part of the response")


def test_a_connection_that_ended_in_an_answer_is_the_upstreams_doing(tmp_path: Path) -> None:
    kept = SAID[:ENDED]
    socket, _, second = found_in(tmp_path, records(kept, kept, RESPONSES))
    assert fate(second) == ("upstream_truncated", 0, 0, "the connection ended first")
    assert (fate(socket), incidents(tmp_path)) == (("ok", 0, 1, None), [])


def test_a_turn_that_the_proxy_died_in(tmp_path: Path) -> None:
    ending = Exchange(request=b"", response=b"").closing()
    written = talked(Talk(pieces=SAID[:ENDED]), RESPONSES).removesuffix(ending)
    socket, _, second = found_in(tmp_path, written)
    assert (socket["outcome"], second["outcome"], second["truncated"]) == ("proxy_died",) * 2 + (0,)


def test_more_turns_than_are_followed(tmp_path: Path) -> None:
    data = b'{"type":"response.create","model":"gpt-5"}'
    kept: Pieces = [("client", 100.0 + n, frame(0x81, data, b"\1\2\3\4")) for n in range(257)]
    first, second = found_in(tmp_path, records(kept, kept, RESPONSES))[1:3]
    assert fate(first) == ("ok", 1, 0, "lost: a part of the response")
    assert first["response_note"] == "cut: too many turns are open"
    assert fate(second) == ("upstream_truncated", 0, 0, "the connection ended first")


@pytest.mark.parametrize("target", [RESPONSES, REALTIME])
def test_what_was_not_to_be_kept_is_not_lost(tmp_path: Path, target: str) -> None:
    written = records([], SAID, target, more_opened={"mode": "metadata"})
    (socket,) = found_in(tmp_path, written)
    assert fate(socket) == ("ok", 0, 1, None)
    assert socket["response_bytes"] == size(SAID, "server")
    assert incidents(tmp_path) == []


# -- sessions of Realtime


def session() -> Pieces:
    talk = Talk()
    for number in range(3):
        talk.say("client", json.dumps({"type": "session.update", "n": number}))
        talk.say("server", json.dumps({"type": "session.updated", "n": number}))
    return talk.pieces


MESSAGES: Final = session()


@pytest.mark.parametrize("name", SIDES)
@pytest.mark.parametrize("how", ["cut", "missing", "broken", "hole"])
def test_a_session_says_what_of_it_was_lost(tmp_path: Path, name: str, how: str) -> None:
    side, said, cut = SIDES[name], MESSAGES, dict[str, str]()
    third = next(place for place in (4, 5) if said[place][0] == side)
    kept, lines = changed(said, third), 2
    if how == "cut":
        cut, why = {name: "limit"}, "limit"
    elif how == "missing":
        why = captured(kept, said, side)
    elif how == "broken":
        kept = said = changed(said, third, BROKEN)
        why = WHY_BROKEN
    else:
        kept, lines = changed(said, third - 2, said[third - 2][2][9:]), 1
        why = captured(kept, said, side)
    (socket,) = found_in(tmp_path, records(kept, said, REALTIME, cut=cut))
    told = [json.loads(line)["from"] for line in socket["events"].splitlines()]
    assert {who: told.count(who) for who in SIDES.values()} == {
        who: lines if who == side else 3 for who in SIDES.values()
    }
    assert socket[f"{name}_note"].startswith(f"cut: {why}")
    lost = f"lost: a part of the {side}'s side: " + socket[f"{name}_note"].removeprefix("cut: ")
    is_told(tmp_path, socket, lost)


def test_of_a_session_that_is_not_kept_nothing_is_lost(tmp_path: Path) -> None:
    kept = changed(MESSAGES, 4)
    written = records(kept, MESSAGES, REALTIME)
    (socket,) = found_in(tmp_path, written, record={"realtime": "off"})
    assert (fate(socket), incidents(tmp_path)) == (("ok", 0, 1, None), [])


def test_what_is_hidden_and_what_is_lost_are_both_told(tmp_path: Path) -> None:
    talk = Talk()
    for delta in ("jane.roe@", "example.com"):
        talk.say("server", json.dumps({"type": "response.output_text.delta", "delta": delta}))
    written = records(
        talk.pieces, talk.pieces, REALTIME, cut={"response": "limit"},
        more_opened={"mode": "redacted"},
    )  # fmt: skip
    (socket,) = found_in(tmp_path, written, privacy={"recognisers": ["email"]})
    hidden = "its deltas are not kept: something in them is private"
    assert socket["response_note"] == f"cut: limit; {hidden}"


# -- a socket that lives for hours

TURNS, STEPS = 12, 4


def long_talk() -> Pieces:
    talk = Talk()
    for number in range(TURNS):
        answer = "x" * 60_000
        response = f'{{"id":"r{number}","model":"gpt-5","output":["{answer}"],{USED}}}'
        turn(talk, f"r{number}", f"turn {number}", response)
    return talk.pieces


def recorded_in_steps(root: Path, written: bytes) -> list[dict[str, Any]]:
    """The recorder starts anew in between, and shortens the socket."""
    run, step = Run(home(root)), len(written) // STEPS + 1
    marks = 0
    for start in range(0, len(written), step):
        run.write(written[start : start + step])
        record_all(home(root))
        sql = f"SELECT count(*) AS n FROM staged WHERE kind = {int(Kind.SOCKET)}"
        marks += rows(home(root), sql)[0]["n"]
    assert marks > 1
    run.die()
    record_all(home(root))
    return rows(home(root), ROWS)


def test_a_long_socket_of_which_nothing_was_lost(tmp_path: Path) -> None:
    said = long_talk()
    found = recorded_in_steps(tmp_path, records(said, said, RESPONSES))
    assert [fate(one) for one in found] == [("ok", 0, 1, None)] * (1 + TURNS)
    assert incidents(tmp_path) == []


def test_what_broke_before_a_checkpoint_is_told_once(tmp_path: Path) -> None:
    said = changed(long_talk(), 3, BROKEN)
    socket, first, *others = recorded_in_steps(tmp_path, records(said, said, RESPONSES))
    assert fate(first) == ("ok", 0, 1, None)
    assert [fate(one) for one in others] == [("ok", 1, 0, "its request was not captured")] * 11
    assert {one["request_note"] for one in others} == {f"cut: {WHY_BROKEN}"}
    assert [one["response_id"] for one in others] == [f"r{number}" for number in range(1, TURNS)]
    is_told(tmp_path, socket, f"lost: a part of the client's side: {WHY_BROKEN}")


def test_an_answer_lost_before_a_checkpoint_is_told_once(tmp_path: Path) -> None:
    said = changed(long_talk(), 4, BROKEN)
    socket, first, *others = recorded_in_steps(tmp_path, records(said, said, RESPONSES))
    assert fate(first) == ("ok", 0, 1, None)
    assert [fate(one) for one in others] == [("ok", 1, 0, "lost: a part of the response")] * 11
    assert [f"turn {n}" in one["request"] for n, one in enumerate(others, 1)] == [True] * 11
    is_told(tmp_path, socket, f"lost: a part of the server's side: {WHY_BROKEN}")


def test_bytes_missed_before_a_checkpoint_are_counted_at_the_end(tmp_path: Path) -> None:
    said = long_talk()
    kept = changed(said, 5)
    socket, *turns = recorded_in_steps(tmp_path, records(kept, said, RESPONSES))
    why = captured(kept, said, "server")
    is_told(tmp_path, socket, f"lost: a part of the server's side: {why}")
    (lost,) = [one for one in turns if one["complete"] == 0]
    assert fate(lost) == ("ok", 1, 0, "lost: a part of the response")
    assert picked(lost, "response_note", "outcome") == (f"cut: {why}", "ok")
    assert '"turn 1"' in lost["request"]
