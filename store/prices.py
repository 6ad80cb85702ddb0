"""What an answer cost, from its usage, its day and the tier that served it. Pure.

What is not known is None with a reason, never 0: a model that is on no list, a tier without a
price, tokens of a kind that has none. Prices come from the policy's `prices:` first, then from the
list. At Azure the request names a deployment, so only the model in the answer counts there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Final

from policies.prices import KINDS, Price
from store.price_list import AZURE, BATCH, DEFAULT, OPENAI, REGIONAL, PriceTable, Unpriced, listed
from store.usage import Usage

Units = list[tuple[str, int | float]]

# Names come from outside: neither their number nor their length may grow without bound.
_MOST_RESOLVED: Final = 4096
_LONGEST_NAME: Final = 256
_HALF: Final = Decimal("0.5")
_FIELDS: Final = {
    "input": "input_tokens", "cached": "cached_tokens", "cache_write": "cache_write_tokens",
    "output": "output_tokens", "audio_input": "audio input tokens",
    "audio_output": "audio output tokens", "cached_audio": "cached audio tokens",
    "image_input": "image input tokens", "image_output": "image output tokens",
    "cached_image": "cached image tokens", "seconds": "seconds of audio",
    "characters": "characters of speech", "web_search": "web searches",
    "file_search": "file searches",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Cost:
    """`usd`, or in `note` why it isn't known. `parts`: what each kind of unit came to."""

    usd: Decimal | None
    note: str | None = None
    parts: tuple[tuple[str, Decimal], ...] = ()


# "The moderation endpoint is free to use" (OpenAI, guide to moderation).
_FREE: Final = Cost(Decimal(0))

_LONG_ONES: Final = "long requests cost more, and a batch does not say how long its requests were"


class Prices:
    def __init__(self, overrides: Sequence[Price] = ()) -> None:
        self._overrides = tuple(reversed(overrides))  # the last that matches holds
        self._resolved: dict[tuple[object, ...], PriceTable | str] = {}

    def cost(
        self,
        provider: str | None,
        model: str | None,
        response_model: str | None,
        tier: str | None,
        at: datetime,
        usage: Usage,
        endpoint: str,
        batch: bool = False,
    ) -> Cost:
        """Of an answered request. `provider`: as `price_list.provider_of` says. `model`: as asked
        for. `tier`: of the answer, not of the request. `at`: of the request; naive means UTC.
        `batch`: `usage` is the sum over a batch's requests."""
        if endpoint == "moderations" and provider in (OPENAI, REGIONAL):
            return _FREE
        if usage.note is not None:
            return Cost(None, usage.note)
        if usage.charged_apart:
            return Cost(None, f"{usage.charged_apart} is charged apart, at a price not known")
        model, response_model = _bounded(model), _bounded(response_model)
        day = (at.astimezone(UTC) if at.tzinfo else at).date()
        key = (provider, model, response_model, tier, day, batch)
        table = self._resolved.get(key)
        if table is None:
            names = _names(provider, model, response_model)
            table = self._resolve(provider, names, BATCH if batch else tier or DEFAULT, day)
            if len(self._resolved) >= _MOST_RESOLVED:
                self._resolved.clear()
            self._resolved[key] = table
        if isinstance(table, str):
            return Cost(None, table)
        if batch and table.at(usage.input_tokens or 0) != table.at(0):
            return Cost(None, _LONG_ONES)
        return _sum(usage, table, response_model or model)

    def _resolve(
        self, provider: str | None, names: Sequence[str], kind: str, day: date
    ) -> PriceTable | str:
        mine = [
            price
            for price in self._overrides
            if price.begun(day) and any(fnmatchcase(name, price.model) for name in names)
        ]
        factor = next((f for price in mine if (f := price.factor(kind)) is not None), None)
        exact = None if factor is None else Decimal(repr(factor))
        stated = next((price for price in mine if price.states_prices()), None)
        try:
            if stated is not None:
                return _own(stated, kind, exact)
            return listed(provider, names, kind, datetime.combine(day, time(), UTC), exact)
        except Unpriced as error:
            return str(error)


def _names(provider: str | None, model: str | None, response_model: str | None) -> list[str]:
    """What the model may be called, surest first."""
    if provider == AZURE and response_model:
        model = None  # a deployment: it may be called after another model
    return list(dict.fromkeys(name for name in (response_model, model) if name))


def _bounded(name: str | None) -> str | None:
    return name if name is None or len(name) <= _LONGEST_NAME else name[:_LONGEST_NAME]


def _own(price: Price, kind: str, factor: Decimal | None) -> PriceTable:
    if factor is None and kind == BATCH:
        factor = _HALF
    if factor is None and kind != DEFAULT:
        raise Unpriced(f"prices: {price.model}: states no factor for tier {kind[:80]!r}")
    stated = {name: getattr(price, name) for name in KINDS}
    units = {
        name: Decimal(repr(usd)) / price.per for name, usd in stated.items() if usd is not None
    }
    table = PriceTable(((-1, units),))
    return table if factor is None else table.times(factor)


# -- the sum


def _sum(usage: Usage, table: PriceTable, model: str | None) -> Cost:
    prices = table.at(usage.input_tokens or 0)
    units = _units(usage, prices)
    if isinstance(units, str):
        return Cost(None, units)
    total = Decimal(0)
    parts = []
    for kind, count in units:
        if not count:
            continue
        if count < 0:
            return Cost(None, "the usage contradicts itself: its parts are more than the whole")
        price = prices.get(kind)
        if price is None:
            return Cost(None, f"no price is known for {_FIELDS[kind]} of model {_shown(model)}")
        part = price * (count if type(count) is int else Decimal(repr(count)))
        parts.append((kind, part))
        total += part
    if not parts:
        return Cost(None, "the usage states no tokens at all")
    return Cost(total, None, tuple(parts))


def _units(usage: Usage, prices: dict[str, Decimal]) -> Units | str:
    """What is charged, each token once; or why that can't be told."""
    units = _input_units(usage, prices)
    if isinstance(units, str):
        return units
    units += _output_units(usage, prices)
    units += [
        ("seconds", usage.seconds or 0),
        ("characters", usage.characters or 0),
        ("web_search", usage.web_searches or 0),
        ("file_search", usage.file_searches or 0),
    ]
    return units


def _input_units(usage: Usage, prices: dict[str, Decimal]) -> Units | str:
    """Tokens of images cost what text costs unless they have a price; those of audio never do."""
    whole = usage.input_tokens or 0
    cached = usage.cached_tokens or 0
    written = usage.cache_write_tokens or 0
    audio = usage.audio_input_tokens or 0
    image = (usage.image_input_tokens or 0) if "image_input" in prices else 0
    if not (cached or written or audio or image):
        return [("input", whole)]
    cached_audio = usage.cached_audio_tokens if audio and cached else 0
    cached_image = usage.cached_image_tokens if image and cached else 0
    if cached_audio is None or cached_image is None:
        return "the usage does not say what the cached_tokens were: text, audio or images"
    cached_text = cached - cached_audio - cached_image
    return [
        ("input", whole - audio - image - cached_text - written),
        ("cached", cached_text),
        ("cache_write", written),
        ("audio_input", audio - cached_audio),
        ("cached_audio", cached_audio),
        ("image_input", image - cached_image),
        ("cached_image", cached_image),
    ]


def _output_units(usage: Usage, prices: dict[str, Decimal]) -> Units:
    """Reasoning is inside the output, and costs the same."""
    whole = usage.output_tokens or 0
    audio = usage.audio_output_tokens or 0
    image = (usage.image_output_tokens or 0) if "image_output" in prices else 0
    if not (audio or image):
        return [("output", whole)]
    return [("output", whole - audio - image), ("audio_output", audio), ("image_output", image)]


def _shown(model: str | None) -> str:
    return repr(model[:80]) if model else "(not stated)"
