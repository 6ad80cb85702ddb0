"""JSON texts cut where they repeat: at the borders of messages, tools and other large elements.

A chat sends its history with every turn, an app the same instructions with every call. So the text
of a body, exactly as it was sent, is cut into what is its own and what others will share. Joined
again the pieces are the very text, with its white space, duplicate keys and large integers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from json import JSONDecoder
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any, Final, NamedTuple

_LISTS: Final = frozenset(("messages", "input"))  # each element of theirs is a piece
_BLOCKS: Final = frozenset(
    ("tools", "functions", "instructions", "response_format", "text", "prompt", "system")
)
_BEFORE_ANSWERS: Final = frozenset(("system", "developer", "user"))
_LEAST_BLOCK: Final = 256  # characters; a smaller one costs less where it is
_CONTENT: Final[Callable[..., Any]] = re.compile(r'"content"[ \t\n\r]*:[ \t\n\r]*"').finditer
_SPACE: Final[Callable[..., Any]] = re.compile(r"[ \t\n\r]*").match


def _no_json(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_scan: Final = JSONDecoder(parse_constant=_no_json).scan_once  # type: ignore[attr-defined]


class Chain(NamedTuple):
    """Pieces that follow each other. `user`: which of them is a user's first message. `grows`: it
    is a talk, which the next turn will send again."""

    pieces: tuple[str, ...]
    user: int | None = None
    grows: bool = False


Part = str | Chain
Parts = tuple[Part, ...]  # one alone: there is nothing in it that others could share


class Cut(NamedTuple):
    """`parts`, joined, are the text. `json`: what it says; of a repeated key, the last."""

    parts: Parts
    json: dict[str, Any]

    @property
    def talks(self) -> bool:
        """Has an assistant spoken in it? Then its answer will be spoken of, too."""
        messages = self.json.get("messages")
        return isinstance(messages, list) and any(
            isinstance(one, dict) and one.get("role") == "assistant" for one in messages
        )


def cut(text: str) -> Cut | None:
    """None for what is no JSON object, or one that is nested too deeply to be read."""
    try:
        return _Cutter(text).run()
    except (ValueError, IndexError, StopIteration, RecursionError):
        return None


class _Cutter:
    def __init__(self, text: str) -> None:
        self._text = text
        self._parts: list[Part] = []
        self._done = 0  # up to here the text is in `parts`

    def run(self) -> Cut:
        text, said = self._text, dict[str, Any]()
        at = _after(text, 0)
        if text[at] != "{":
            raise ValueError("no object")
        at = _after(text, at + 1)
        while text[at] != "}":
            key, at = self._key(at)
            said[key], at = self._value(key, at)
            at = _after(text, at)
            if text[at] == ",":
                at = _after(text, at + 1)
                if text[at] == "}":
                    raise ValueError("a comma too many")
            elif text[at] != "}":
                raise ValueError("no comma")
        if _SPACE(text, at + 1).end() != len(text):
            raise ValueError("more than one value")
        self._parts.append(text[self._done :])
        return Cut(tuple(self._parts), said)

    def _key(self, at: int) -> tuple[str, int]:
        if self._text[at] != '"':
            raise ValueError("no key")
        key, at = scanstring(self._text, at + 1, True)
        at = _after(self._text, at)
        if self._text[at] != ":":
            raise ValueError("no colon")
        return key, _after(self._text, at + 1)

    def _value(self, key: str, at: int) -> tuple[Any, int]:
        if key in _LISTS and self._text[at] == "[":
            return self._elements(at + 1)
        value, end = _scan(self._text, at)
        if key in _BLOCKS and end - at >= _LEAST_BLOCK:
            self._take(at, Chain((self._text[at:end],)), end)
        return value, end

    def _elements(self, start: int) -> tuple[list[Any], int]:
        """A piece is an element with what stands before it, so that joining is all there is to do.

        The first has nothing before it: white space there stays outside. What an assistant said is
        a piece of its own, the same as in the answer that it once was.
        """
        text, pieces, values, user, grows = self._text, list[str](), list[Any](), None, False
        at = begun = first = _after(text, start)
        if text[at] == "]":
            return [], at + 1
        while True:
            value, end = _scan(text, at)
            role = value.get("role") if isinstance(value, dict) else "user"
            if user is None and role == "user" and isinstance(value, dict):
                user = len(pieces)
            grows = grows or not isinstance(role, str) or role not in _BEFORE_ANSWERS
            values.append(value)
            said = _content(text, at, end, value)
            if said is None:
                pieces.append(text[begun:end])
            else:
                pieces += (text[begun : said[0]], text[said[0] : said[1]], text[said[1] : end])
            at = _after(text, end)
            if text[at] == "]":
                break
            if text[at] != ",":
                raise ValueError("no comma")
            begun, at = end, _after(text, at + 1)
        self._take(first, Chain(tuple(pieces), user, grows), end)
        return values, at + 1

    def _take(self, start: int, chain: Chain, end: int) -> None:
        self._parts += (self._text[self._done : start], chain)
        self._done = end


def _after(text: str, at: int) -> int:
    """Where the white space at `at` ends. Raises IndexError behind the text."""
    return at if text[at] > " " else int(_SPACE(text, at).end())


def _content(text: str, start: int, end: int, message: Any) -> tuple[int, int] | None:
    """Where a long text that an assistant said stands, quotes and all."""
    if not isinstance(message, dict) or message.get("role") != "assistant":
        return None
    said = message.get("content")
    return _literal(text, start, end, said) if isinstance(said, str) else None


def _literal(text: str, start: int, end: int, said: str) -> tuple[int, int] | None:
    if len(said) < _LEAST_BLOCK:
        return None
    for match in _CONTENT(text, start, end):
        value, after = scanstring(text, match.end(), True)
        if value == said:
            return match.end() - 1, after
    return None


def cut_answer(text: str, said: str) -> Parts | None:
    """The text of an answer around `said`, its content: the next turn will send that again. None
    where it is too short to be worth it, or stands nowhere."""
    place = _literal(text, 0, len(text), said)
    if place is None:
        return None
    start, end = place
    return text[:start], Chain((text[start:end],), grows=True), text[end:]
