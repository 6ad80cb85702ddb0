"""What an exchange used and what it cost: columns of its row. Unknown is NULL, with a reason."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Final

from store import counted_once, estimates, usage
from store.price_list import provider_of
from store.prices import Prices
from store.sides import value_of
from store.values import Json

_OK: Final = 200
_GOOD: Final = range(200, 300)
_UNDER_WAY: Final = ("queued", "in_progress")


def fill_usage(row: Json, endpoint: str, answer: Json | None, asked: Json | None) -> usage.Usage:
    """What the answer states; where it states nothing, an estimate in columns of its own."""
    found = usage.read(endpoint, answer)
    if endpoint == "audio.speech" and found.raw is None and asked is not None and _is_good(row):
        found = usage.of_speech(asked)
    row["usage"] = found.raw
    if endpoint in counted_once.ELSEWHERE and found.raw is not None:
        found = _stated_again(row, endpoint, answer, found)
        if found.once is None:
            row["usage_note"] = counted_once.NOT_HERE
            return found
    row["usage_note"] = found.note or (None if found.raw else "the answer states no usage")
    for name in counted_once.TOKENS:
        row[name] = getattr(found, name)
    if endpoint == "responses" and found.raw is None and _comes_later(row, answer):
        row["usage_note"] = "not stated yet: the response is made in the background"
        return replace(found, note=row["usage_note"])
    if found.raw is None and asked is not None and row["status"] == _OK:
        _estimate(row, endpoint, answer, asked)
    return found


def _is_good(row: Json) -> bool:
    return row["status"] in _GOOD


def _stated_again(row: Json, endpoint: str, answer: Json | None, found: usage.Usage) -> usage.Usage:
    """With the rule by which it may count all the same, if there is one."""
    rule = counted_once.rule_of(endpoint, answer) if _is_good(row) else None
    if rule == "batch" and answer is not None and not counted_once.is_charged_by_tokens(answer):
        return replace(found, once=rule, charged_apart="what this batch holds")
    return replace(found, once=rule)


def _comes_later(row: Json, answer: Json | None) -> bool:
    """Whoever reads the response is told its usage. A stream that was cut also says `in_progress`:
    perhaps nobody reads that any more."""
    return not row["stream"] and value_of(answer, "status") in _UNDER_WAY


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
    if row["endpoint"] in counted_once.ELSEWHERE and (used is None or used.once is None):
        row["cost_note"] = counted_once.NOT_CHARGED
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
        batch=used.once == "batch",
    )
    row["cost_usd"] = None if found.usd is None else float(found.usd)
    row["cost_note"] = found.note
