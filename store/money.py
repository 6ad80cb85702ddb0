"""What an exchange used and what it cost: columns of its row. Unknown is NULL, with a reason."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from store import estimates, usage
from store.price_list import provider_of
from store.prices import Prices
from store.sides import value_of
from store.values import Json

_OK: Final = 200
_GOOD: Final = range(200, 300)
_CHARGED_ELSEWHERE: Final = (
    "responses.stored", "responses.cancel", "responses.input_tokens", "responses.input_items",
    "batches", "batches.list", "batches.stored", "batches.cancel",
)  # fmt: skip
_TOKENS: Final = (
    "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens", "reasoning_tokens",
    "audio_input_tokens", "audio_output_tokens",
)  # fmt: skip


def fill_usage(row: Json, endpoint: str, answer: Json | None, asked: Json | None) -> usage.Usage:
    """What the answer states; where it states nothing, an estimate in columns of its own."""
    found = usage.read(endpoint, answer)
    if endpoint == "audio.speech" and found.raw is None and asked is not None and _is_good(row):
        found = usage.of_speech(asked)
    row["usage"] = found.raw
    if endpoint in _CHARGED_ELSEWHERE and found.raw is not None:
        row["usage_note"] = "not counted here: it belongs to the call that made the answer"
        return found
    row["usage_note"] = found.note or (None if found.raw else "the answer states no usage")
    for name in _TOKENS:
        row[name] = getattr(found, name)
    if found.raw is None and asked is not None and row["status"] == _OK:
        _estimate(row, endpoint, answer, asked)
    return found


def _is_good(row: Json) -> bool:
    return row["status"] in _GOOD


def _estimate(row: Json, endpoint: str, answer: Json | None, asked: Json) -> None:
    said = _said(answer)
    found = estimates.estimate(endpoint, asked, said, row["response_model"] or row["model"])
    if found is None:
        return
    row["estimated_input_tokens"] = found.input_tokens
    row["estimated_output_tokens"] = found.output_tokens
    row["estimate_method"] = found.method


def _said(answer: Json | None) -> str | None:
    choices = value_of(answer, "choices")
    if not isinstance(choices, list) or not choices:
        return None
    first = choices[0]
    text = value_of(first, "message", "content") or value_of(first, "text")
    return text if isinstance(text, str) else None


def fill_cost(row: Json, prices: Prices, used: usage.Usage | None, at: float) -> None:
    """`at`: seconds since the epoch. What a candidate served cost no API anything; its cost here
    is not known, and so NULL."""
    if row["served_by"] != "upstream":
        row["cost_note"] = "not served by the upstream"
        return
    if row["endpoint"] in _CHARGED_ELSEWHERE:
        row["cost_note"] = "what it states was charged with another call, if at all"
        return
    if used is None:
        row["cost_note"] = row["usage_note"]
        return
    if not _is_good(row):
        row["cost_note"] = used.note or "the answer is an error"
        return
    found = prices.cost(
        None if row["host"] is None else provider_of(row["host"]),
        row["deployment"] or row["model"],
        row["response_model"],
        row["service_tier"],
        datetime.fromtimestamp(at, UTC),
        used,
        row["endpoint"],
    )
    row["cost_usd"] = None if found.usd is None else float(found.usd)
    row["cost_note"] = found.note
