"""IBANs (ISO 13616): the country's own form and length, and the checksum."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from stdnum import iban

from store.recogniser import Found, Glance

_MARK: Final = b"AA00"
_START: Final = re.compile(r"[A-Z](?<![A-Za-z0-9].)[A-Z][0-9]{2}(?=[ -]?[A-Z0-9]{4})")
_GROUP: Final = re.compile(r"[ \u00a0-]?[A-Z0-9]{1,4}(?![A-Z0-9]*[a-z])")
_SHORTEST: Final = 15  # Norway's
_LONGEST: Final = 34
_AS_NUMBERS: Final = {ord("A") + place: str(10 + place) for place in range(26)}


class Ibans:
    def may(self, glance: Glance) -> bool:
        return _MARK in glance.shape

    def find(self, text: str, beside: str) -> Iterator[Found]:
        for match in _START.finditer(text):
            found = _longest(text, match.start(), match.end())
            if found:
                yield Found(match.start(), found[0], "IBAN", found[1])


def _is_iban(compact: str) -> bool:
    # The checksum first (ISO 7064, mod 97), which is cheap. Not the checks of single countries:
    # they know the banks of one day.
    if int((compact[4:] + compact[:4]).translate(_AS_NUMBERS)) % 97 != 1:
        return False
    return iban.is_valid(compact, check_country=False)


def _longest(text: str, start: int, end: int) -> tuple[int, str] | None:
    """Where the IBAN that begins at `start` ends, and its letters and digits.

    What follows it in capitals must not hide it: each end is tried that could be one.
    """
    compact, best = text[start:end], None
    while len(compact) <= _LONGEST:
        if len(compact) >= _SHORTEST and not text[end : end + 1].isalnum() and _is_iban(compact):
            best = end, compact
        group = _GROUP.match(text, end)
        if not group:
            break
        compact += group[0].lstrip(" \u00a0-")
        end = group.end()
    return best
