"""The policy's `prices:`, as it is read, kept and refused."""

from __future__ import annotations

from dataclasses import asdict
from datetime import date
from typing import Any

import orjson
import pytest

from policies.prices import Price, prices
from policies.setting import PolicyError


def _price(**settings: Any) -> dict[str, Any]:
    return {"model": "gpt-4o*", **settings}


def test_an_entry_is_read_with_its_defaults() -> None:
    (found,) = prices([_price(since=date(2026, 1, 1), input=2.5, output=10)], "prices")
    assert found == Price("gpt-4o*", date(2026, 1, 1), 2.5, output=10.0)
    assert (found.per, found.currency, found.cached) == (1_000_000, "usd", None)


def test_what_a_child_process_is_told_is_what_was_read() -> None:
    found = prices([_price(since="2026-01-01", input=1, tier={"flex": 0.5, "batch": 0})], "prices")
    told = orjson.loads(orjson.dumps([asdict(price) for price in found]))
    assert prices(told, "prices") == found


def test_tiers_alone_are_an_entry() -> None:
    (found,) = prices([_price(tier={"flex": 0.5})], "prices")
    assert not found.states_prices()
    assert (found.factor("flex"), found.factor("priority")) == (0.5, None)


@pytest.mark.parametrize(("day", "begun"), [(date(2025, 12, 31), False), (date(2026, 1, 1), True)])
def test_a_price_begins_on_its_day(day: date, begun: bool) -> None:
    (found,) = prices([_price(since="2026-01-01", input=1)], "prices")
    assert found.begun(day) is begun


REFUSED = [
    ("2.5", "prices", "must be a list"),
    ([_price()], "prices[0]", "states neither a price nor tiers"),
    ([{"input": 1}], "prices[0].model", "is missing"),
    ([_price(input=-1)], "prices[0].input", "must be from 0"),
    ([_price(input=True)], "prices[0].input", "must be a number"),
    ([_price(input=float("nan"))], "prices[0].input", "must be from 0"),
    ([_price(prompt=1)], "prices[0].prompt", "unknown setting"),
    ([_price(input=1, since="last May")], "prices[0].since", "must be a day"),
    ([_price(input=1, since="2026-02-30")], "prices[0].since", "must be a day"),
    ([_price(input=1, currency="eur")], "prices[0].currency", "must be one of usd"),
    ([_price(input=1, per=0)], "prices[0].per", "must be from 1"),
    ([_price(tier="flex")], "prices[0].tier", "must be a mapping"),
    ([_price(tier=["flex"])], "prices[0].tier", "must be a mapping"),
    ([_price(tier={"flex": "half"})], "prices[0].tier.flex", "must be a number"),
    (
        [_price(input=1, since="2026-02-01"), _price(input=2, since="2026-01-01")],
        "prices[1].since",
        "list the oldest first",
    ),
    ([_price(input=1, since="2026-02-01"), _price(input=2)], "prices[1].since", "oldest first"),
]


@pytest.mark.parametrize(("value", "path", "hint"), REFUSED)
def test_what_is_refused_names_the_field_and_the_remedy(value: Any, path: str, hint: str) -> None:
    with pytest.raises(PolicyError) as caught:
        prices(value, "prices")
    assert caught.value.path == path
    assert hint in caught.value.hint
