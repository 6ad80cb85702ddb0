"""Frozen values that shadow hands over and store keeps: a pair, an observation, feedback, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["matched", "mismatched", "ignored"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A captured exchange that the upstream answered, as the director takes it from the store.

    `control`: the upstream's assistant text. `request`: the chat request's body, parsed.
    """

    exchange_id: str
    rowid: int
    task_id: str
    request_hash: str
    started_at: float  # seconds since the epoch
    request: dict[str, Any]
    control: str


@dataclass(frozen=True, slots=True)
class Observation:
    """What a candidate made of one exchange: an answer, or the error it ended with.

    `answer` is None exactly when `error` is not. Durations in milliseconds.
    """

    exchange_id: str
    candidate: str
    model_sha256: str
    at: float  # seconds since the epoch
    answer: str | None
    finish_reason: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    latency_ms: float
    margin: float | None  # smallest top-2 logit margin in the answer
    error: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Control against candidate. `score` is 0..1, None when ignored; `why` is for a person."""

    exchange_id: str
    candidate: str
    task_id: str
    request_hash: str
    at: float  # seconds since the epoch
    verdict: Verdict
    score: float | None
    why: str


@dataclass(frozen=True, slots=True)
class RolloutRecord:
    """The state of one (task, candidate) after an event, and why it is so.

    Stored as one row that replaces the last, with a line in the log, in one transaction.
    `state` is the rollout's own, as plain JSON values.
    """

    task_id: str
    candidate: str
    phase: str
    percent: float
    state: dict[str, Any]
    at: float  # seconds since the epoch
    why: str


@dataclass(frozen=True, slots=True)
class Feedback:
    """What somebody said of an answer: at least one of score, label and correction.

    `exchange_id`: our id or a unique beginning of it, the answer's `id`, or its x-request-id; the
    record finds which. Checked by `policies.feedback`.
    """

    exchange_id: str
    at: float  # seconds since the epoch
    score: float | None
    label: str | None
    correction: str | None
    source: str | None


Write = Observation | Comparison | RolloutRecord | Feedback


class UnknownExchange(LookupError):
    """No exchange, or more than one, goes by that id. The message is for a person."""


class WriteUnfit(ValueError):
    """The record will never take this write; the message says what to do."""
