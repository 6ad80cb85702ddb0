"""Costs worked out by hand. USD per million tokens, as OpenAI's page stated them on the day."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import genai_prices.data_snapshot
import pytest

from policies.prices import prices as parsed
from store.price_list import provider_of
from store.prices import Cost, Prices
from store.usage import Usage, of_speech, read

NOV_2026 = datetime(2026, 11, 1, 12, tzinfo=UTC)
CHAT = "chat.completions"


def _cost(model: str | None, usage: Usage, **given: Any) -> Cost:
    said = {
        "provider": "openai", "model": model, "response_model": model, "tier": "default",
        "at": NOV_2026, "usage": usage, "endpoint": CHAT,
    } | given  # fmt: skip
    overrides = parsed(said.pop("overrides", []), "prices")
    return Prices(overrides).cost(**said)


def _usd(model: str | None, usage: Usage, **given: Any) -> Decimal:
    cost = _cost(model, usage, **given)
    assert cost.usd is not None, cost.note
    assert cost.note is None
    assert sum(usd for _, usd in cost.parts) == cost.usd
    return cost.usd


def _why_not(model: str | None, usage: Usage, **given: Any) -> str:
    cost = _cost(model, usage, **given)
    assert cost.usd is None
    assert cost.note is not None
    return cost.note


PLAIN = Usage(input_tokens=1000, output_tokens=300)
CACHED = Usage(input_tokens=10_000, cached_tokens=8_000, output_tokens=500)


# -- kinds of token


def test_input_and_output() -> None:
    # gpt-4o: 1000 * 2.50 + 300 * 10.00 = 2500 + 3000
    assert _usd("gpt-4o", PLAIN) == Decimal("0.005500")


def test_cached_tokens_are_inside_the_input_and_paid_once() -> None:
    # gpt-4o: 2000 * 2.50 + 8000 * 1.25 + 500 * 10.00 = 5000 + 10000 + 5000
    assert _usd("gpt-4o-2024-08-06", CACHED) == Decimal("0.020000")


def test_cache_writes_have_a_price_of_their_own() -> None:
    usage = Usage(
        input_tokens=10_000, cached_tokens=4_000, cache_write_tokens=5_000, output_tokens=100
    )
    # gpt-5.6-sol from 2026-08-21:
    # 1000 * 4.00 + 4000 * 0.40 + 5000 * 5.00 + 100 * 20.00 = 4000 + 1600 + 25000 + 2000
    assert _usd("gpt-5.6-sol", usage) == Decimal("0.032600")


def test_reasoning_is_inside_the_output() -> None:
    usage = Usage(input_tokens=100, output_tokens=2_000, reasoning_tokens=1_900)
    # gpt-5: 100 * 1.25 + 2000 * 10.00 = 125 + 20000
    assert _usd("gpt-5", usage) == Decimal("0.020125")


def test_audio_costs_what_audio_costs() -> None:
    usage = Usage(
        input_tokens=1_000, audio_input_tokens=900, output_tokens=500, audio_output_tokens=400
    )
    # gpt-audio: 100 * 2.50 + 900 * 32.00 + 100 * 10.00 + 400 * 64.00 = 250 + 28800 + 1000 + 25600
    assert _usd("gpt-audio", usage) == Decimal("0.055650")


def test_cached_audio() -> None:
    usage = Usage(
        input_tokens=1_000, audio_input_tokens=600, cached_tokens=500, cached_audio_tokens=200,
        output_tokens=100, audio_output_tokens=100,
    )  # fmt: skip
    # gpt-realtime-mini: text 400, of it cached 300; audio 600, of it cached 200
    # 100 * 0.60 + 300 * 0.06 + 400 * 10.00 + 200 * 0.30 + 100 * 20.00 = 60 + 18 + 4000 + 60 + 2000
    assert _usd("gpt-realtime-mini", usage, endpoint="realtime") == Decimal("0.006138")


def test_images_have_a_price_where_the_model_draws_them() -> None:
    usage = Usage(
        input_tokens=50, image_input_tokens=40, output_tokens=1_100, image_output_tokens=1_000
    )
    # gpt-image-1.5: 10 * 5.00 + 40 * 8.00 + 100 * 10.00 + 1000 * 32.00 = 50 + 320 + 1000 + 32000
    cost = _usd("gpt-image-1.5", usage, endpoint="images.generations")
    assert cost == Decimal("0.033370")
    # gpt-4o only looks at them: 50 * 2.50 + 300 * 10.00 = 125 + 3000
    looked = Usage(input_tokens=50, image_input_tokens=40, output_tokens=300)
    assert _usd("gpt-4o", looked) == Decimal("0.003125")


def test_seconds_and_characters() -> None:
    # whisper-1: 62 s at 0.36 an hour, i.e. 62 * 0.0001
    heard = read("audio.transcriptions", {"usage": {"type": "duration", "seconds": 62}})
    assert _usd("whisper-1", heard, endpoint="audio.transcriptions") == Decimal("0.0062")
    # tts-1: 400 characters at 15.00 a million
    spoken = of_speech({"input": "x" * 400})
    assert _usd("tts-1", spoken, endpoint="audio.speech") == Decimal("0.006")


def test_embeddings_have_no_output() -> None:
    usage = read("embeddings", {"usage": {"prompt_tokens": 500, "total_tokens": 500}})
    # text-embedding-3-small: 500 * 0.02
    assert _usd("text-embedding-3-small", usage, endpoint="embeddings") == Decimal("0.00001")


def test_searches_are_paid_by_the_call_whatever_the_tier() -> None:
    usage = Usage(input_tokens=1_000, output_tokens=300, web_searches=2, file_searches=4)
    # o3 flex: (1000 * 1.00 + 300 * 4.00) / 1e6 + 2 * 0.01 + 4 * 0.0025 = 0.0022 + 0.02 + 0.01
    assert _usd("o3", usage, endpoint="responses", tier="flex") == Decimal("0.0322")
    # the same by a factor: (1000 * 2.00 + 300 * 8.00) / 2 / 1e6 + 0.03
    half = [{"model": "o3", "tier": {"slow": 0.5}}]
    cost = _usd("o3", usage, endpoint="responses", tier="slow", overrides=half)
    assert cost == Decimal("0.0322")


def test_a_long_prompt_costs_more_for_all_its_tokens() -> None:
    # gpt-5.4, to 272000: 272000 * 2.50 + 100 * 15.00 = 680000 + 1500
    short = Usage(input_tokens=272_000, output_tokens=100)
    assert _usd("gpt-5.4", short) == Decimal("0.681500")
    # over it: 172001 * 5.00 + 100000 * 0.50 + 100 * 22.50 = 860005 + 50000 + 2250
    longer = Usage(input_tokens=272_001, cached_tokens=100_000, output_tokens=100)
    assert _usd("gpt-5.4", longer) == Decimal("0.912255")


# -- tiers and days


def test_flex() -> None:
    # gpt-5 flex: 2000 * 0.625 + 8000 * 0.0625 + 500 * 5.00 = 1250 + 500 + 2500
    assert _usd("gpt-5", CACHED, tier="flex") == Decimal("0.004250")


@pytest.mark.parametrize("tier", ["priority", "fast"])
def test_priority(tier: str) -> None:
    # gpt-4o priority: 2000 * 4.25 + 8000 * 2.125 + 500 * 17.00 = 8500 + 17000 + 8500
    assert _usd("gpt-4o", CACHED, tier=tier) == Decimal("0.034000")


def test_batch_is_half_but_for_what_the_list_says_is_not() -> None:
    # gpt-4o batch, cached input at the standard price: 2000 * 1.25 + 8000 * 1.25 + 500 * 5.00
    assert _usd("gpt-4o", CACHED, batch=True) == Decimal("0.015000")
    # the day before the list begins: the same
    before = datetime(2026, 10, 13, 12, tzinfo=UTC)
    assert _usd("gpt-4o", CACHED, batch=True, at=before) == Decimal("0.015000")
    # gpt-3.5-turbo-1106, listed as no cheaper in a batch: 1000 * 1.00 + 300 * 2.00
    for day in (before, NOV_2026):
        assert _usd("gpt-3.5-turbo-1106", PLAIN, batch=True, at=day) == Decimal("0.001600")
    # text-embedding-3-small, of which the list says nothing: 500 * 0.02 / 2
    usage = Usage(input_tokens=500)
    cost = _usd("text-embedding-3-small", usage, endpoint="embeddings", batch=True)
    assert cost == Decimal("0.000005")


def test_no_tier_in_the_answer_is_the_standard_one() -> None:
    assert _usd("gpt-4o", PLAIN, tier=None) == _usd("gpt-4o", PLAIN, tier="default")


UNKNOWN_TIERS = [
    ("gpt-4o", "flex"),  # sold for other models only
    ("gpt-4o", "auto"),
    ("gpt-4o", "scale"),
    ("gpt-5.6-sol", "ultrafast"),
    ("gpt-4o", "x" * 10_000),
]


@pytest.mark.parametrize(("model", "tier"), UNKNOWN_TIERS)
def test_an_unknown_tier_has_no_price(model: str, tier: str) -> None:
    note = _why_not(model, PLAIN, tier=tier)
    assert note == f"no price is known for tier {tier[:80]!r} of model {model!r} on 2026-11-01"


def test_a_tier_has_no_price_before_the_first_day_it_is_known_for() -> None:
    before = datetime(2026, 10, 11, 23, 59, tzinfo=UTC)
    assert "tier 'flex' of model 'o3' on 2026-10-11" in _why_not(
        "o3", PLAIN, tier="flex", at=before
    )
    assert _usd("o3", PLAIN, tier="flex", at=before + timedelta(minutes=1)) == Decimal("0.0022")


def test_the_price_is_that_of_the_day_in_utc() -> None:
    # o3 until 2025-06-09: 1000 * 10.00 + 300 * 40.00; from 2025-06-10: 1000 * 2.00 + 300 * 8.00
    last = datetime(2025, 6, 9, 23, 59, tzinfo=UTC)
    assert _usd("o3", PLAIN, at=last) == Decimal("0.022000")
    assert _usd("o3", PLAIN, at=last + timedelta(minutes=1)) == Decimal("0.004400")
    tokyo = datetime(2025, 6, 10, 8, 59, tzinfo=timezone(timedelta(hours=9)))
    assert _usd("o3", PLAIN, at=tokyo) == Decimal("0.022000")


def test_one_list_prices_several_days_models_and_tiers() -> None:
    prices = Prices()
    old, new = datetime(2025, 6, 9, tzinfo=UTC), datetime(2025, 6, 10, tzinfo=UTC)
    found = [
        prices.cost("openai", "o3", "o3", None, at, PLAIN, CHAT).usd for at in (old, new, old, new)
    ]
    assert found == [Decimal("0.022"), Decimal("0.0044"), Decimal("0.022"), Decimal("0.0044")]


# -- what is not known


@pytest.mark.parametrize(
    "model", ["gpt-9", "ft:gpt-4.1-2025-04-14:acme:moderation:x", "", None, "x" * 100_000]
)
def test_an_unknown_model_has_no_price(model: str | None) -> None:
    note = _why_not(model, PLAIN)
    assert note.startswith("no price is known for model")
    assert repr(model[:80])[1:-1] in note if model else "None" in note
    assert len(note) < 200


UNPRICED = [
    ("gpt-5-pro", Usage(input_tokens=9, cached_tokens=5, output_tokens=1), "cached_tokens"),
    ("gpt-4o", Usage(input_tokens=9, cache_write_tokens=5, output_tokens=1), "cache_write_tokens"),
    (
        "gpt-4o-audio-preview",
        Usage(input_tokens=9, audio_input_tokens=5, output_tokens=1),
        "audio input tokens",
    ),
    (
        "gpt-4o",
        Usage(input_tokens=9, output_tokens=9, audio_output_tokens=5),
        "audio output tokens",
    ),
    ("gpt-4o", Usage(seconds=3.0), "seconds of audio"),
    ("gpt-4o-mini-tts", Usage(characters=3), "characters of speech"),
    ("gpt-audio", Usage(input_tokens=9, output_tokens=1, web_searches=1), "web searches"),
]


@pytest.mark.parametrize(("model", "usage", "field"), UNPRICED)
def test_tokens_without_a_price_leave_no_cost(model: str, usage: Usage, field: str) -> None:
    assert _why_not(model, usage) == f"no price is known for {field} of model {model!r}"


def test_a_field_without_tokens_needs_no_price() -> None:
    usage = Usage(input_tokens=1000, cached_tokens=0, audio_input_tokens=0, output_tokens=10)
    # gpt-5-pro: 1000 * 15.00 + 10 * 120.00
    assert _usd("gpt-5-pro", usage) == Decimal("0.016200")


CONTRADICTIONS = [
    (Usage(input_tokens=500, cached_tokens=600, output_tokens=1), "contradicts itself"),
    (
        Usage(input_tokens=9, audio_input_tokens=9, cached_tokens=4, output_tokens=1),
        "does not say what the cached_tokens were",
    ),
    (Usage(input_tokens=0, output_tokens=0), "states no tokens at all"),
    (Usage(), "states no tokens at all"),
    (Usage(note="the answer states no usage"), "the answer states no usage"),
    (
        Usage(input_tokens=1, output_tokens=1, charged_apart="code_interpreter_call"),
        "code_interpreter_call is charged apart",
    ),
]


@pytest.mark.parametrize(("usage", "why"), CONTRADICTIONS)
def test_usage_that_can_t_be_priced_says_why(usage: Usage, why: str) -> None:
    assert why in _why_not("gpt-realtime", usage)


def test_a_bad_count_is_no_free_token() -> None:
    usage = {
        "prompt_tokens": 9,
        "completion_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": -1},
    }
    note = _why_not("gpt-4o", read(CHAT, {"usage": usage}))
    assert note == "usage: cached_tokens is not a count"


def test_models_that_search_charge_for_it_unseen() -> None:
    assert "each search of model" in _why_not("gpt-4o-search-preview", PLAIN)
    assert "each search of model" in _why_not("gpt-4o-mini-search-preview", PLAIN)


def test_moderation_is_free_and_known_to_be() -> None:
    usage = Usage(note="the answer states no usage")
    assert _usd("omni-moderation-latest", usage, endpoint="moderations") == 0
    elsewhere = _cost("omni-moderation-latest", usage, endpoint="moderations", provider=None)
    assert elsewhere.usd is None


# -- whose prices


def test_the_answer_s_model_comes_first() -> None:
    # gpt-4o-2024-05-13: 1000 * 5.00 + 300 * 15.00
    cost = _usd("gpt-4o", PLAIN, response_model="gpt-4o-2024-05-13")
    assert cost == Decimal("0.009500")
    # a snapshot newer than the list costs what its alias costs
    assert _usd("gpt-4o", PLAIN, response_model="gpt-4o-2029-01-01") == Decimal("0.005500")


def test_a_deployment_is_priced_by_the_model_in_the_answer() -> None:
    azure = {"provider": "azure", "tier": None}
    cost = _usd("support-bot", PLAIN, response_model="gpt-4o-2024-08-06", **azure)
    assert cost == Decimal("0.005500")
    # o3-mini on Azure's own list: 2000 * 1.10 + 8000 * 0.55 + 500 * 4.40 = 2200 + 4400 + 2200
    assert _usd("x", CACHED, response_model="o3-mini", **azure) == Decimal("0.008800")
    # half in a batch; no tier of OpenAI's is taken over
    assert _usd("x", CACHED, response_model="o3-mini", **azure, batch=True) == Decimal("0.004400")
    given = {"provider": "azure", "response_model": "gpt-4o", "tier": "priority"}
    assert "tier 'priority'" in _why_not("x", PLAIN, **given)


def test_a_deployment_named_after_a_model_is_not_that_model() -> None:
    given = {"provider": "azure", "tier": None, "response_model": "gpt-9"}
    assert "no price is known for model 'gpt-9' at azure" in _why_not("gpt-4o", PLAIN, **given)
    # o4-mini-deep-research: 1000 * 2.00 + 300 * 8.00, not what o4-mini costs at Azure
    given["response_model"] = "o4-mini-deep-research"
    assert _usd("gpt-4o", PLAIN, **given) == Decimal("0.004400")


def test_a_region_costs_a_tenth_more_for_newer_models() -> None:
    # gpt-5.4: (1000 * 2.50 + 300 * 15.00) * 1.1 = 7700
    assert _usd("gpt-5.4", PLAIN, provider="openai-regional") == Decimal("0.007700")
    assert _usd("gpt-4o", PLAIN, provider="openai-regional") == Decimal("0.005500")
    assert _usd("gpt-5", PLAIN, provider="openai-regional") == Decimal("0.004250")
    note = _why_not("gpt-audio", PLAIN, provider="openai-regional")
    assert note == "whether model 'gpt-audio' costs more in a region is not known"


HOSTS = [
    ("api.openai.com", "openai"),
    ("API.OpenAI.com.", "openai"),
    ("eu.api.openai.com", "openai-regional"),
    ("acme.openai.azure.com", "azure"),
    ("acme.services.ai.azure.com", "azure"),
    ("westeurope.api.cognitive.microsoft.com", "azure"),
    ("api.openai.com.evil.test", None),
    ("127.0.0.1", None),
    ("", None),
]


@pytest.mark.parametrize(("host", "provider"), HOSTS)
def test_a_host_s_prices(host: str, provider: str | None) -> None:
    assert provider_of(host) == provider


def test_a_host_that_is_on_no_list_has_no_prices_but_the_owner_s() -> None:
    assert "at this host" in _why_not("gpt-4o", PLAIN, provider=None)
    mine = [{"model": "gpt-4o", "input": 1, "output": 2}]
    # 1000 * 1.00 + 300 * 2.00
    assert _usd("gpt-4o", PLAIN, provider=None, overrides=mine) == Decimal("0.001600")


# -- the owner's prices


def test_an_override_holds_from_its_day_and_the_last_wins() -> None:
    mine = [
        {"model": "gpt-4o*", "since": "2026-01-01", "input": 2, "cached": 1, "output": 8},
        {"model": "gpt-4o*", "since": "2026-11-01", "input": 1.5, "cached": 0.5, "output": 6},
    ]
    # the list: 2000 * 2.50 + 8000 * 1.25 + 500 * 10.00 = 5000 + 10000 + 5000
    then = {"overrides": mine, "at": datetime(2025, 12, 31, tzinfo=UTC)}
    assert _usd("gpt-4o", CACHED, **then) == Decimal("0.020000")
    # 2000 * 2.00 + 8000 * 1.00 + 500 * 8.00 = 4000 + 8000 + 4000
    then["at"] = datetime(2026, 10, 31, tzinfo=UTC)
    assert _usd("gpt-4o", CACHED, **then) == Decimal("0.016000")
    # 2000 * 1.50 + 8000 * 0.50 + 500 * 6.00 = 3000 + 4000 + 3000
    assert _usd("gpt-4o", CACHED, overrides=mine) == Decimal("0.010000")


def test_an_override_holds_whole() -> None:
    mine = [{"model": "gpt-4o", "input": 2, "output": 8}]
    note = _why_not("gpt-4o", CACHED, overrides=mine)
    assert note == "no price is known for cached_tokens of model 'gpt-4o'"


def test_an_override_states_every_kind_and_its_unit() -> None:
    mine = [
        {
            "model": "acme-*", "input": 1, "cached": 0.1, "cache_write": 2, "output": 10,
            "audio_input": 100, "audio_output": 200, "per": 1000, "tier": {"flex": 0.5},
        }
    ]  # fmt: skip
    usage = Usage(
        input_tokens=100, cache_write_tokens=20, audio_input_tokens=30,
        output_tokens=50, audio_output_tokens=40,
    )  # fmt: skip
    # (50 * 1 + 20 * 2 + 30 * 100 + 10 * 10 + 40 * 200) / 1000 = 11190 / 1000
    assert _usd("acme-voice", usage, overrides=mine) == Decimal("11.19")
    assert _usd("acme-voice", usage, overrides=mine, tier="flex") == Decimal("5.595")
    assert _usd("acme-voice", usage, overrides=mine, batch=True) == Decimal("5.595")
    note = _why_not("acme-voice", usage, overrides=mine, tier="priority")
    assert note == "prices: acme-*: states no factor for tier 'priority'"


def test_tiers_alone_scale_the_list_and_win_over_it() -> None:
    mine = [{"model": "gpt-*", "tier": {"flex": 0.4, "scale": 0, "batch": 0.25}}]
    # gpt-5 standard: 1000 * 1.25 + 300 * 10.00 = 4250
    assert _usd("gpt-5", PLAIN, overrides=mine) == Decimal("0.004250")
    assert _usd("gpt-5", PLAIN, overrides=mine, tier="flex") == Decimal("0.0017")
    assert _usd("gpt-5", PLAIN, overrides=mine, batch=True) == Decimal("0.0010625")
    assert _usd("gpt-5", PLAIN, overrides=mine, tier="scale") == 0  # paid for beforehand
    # gpt-5 priority is on the list: 1000 * 2.50 + 300 * 20.00
    assert _usd("gpt-5", PLAIN, overrides=mine, tier="priority") == Decimal("0.0085")


def test_a_deployment_may_be_priced_by_the_name_of_its_model() -> None:
    mine = [{"model": "gpt-4o-2024-08-06", "input": 3, "output": 12}]
    given = {"provider": "azure", "response_model": "gpt-4o-2024-08-06", "overrides": mine}
    # 1000 * 3.00 + 300 * 12.00
    assert _usd("support-bot", PLAIN, **given) == Decimal("0.006600")


def test_the_list_is_the_one_that_came_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = genai_prices.data_snapshot.DataSnapshot(providers=[], from_auto_update=True)
    monkeypatch.setattr(genai_prices.data_snapshot, "_custom_snapshot", empty)
    assert _usd("gpt-4o", PLAIN) == Decimal("0.005500")
