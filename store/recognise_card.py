"""Payment card numbers: a brand's first digits and length, and the checksum of Luhn."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from stdnum import luhn

from store.recogniser import Found, Glance

_LEAST: Final = b"0" * 13
# One separator throughout, groups as cards show them; or no separator at all.
_CARD: Final = re.compile(
    r"[2-6](?<![\w+-].)(?<![0-9][ .,].)(?:[0-9]{12,18}"
    r"|[0-9]{3}(?:([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,3})?"
    r"|([ -])[0-9]{6}\2[0-9]{4,5}))"
    r"(?![\w-]|[.,]\d| \d{4})"
)
# The issuers' published ranges (ISO/IEC 7812), as first digits and lengths.
_BRANDS: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}"  # Discover
    r"|3(?:0[0-5]|[689]\d)\d{11,16}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|62\d{14,17}|8[12]\d{14}"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
    r"|220[0-4]\d{12,15}|508[5-9]\d{12}|60[68]\d{13}"  # Mir, RuPay
)


def is_card(digits: str) -> bool:
    """`digits`: nothing but digits."""
    return bool(_BRANDS.fullmatch(digits)) and luhn.is_valid(digits)


class Cards:
    def may(self, glance: Glance) -> bool:
        return _LEAST in glance.shape

    def find(self, text: str, beside: str) -> Iterator[Found]:
        for match in _CARD.finditer(text):
            digits = match[0].replace(" ", "").replace("-", "")
            if is_card(digits):
                yield Found(match.start(), match.end(), "CARD", digits)
