"""Prices that the owner states: where the list prices are wrong, unknown, or not what is paid.

Of the entries that match a model and have begun, the last one that states a price holds *whole*: a
kind of token that it leaves out has no price then, it is not taken from the list. An entry that
states only tiers leaves the prices as they are and says what a tier multiplies them by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, Final

from policies.setting import (
    PolicyError,
    a_text,
    choice,
    number,
    optional,
    section,
    setting,
    whole,
)

KINDS: Final = (
    "input", "cached", "cache_write", "output",
    "audio_input", "audio_output", "image_input", "image_output",
)  # fmt: skip


def _day(value: Any, path: str) -> date:
    """A date as YAML reads it, or as text: what JSON holds."""
    hint = "must be a day such as 2026-01-31"
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        if not isinstance(value, str) or len(value) != len("2026-01-31"):
            raise ValueError
        return date.fromisoformat(value)
    except ValueError:
        raise PolicyError(path, value, hint) from None


def _tiers(value: Any, path: str) -> tuple[tuple[str, float], ...]:
    """{flex: 0.5}, or the pairs that it is kept as."""
    hint = "must be a mapping of tiers to factors, e.g. {flex: 0.5, priority: 2.0}"
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, list | tuple):
        raise PolicyError(path, value, hint)
    found = []
    for pair in pairs:
        if not (isinstance(pair, list | tuple) and len(pair) == 2):
            raise PolicyError(path, value, hint)
        name = a_text(pair[0], path)
        found.append((name, number(0, 1000, "a factor, e.g. 0.5")(pair[1], f"{path}.{name}")))
    return tuple(found)


_USD: Final = optional(number(0, 1e9, "USD"))


@dataclass(frozen=True, slots=True)
class Price:
    """What one model, or one family of models, costs from a day on."""

    model: str = setting(a_text, "model or deployment; `*` stands for any text, e.g. gpt-4o*")
    since: date | None = setting(optional(_day), "first day that it holds, UTC; null is ever", None)
    input: float | None = setting(_USD, "of tokens that are neither cached nor of audio", None)
    cached: float | None = setting(_USD, "of input tokens read from the cache", None)
    cache_write: float | None = setting(_USD, "of input tokens written to the cache", None)
    output: float | None = setting(_USD, "of output tokens, those of reasoning included", None)
    audio_input: float | None = setting(_USD, "of input tokens of audio", None)
    audio_output: float | None = setting(_USD, "of output tokens of audio", None)
    image_input: float | None = setting(_USD, "of input tokens of images; null: as input", None)
    image_output: float | None = setting(_USD, "of output tokens of images; null: as output", None)
    tier: tuple[tuple[str, float], ...] = setting(
        _tiers, "what a service tier, or batch, multiplies the standard prices by", ()
    )
    per: int = setting(whole(1, 1_000_000_000, "tokens"), "tokens that a price is for", 1_000_000)
    currency: str = setting(
        lambda value, path: choice(value, path, ("usd",)), "usd; convert others", "usd"
    )

    def states_prices(self) -> bool:
        return any(getattr(self, kind) is not None for kind in KINDS)

    def begun(self, day: date) -> bool:
        return self.since is None or self.since <= day

    def factor(self, tier: str) -> float | None:
        return next((factor for name, factor in self.tier if name == tier), None)


def prices(value: Any, path: str) -> tuple[Price, ...]:
    """The policy's `prices:`. Raises PolicyError."""
    if not isinstance(value, list | tuple):
        raise PolicyError(path, value, "must be a list of prices, each with model and amounts")
    found = tuple(section(Price, item, f"{path}[{i}]") for i, item in enumerate(value))
    for number_, price in enumerate(found):
        if not price.states_prices() and not price.tier:
            raise PolicyError(f"{path}[{number_}]", price.model, "states neither a price nor tiers")
    _check_order(found, path)
    return found


def _check_order(found: Iterable[Price], path: str) -> None:
    """The last that has begun holds: an older price after a newer one would hide it."""
    latest: dict[str, date] = {}
    for number_, price in enumerate(found):
        since = price.since or date.min
        if since < latest.get(price.model, date.min):
            hint = f"must not be before the entry above for {price.model}: list the oldest first"
            raise PolicyError(f"{path}[{number_}].since", price.since, hint)
        latest[price.model] = since
