"""What a row knows of an exchange besides its texts: who, for how much, and within which limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.store.making import (
    JSON_HEADERS,
    SSE_HEADERS,
    Exchange,
    chat_answer,
    chat_request,
    delta,
    home,
    recorded,
    row,
    rows,
    stream_of,
)

AZURE = "https://acme.openai.azure.com"
DATED = "/openai/deployments/my%20chat/chat/completions?api-version=2024-10-21"


def answered(**more: Any) -> bytes:
    return orjson.dumps(chat_answer() | more)


def usage(given: int, made: int, **details: Any) -> dict[str, Any]:
    return {"prompt_tokens": given, "completion_tokens": made, **details}


# -- cost: gpt-4o costs $2.50 for a million tokens, cached ones $1.25, and $10 for those it makes

COSTS = {
    "plain": (answered(), 0.0000525),  # (9 * 2.5 + 3 * 10) / 10**6
    "cached": (
        answered(usage=usage(1000, 100, prompt_tokens_details={"cached_tokens": 600})),
        0.00275,  # (400 * 2.5 + 600 * 1.25 + 100 * 10) / 10**6
    ),
    "reasoning is a part of the output": (
        answered(usage=usage(9, 3, completion_tokens_details={"reasoning_tokens": 2})),
        0.0000525,
    ),
    "a smaller model answered": (
        answered(model="gpt-4o-mini-2024-07-18"),
        0.00000315,  # (9 * 0.15 + 3 * 0.6) / 10**6
    ),
}


@pytest.mark.parametrize("name", COSTS)
def test_what_it_cost(tmp_path: Path, name: str) -> None:
    response, usd = COSTS[name]
    found = recorded(tmp_path, Exchange(response=response))
    assert found["cost_usd"] == pytest.approx(usd, rel=1e-12)
    assert (found["cost_note"], found["host"]) == (None, "api.openai.com")


UNKNOWN: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "both models": (
        {"response": answered(model="gpt-x"), "request": orjson.dumps({"model": "gpt-y"})}, {},
        "no price is known for model 'gpt-x' at openai",
    ),
    "host": (
        {}, {"upstream": "http://127.0.0.1:9"},
        "no price is known for model 'gpt-4o-2024-08-06' at this host",
    ),
    "tier": (
        {"response": answered(service_tier="imaginary")}, {},
        "no price is known for tier 'imaginary' of model 'gpt-4o-2024-08-06' on 2025-01-01",
    ),
    "usage": ({"response": answered(usage=None)}, {}, "the answer states no usage"),
    "candidate": (
        {"routed": [{"to": "small", "why": "live"}]}, {}, "not served by the upstream",
    ),
    "nobody": (
        {"status": None, "response": b"", "outcome": "timeout", "error": "late"}, {},
        "not served by the upstream",
    ),
    "an endpoint without bodies": (
        {"target": "/v1/uploads"}, {}, "no body is kept of this endpoint",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_cost_that_is_not_known_is_null_and_says_why(tmp_path: Path, name: str) -> None:
    exchange, policy, why = UNKNOWN[name]
    found = recorded(tmp_path, Exchange(at=1_735_732_800.0, **exchange), **policy)
    assert (found["cost_usd"], found["cost_note"]) == (None, why)
    day = row(home(tmp_path), "SELECT day, calls, cost_usd, calls_without_cost FROM usage")
    assert day == {"day": "2025-01-01", "calls": 1, "cost_usd": None, "calls_without_cost": 1}


def test_the_host_is_the_upstreams_or_whom_the_client_called(tmp_path: Path) -> None:
    other = {"upstreams": [{"prefix": "/openai", "url": AZURE}], "upstream": "http://127.0.0.1:9"}
    found = recorded(
        tmp_path,
        Exchange(number=1, target=DATED),
        Exchange(number=2, more_opened={"host": "api.openai.com"}),
        Exchange(number=3, target="/openaix/chat/completions"),
        Exchange(number=4),
        **other,
    )
    assert found["seq"] == 4
    sql = "SELECT host, deployment, endpoint, cost_usd FROM exchanges ORDER BY seq"
    assert [tuple(one.values()) for one in rows(home(tmp_path), sql)] == [
        ("acme.openai.azure.com", "my chat", "chat.completions", 0.0000525),
        ("api.openai.com", None, "chat.completions", 0.0000525),
        ("127.0.0.1", None, "other", None),
        ("127.0.0.1", None, "chat.completions", None),
    ]


def test_the_owners_own_prices(tmp_path: Path) -> None:
    prices = [{"model": "house-*", "input": 1, "output": 2}]
    one = Exchange(response=answered(model="house-7b"))
    found = recorded(tmp_path, one, upstream="http://127.0.0.1:9", prices=prices)
    assert (found["cost_usd"], found["cost_note"]) == (0.000015, None)  # (9 * 1 + 3 * 2) / 10**6


# -- usage


def test_all_that_a_usage_states(tmp_path: Path) -> None:
    stated = usage(
        900, 80,
        prompt_tokens_details={"cached_tokens": 500, "cache_write_tokens": 60, "audio_tokens": 7},
        completion_tokens_details={"reasoning_tokens": 50, "audio_tokens": 8},
    )  # fmt: skip
    found = recorded(tmp_path, Exchange(response=answered(usage=stated, service_tier="default")))
    counted = ("input", "cached", "cache_write", "output", "reasoning", "audio_input")
    assert [found[f"{name}_tokens"] for name in counted] == [900, 500, 60, 80, 50, 7]
    assert (found["audio_output_tokens"], found["service_tier"]) == (8, "default")
    assert orjson.loads(found["usage"]) == stated


def test_an_estimate_where_the_stream_states_no_usage(tmp_path: Path) -> None:
    """By characters, four a token. Asked: 3, and 3 more with each message: `Be kind.` is 2,
    `hello` 2. Said: `Hello there` is 3."""
    response = stream_of(delta(content="Hello "), delta(content="there", finish="stop"))
    request = orjson.dumps(chat_request(stream=True) | {"model": "house-7b"})
    found = recorded(
        tmp_path, Exchange(request=request, response=response, response_headers=SSE_HEADERS)
    )
    assert (found["input_tokens"], found["output_tokens"], found["usage"]) == (None, None, None)
    assert found["usage_note"] == "the answer states no usage"
    guessed = ("estimated_input_tokens", "estimated_output_tokens", "estimate_method")
    assert [found[name] for name in guessed] == [13, 3, "characters"]
    assert (found["cost_usd"], found["cost_note"]) == (None, "the answer states no usage")


# -- rate limits


def test_rate_limits_have_a_row_of_their_own(tmp_path: Path) -> None:
    limits = {
        "x-ratelimit-limit-requests": "10000", "x-ratelimit-remaining-requests": "9999",
        "x-ratelimit-reset-requests": "6ms", "x-ratelimit-limit-tokens": "200000",
        "x-ratelimit-remaining-tokens": "-1", "x-ratelimit-reset-tokens": "1m2.5s",
    }  # fmt: skip
    first = Exchange(number=1, at=1_735_732_800.5)
    first.response_headers += list(limits.items())
    refused = Exchange(
        number=2, at=1_735_732_801.0, status=429, response=b'{"error": {"message": "slow"}}',
        response_headers=[*JSON_HEADERS, ("retry-after", "20")],
    )  # fmt: skip
    recorded(tmp_path, first, refused, Exchange(number=3))
    sql = "SELECT * FROM rate_limits ORDER BY number"
    assert [tuple(one.values()) for one in rows(home(tmp_path), sql)] == [
        (1, 10000, 9999, 0.006, 200000, None, 62.5, None),
        (2, None, None, None, None, None, None, 20.0),
    ]
    sql = "SELECT * FROM rate_limit_history"
    known = ("started_at", "key_hash", "status", "remaining_requests", "retry_after_s")
    assert [tuple(one[name] for name in known) for one in rows(home(tmp_path), sql)] == [
        ("2025-01-01T12:00:00.500Z", "k1", 200, 9999, None),
        ("2025-01-01T12:00:01.000Z", "k1", 429, None, 20.0),
    ]


# -- who asks


def test_who_asks_and_for_what(tmp_path: Path) -> None:
    headers = [("X-Understudy-Tenant", "acme"), ("X-Session-Id", "s-1"), ("idempotency-key", "i")]
    body = chat_request(user="u-7", metadata={"feature": "triage"})
    one = Exchange(request=orjson.dumps(body), request_headers=[*JSON_HEADERS, *headers])
    found = recorded(tmp_path, one)
    names = ("tenant", "feature", "user", "session", "idempotency_key")
    assert [found[name] for name in names] == ["acme", "triage", "u-7", "s-1", "i"]


def test_the_policy_says_where_to_look(tmp_path: Path) -> None:
    body = chat_request(metadata={"customer": "acme"}, safety_identifier="safe-1", user="u-7")
    found = recorded(
        tmp_path,
        Exchange(request=orjson.dumps(body)),
        identity={"tenant": ["metadata.customer"], "user": ["safety_identifier"]},
    )
    assert (found["tenant"], found["user"]) == ("acme", "safe-1")


@pytest.mark.parametrize(
    ("target", "endpoint", "deployment", "cost"),
    [
        ("/eu/v1/chat/completions", "chat.completions", None, 0.0000525),
        ("/eu/openai/deployments/d/chat/completions?a=1", "chat.completions", "d", None),
        ("/eu/v1/organization/users?a=1", "organization", None, None),
        ("/euro/v1/chat/completions", "other", None, None),
    ],
)
def test_the_way_to_an_upstream_is_no_part_of_the_call(
    tmp_path: Path, target: str, endpoint: str, deployment: str | None, cost: float | None
) -> None:
    upstreams = [{"prefix": "/eu", "url": "https://api.openai.com", "strip": True}]
    one = Exchange(target=target)
    found = recorded(tmp_path, one, upstreams=upstreams)
    assert (found["endpoint"], found["deployment"]) == (endpoint, deployment)
    assert ("bodies" in found) == (endpoint == "chat.completions")
    if cost is not None:
        assert (found["input_tokens"], found["cost_usd"]) == (9, cost)


def test_a_client_that_names_the_host_in_its_target(tmp_path: Path) -> None:
    one = Exchange(target="http://llm.local:80/v1/chat/completions")
    one.more_opened = {"host": "llm.local"}
    found = recorded(tmp_path, one, upstreams=[{"prefix": "/v1", "url": "http://127.0.0.1:9"}])
    assert (found["endpoint"], found["host"]) == ("chat.completions", "llm.local")
    assert "bodies" in found


def test_speech_that_was_refused_costs_nothing(tmp_path: Path) -> None:
    asked = orjson.dumps({"model": "tts-1", "input": "x" * 1000, "voice": "a"})
    one = Exchange(request=asked, target="/v1/audio/speech", status=429)
    one.response = b'{"error":{"message":"slow down"}}'
    found = recorded(tmp_path, one)
    assert (found["cost_usd"], found["cost_note"]) == (None, "the answer states no usage")


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/v1/responses/r1"), ("POST", "/v1/responses/r1/cancel"), ("GET", "/v1/batches/b1")],
)
def test_an_answer_that_is_read_again_is_counted_once(
    tmp_path: Path, method: str, target: str
) -> None:
    answer = {"id": "r1", "model": "gpt-4o", "usage": {"input_tokens": 7, "output_tokens": 5}}
    one = Exchange(method=method, target=target, request=b"", response=orjson.dumps(answer))
    found = recorded(tmp_path, one)
    assert orjson.loads(found["usage"]) == answer["usage"]
    assert (found["input_tokens"], found["output_tokens"], found["cost_usd"]) == (None, None, None)
    assert found["usage_note"].startswith("not counted here")


@pytest.mark.parametrize(
    ("body", "headers", "complete"),
    [
        (b'{"id":"a","choices":[', [], 0),
        (b"[1,2]", [], 1),
        (b"", [], 1),
        (b"not gzip", [("Content-Encoding", "gzip")], 0),
    ],
)
def test_an_answer_is_complete_only_if_it_can_be_read(
    tmp_path: Path, body: bytes, headers: list[tuple[str, str]], complete: int
) -> None:
    one = Exchange(response=body)
    one.response_headers = [*one.response_headers, *headers]
    found = recorded(tmp_path, one)
    assert found["complete"] == complete
    assert (found["bodies"]["response_note"] is None) == bool(complete)
