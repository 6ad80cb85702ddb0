"""A chat.completion put together from the chunks of a stream.

Deltas of a choice belong together by `index`; so do the deltas of a tool call within it. Its id and
name come once, its arguments in pieces. What was only padding (`obfuscation`) is left out; fields
that we do not know are kept: text in pieces is joined, lists are extended, all else is replaced.
"""

from __future__ import annotations

from typing import Any, Final

from store.messages import Json, Text, index_of, plain

_PIECES: Final = ("arguments", "input")  # of functions and of custom tools
_AUDIO_PIECES: Final = ("data", "transcript")
_UNSAID: Final = (None, "")  # Azure's first chunk has an empty id and model


class ChatAssembly:
    """Add chunks in order; `body` is the answer as far as it came."""

    __slots__ = ("_choices", "_head", "_usage")

    def __init__(self) -> None:
        self._head: Json = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Json | None = None

    def add(self, chunk: Json) -> None:
        head = self._head
        for key, value in chunk.items():
            if key == "choices":
                if value and isinstance(value, list):
                    self._add_choices(value)
            elif key == "usage":
                if value and isinstance(value, dict):  # null but once; or cumulative, each time
                    self._usage = value
            elif key != "obfuscation" and (value not in _UNSAID or key not in head):
                head[key] = value

    def _add_choices(self, choices: list[Any]) -> None:
        for position, piece in enumerate(choices):
            if isinstance(piece, dict):
                index = index_of(piece, default=position)
                choice = self._choices.get(index)
                if choice is None:
                    choice = self._choices[index] = _Choice()
                choice.add(piece)

    def text(self, index: int, key: str, call: int | None) -> list[str] | None:
        """The pieces so far of one text: a field of a choice's message, or a call's arguments."""
        choice = self._choices.get(index)
        if choice is None:
            return None
        if call is not None:
            function = choice.calls.get(call, {}).get("function", {})
            found = function.get(key)
        else:
            found = choice.message.get(key)
        return found.pieces if isinstance(found, Text) else None

    def body(self) -> Json:
        told = {key: value for key, value in self._head.items() if value is not None}
        head = {"id": told.get("id")} | told | {"object": "chat.completion"}
        head["choices"] = [self._choices[index].body(index) for index in sorted(self._choices)]
        if self._usage is not None:
            head["usage"] = self._usage
        return head

    def finished(self) -> bool:
        """Has every choice that began its finish_reason?"""
        choices = self._choices.values()
        return bool(choices) and all(choice.finish_reason for choice in choices)

    def empty(self) -> bool:
        return not (self._head or self._choices or self._usage)


class _Choice:
    __slots__ = ("calls", "finish_reason", "function", "logprobs", "message", "more")

    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self.message: Json = {"role": "assistant", "content": None}
        self.calls: dict[int, Json] = {}
        self.function: Json | None = None
        self.logprobs: dict[str, list[Any]] | None = None
        self.more: Json = {}

    def add(self, piece: Json) -> None:
        for key, value in piece.items():
            if value is None or key == "index":
                continue
            if key == "delta":
                if isinstance(value, dict):
                    self._add_delta(value)
            elif key == "logprobs":
                self._add_logprobs(value)
            elif key == "finish_reason":
                if isinstance(value, str):
                    self.finish_reason = value
            elif key not in ("obfuscation", "message"):
                self.more[key] = _shallow(self.more.get(key), value)

    def _add_delta(self, delta: Json) -> None:
        for key, value in delta.items():
            if value is None or key == "obfuscation":
                continue
            if key == "tool_calls" and isinstance(value, list):
                self._add_calls(value)
            elif key == "function_call" and isinstance(value, dict):
                if self.function is None:
                    self.function = {}
                _merge_function(self.function, value)
            elif key == "audio" and isinstance(value, dict):
                _merge_audio(self.message.setdefault("audio", {}), value)
            elif key == "role":
                self.message["role"] = value
            else:
                _merge(self.message, key, value)

    def _add_calls(self, deltas: list[Any]) -> None:
        for delta in deltas:
            if not isinstance(delta, dict):
                continue
            call = self.calls.setdefault(self._call_index(delta), {})
            for key, value in delta.items():
                if isinstance(value, dict):
                    into = call.setdefault(key, {})
                    if isinstance(into, dict):
                        _merge_function(into, value)
                elif value is not None and key not in ("index", "obfuscation"):
                    call.setdefault(key, value)

    def _call_index(self, delta: Json) -> int:
        """Engines that leave the index out begin a new call with each id."""
        index = delta.get("index")
        if type(index) is int and index >= 0:
            return index
        last = max(self.calls, default=-1)
        return last + 1 if delta.get("id") or last < 0 else last

    def _add_logprobs(self, logprobs: Any) -> None:
        if not isinstance(logprobs, dict):
            return
        self.logprobs = self.logprobs if self.logprobs is not None else {}
        for key, values in logprobs.items():
            if isinstance(values, list):
                self.logprobs.setdefault(key, []).extend(values)

    def body(self, index: int) -> Json:
        message = plain(self.message)
        if self.calls:
            message["tool_calls"] = [plain(self.calls[at]) for at in sorted(self.calls)]
        if self.function is not None:
            message["function_call"] = plain(self.function)
        result = {"index": index, "message": message, "finish_reason": self.finish_reason}
        if self.logprobs is not None:
            result["logprobs"] = self.logprobs
        return result | self.more


def _merge(target: Json, key: str, value: Any) -> None:
    known = target.get(key)
    if isinstance(value, str):
        if isinstance(known, Text):
            known.pieces.append(value)
        else:
            target[key] = Text(value)
    elif isinstance(value, list) and isinstance(known, list):
        known.extend(value)
    else:
        target[key] = list(value) if isinstance(value, list) else value


def _merge_function(target: Json, delta: Json) -> None:
    for key, value in delta.items():
        if key in _PIECES and isinstance(value, str):
            _merge(target, key, value)
        elif value is not None and key != "obfuscation":
            target.setdefault(key, value)


def _merge_audio(target: Any, delta: Json) -> None:
    """Speech comes in pieces of base64 and of its transcript; its id comes once."""
    if not isinstance(target, dict):
        return
    for key, value in delta.items():
        if key in _AUDIO_PIECES and isinstance(value, str):
            _merge(target, key, value)
        elif value is not None:
            target[key] = value


def _shallow(known: Any, value: Any) -> Any:
    """What engines add to a choice, such as Azure's verdicts of its content filter."""
    return known | value if isinstance(known, dict) and isinstance(value, dict) else value
