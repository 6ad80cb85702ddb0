"""Usage in every shape that it comes in, and in shapes that it should not."""

from __future__ import annotations

from typing import Any

import pytest

from store.usage import Usage, of_speech, read, tier


def _counts(usage: Usage) -> dict[str, Any]:
    """What is known of it, but for the raw text."""
    names = [name for name in Usage.__slots__ if name != "raw"]
    return {name: value for name in names if (value := getattr(usage, name)) is not None}


CHAT = {
    "prompt_tokens": 1200,
    "completion_tokens": 340,
    "total_tokens": 1540,
    "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0, "cache_write_tokens": 64},
    "completion_tokens_details": {
        "reasoning_tokens": 256,
        "audio_tokens": 0,
        "accepted_prediction_tokens": 0,
        "rejected_prediction_tokens": 0,
    },
}
SHAPES = [
    (
        "chat.completions",
        CHAT,
        {
            "input_tokens": 1200, "cached_tokens": 1024, "cache_write_tokens": 64,
            "audio_input_tokens": 0, "output_tokens": 340, "reasoning_tokens": 256,
            "audio_output_tokens": 0,
        },
    ),
    (
        "chat.completions",  # an engine that says only this
        {"prompt_tokens": 7, "completion_tokens": 2.0},
        {"input_tokens": 7, "output_tokens": 2},
    ),
    (
        "responses",
        {
            "input_tokens": 50, "output_tokens": 9, "total_tokens": 59,
            "input_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 0},
            "output_tokens_details": {"reasoning_tokens": 4},
        },
        {
            "input_tokens": 50, "cached_tokens": 40, "cache_write_tokens": 0,
            "output_tokens": 9, "reasoning_tokens": 4,
        },
    ),
    (
        "completions",
        {"prompt_tokens": 5, "completion_tokens": 16, "total_tokens": 21},
        {"input_tokens": 5, "output_tokens": 16},
    ),
    ("embeddings", {"prompt_tokens": 8, "total_tokens": 8}, {"input_tokens": 8}),
    (
        "audio.transcriptions",
        {
            "type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59,
            "input_token_details": {"text_tokens": 0, "audio_tokens": 14},
        },
        {"input_tokens": 14, "audio_input_tokens": 14, "output_tokens": 45},
    ),
    ("audio.transcriptions", {"type": "duration", "seconds": 62}, {"seconds": 62.0}),
    (
        "audio.speech",
        {"input_tokens": 14, "output_tokens": 101, "total_tokens": 115},
        {"input_tokens": 14, "output_tokens": 101},
    ),
    (
        "images.generations",
        {
            "input_tokens": 50, "output_tokens": 4160, "total_tokens": 4210,
            "input_tokens_details": {"text_tokens": 10, "image_tokens": 40},
            "output_tokens_details": {"text_tokens": 160, "image_tokens": 4000},
        },
        {
            "input_tokens": 50, "image_input_tokens": 40, "output_tokens": 4160,
            "image_output_tokens": 4000,
        },
    ),
    (
        "images.edits",  # as in a stream: the output is not split, and is the image
        {"input_tokens": 50, "output_tokens": 1056},
        {"input_tokens": 50, "output_tokens": 1056, "image_output_tokens": 1056},
    ),
    (
        "realtime",
        {
            "input_tokens": 300, "output_tokens": 90,
            "input_token_details": {
                "text_tokens": 100, "audio_tokens": 200, "cached_tokens": 128,
                "cached_tokens_details": {"text_tokens": 64, "audio_tokens": 64},
            },
            "output_token_details": {"text_tokens": 30, "audio_tokens": 60},
        },
        {
            "input_tokens": 300, "audio_input_tokens": 200, "cached_tokens": 128,
            "cached_audio_tokens": 64, "output_tokens": 90, "audio_output_tokens": 60,
        },
    ),
]  # fmt: skip


@pytest.mark.parametrize(("endpoint", "usage", "counts"), SHAPES)
def test_a_shape_is_read(endpoint: str, usage: Any, counts: dict[str, Any]) -> None:
    assert _counts(read(endpoint, {"usage": usage})) == counts


def test_azure_adds_filters_and_changes_nothing() -> None:
    answer = {"model": "gpt-4o-2024-08-06", "prompt_filter_results": [{}], "usage": CHAT}
    assert read("chat.completions", answer) == read("chat.completions", {"usage": CHAT})


@pytest.mark.parametrize("value", [-1, True, False, 1.5, "12", [], 2**63, 2**80, 1e30, 10**12 + 1])
def test_what_is_no_count_is_none_and_says_so(value: Any) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": value}
    found = read("chat.completions", {"usage": usage})
    assert (found.input_tokens, found.output_tokens) == (9, None)
    assert found.note == "usage: completion_tokens is not a count"


def test_a_bad_detail_is_noted_too() -> None:
    usage = {**CHAT, "prompt_tokens_details": {"cached_tokens": -5}}
    found = read("chat.completions", {"usage": usage})
    assert (found.cached_tokens, found.note) == (None, "usage: cached_tokens is not a count")
    usage["prompt_tokens_details"] = [1]
    found = read("chat.completions", {"usage": usage})
    assert found.note == "usage: prompt_tokens_details is not an object"


MISSING: list[tuple[Any, str]] = [
    (None, "there is no whole answer"),
    ({}, "there is no whole answer"),
    ({"id": "x"}, "the answer states no usage"),
    ({"usage": None}, "the answer states no usage"),
    ({"usage": [1]}, "usage: not an object"),
    ({"usage": {}}, "usage: states no input tokens; states no output tokens"),
    ({"usage": {"prompt_tokens": 1}}, "usage: states no output tokens"),
    ({"usage": {"seconds": -1}}, "usage: seconds is not a duration"),
    ({"usage": {"seconds": True}}, "usage: seconds is not a duration"),
    ({"usage": {"seconds": float("nan")}}, "usage: seconds is not a duration"),
]


@pytest.mark.parametrize(("answer", "note"), MISSING)
def test_what_is_missing_has_a_reason(answer: Any, note: str) -> None:
    found = read("chat.completions", answer)
    assert found.note == note
    assert (found.input_tokens is None or found.output_tokens is None) and found.seconds is None


def test_the_raw_usage_is_kept_in_its_order_whatever_its_numbers() -> None:
    usage = {"completion_tokens": 1, "prompt_tokens": 2**70, "vendor": {"é": [1, None]}}
    expected = f'{{"completion_tokens":1,"prompt_tokens":{2**70},"vendor":{{"\\u00e9":[1,null]}}}}'
    assert read("chat.completions", {"usage": usage}).raw == expected
    usage["prompt_tokens"] = 2
    expected = '{"completion_tokens":1,"prompt_tokens":2,"vendor":{"é":[1,null]}}'
    assert read("chat.completions", {"usage": usage}).raw == expected


def test_searches_are_counted_and_pages_opened_are_not() -> None:
    output = [
        {"type": "web_search_call", "action": {"type": "search"}},
        {"type": "web_search_call", "action": {"type": "open_page"}},
        {"type": "web_search_call"},
        {"type": "file_search_call"},
        {"type": "message"},
        "odd",
    ]
    usage = {"input_tokens": 1, "output_tokens": 1}
    found = read("responses", {"output": output, "usage": usage})
    assert (found.web_searches, found.file_searches, found.charged_apart) == (2, 1, None)


def test_billable_searches_that_are_stated_win() -> None:
    answer = {
        "output": [{"type": "web_search_call"}] * 3,
        "tool_usage": {"web_search": {"num_requests": 1}},
        "usage": {"input_tokens": 1, "output_tokens": 1},
    }
    assert read("responses", answer).web_searches == 1


def test_tools_that_are_charged_apart_are_named() -> None:
    output = [{"type": "image_generation_call"}, {"type": "code_interpreter_call"}]
    usage = {"input_tokens": 1, "output_tokens": 1}
    found = read("responses", {"output": output, "usage": usage})
    assert found.charged_apart == "code_interpreter_call, image_generation_call"


def test_of_bare_audio_the_characters_are_known() -> None:
    assert of_speech({"input": "Grüße"}) == Usage(characters=5)
    assert of_speech({"input": None}).note == "the answer states no usage"


def test_the_tier_is_that_of_the_answer() -> None:
    assert tier({"service_tier": "flex"}) == "flex"
    assert (tier({"service_tier": 1}), tier({}), tier(None)) == (None, None, None)
