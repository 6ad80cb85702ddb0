"""Takes secrets and personal data out of bodies before they are written down.

Works on JSON text as it was sent and changes the bytes of what it found alone: formatting, key
order, doubled keys, big numbers and lone surrogates stay, and what was valid JSON is valid after.
Keys of objects stay unless they hold a credential: they are the app's words, not its users'.
"""

from __future__ import annotations

import re
from bisect import bisect
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Final

from policies.recognisers import CREDENTIALS, RECOGNISERS
from store.json_text import Edit, decoded, edited, is_json, outward, pieces, unescaped
from store.recognise_card import is_card
from store.recogniser import Found, Glance, Recogniser
from store.recognisers import recognisers
from store.secret_fields import Span, may_have, secret_spans

_SECRET: Final = RECOGNISERS[CREDENTIALS].label
_CARD: Final = RECOGNISERS["card"].label
# What was taken out can leave two neighbours that only now stand free.
_MOST_ROUNDS: Final = 4
_DEEPEST: Final = 3  # JSON in a string in JSON in a string
_SHORTEST: Final = 3
# Short strings come again with every request of an app: `user`, a model's name, a tool's parameter.
_LONGEST_CLEAN: Final = 512
_MOST_CLEAN: Final = 4096
# Images and sound as text: nobody's data by their letters, and long.
_LEAST_BINARY: Final = 1024
_BINARY: Final = re.compile(r"(?:data:[^,\s]{0,128};base64,)?[A-Za-z0-9+/_-]{1024,}+={0,2}")
# What a secret's field may hold besides a secret: ours already, or a name to be filled in.
_HARMLESS: Final = re.compile(r"\s*|<[^<>]*>|\$\w+|\$?\{+[^{}]*\}+|\*+")
_SPACE: Final = "\ufeff \t\r\n"
_OPENINGS: Final = frozenset('{["')
_SCALAR: Final = re.compile(r"\s*(?:[-+.0-9eE]+|true|false|null|NaN|-?Infinity)?\s*")
_SCHEME: Final = re.compile(r"(?:bearer|basic|token)\s+", re.IGNORECASE)


class Placeholders:
    """Those of one exchange: the same value gets the same one in its request and its answer."""

    __slots__ = ("_counts", "_given")

    def __init__(self) -> None:
        self._given: dict[tuple[str, str], str] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._given)

    def of(self, label: str, same: str) -> str:
        """`same` is equal for all ways to write a value."""
        given = self._given.get((label, same))
        if given is None:
            self._counts[label] = number = self._counts.get(label, 0) + 1
            given = self._given[label, same] = f"<{label}_{number}>"
        return given


class Redaction:
    """Made once from the settings; `begin` gives what an exchange needs of its own."""

    def __init__(
        self,
        chosen: Collection[str] = (),
        region: str | None = None,
        countries: Collection[str] | None = None,
    ) -> None:
        """`chosen`: names of policies.recognisers; credentials are always on. `region`: where
        phone numbers without a country code are dialled. `countries`: whose national ids.

        Raises UnknownRecogniser, ValueError (region, country) and MissingExtra.
        """
        self._recognisers = recognisers(chosen, region, countries)
        self._cards = "card" in chosen
        self._clean: set[tuple[str, str]] = set()

    def begin(self) -> Placeholders:
        return Placeholders()

    def text(self, raw: str, placeholders: Placeholders) -> str:
        """JSON text as it was sent; the same object where nothing was found.

        What is plainly no JSON after all is taken as plain text.
        """
        if raw.lstrip(_SPACE)[:1] not in _OPENINGS and not _SCALAR.fullmatch(raw):
            return self.plain(raw, placeholders)
        for _ in range(_MOST_ROUNDS):
            edits = self._json(raw, placeholders, 0)
            if not edits:
                break
            raw = edited(raw, edits)
        return raw

    def plain(self, text: str, placeholders: Placeholders) -> str:
        """Text that is no JSON; the same object where nothing was found."""
        for _ in range(_MOST_ROUNDS):
            edits = _edits(_wanted(self._recognisers, text), text, "", placeholders)
            if not edits:
                break
            text = edited(text, edits)
        return text

    def _json(self, raw: str, placeholders: Placeholders, depth: int) -> list[Edit]:
        shown = unescaped(raw)
        parts = shown.split('"')
        wanted, fields = _wanted(self._recognisers, shown), may_have(parts)
        if not wanted and not fields:
            return []
        secrets = secret_spans(raw) if fields else set()
        body = _Body(self._recognisers, wanted, placeholders, depth)
        return self._pieces(raw, body, secrets)

    def _pieces(self, raw: str, body: _Body, secrets: set[Span]) -> list[Edit]:
        made: list[Edit] = []
        clean, beside = self._clean, ""
        for start, end, is_key, is_number in pieces(raw, self._cards):
            inside = raw[start:end]
            if is_number:
                made += _number(start, inside, body)
                continue
            if secrets and (start, end) in secrets:
                edits = _secret(decoded(inside), body)
            elif is_key:
                beside, edits = inside, body.key(inside)
            elif end - start < _SHORTEST or (beside, inside) in clean:
                continue
            else:
                edits = self._string(decoded(inside), beside, body)
                if not (edits or body.depth) and end - start <= _LONGEST_CLEAN:
                    self._remember(beside, inside)
            if edits:
                made += outward(edits, inside, start)
        return made

    def _string(self, text: str, beside: str, body: _Body) -> list[Edit]:
        if body.depth < _DEEPEST and is_json(text):
            return self._json(text, body.placeholders, body.depth + 1)
        if len(text) >= _LEAST_BINARY and _BINARY.fullmatch(text):
            return []
        return _edits(_wanted(body.wanted, text), text, beside, body.placeholders)

    def _remember(self, beside: str, inside: str) -> None:
        if len(self._clean) >= _MOST_CLEAN:
            self._clean.clear()
        self._clean.add((beside, inside))


@dataclass(frozen=True, slots=True)
class _Body:
    """A JSON text in work. `wanted`: the recognisers that could find something in it."""

    recognisers: list[Recogniser]
    wanted: list[Recogniser]
    placeholders: Placeholders
    depth: int

    def key(self, inside: str) -> list[Edit]:
        """Only the credentials' recogniser, which is the first, looks at keys."""
        if not self.wanted or self.wanted[0] is not self.recognisers[0]:
            return []
        text = decoded(inside)
        return _edits(_wanted(self.wanted[:1], text), text, "", self.placeholders)


def _wanted(recognisers: list[Recogniser], text: str) -> list[Recogniser]:
    glance = Glance(text)
    return [one for one in recognisers if one.may(glance)]


def _edits(
    wanted: list[Recogniser], text: str, beside: str, placeholders: Placeholders
) -> list[Edit]:
    found: list[Found] = []
    for one in wanted:
        for new in one.find(text, beside):
            at = bisect(found, new)
            is_free = at == 0 or found[at - 1].end <= new.start
            if is_free and (at == len(found) or new.end <= found[at].start):
                found.insert(at, new)
    return [Edit(one.start, one.end, placeholders.of(one.label, one.same)) for one in found]


def _number(start: int, digits: str, body: _Body) -> Iterator[Edit]:
    """A number becomes a string: JSON has no other place for the placeholder."""
    if is_card(digits):
        placeholder = body.placeholders.of(_CARD, digits)
        yield Edit(start, start + len(digits), f'"{placeholder}"')


def _secret(text: str, body: _Body) -> list[Edit]:
    """All of a field's value but the scheme before it."""
    scheme = _SCHEME.match(text)
    start = scheme.end() if scheme else 0
    if _HARMLESS.fullmatch(text, start):
        return []
    return [Edit(start, len(text), body.placeholders.of(_SECRET, text[start:]))]
