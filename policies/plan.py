"""The plan: the immutable table from which the proxy decides each request, and that decision.

Written by the director, read by the proxy. No plan, an expired one or one that can't be read means
the same as `EMPTY`: relay everything.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import orjson

VERSION: Final = 1
LIFETIME: Final = 30.0  # seconds a plan stays valid without a heartbeat
# A refusal of the candidate is no failure: the request goes upstream, the breaker does not count.
REFUSALS: Final = frozenset(("busy", "unsure", "ineligible", "disabled"))
PURPOSE_HEADER: Final = "x-understudy-purpose"  # shadow | probe; absent on diverted requests
CONFIDENCE_HEADER: Final = "x-understudy-confidence-floor"
PATIENCE_HEADER: Final = "x-understudy-patience"  # seconds the caller will wait for the head
SERVED_BY_HEADER: Final = "x-understudy-served-by"


@dataclass(frozen=True, slots=True)
class PlannedCandidate:
    """`probed`: CLOCK_MONOTONIC of the last shadow run that succeeded; closes a breaker opened
    before it. `in_flight`: most diverted requests at once."""

    socket: str
    context: int
    in_flight: int
    probed: float


@dataclass(frozen=True, slots=True)
class PlannedTask:
    """Shares are in percent, 0 to 100; durations in seconds."""

    phase: str
    candidate: str
    percent: float
    holdback: float
    salt: str
    patience: float = 2.0
    deadline: float = 30.0
    confidence_floor: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`valid_until`: seconds since the epoch. `served_by_header`: name the candidate in answers."""

    valid_until: float
    served_by_header: bool = True
    candidates: dict[str, PlannedCandidate] = field(default_factory=dict)
    tasks: dict[str, PlannedTask] = field(default_factory=dict)

    @property
    def diverts(self) -> bool:
        return any(task.percent > 0 for task in self.tasks.values())


EMPTY: Final = Plan(valid_until=0.0)


def dump(plan: Plan) -> bytes:
    return orjson.dumps({"version": VERSION, **asdict(plan)}, option=orjson.OPT_INDENT_2)


def load(data: bytes) -> Plan:
    """The plan in `data`. Raises ValueError when it is not one we understand."""
    try:
        raw: dict[str, Any] = orjson.loads(data)
        if raw["version"] != VERSION:
            raise ValueError(f"plan version {raw['version']!r}, expected {VERSION}")
        return Plan(
            valid_until=float(raw["valid_until"]),
            served_by_header=bool(raw["served_by_header"]),
            candidates={k: PlannedCandidate(**v) for k, v in raw["candidates"].items()},
            tasks={k: PlannedTask(**v) for k, v in raw["tasks"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not a plan: {error}") from error


def bucket(salt: str, sticky: str) -> float:
    """Where a sticky key lies in 0..100, uniformly: raising the percentage only adds keys."""
    digest = hashlib.blake2b(sticky.encode(), key=salt.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100


@dataclass(frozen=True, slots=True)
class Facts:
    """What the proxy knows about one request when it asks. `draw`: random, 0..100."""

    key_proven: bool
    sdk_retry: bool
    sticky: str
    draw: float
    slot_free: bool
    breaker_closed: bool


def decide(task: PlannedTask, facts: Facts) -> str | None:
    """None: divert. Otherwise why the request goes upstream."""
    if facts.draw < task.holdback:
        return "holdback"
    if bucket(task.salt, facts.sticky) >= task.percent:
        return "share"
    if not facts.key_proven:
        return "key_unproven"
    if facts.sdk_retry:
        return "sdk_retry"
    if not facts.breaker_closed:
        return "breaker_open"
    return None if facts.slot_free else "no_slot"
