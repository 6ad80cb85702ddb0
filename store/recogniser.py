"""What a recogniser is: one kind of value, found in a text.

Each is asked twice: `may` by a cheap look whether a text can hold anything of its kind, and only
then `find` where. A look may be wrong in one direction alone: it never denies what `find` finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Final, NamedTuple, Protocol

# Digits, capitals and the rest, with what may stand between groups of digits left out; beyond
# ASCII is left out too, since some of it is spaces and hyphens.
_CLASSES: Final = bytes(
    ord("0") if chr(c).isdigit() else ord("A") if chr(c).isupper() else ord("x")
    for c in range(128)
) + bytes(128)  # fmt: skip
_BETWEEN: Final = b" .-()/+\\\t" + bytes(range(128, 256))


class Found(NamedTuple):
    """text[start:end] is a value of a kind; `same` is equal for all ways to write that value."""

    start: int
    end: int
    label: str
    same: str


class Glance:
    """A text, and what several recognisers want to know of it at a glance."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def shape(self) -> bytes:
        """`0` per digit, `A` per capital, `x` per other; separators of digits are left out."""
        return self.text.encode("utf-8", "surrogatepass").translate(_CLASSES, _BETWEEN)


class Recogniser(Protocol):
    def may(self, glance: Glance) -> bool: ...

    def find(self, text: str, beside: str) -> Iterable[Found]:
        """`beside`: the name of the field that holds the text, or what else stands before it."""
        ...


class Words:
    """Whether one of some words stands shortly before a place, or names the field."""

    def __init__(self, *words: str, within: int = 48) -> None:
        joined = "|".join(words)
        self._words = re.compile(rf"(?<![^\W_])(?:{joined})(?![^\W_])", re.IGNORECASE)
        self._within = within

    def near(self, text: str, start: int, beside: str) -> bool:
        before = text[max(0, start - self._within) : start]
        return bool(self._words.search(before) or (beside and self._words.search(spaced(beside))))


_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])")


def spaced(name: str) -> str:
    """`customerPhone` as `customer Phone`."""
    return _CAMEL.sub(" ", name)
