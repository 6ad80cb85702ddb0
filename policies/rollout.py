"""The rollout of one (task, candidate): a state machine.

1. Everything that moves a rollout is in this file: `_TABLE` says which event may come in which
   phase; a pair that is not in it raises `IllegalTransition`.
2. Time is the event's timestamp. Nothing here reads a clock.
3. Missing evidence holds. Only the finding `above` steps up, only `below` takes back.
4. A transition returns commands: `Log` (why, with figures: stored with the new state in one
   transaction), then `Publish` when the share of traffic changed. No command: nothing changed.

    collecting --first comparison--> shadow --gate--> canary --gate, step_time--> live
               canary, live --evidence below--> demoted --retry_after--> shadow
      any --hold--> held --release--> what it was; evidence below takes it back, still held
      any --pin--> pinned --release--> shadow
      any --the candidate's file changed--> at 0 %, to shadow unless it is held
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal

from policies.evidence import Figures, Judgement
from policies.policy import Rollout

Phase = Literal["collecting", "shadow", "canary", "live", "held", "demoted", "pinned"]


class IllegalTransition(Exception):
    """An event that can't come in this phase: a defect of the caller."""


@dataclass(frozen=True, slots=True)
class State:
    """`step`: steps taken, 0 while nothing is diverted. `since`: when this phase or step began.

    Evidence from before `evidence_since` does not count. `resume`: where a release goes back to.
    Times are seconds since the epoch.
    """

    phase: Phase
    step: int
    percent: float
    since: float
    evidence_since: float
    model_sha256: str
    resume: Phase = "shadow"


@dataclass(frozen=True, slots=True)
class Judged:
    """The evidence was judged, because there is more of it or because time has passed.

    `fresh`: comparisons made since the phase or step began.
    """

    at: float
    judgement: Judgement
    fresh: int


@dataclass(frozen=True, slots=True)
class Hold:
    """A person stops the rollout where it is. Evidence can still take it back."""

    at: float
    by: str


@dataclass(frozen=True, slots=True)
class Pin:
    """A person sets the share, whatever the evidence says."""

    at: float
    by: str
    percent: float


@dataclass(frozen=True, slots=True)
class Release:
    """A person hands the rollout back to the evidence."""

    at: float
    by: str


@dataclass(frozen=True, slots=True)
class CandidateChanged:
    """The candidate's file is another one than the evidence was gathered with."""

    at: float
    sha256: str


Event = Judged | Hold | Pin | Release | CandidateChanged


@dataclass(frozen=True, slots=True)
class Log:
    """Store the new state, and this line, in one transaction."""

    why: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Then write the plan: the share of traffic is another."""

    percent: float


Command = Log | Publish
Next = tuple[State, str] | None  # the state after an event and why; None: nothing changes


def begin(at: float, sha256: str) -> State:
    return State("collecting", 0, 0.0, at, at, sha256)


def advance(state: State, event: Event, rules: Rollout) -> tuple[State, tuple[Command, ...]]:
    """The state after `event`, and what to do about it. Raises IllegalTransition."""
    handle = _TABLE.get((state.phase, type(event)))
    if handle is None:
        raise IllegalTransition(f"{type(event).__name__} in phase {state.phase}")
    found = handle(state, event, rules)
    if found is None:
        return state, ()
    after, why = found
    if after.percent == state.percent:
        return after, (Log(why),)
    return after, (Log(why), Publish(after.percent))


def _first_evidence(state: State, event: Judged, rules: Rollout) -> Next:
    figures = event.judgement.figures
    if not figures.pairs:
        return None
    why = f"first comparison made; {rules.minimum_pairs} distinct requests are needed for a step"
    return replace(state, phase="shadow", since=event.at), why


def _gate(state: State, event: Judged, rules: Rollout) -> Next:
    """From shadow to the first step. A candidate that just fell short is no news here."""
    judged = event.judgement
    if judged.gate != "above" or judged.recent == "below":
        return None
    return _step_up(state, event, rules)


def _serving(state: State, event: Judged, rules: Rollout) -> Next:
    """While part of the traffic is diverted: back at once, on when the time has come."""
    taken_back = _take_back(state, event, rules)
    if taken_back is not None:
        return taken_back
    if state.percent > rules.steps[-1]:
        return _lower(state, event, rules)
    # Old evidence opens the gate, but only a step that was watched leads to the next.
    due = event.at - state.since >= rules.step_time and event.fresh > 0
    return _step_up(state, event, rules) if due and event.judgement.gate == "above" else None


def _step_up(state: State, event: Judged, rules: Rollout) -> Next:
    higher = next((step for step in rules.steps if step > state.percent), None)
    if higher is None:
        return None
    phase: Phase = "live" if higher == rules.steps[-1] else "canary"
    step = rules.steps.index(higher) + 1
    after = replace(state, phase=phase, step=step, percent=higher, since=event.at)
    why = f"{_proof(event.judgement.figures, rules)}: {_move(state.percent, higher)}"
    return after, why


def _lower(state: State, event: Judged, rules: Rollout) -> Next:
    most = rules.steps[-1]
    after = replace(
        state, phase="live", step=len(rules.steps), percent=most, since=event.at
    )  # fmt: skip
    return after, f"the policy's last step is {most:g} %: {_move(state.percent, most)}"


def _take_back(state: State, event: Judged, rules: Rollout) -> Next:
    judged = event.judgement
    if judged.recent != "below" and judged.gate != "below":
        return None
    where = f"in the newest {rules.window} pairs" if judged.recent == "below" else "in all pairs"
    why = (
        f"agreement fell below {rules.threshold:g} {where} ({_count(judged.figures)}): "
        f"{_move(state.percent, 0.0)}, evidence anew in {rules.retry_after:g} s"
    )
    return _from_scratch(state, "demoted", event.at), why


def _held(state: State, event: Judged, rules: Rollout) -> Next:
    taken_back = _take_back(state, event, rules) if state.percent > 0 else None
    if taken_back is None:
        return None
    after, why = taken_back
    return replace(after, phase="held", resume="demoted"), f"{why}, still held"


def _retry(state: State, event: Judged, rules: Rollout) -> Next:
    waited = event.at - state.since
    if waited < rules.retry_after:
        return None
    return _from_scratch(state, "shadow", event.at), (
        f"{waited:.0f} s after the demotion: evidence is gathered anew, at 0 %"
    )


def _wait(state: State, event: Event, rules: Rollout) -> Next:
    return None


def _hold(state: State, event: Hold, rules: Rollout) -> Next:
    after = replace(state, phase="held", since=event.at, resume=state.phase)
    return after, f"held by {event.by} at {state.percent:g} %"


def _pin(state: State, event: Pin, rules: Rollout) -> Next:
    after = replace(state, phase="pinned", since=event.at, percent=event.percent)
    return after, f"pinned by {event.by}, whatever the evidence: " + _move(
        state.percent, event.percent
    )


def _resume(state: State, event: Release, rules: Rollout) -> Next:
    after = replace(state, phase=state.resume, since=event.at)
    return after, f"released by {event.by}: {state.resume} again, at {state.percent:g} %"


def _unpin(state: State, event: Release, rules: Rollout) -> Next:
    # The evidence stays, but a share that it did not earn does not.
    after = replace(state, phase="shadow", step=0, percent=0.0, since=event.at)
    return after, f"unpinned by {event.by}: {_move(state.percent, 0.0)}"


def _changed(state: State, event: CandidateChanged, rules: Rollout) -> Next:
    if event.sha256 == state.model_sha256:
        return None
    after = replace(_from_scratch(state, "shadow", event.at), model_sha256=event.sha256)
    return after, _change(state, event)


def _changed_held(state: State, event: CandidateChanged, rules: Rollout) -> Next:
    if event.sha256 == state.model_sha256:
        return None
    after = replace(_from_scratch(state, "held", event.at), model_sha256=event.sha256)
    return after, f"{_change(state, event)}, still held"


def _change(state: State, event: CandidateChanged) -> str:
    return (
        f"the candidate's file changed ({state.model_sha256[:12]} to {event.sha256[:12]}): "
        f"{_move(state.percent, 0.0)}, evidence anew"
    )


def _from_scratch(state: State, phase: Phase, at: float) -> State:
    return State(phase, 0, 0.0, at, at, state.model_sha256)


def _proof(figures: Figures, rules: Rollout) -> str:
    return (
        f"{_count(figures)} agree, proven over {figures.low:.3f} "
        f"with the threshold at {rules.threshold:g}"
    )


def _count(figures: Figures) -> str:
    return f"{figures.matched} of {figures.pairs} distinct requests ({figures.agreement:.1%})"


def _move(before: float, after: float) -> str:
    return f"{before:g} % stays" if before == after else f"{before:g} % to {after:g} %"


_PHASES: Final[tuple[Phase, ...]] = (
    "collecting", "shadow", "canary", "live", "held", "demoted", "pinned",
)  # fmt: skip

Handler = Callable[[State, Any, Rollout], Next]
_TABLE: Final[Mapping[tuple[Phase, type[Any]], Handler]] = {
    ("collecting", Judged): _first_evidence,
    ("collecting", Hold): _hold,
    ("collecting", Pin): _pin,
    ("collecting", CandidateChanged): _changed,
    ("shadow", Judged): _gate,
    ("shadow", Hold): _hold,
    ("shadow", Pin): _pin,
    ("shadow", CandidateChanged): _changed,
    ("canary", Judged): _serving,
    ("canary", Hold): _hold,
    ("canary", Pin): _pin,
    ("canary", CandidateChanged): _changed,
    ("live", Judged): _serving,
    ("live", Hold): _hold,
    ("live", Pin): _pin,
    ("live", CandidateChanged): _changed,
    ("held", Judged): _held,
    ("held", Pin): _pin,
    ("held", Release): _resume,
    ("held", CandidateChanged): _changed_held,
    ("demoted", Judged): _retry,
    ("demoted", Hold): _hold,
    ("demoted", Pin): _pin,
    ("demoted", CandidateChanged): _changed,
    ("pinned", Judged): _wait,
    ("pinned", Pin): _pin,
    ("pinned", Release): _unpin,
    ("pinned", CandidateChanged): _changed,
}


def plain(state: State) -> dict[str, Any]:
    """The state as JSON values, for a `RolloutRecord`."""
    return asdict(state)


def restore(values: Mapping[str, Any]) -> State:
    """The state that `plain` wrote. Raises ValueError for anything else."""
    try:
        state = State(**values)
    except TypeError as error:
        raise ValueError(f"not a rollout's state: {error}") from error
    if state.phase not in _PHASES or state.resume not in _PHASES:
        raise ValueError(f"not a rollout's phase: {state.phase!r}, {state.resume!r}")
    return state
