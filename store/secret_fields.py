"""The fields of a JSON body whose values are secrets whatever they look like.

Those of the API's own objects are told by what stands around them (openai-python's types): MCP
tools, client secrets, created keys. Others by their names alone, wherever they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import compress
from operator import itemgetter
from typing import Final

Span = tuple[int, int]

# Names are compared in small letters, without `-` and `_`.
_NAMES: Final = frozenset(
    "authorization proxyauthorization cookie setcookie clientsecret secret secretvalue "
    "connectionstring accesstoken refreshtoken authtoken bearertoken sessiontoken secretkey "
    "privatekey accountkey subscriptionkey ocpapimsubscriptionkey signingkey signingsecret "
    "webhooksecret passwd xfunctionskey".split()
)
_ENDINGS: Final = (
    "apikey",
    "password",
    "secretkey",
    "accesskey",
    "clientsecret",
    "secretaccesskey",
)
_ONLY_AROUND: Final = frozenset(("value", "key", "token", "headers"))
_HOLDERS: Final = frozenset(("clientsecret", "domainsecrets", "apikey"))
_MCP: Final = frozenset(("serverurl", "serverlabel", "connectorid"))
_CREATED: Final = frozenset(("expiresat", "session"))  # /realtime/client_secrets

_TOKENS: Final = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*+)"?(\s*:)?|[{}\[\]]', re.DOTALL)


def _last_three(*endings: str) -> frozenset[str]:
    """Of keys as written, and before an escaped quote; twice escaped, of any."""
    made = {"\\\\\\"}
    for ending in endings:
        for written in (ending, ending.upper(), ending.title()):
            made |= {written[-3:], written[-2:] + "\\"}
    return frozenset(made)


_LAST_THREE: Final = itemgetter(slice(-3, None))
_ENDS: Final = _last_three(
    "key", "secret", "password", "passwd", "token", "cookie", "secret_value", "headers",
    "authorization", "domain_secrets", "session", "authentication", "static_bearer",
)  # fmt: skip
# `value` and the like come with one of these beside them; so do connection strings.
_SHOWN: Final = frozenset(("session", "headers", "authentication", "staticbearer", "domainsecrets"))
_LONGEST_NAME: Final = 64


def normal(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def is_secret(name: str) -> bool:
    """`name`: in its normal form."""
    return name in _NAMES or name.endswith(_ENDINGS)


def may_have(parts: list[str]) -> bool:
    """Cheaply, whether a key that matters stands in JSON text, which comes split at its quotes."""
    likely = compress(parts, map(_ENDS.__contains__, map(_LAST_THREE, parts)))
    return any(len(part) <= _LONGEST_NAME and _matters(part) for part in likely)


@lru_cache(maxsize=4096)
def _matters(part: str) -> bool:
    name = normal(part.rstrip("\\"))
    return is_secret(name) or name in _SHOWN


@dataclass(slots=True)
class _Frame:
    """An object or list that is being read. `name`: the key that it stands under."""

    name: str
    is_list: bool
    key: str = ""
    keys: set[str] = field(default_factory=set)
    type: str = ""
    object: str = ""
    waiting: list[tuple[str, Span]] = field(default_factory=list)

    def secrets(self) -> Iterator[Span]:
        """Of what waited for the whole object to be known."""
        for name, span in self.waiting:
            if (
                (name == "headers" and (self.type == "mcp" or self.keys & _MCP))
                or (name == "value" and self._is_holder())
                or (name == "key" and self.name == "authentication")
                or (name == "token" and self.type == "static_bearer")
            ):
                yield span

    def _is_holder(self) -> bool:
        return (
            self.name in _HOLDERS or self.object.endswith("api_key") or self.keys >= _CREATED
        )  # fmt: skip


def secret_spans(raw: str) -> set[Span]:
    """Where the insides of strings are that must not be kept."""
    found: set[Span] = set()
    stack = [_Frame("", True)]
    for match in _TOKENS.finditer(raw):
        frame, mark = stack[-1], raw[match.start()]
        if mark == '"':
            _string(frame, match, found)
        elif mark in "{[":
            stack.append(_within(frame, mark == "["))
        elif len(stack) > 1:
            _close(stack, found)
    while len(stack) > 1:  # cut off in the middle
        _close(stack, found)
    return found


def _within(frame: _Frame, is_list: bool) -> _Frame:
    name = frame.name if frame.is_list else frame.key
    if name == frame.name == "headers":  # lists in lists: one list of what they hold
        return _Frame(name, is_list, waiting=frame.waiting)
    return _Frame(name, is_list)


def _string(frame: _Frame, match: re.Match[str], found: set[Span]) -> None:
    text = match[1]
    if match[2] and not frame.is_list:
        frame.key = normal(text) if len(text) <= _LONGEST_NAME else ""
        frame.keys.add(frame.key)
        return
    name, span = frame.name if frame.is_list else frame.key, match.span(1)
    if is_secret(name):
        found.add(span)
    elif frame.name == "headers":
        frame.waiting.append(("", span))
    elif name in _ONLY_AROUND:
        frame.waiting.append((name, span))
    elif name == "type":
        frame.type = text
    elif name == "object":
        frame.object = text


def _close(stack: list[_Frame], found: set[Span]) -> None:
    frame = stack.pop()
    if frame.waiting is stack[-1].waiting:
        return
    found.update(frame.secrets())
    if frame.name == "headers":
        stack[-1].waiting += [("headers", span) for _, span in frame.waiting]
