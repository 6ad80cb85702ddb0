"""Phone numbers, judged by phonenumbers; what it judges is narrowed down first, since it is slow.

A number in international form is one anywhere. One as dialled at home counts only where a region
is set, in that region's grouping or beside a word such as `phone`: any order number of ten digits
is a valid phone number of somewhere.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Final

import phonenumbers
from phonenumbers import PhoneMetadata, PhoneNumber, PhoneNumberFormat

from store.recogniser import Found, Glance, Words

_LEAST: Final = b"0" * 7
_JOINT: Final = r"[ .()/\u00a0\u2009\u202f\u2010\u2011-]{1,3}"
_RUN: Final = rf"[0-9]{{1,15}}(?:{_JOINT}[0-9]{{1,15}}){{0,7}}"
_ABROAD: Final = re.compile(rf"\+(?<![\w+]\+) ?\(?{_RUN}(?!\w)")
# The plus sign as it is dialled from most countries.
_DIALLED: Final = re.compile(rf"00(?<![\w.,/#$€£+-]00)[ -]?(?!0){_RUN}(?!\w)")
# A class first, what may not stand before it after: so a search runs over prose four times faster.
_HOME: Final = re.compile(
    rf"[0-9(](?<![\w/#$€£+\\-].)(?<![0-9][.,].)(?:(?<=\(){_RUN}|(?<!\()[0-9]{{0,14}}"
    rf"(?:{_JOINT}[0-9]{{1,15}}){{0,7}})(?![\w%]|[.,:]\d|-\w)"
)
_GROUP: Final = re.compile(r"[0-9]+")
_GROUPED: Final = re.compile(r"[0-9][^0-9]+[0-9]")
_DATE: Final = re.compile(
    r"(?:19|20)\d\d([-/. ])[01]?\d\1[0-3]?\d(?!\d)|[0-3]?\d([-/. ])[0-3]?\d\2(?:19|20)\d\d(?!\d)"
)
_BESIDE: Final = Words(
    r"(?:tele)?phones?", r"tel", r"telefon\w*", r"t[eé]l[eé]phone", r"tel[eé]fonos?", r"telefono",
    r"mobil\w*", r"m[oó]vil", r"cell\w*", r"handy\w*", r"fax\w*", r"whatsapp", r"sms", r"signal",
    r"call(?:ed|ing|s)?", r"dial(?:ed|ing)?", r"ring", r"rufnummer", r"anruf\w*", r"hotline",
    r"msisdn", r"puhelin\w*", r"portable", r"celular", r"电话", r"電話",
)  # fmt: skip
_SHORTEST: Final = 7


class Phones:
    def __init__(self, region: str | None) -> None:
        """`region`: where numbers without a country code are dialled, such as `DE`.

        Raises ValueError for a region that there is not.
        """
        if region is not None and region.upper() not in phonenumbers.SUPPORTED_REGIONS:
            raise ValueError(f"region {region!r} is not known; give two letters such as 'DE'")
        self._home = None if region is None else _Home(region.upper())

    def may(self, glance: Glance) -> bool:
        return _LEAST in glance.shape

    def find(self, text: str, beside: str) -> Iterator[Found]:
        if "+" in text:
            for match in _ABROAD.finditer(text):
                found = _abroad(text, match, 1)
                if found:
                    yield found
        if "00" in text:
            for match in _DIALLED.finditer(text):
                found = _abroad(text, match, 2)
                if found and (
                    _GROUPED.search(text, *found[:2]) or _BESIDE.near(text, found[0], beside)
                ):
                    yield found
        if self._home:
            for match in _HOME.finditer(text):
                found = self._home.find(text, match, beside)
                if found:
                    yield found


def _abroad(text: str, match: re.Match[str], plus: int) -> Found | None:
    """The longest number that begins with the match; `plus`: the length of what means a plus."""
    begin = match.start() + plus
    groups = [group.span() for group in _GROUP.finditer(text, begin, match.end())]
    for last in range(len(groups) - 1, -1, -1):
        end = groups[last][1]
        digits = "".join(text[a:b] for a, b in groups[: last + 1])
        if len(digits) < _SHORTEST:
            return None
        number = _parsed("+" + text[begin:end], None)
        if number:
            return _found(match.start(), end, number)
    return None


class _Home:
    """Numbers as dialled within one region."""

    def __init__(self, region: str) -> None:
        data = PhoneMetadata.metadata_for_region(region)
        if data is None or data.general_desc is None:
            raise ValueError(f"region {region!r} has no numbers")
        self._region = region
        self._code = str(data.country_code)
        self._prefix = data.national_prefix or ""
        national = data.general_desc.possible_length
        self._lengths = frozenset(
            len(head) + length
            for head in ("", self._prefix, self._code)
            for length in national
            if len(head) + length >= _SHORTEST
        )
        self._pattern = re.compile(data.general_desc.national_number_pattern or "")

    def find(self, text: str, match: re.Match[str], beside: str) -> Found | None:
        """The first and longest number among the groups of digits of a match."""
        groups = [group.span() for group in _GROUP.finditer(text, match.start(), match.end())]
        if _DATE.match(text, groups[0][0]):
            return None
        told: bool | None = None  # asked only when the digits could be a number: it is slow
        for first, last in self._windows([b - a for a, b in groups]):
            parts = [text[a:b] for a, b in groups[first : last + 1]]
            if not self._may_be("".join(parts)):
                continue
            if told is None:
                told = _BESIDE.near(text, match.start(), beside)
            if not told and len(parts) == 1:
                continue
            number = _parsed("".join(parts), self._region)
            if number and self._is_so_written(number, parts, told):
                start = _opened(text, groups[first][0], groups[last][1])
                return _found(start, groups[last][1], number)
        return None

    def _windows(self, lengths: list[int]) -> Iterator[tuple[int, int]]:
        """First and last of each few groups that together have as many digits as numbers have."""
        ends = [0, *itertools.accumulate(lengths)]
        for first in range(len(lengths)):
            for last in range(len(lengths) - 1, first - 1, -1):
                if ends[last + 1] - ends[first] in self._lengths:
                    yield first, last

    def _is_so_written(self, number: PhoneNumber, parts: list[str], told: bool) -> bool:
        shown = phonenumbers.format_number(number, PhoneNumberFormat.NATIONAL)
        return any(_fits(parts, form, told) for form in self._forms(_GROUP.findall(shown)))

    def _may_be(self, digits: str) -> bool:
        """Cheaply: could it be one at all, with or without what is dialled before it?"""
        heads = ("", self._prefix, self._code)
        return any(
            digits.startswith(head) and self._pattern.fullmatch(digits[len(head) :])
            for head in heads
        )

    def _forms(self, groups: list[str]) -> list[list[str]]:
        """The ways to write it: as shown nationally, and with the country's code or prefix."""
        forms = [groups]
        if self._prefix and not "".join(groups).startswith(self._prefix):
            forms.append([self._prefix, *groups])
        if self._code != self._prefix:
            forms.append([self._code, *groups])
        return forms


def _opened(text: str, start: int, end: int) -> int:
    """With the bracket around an area code."""
    return start - 1 if text[start - 1 : start] == "(" and ")" in text[start:end] else start


def _fits(parts: list[str], form: list[str], told: bool) -> bool:
    """The same digits; unless a word tells that it is a number, cut where the region cuts them."""
    if "".join(parts) != "".join(form):
        return False
    return told or _cuts(form) <= _cuts(parts)


def _cuts(parts: list[str]) -> set[int]:
    """After how many digits a new group begins."""
    return set(itertools.accumulate(map(len, parts)))


def _parsed(shown: str, region: str | None) -> PhoneNumber | None:
    try:
        number = phonenumbers.parse(shown, region)
    except phonenumbers.NumberParseException:
        return None
    return number if phonenumbers.is_valid_number(number) else None


def _found(start: int, end: int, number: PhoneNumber) -> Found:
    same = phonenumbers.format_number(number, PhoneNumberFormat.E164)
    return Found(start, end, "PHONE", same)
