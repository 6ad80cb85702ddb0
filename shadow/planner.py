"""From rollouts to the plan, and the plan to its file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from policies.home import Home
from policies.plan import LIFETIME, Plan, PlannedCandidate, PlannedTask, dump
from policies.policy import Policy
from policies.rollout import State

Key = tuple[str, str]  # task, candidate


@dataclass(frozen=True, slots=True)
class Reachable:
    """A candidate that can serve now. `probed`: CLOCK_MONOTONIC of its last success."""

    context: int
    probed: float
    model_sha256: str


def build(
    policy: Policy,
    home: Home,
    states: Mapping[Key, State],
    reachable: Mapping[str, Reachable],
    now: float,
) -> Plan:
    """The plan that the rollouts amount to. A candidate that is away gets no traffic."""
    candidates = {
        candidate.name: PlannedCandidate(
            socket=str(home.model_socket(candidate.name)),
            context=reachable[candidate.name].context,
            in_flight=candidate.in_flight,
            probed=reachable[candidate.name].probed,
        )
        for candidate in policy.candidates
        if candidate.name in reachable
    }
    return Plan(
        valid_until=now + LIFETIME,
        served_by_header=policy.divert.header,
        candidates=candidates,
        tasks=_tasks(policy, _serving(states, reachable)),
    )


def _serving(states: Mapping[Key, State], reachable: Mapping[str, Reachable]) -> dict[Key, State]:
    """Rollouts with traffic, whose candidate is still the one the evidence was gathered with."""
    return {
        key: state
        for key, state in states.items()
        if state.percent > 0
        and key[1] in reachable
        and reachable[key[1]].model_sha256 == state.model_sha256
    }


def _tasks(policy: Policy, serving: Mapping[Key, State]) -> dict[str, PlannedTask]:
    order = {candidate.name: place for place, candidate in enumerate(policy.candidates)}
    tasks: dict[str, PlannedTask] = {}
    # Two candidates that both earned a task: the further one serves it, then the first named.
    for key in sorted(serving, key=lambda key: (-serving[key].percent, order[key[1]], key)):
        if key[0] not in tasks:
            tasks[key[0]] = _task(policy, key, serving[key])
    return tasks


def _task(policy: Policy, key: Key, state: State) -> PlannedTask:
    return PlannedTask(
        phase=state.phase,
        candidate=key[1],
        percent=state.percent,
        holdback=policy.rollout.holdback,
        salt=salt(key),
        patience=policy.divert.patience,
        deadline=policy.divert.deadline,
        confidence_floor=policy.divert.confidence_floor,
    )


def salt(key: Key) -> str:
    """Stable for a (task, candidate): who is diverted at 10 % still is at 50 %."""
    return hashlib.blake2b("\0".join(key).encode(), digest_size=16).hexdigest()


def write(path: Path, plan: Plan) -> None:
    """Replace the plan's file. A reader sees the old or the new one, never half of one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
    descriptor = os.open(fresh, flags, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(dump(plan))
    os.replace(fresh, path)
