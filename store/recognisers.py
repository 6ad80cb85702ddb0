"""The recognisers that a policy names, made ready."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Final

from policies.recognisers import CREDENTIALS, RECOGNISERS
from store.recognise_card import Cards
from store.recognise_email import Emails
from store.recognise_iban import Ibans
from store.recognise_id import NationalIds
from store.recognise_ip import Addresses
from store.recognise_person import Persons
from store.recognise_phone import Phones
from store.recognise_secret import Secrets
from store.recogniser import Recogniser

Maker = Callable[[str | None, Collection[str] | None], Recogniser]

# In the order in which they win where two find the same: the surest first.
_MAKERS: Final[dict[str, Maker]] = {
    CREDENTIALS: lambda region, countries: Secrets(),
    "iban": lambda region, countries: Ibans(),
    "card": lambda region, countries: Cards(),
    "email": lambda region, countries: Emails(),
    "ip": lambda region, countries: Addresses(),
    "national_id": lambda region, countries: NationalIds(countries),
    "phone": lambda region, countries: Phones(region),
    "person": lambda region, countries: Persons(),
}


class UnknownRecogniser(ValueError):
    """A name that no recogniser has."""


def recognisers(
    names: Collection[str], region: str | None, countries: Collection[str] | None
) -> list[Recogniser]:
    """The named ones, credentials first and always. Raises UnknownRecogniser, MissingExtra."""
    for name in names:
        if name not in RECOGNISERS:
            known = ", ".join(sorted(RECOGNISERS))
            raise UnknownRecogniser(f"recogniser {name!r} is not known; there are: {known}")
    chosen = {CREDENTIALS, *names}
    return [make(region, countries) for name, make in _MAKERS.items() if name in chosen]
