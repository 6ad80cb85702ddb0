"""The JSON objects of a stream, and what was said besides: that it is done, or what went wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from store.sse import Events

Json = dict[str, Any]

EMPTY: Final = "the stream held no chunk"
_DONE: Final = b"[DONE]"
_LONGEST_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Assembled:
    """`body` is None for the reason in `note`. `finished`: the sender said that it was done.

    `error` is what went wrong inside the stream, whose status was 200 all the same.
    """

    body: Json | None
    finished: bool
    error: str | None = None
    note: str | None = None


class Messages:
    """Read by iterating, once, or by place; `done` and `error` hold for what has been read."""

    def __init__(self, events: Events) -> None:
        self.data = events.data
        self.done = False
        self.error: str | None = None
        self._names = events.names

    def __iter__(self) -> Iterator[Json]:
        for place in range(len(self.data)):
            message = self.at(place)
            if message is not None:
                yield message
            elif self.done:  # no SDK reads on
                return

    def at(self, place: int) -> Json | None:
        """None for what is no JSON object, for an error, and for the end."""
        data = self.data[place]
        try:
            message = orjson.loads(data)
        except orjson.JSONDecodeError:
            if data.startswith(_DONE):
                self.done = True
            elif self.error is None:
                self.error = "parse_error: an event that is not JSON"
            return None
        if not isinstance(message, dict):
            return None
        name = self._names.get(place) if self._names else None
        if message.get("error") or message.get("type") == "error" or name == b"error":
            self.error = f"stream: {said(message)}"
            return None
        return message

    def result(self, body: Json | None, ended: bool) -> Assembled:
        """`ended`: the messages themselves told the end; `[DONE]` does too."""
        if body is None:
            return Assembled(None, False, self.error, EMPTY)
        return Assembled(body, (self.done or ended) and self.error is None, self.error)


def said(message: Json) -> str:
    """An error in the stream, in its own words. Lone surrogates can be stored nowhere."""
    error = message.get("error")
    inner = error if isinstance(error, dict) else message
    text = error if isinstance(error, str) else inner.get("message") or inner.get("code")
    return str(text or "error")[:_LONGEST_ERROR].encode(errors="replace").decode()


class Text:
    """Text in pieces; joined once, at the end."""

    __slots__ = ("pieces",)

    def __init__(self, *pieces: str) -> None:
        self.pieces = list(pieces)

    def joined(self) -> str:
        return "".join(self.pieces)


def plain(value: Any) -> Any:
    """A value as JSON knows it: with each `Text` in it joined."""
    if isinstance(value, Text):
        return "".join(value.pieces)
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value


def index_of(value: Json, key: str = "index", default: int = 0) -> int:
    """Where a piece belongs: a whole number, not negative, or what is usual."""
    index = value.get(key)
    return index if type(index) is int and index >= 0 else default
