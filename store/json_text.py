"""The strings inside JSON text as it was sent, by their places: nothing is parsed and re-made.

Text that is cut off or no JSON at all is read as far as it goes; nothing here raises.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

_CARD_LONG: Final = re.compile(r"[0-9](?<![\w.+-].)[0-9]{12,18}(?![\w.+-])")
_CARD_DIGITS: Final = 13
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|.)", re.DOTALL
)
_DECODER: Final = json.JSONDecoder(strict=False)  # control characters: sent is sent
_CODED: Final = re.compile(r"\\u(?:00[0-9a-fA-F]{2}|20(?:2[fF]|09|1[0-1]))")
_CODED_MARK: Final = re.compile(r"\\(?=u(?:00|20))")


class Piece(NamedTuple):
    """raw[start:end] is the inside of a string, or a number of 13 to 19 digits."""

    start: int
    end: int
    is_key: bool
    is_number: bool


class Edit(NamedTuple):
    """text[start:end] becomes `new`."""

    start: int
    end: int
    new: str


def pieces(raw: str, numbers: bool) -> Iterator[Piece]:
    """Keys and strings in their order; with `numbers` also those that could be a card's.

    The text is split at each quote: a search for a single character is what is fastest.
    """
    start, at, inside = 0, 0, False  # `start`: of the string that is read, or was read last
    for part in raw.split('"'):
        end = at + len(part)
        if inside:
            # An odd number of backslashes before a quote makes it a part of the string.
            if part[-1:] != "\\" or (len(part) - len(part.rstrip("\\"))) % 2 == 0:
                inside = False
        else:
            if at:
                yield Piece(start, at - 1, part.lstrip()[:1] == ":", False)
            if numbers and len(part) >= _CARD_DIGITS:
                for match in _CARD_LONG.finditer(part):
                    yield Piece(at + match.start(), at + match.end(), False, True)
            start, inside = end + 1, True
        at = end + 1
    if start < at:  # cut off within a string
        yield Piece(start, at - 1, False, False)


def decoded(inside: str) -> str:
    """A string's inside without its escapes; as it is where they are no JSON."""
    if "\\" not in inside:
        return inside
    try:
        return str(_DECODER.decode(f'"{inside}"'))
    except ValueError:
        return inside


def is_json(text: str) -> bool:
    """Whether a string holds an object or a list of its own: the arguments of a tool."""
    if text.lstrip()[:1] not in ("{", "["):
        return False
    try:
        _DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return False
    return True


def unescaped(raw: str) -> str:
    """JSON text whose ASCII and spaces are written out: for a look, its places are not kept."""
    if not _CODED_MARK.search(raw):
        return raw
    return _CODED.sub(lambda match: chr(int(match[0][2:], 16)), raw)


def outward(edits: Iterable[Edit], inside: str, start: int) -> list[Edit]:
    """Edits of the decoded string as edits of the raw text, in which `inside` begins at `start`."""
    places = _places(inside)
    return [
        Edit(start + _raw(places, a), start + _raw(places, b), json.dumps(new)[1:-1])
        for a, b, new in edits
    ]


def edited(text: str, edits: list[Edit]) -> str:
    """`edits` in order, none within another."""
    parts: list[str] = []
    at = 0
    for start, end, new in edits:
        parts += (text[at:start], new)
        at = end
    return "".join((*parts, text[at:]))


def _places(inside: str) -> tuple[list[int], list[int]]:
    """After each escape: the place in the decoded text, and that in the raw one."""
    at, raw, shrunk = [0], [0], 0
    if decoded(inside) == inside:
        return at, raw
    for match in _ESCAPE.finditer(inside):
        shrunk += match.end() - match.start() - 1
        at.append(match.end() - shrunk)
        raw.append(match.end())
    return at, raw


def _raw(places: tuple[list[int], list[int]], place: int) -> int:
    index = bisect_right(places[0], place) - 1
    return places[1][index] + place - places[0][index]
