"""What the relay asks the policies: may this request be diverted, and is the candidate well?"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from policies.breaker import Breaker
from policies.eligibility import obstacle
from policies.plan import Facts, PlannedTask, bucket, decide

TASK = PlannedTask("canary", "small", 100.0, 3.0, "salt")
GOOD = Facts(
    key_proven=True, sdk_retry=False, sticky="s", draw=50.0, slot_free=True, breaker_closed=True
)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({}, None),
        ({"draw": 2.9}, "holdback"),
        ({"draw": 3.0}, None),
        ({"key_proven": False}, "key_unproven"),
        ({"sdk_retry": True}, "sdk_retry"),
        ({"breaker_closed": False}, "breaker_open"),
        ({"slot_free": False}, "no_slot"),
        ({"draw": 0.0, "key_proven": False}, "holdback"),
        ({"slot_free": False, "breaker_closed": False}, "breaker_open"),
    ],
)
def test_one_request(changes: dict[str, Any], why: str | None) -> None:
    assert decide(TASK, replace(GOOD, **changes)) == why


def test_no_share_diverts_nothing() -> None:
    task = replace(TASK, percent=0.0)
    assert {decide(task, replace(GOOD, sticky=str(n))) for n in range(1000)} == {"share"}


def test_raising_the_share_only_adds() -> None:
    before: set[str] = set()
    for percent in (0.0, 1.0, 10.0, 50.0, 99.0, 100.0):
        task = replace(TASK, percent=percent)
        now = {str(n) for n in range(2000) if decide(task, replace(GOOD, sticky=str(n))) is None}
        assert now >= before
        assert abs(len(now) / 20 - percent) < 3
        before = now
    assert len(before) == 2000


def test_buckets_are_uniform_and_differ_by_salt() -> None:
    keys = [f"conversation {n}" for n in range(10_000)]
    tenths = [0] * 10
    for key in keys:
        assert 0 <= bucket("salt", key) < 100
        tenths[int(bucket("salt", key) / 10)] += 1
    assert max(tenths) < 1130  # four standard deviations
    assert min(tenths) > 870
    both = sum(bucket("salt", k) < 50 and bucket("pepper", k) < 50 for k in keys)
    assert 2250 < both < 2750


def test_the_breaker_opens_after_three_failures_in_the_last_hundred() -> None:
    breaker = Breaker()
    for failed in [True] + [False] * 98 + [True]:
        breaker.record(failed, 1.0)
    assert breaker.opened_at is None
    breaker.record(False, 2.0)  # the first failure is out of the window
    breaker.record(True, 3.0)
    assert breaker.opened_at is None
    breaker.record(True, 4.0)
    assert breaker.opened_at == 4.0
    assert not breaker.admits(0)


def test_only_a_later_probe_closes_the_breaker() -> None:
    breaker = Breaker()
    for at in (1.0, 2.0, 3.0):
        breaker.record(True, at)
    for _ in range(200):
        breaker.record(False, 4.0)
    assert not breaker.admits(0)
    breaker.probed(3.0)
    assert not breaker.admits(0)
    breaker.probed(3.1)
    assert breaker.admits(2)
    assert breaker.failures == 0


@pytest.mark.parametrize(
    ("failures", "waiting", "admits"),
    [
        (0, 2, True),
        (0, 3, False),
        (1, 0, True),
        (1, 1, True),
        (1, 2, False),
        (2, 0, True),
        (2, 1, False),
    ],
)
def test_failures_and_those_that_wait_are_three_at_most(
    failures: int, waiting: int, admits: bool
) -> None:
    breaker = Breaker()
    for _ in range(failures):
        breaker.record(True, 1.0)
    assert breaker.admits(waiting) is admits


ASKED = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
OBSTACLES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"stream": True, "temperature": 0, "seed": 1, "n": 1, "store": False}, None),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, None),
    ({"previous_response_id": None}, None),
    ({"n": 2}, "n>1"),
    ({"store": True}, "store"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"logprobs": True}, "logprobs"),
    ({"response_format": {"type": "grammar"}}, "response_format"),
    ({"response_format": "text"}, "response_format"),
    *[({key: 1}, f"field:{key}") for key in (
        "tools", "logit_bias", "prediction", "audio", "web_search_options", "background",
        "previous_response_id", "conversation", "prompt", "tomorrows_setting")],
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [1]}, "tool_calls"),
    ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "tool_calls"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "role:tool"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "content_parts"),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}, None),
    ({"messages": [{"role": "user", "content": None}]}, "content_parts"),
    ({"messages": [{"role": "user", "content": "x" * 9000}]}, "too_long"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "why"), OBSTACLES)
def test_what_a_candidate_must_not_answer(changes: dict[str, Any], why: str | None) -> None:
    assert obstacle({**ASKED, **changes}, 1024) == why
