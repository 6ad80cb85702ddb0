"""What an answer says was used, in all the shapes that OpenAI and Azure give it. Pure.

A count that is missing, or can't be a count (negative, a truth value, a fraction, over a trillion),
is None and never 0; `note` then says why. Shapes: `CompletionUsage`, `ResponseUsage`,
`ImagesResponse.usage`, `Transcription.usage`, `RealtimeResponseUsage` and
`Response.tool_usage` of openai-python 3.3.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import orjson

Rule = Literal["response", "batch"]  # see `counted_once`

# No answer uses a trillion tokens; a figure beyond would drown every sum that it is part of.
_MOST: Final = 10**12

_INPUT_DETAILS: Final = (
    "prompt_tokens_details", "input_tokens_details", "input_token_details", "prompt_token_details"
)  # fmt: skip
_OUTPUT_DETAILS: Final = (
    "completion_tokens_details", "output_tokens_details", "output_token_details"
)  # fmt: skip
# Hosted tools that are charged besides tokens, at prices that no list states.
_CHARGED_APART: Final = frozenset({"code_interpreter_call", "image_generation_call"})
_NOTHING: Final[Mapping[str, Any]] = {}


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of one answer. Each part is *inside* its whole: cached tokens in `input_tokens`,
    reasoning in `output_tokens`, cached audio in both cached and audio.

    `seconds`: of audio, where that is what is charged. `characters`: of the text to speak.
    `charged_apart`: hosted tools in the answer that cost money besides. `raw`: the usage object as
    compact JSON. `note`: why something that should be known is None. `once`: others state it too,
    and it counts but once, by this rule.
    """

    input_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    output_tokens: int | None = None
    reasoning_tokens: int | None = None
    audio_input_tokens: int | None = None
    audio_output_tokens: int | None = None
    image_input_tokens: int | None = None
    image_output_tokens: int | None = None
    cached_audio_tokens: int | None = None
    cached_image_tokens: int | None = None
    seconds: float | None = None
    characters: int | None = None
    web_searches: int | None = None
    file_searches: int | None = None
    charged_apart: str | None = None
    raw: str | None = None
    note: str | None = None
    once: Rule | None = None


def read(endpoint: str, answer: Mapping[str, Any] | None) -> Usage:
    """The usage of `answer`: the whole JSON body, or what a stream amounts to."""
    if not answer:
        return Usage(note="there is no whole answer")
    found = answer.get("usage")
    if not isinstance(found, Mapping):
        missing = "the answer states no usage" if found is None else "usage: not an object"
        return Usage(raw=None if found is None else _compact(found), note=missing)
    bad: list[str] = []
    web, files, apart = _tools(answer, bad) if "output" in answer else (None, None, None)
    if "seconds" in found and _first(found, ("input_tokens", "prompt_tokens")) is None:
        seconds = _seconds(found, bad)
        return Usage(seconds=seconds, raw=_compact(found), note=_because(bad))
    return _tokens(endpoint, found, bad, web, files, apart)


def of_speech(request: Mapping[str, Any]) -> Usage:
    """Of speech that came as bare audio: what is known is the text that was to be spoken."""
    text = request.get("input")
    if not isinstance(text, str):
        return Usage(note="the answer states no usage")
    return Usage(characters=len(text))


def tier(answer: Mapping[str, Any] | None) -> str | None:
    """The service tier that an answer says it was served by."""
    found = answer.get("service_tier") if answer else None
    return found if isinstance(found, str) else None


# -- parts


def _tokens(
    endpoint: str,
    found: Mapping[str, Any],
    bad: list[str],
    web: int | None,
    files: int | None,
    apart: str | None,
) -> Usage:
    into = _details(found, _INPUT_DETAILS, bad)
    out = _details(found, _OUTPUT_DETAILS, bad)
    cached = _details(into, ("cached_tokens_details",), bad)
    given = _first(found, ("prompt_tokens", "input_tokens"))
    made = _first(found, ("completion_tokens", "output_tokens"))
    input_tokens = _count(found, given or "input_tokens", bad)
    output_tokens = _count(found, made or "output_tokens", bad)
    if given is None:
        bad.append("states no input tokens")
    if made is None and endpoint != "embeddings":
        bad.append("states no output tokens")
    images_out = _count(out, "image_tokens", bad)
    if images_out is None and not out and endpoint.startswith("images"):
        images_out = output_tokens  # where they are not split, they are those of the image
    return Usage(
        input_tokens=input_tokens,
        cached_tokens=_count(into, "cached_tokens", bad),
        cache_write_tokens=_count(into, "cache_write_tokens", bad),
        output_tokens=output_tokens,
        reasoning_tokens=_count(out, "reasoning_tokens", bad),
        audio_input_tokens=_count(into, "audio_tokens", bad),
        audio_output_tokens=_count(out, "audio_tokens", bad),
        image_input_tokens=_count(into, "image_tokens", bad),
        image_output_tokens=images_out,
        cached_audio_tokens=_count(cached, "audio_tokens", bad),
        cached_image_tokens=_count(cached, "image_tokens", bad),
        web_searches=web,
        file_searches=files,
        charged_apart=apart,
        raw=_compact(found),
        note=_because(bad),
    )


def _tools(answer: Mapping[str, Any], bad: list[str]) -> tuple[int | None, int | None, str | None]:
    """Searches of the web and of files, and what else is charged: calls in a Responses answer."""
    items = answer["output"]
    kinds = [i.get("type") for i in items if isinstance(i, Mapping)] if _is_list(items) else []
    stated = answer.get("tool_usage")
    web: int | None = None
    if isinstance(stated, Mapping) and isinstance(stated.get("web_search"), Mapping):
        web = _count(stated["web_search"], "num_requests", bad)
    elif "web_search_call" in kinds:
        web = sum(1 for item in items if _is_search(item))
    files = kinds.count("file_search_call") or None
    apart = sorted({kind for kind in kinds if isinstance(kind, str) and kind in _CHARGED_APART})
    return web, files, ", ".join(apart) or None


def _is_search(item: object) -> bool:
    """Opening a page, or finding in one, is no search that is charged."""
    if not isinstance(item, Mapping) or item.get("type") != "web_search_call":
        return False
    action = item.get("action")
    return not isinstance(action, Mapping) or action.get("type", "search") == "search"


def _seconds(found: Mapping[str, Any], bad: list[str]) -> float | None:
    value = found["seconds"]
    if type(value) in (int, float) and 0 <= value <= _MOST:
        return float(value)
    bad.append("seconds is not a duration")
    return None


# -- small readers of untrusted values


def _first(found: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:
        if found.get(name) is not None:
            return name
    return None


def _details(found: Mapping[str, Any], names: tuple[str, ...], bad: list[str]) -> Mapping[str, Any]:
    for name in names:
        value = found.get(name)
        if isinstance(value, Mapping):
            return value
        if value is not None:
            bad.append(f"{name} is not an object")
    return _NOTHING


def _count(found: Mapping[str, Any], name: str, bad: list[str]) -> int | None:
    value = found.get(name)
    if value is None:
        return None
    if type(value) is int and 0 <= value <= _MOST:
        return value
    # Engines written in JavaScript or Lua say 12.0.
    if type(value) is float and 0 <= value <= _MOST and value.is_integer():
        return int(value)
    bad.append(f"{name} is not a count")
    return None


def _because(bad: list[str]) -> str | None:
    return "usage: " + "; ".join(bad) if bad else None


def _is_list(value: object) -> bool:
    return isinstance(value, list)


def _compact(value: Any) -> str | None:
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError):
        pass  # whole numbers over 64 bits, lone surrogates
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        return None
