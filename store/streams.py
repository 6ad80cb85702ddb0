"""What a streamed answer amounts to: the JSON that would have come without streaming."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import orjson

from store.chat import ChatAssembly
from store.sse import ServerEvent, events

Json = dict[str, Any]

_DONE: Final = b"[DONE]"
_FINAL_RESPONSES: Final = ("response.completed", "response.incomplete", "response.failed")


@dataclass(frozen=True, slots=True)
class Assembled:
    """`body` is None for the reason in `note`. `finished`: the sender said that it was done.

    `error` is what went wrong inside the stream, whose status was 200 all the same.
    """

    body: Json | None
    finished: bool
    error: str | None = None
    note: str | None = None


def assemble(endpoint: str, body: bytes, whole: bool) -> Assembled:
    """`whole`: the body ended cleanly. Of one that did not, what had arrived is used."""
    assembler = _ASSEMBLERS.get(endpoint)
    if assembler is None:
        return Assembled(None, whole, note="a stream of a kind that is not reassembled")
    return assembler(_Messages(events(body, whole)))


class _Messages:
    """The JSON objects of a stream, with what else was said noted on the way."""

    def __init__(self, found: list[ServerEvent]) -> None:
        self._events = found
        self.done = False
        self.error: str | None = None

    def __iter__(self) -> Iterator[Json]:
        for event in self._events:
            if event.data == _DONE:
                self.done = True
                continue
            message = self._parse(event)
            if message is not None:
                yield message

    def _parse(self, event: ServerEvent) -> Json | None:
        try:
            message = orjson.loads(event.data)
        except orjson.JSONDecodeError:
            self.error = self.error or "parse_error: an event that is not JSON"
            return None
        if not isinstance(message, dict):
            return None
        if event.name == b"error" or message.get("error") or message.get("type") == "error":
            self.error = "stream: " + _said(message)
            return None
        return message


def _said(message: Json) -> str:
    """An error in the stream, in its own words."""
    error = message.get("error")
    inner = error if isinstance(error, dict) else message
    text = error if isinstance(error, str) else inner.get("message") or inner.get("code")
    return str(text or "error")[:500]


def _chat(messages: _Messages) -> Assembled:
    assembly = ChatAssembly()
    for message in messages:
        assembly.add(message)
    if assembly.empty():
        return Assembled(None, False, messages.error, "the stream held no chunk")
    finished = (messages.done or assembly.finished()) and messages.error is None
    return Assembled(assembly.body(), finished, messages.error)


def _completion(messages: _Messages) -> Assembled:
    """Legacy completions: text joined by choice."""
    head: Json = {}
    choices: dict[int, Json] = {}
    for message in messages:
        head |= {key: value for key, value in message.items() if value is not None}
        pieces = message.get("choices")
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict):
                _add_text(choices, piece)
    if not head:
        return Assembled(None, False, messages.error, "the stream held no chunk")
    head.pop("obfuscation", None)
    ended = bool(choices) and all(choice["finish_reason"] for choice in choices.values())
    body = head | {"choices": [_joined(choices[index]) for index in sorted(choices)]}
    return Assembled(body, (messages.done or ended) and messages.error is None, messages.error)


def _add_text(choices: dict[int, Json], piece: Json) -> None:
    index = piece.get("index")
    index = index if isinstance(index, int) else 0
    new: Json = {"index": index, "text": [], "logprobs": None, "finish_reason": None}
    known = choices.setdefault(index, new)
    if isinstance(piece.get("text"), str):
        known["text"].append(piece["text"])
    if isinstance(piece.get("logprobs"), dict):
        known["logprobs"] = _longer(known["logprobs"] or {}, piece["logprobs"])
    known["finish_reason"] = piece.get("finish_reason") or known["finish_reason"]


def _longer(known: Json, more: Json) -> Json:
    """Log probabilities are parallel lists, one item a token."""
    lists = {key: values for key, values in more.items() if isinstance(values, list)}
    return known | {key: known.get(key, []) + values for key, values in lists.items()}


def _joined(choice: Json) -> Json:
    return choice | {"text": "".join(choice["text"])}


def _response(messages: _Messages) -> Assembled:
    """The final event holds the whole response, usage and all."""
    final: Json | None = None
    for message in messages:
        if message.get("type") in _FINAL_RESPONSES and isinstance(message.get("response"), dict):
            final = message["response"]
    if final is None:
        return Assembled(None, False, messages.error, "the stream had no final response event")
    return Assembled(final, messages.error is None, messages.error)


_ASSEMBLERS: Final[dict[str, Callable[[_Messages], Assembled]]] = {
    "chat.completions": _chat,
    "completions": _completion,
    "responses": _response,
}
