"""What the record may take out of bodies: names for the policy, what each means, its placeholder.

A value found is written as a typed placeholder, `<EMAIL_1>`; the same value has the same number
within an exchange, so that what is left can still be learned from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Meaning:
    """`label`: what its placeholders begin with. `extra`: the optional install that it needs."""

    label: str
    finds: str
    extra: str | None = None


CREDENTIALS: Final = "credentials"  # always on: it can't be chosen away

RECOGNISERS: Final[dict[str, Meaning]] = {
    CREDENTIALS: Meaning(
        "SECRET",
        "API keys and tokens by their form, private keys, passwords in URLs, and the fields of "
        "the API that hold secrets",
    ),
    "email": Meaning("EMAIL", "e-mail addresses"),
    "phone": Meaning(
        "PHONE",
        "phone numbers: international ones anywhere; those as dialled at home only where a region "
        "is set, and as bare digits only beside a word like `phone`",
    ),
    "card": Meaning("CARD", "payment card numbers: the brands' ranges and lengths, with checksum"),
    "iban": Meaning("IBAN", "bank account numbers: the country's form, with checksum"),
    "national_id": Meaning(
        "ID",
        "national numbers of persons, with checksum; those of plain digits only beside a word that "
        "names them",
    ),
    "ip": Meaning("IP", "IPv4 and IPv6 addresses"),
    "person": Meaning("PERSON", "names of persons, by Presidio; slow", extra="names"),
}
