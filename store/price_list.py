"""List prices of OpenAI and Azure by day and tier, from the data that genai-prices brings along.

Always offline: its updater is never started, and a list that one had fetched would not be used.
Stricter than genai-prices, which answers a tier, a day or a field that it does not know with the
standard price: here that is `Unpriced`, for a wrong figure in the books is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider

OPENAI: Final = "openai"
REGIONAL: Final = "openai-regional"
AZURE: Final = "azure"
DEFAULT: Final = "default"
BATCH: Final = "batch"

# genai-prices' name of a price: our name of what it is for, and how many of that it buys.
_PRICED: Final = {
    "input_mtok": ("input", 1_000_000),
    "cache_read_mtok": ("cached", 1_000_000),
    "cache_write_mtok": ("cache_write", 1_000_000),
    "output_mtok": ("output", 1_000_000),
    "input_audio_mtok": ("audio_input", 1_000_000),
    "output_audio_mtok": ("audio_output", 1_000_000),
    "cache_audio_read_mtok": ("cached_audio", 1_000_000),
    "input_image_mtok": ("image_input", 1_000_000),
    "output_image_mtok": ("image_output", 1_000_000),
    "cache_image_read_mtok": ("cached_image", 1_000_000),
    "audio_hours": ("seconds", 3600),
    "input_audio_hours": ("seconds", 3600),
    "input_mchars": ("characters", 1_000_000),
    "web_searches_kcount": ("web_search", 1000),
    "storage_searches_kcount": ("file_search", 1000),
}
_CALLS: Final = ("web_search", "file_search")  # charged by the call, whatever the tier
# "The Batch API offers a 50% cost discount" (OpenAI, guide to batches); Azure's Global Batch too.
_HALF: Final = Decimal("0.5")
# "Data residency endpoints are charged a 10% uplift for models released on or after March 5, 2026"
# (OpenAI, guide to data residency): gpt-5.4 was the first.
_UPLIFT: Final = Decimal("1.1")
_FIRST_UPLIFTED: Final = (5, 4)
_BEFORE_UPLIFT: Final = re.compile(r"gpt-3|gpt-4|o[134](-|$)|text-embedding-|whisper-1$|tts-1")
_VERSION: Final = re.compile(r"gpt-(\d+)(?:\.(\d+))?(?:-|$)")

_HOSTS: Final = (
    (re.compile(r"api\.openai\.com"), OPENAI),
    (re.compile(r"[a-z]{2}\.api\.openai\.com"), REGIONAL),
    (
        re.compile(
            r".+\.(openai\.azure\.com|(cognitiveservices|services\.ai)\.azure\.com"
            r"|api\.cognitive\.microsoft\.com)"
        ),
        AZURE,
    ),
)


class Unpriced(LookupError):
    """No price is known. The message is for a person, and names model and reason."""


@dataclass(frozen=True, slots=True)
class PriceTable:
    """USD for one unit of each kind. `steps`: those that hold over so many input tokens, from the
    highest bound down to -1: past a bound all tokens of a request cost that step's price.
    """

    steps: tuple[tuple[int, dict[str, Decimal]], ...]

    def at(self, input_tokens: int) -> dict[str, Decimal]:
        return next(prices for bound, prices in self.steps if input_tokens > bound)

    def times(self, factor: Decimal, only: frozenset[str] | None = None) -> PriceTable:
        def changed(kind: str, price: Decimal) -> Decimal:
            return (
                price * factor if kind not in _CALLS and (only is None or kind in only) else price
            )

        return PriceTable(
            tuple(
                (bound, {kind: changed(kind, price) for kind, price in prices.items()})
                for bound, prices in self.steps
            )
        )


@lru_cache(maxsize=256)
def provider_of(host: str) -> str | None:
    """Whose prices hold at a host name; None: nobody's whose list we know."""
    name = host.lower().rstrip(".")
    return next((provider for pattern, provider in _HOSTS if pattern.fullmatch(name)), None)


def listed(
    provider: str | None, names: Sequence[str], kind: str, at: datetime, factor: Decimal | None
) -> PriceTable:
    """The first of `names` that is on the list, at `kind`: a tier of the answer, or `batch`.

    `factor` over the standard prices, where the owner states one. Raises `Unpriced`.
    """
    found = _find(provider, names)
    if found is None:
        shown = names[0][:80] if names else None
        raise Unpriced(f"no price is known for model {shown!r} at {provider or 'this host'}")
    name, model = found
    if "-search-" in name:
        raise Unpriced(f"each search of model {name!r} is charged apart, at a price not known")
    standard = _table(name, model.get_prices(at))
    if factor is not None:
        table = standard.times(factor)
    else:
        table = _of_kind(provider, name, model, kind, at, standard)
    return table.times(_uplift(model.id)) if provider == REGIONAL else table


def _of_kind(
    provider: str | None, name: str, model: ModelInfo, kind: str, at: datetime, standard: PriceTable
) -> PriceTable:
    if kind == DEFAULT:
        return standard
    key = "processing" if kind == BATCH else "service_tier"
    # The variants on the list are OpenAI's; Azure sells its own tiers.
    variants = [] if provider == AZURE else model.price_variants or []
    stated = [variant for variant in variants if variant.when == {key: kind}]
    if any(variant.constraint is None or variant.constraint.active(at) for variant in stated):
        return _table(name, model.get_prices(at, {key: kind}))
    if kind == BATCH:
        # Before the first day on the list: half of what was halved then, e.g. not cached input.
        only = {
            _PRICED[price][0] for v in stated for price in v.prices.__dict__ if price in _PRICED
        }
        return standard.times(_HALF, frozenset(only) if stated else None)
    raise Unpriced(f"no price is known for tier {kind[:80]!r} of model {name!r} on {at.date()}")


def _table(name: str, prices: ModelPrice) -> PriceTable:
    given = {key: price for key, price in prices.__dict__.items() if price is not None}
    if not given:
        raise Unpriced(f"no price is known for model {name!r}")
    for key in given:
        if key not in _PRICED:
            raise Unpriced(f"model {name!r} has a price that is not understood: {key}")
    bounds = {tier.start for price in given.values() for tier in getattr(price, "tiers", ())}
    return PriceTable(
        tuple(
            (bound, {_PRICED[key][0]: _unit(key, price, bound) for key, price in given.items()})
            for bound in (*sorted(bounds, reverse=True), -1)
        )
    )


def _unit(key: str, price: Any, bound: int) -> Decimal:
    if not isinstance(price, Decimal):
        over = [tier.price for tier in price.tiers if tier.start <= bound]
        price = over[-1] if over else price.base
    return Decimal(price) / _PRICED[key][1]


def _uplift(name: str) -> Decimal:
    if _BEFORE_UPLIFT.match(name):
        return Decimal(1)
    version = _VERSION.match(name)
    if version is None:
        raise Unpriced(f"whether model {name!r} costs more in a region is not known")
    number = (int(version[1]), int(version[2] or 0))
    return _UPLIFT if number >= _FIRST_UPLIFTED else Decimal(1)


# -- the list itself


def _find(provider: str | None, names: Sequence[str]) -> tuple[str, ModelInfo] | None:
    lists = _lists()
    where = (AZURE, OPENAI) if provider == AZURE else (OPENAI,)
    if provider not in (OPENAI, REGIONAL, AZURE):
        return None
    for name in (name.lower() for name in names):
        for owner in where:
            for model in lists[owner].models:
                if _is(model.match, name):
                    return name, model
    return None


def _is(clause: Any, name: str) -> bool:
    """As genai-prices matches, but that a name which *contains* a known one is not that model:
    `ft:gpt-4.1:acme:moderation` would be free, `o4-mini-deep-research` cheap on Azure."""
    if hasattr(clause, "or_"):
        return any(_is(part, name) for part in clause.or_)
    if hasattr(clause, "and_"):
        return all(_is(part, name) for part in clause.and_)
    return not hasattr(clause, "contains") and bool(clause.is_match(name))


@cache
def _lists() -> dict[str, Provider]:
    # Late, for it costs 0.2 s and 30 MB (its updater's HTTP client comes along), which commands
    # that price nothing should not pay.
    from genai_prices.data import providers

    return {provider.id: provider for provider in providers if provider.id in (OPENAI, AZURE)}
