"""IP addresses, but not versions, section numbers, times or names with colons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from store.recogniser import Found, Glance

_FOUR_MARK: Final = re.compile(r"\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]")
_SIX_MARK: Final = re.compile(r":[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]")
_FOUR: Final = re.compile(
    r"[0-9](?<![\w.~^<>-].)(?<!==.)(?<!>=.)(?<![0-9],.)[0-9]{0,2}\.(?:[0-9]{1,3}\.){2}[0-9]{1,3}"
    r"(?![\w-]|\.\w|:[0-9]+:)"
)
_SIX: Final = re.compile(
    r"[0-9A-Fa-f:](?<![\w:.].)(?=[0-9A-Fa-f]{0,4}:)[0-9A-Fa-f:]{5,38}"
    r"(?:(?<=:)(?:[0-9]{1,3}\.){3}[0-9]{1,3})?(?![\w:]|\.\w)"
)
_LEAST_GROUPS: Final = 3  # a name such as `dead::beef` has two
_FAR: Final = 24
# A version has four parts now and then, and says so; a browser names itself before it.
_VERSION: Final = re.compile(
    r"(?:(?<![^\W_])(?:v|ver|vers|version|versions|release|rel|rev|revision|build|firmware|sec|"
    r"section|chapter|paragraph|clause|art|article|oid|upgrade to|driver|python|node|"
    r"kernel)[.:]?[ =]?\"?|§ ?|(?<![\w/])[A-Z][A-Za-z]+/)\Z",
    re.IGNORECASE,
)


class Addresses:
    def may(self, glance: Glance) -> bool:
        return bool(_FOUR_MARK.search(glance.text) or _SIX_MARK.search(glance.text))

    def find(self, text: str, beside: str) -> Iterator[Found]:
        if _SIX_MARK.search(text):
            yield from _sixes(text)
        if _FOUR_MARK.search(text):
            yield from _fours(text, beside)


def _fours(text: str, beside: str) -> Iterator[Found]:
    for match in _FOUR.finditer(text):
        before = text[max(0, match.start() - _FAR) : match.start()]
        address = _address(match[0])
        if address and not _VERSION.search(before) and "version" not in beside.casefold():
            yield Found(match.start(), match.end(), "IP", str(address))


def _sixes(text: str) -> Iterator[Found]:
    for match in _SIX.finditer(text):
        shown = match[0]
        if shown.endswith(":") and not shown.endswith("::"):
            shown = shown[:-1]
        address = _address(shown)
        groups = [group for group in shown.split(":") if group]
        if address and (len(groups) >= _LEAST_GROUPS or "." in shown):
            yield Found(match.start(), match.start() + len(shown), "IP", str(address))


def _address(shown: str) -> IPv4Address | IPv6Address | None:
    try:
        return ip_address(shown)
    except ValueError:
        return None
