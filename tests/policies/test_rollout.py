"""Rollouts as transcripts: events in, phases, shares and reasons out."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import orjson
import pytest

from policies.evidence import Figures, Finding, Judgement, Recent
from policies.policy import Rollout
from policies.rollout import (
    CandidateChanged,
    Event,
    Hold,
    IllegalTransition,
    Judged,
    Log,
    Phase,
    Pin,
    Publish,
    Release,
    State,
    advance,
    begin,
    plain,
    restore,
)

RULES = Rollout(threshold=0.9, steps=(10.0, 50.0, 100.0), step_time=60, retry_after=1000)


def judged(
    at: float, gate: Finding, recent: Recent = "steady", pairs: int = 100, fresh: int = 5
) -> Judged:
    figures = Figures(pairs - pairs // 50, pairs, 0.91, 0.99)
    return Judged(at, Judgement(gate, recent, figures), fresh)


def play(state: State, *events: Event, rules: Rollout = RULES) -> tuple[State, list[str]]:
    """The state after all events, and what each transition said."""
    said: list[str] = []
    for event in events:
        state, commands = advance(state, event, rules)
        said.extend(command.why for command in commands if isinstance(command, Log))
    return state, said


def at(phase: Phase, percent: float = 0.0, step: int = 0) -> State:
    return State(phase, step, percent, 0.0, 0.0, "sha-1")


def test_from_the_first_pair_to_all_traffic() -> None:
    state, said = play(
        begin(0, "sha-1"),
        judged(1, "thin", pairs=0),
        judged(2, "thin", pairs=1),
        judged(3, "uncertain", pairs=60),
        judged(4, "above", pairs=100),
        judged(30, "above"),
        judged(64, "above"),
        judged(124, "above"),
    )
    assert (state.phase, state.percent, state.step) == ("live", 100.0, 3)
    assert said == [
        "first comparison made; 50 distinct requests are needed for a step",
        "98 of 100 distinct requests (98.0%) agree, proven over 0.910 with the threshold at 0.9: "
        "0 % to 10 %",
        "98 of 100 distinct requests (98.0%) agree, proven over 0.910 with the threshold at 0.9: "
        "10 % to 50 %",
        "98 of 100 distinct requests (98.0%) agree, proven over 0.910 with the threshold at 0.9: "
        "50 % to 100 %",
    ]


def test_commands_come_in_the_order_in_which_they_are_carried_out() -> None:
    _, commands = advance(at("shadow"), judged(5, "above"), RULES)
    assert [type(command) for command in commands] == [Log, Publish]
    assert commands[1] == Publish(10.0)


@pytest.mark.parametrize("gate", ["thin", "uncertain", "below"])
def test_only_proof_leads_out_of_shadow(gate: Finding) -> None:
    assert advance(at("shadow"), judged(9e9, gate), RULES) == (at("shadow"), ())


@pytest.mark.parametrize(
    "event",
    [
        judged(59, "above"),
        judged(9e9, "above", fresh=0),
        judged(9e9, "uncertain"),
        judged(9e9, "thin"),
    ],
    ids=["too soon", "nothing new since the step", "no longer proven", "thin"],
)
def test_missing_proof_holds_a_step(event: Judged) -> None:
    assert advance(at("canary", 10, 1), event, RULES) == (at("canary", 10, 1), ())


@pytest.mark.parametrize("state", [at("canary", 10, 1), at("canary", 50, 2), at("live", 100, 3)])
@pytest.mark.parametrize("event", [judged(7, "above", "below"), judged(7, "below")])
def test_evidence_takes_back_at_once(state: State, event: Judged) -> None:
    after, commands = advance(state, event, RULES)
    assert after == State("demoted", 0, 0.0, 7, 7, "sha-1")
    assert commands[1] == Publish(0.0)
    assert isinstance(commands[0], Log) and "98 of 100" in commands[0].why


def test_a_demotion_is_retried_with_fresh_evidence() -> None:
    demoted = State("demoted", 0, 0.0, 100, 100, "sha-1")
    assert advance(demoted, judged(1099, "above"), RULES) == (demoted, ())
    after, said = play(demoted, judged(1100, "above"))
    assert after == State("shadow", 0, 0.0, 1100, 1100, "sha-1")
    assert said == ["1000 s after the demotion: evidence is gathered anew, at 0 %"]


@pytest.mark.parametrize("phase", ["collecting", "shadow", "canary", "live", "demoted", "pinned"])
def test_a_changed_file_starts_again_at_nothing(phase: Phase) -> None:
    after, said = play(at(phase, 50, 2), CandidateChanged(9, "sha-2"))
    assert after == State("shadow", 0, 0.0, 9, 9, "sha-2")
    assert "sha-1 to sha-2" in said[0]


def test_the_same_file_changes_nothing() -> None:
    assert advance(at("live", 100, 3), CandidateChanged(9, "sha-1"), RULES)[1] == ()


def test_a_person_holds_and_releases() -> None:
    held, said = play(at("canary", 10, 1), Hold(5, "kim"), judged(9e5, "above"))
    assert (held.phase, held.percent, said) == ("held", 10, ["held by kim at 10 %"])
    released, _ = play(held, Release(9e5, "kim"))
    assert (released.phase, released.percent, released.since) == ("canary", 10, 9e5)


def test_evidence_takes_back_what_is_held_and_the_hold_stays() -> None:
    held, _ = play(at("canary", 10, 1), Hold(5, "kim"), judged(6, "above", "below"))
    assert (held.phase, held.percent) == ("held", 0.0)
    changed, _ = play(held, CandidateChanged(7, "sha-2"))
    assert (changed.phase, changed.model_sha256) == ("held", "sha-2")
    assert play(held, Release(8, "kim"))[0].phase == "demoted"


def test_a_pin_stands_against_evidence_until_released() -> None:
    pinned, said = play(at("shadow"), Pin(5, "kim", 30), judged(6, "below", "below"))
    assert (pinned.phase, pinned.percent) == ("pinned", 30)
    assert said == ["pinned by kim, whatever the evidence: 0 % to 30 %"]
    assert play(pinned, Release(7, "kim"))[0] == State("shadow", 0, 0.0, 7, 0.0, "sha-1")


def test_a_policy_with_smaller_steps_lowers_the_share() -> None:
    after, said = play(at("live", 100, 3), judged(5, "above"), rules=replace(RULES, steps=(20.0,)))
    assert (after.phase, after.percent) == ("live", 20)
    assert said == ["the policy's last step is 20 %: 100 % to 20 %"]


def test_one_step_is_the_last_step() -> None:
    after, _ = play(at("shadow"), judged(5, "above"), rules=replace(RULES, steps=(100.0,)))
    assert (after.phase, after.percent) == ("live", 100)


LEGAL = {
    (phase, kind)
    for phase in get_args(Phase)
    for kind in (Judged, Hold, Pin, Release, CandidateChanged)
} - {
    *((phase, Release) for phase in ("collecting", "shadow", "canary", "live", "demoted")),
    ("held", Hold),
    ("pinned", Hold),
}
EVENTS: list[Event] = [
    judged(9, "above"),
    Hold(9, "kim"),
    Pin(9, "kim", 5),
    Release(9, "kim"),
    CandidateChanged(9, "sha-2"),
]


@pytest.mark.parametrize("phase", get_args(Phase))
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_pair_is_legal_or_raises(phase: Phase, event: Event) -> None:
    if (phase, type(event)) in LEGAL:
        after, _ = advance(at(phase, 10, 1), event, RULES)
        assert 0 <= after.percent <= 100
    else:
        with pytest.raises(IllegalTransition, match=f"{type(event).__name__} in phase {phase}"):
            advance(at(phase), event, RULES)


def test_a_state_survives_json() -> None:
    state = at("canary", 10, 1)
    assert restore(orjson.loads(orjson.dumps(plain(state)))) == state


@pytest.mark.parametrize("values", [{}, {"phase": "shadow"}, {**plain(at("live")), "phase": "x"}])
def test_what_is_no_state_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="not a rollout"):
        restore(values)
