"""A chat.completion put together from the chunks of a stream.

Deltas of a choice belong together by `index`; so do the deltas of a tool call within it. Its id and
name come once, its arguments in pieces. What was only padding (`obfuscation`) is left out; fields
that we do not know are kept: text in pieces is joined, lists are extended, all else is replaced.
"""

from __future__ import annotations

from typing import Any, Final

Json = dict[str, Any]

_KEPT: Final = ("id", "created", "model", "system_fingerprint", "service_tier")
_CALL_PIECES: Final = ("arguments", "input")  # of functions and of custom tools


class _Text:
    """Text in pieces; joined once, at the end."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def joined(self) -> str:
        return "".join(self.pieces)


class ChatAssembly:
    """Add chunks in order; `body` is the answer as far as it came."""

    def __init__(self) -> None:
        self._head: Json = {}
        self._choices: dict[int, _Choice] = {}
        self._usage: Json | None = None

    def add(self, chunk: Json) -> None:
        for key in _KEPT:
            if chunk.get(key) is not None:
                self._head[key] = chunk[key]
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        choices = chunk.get("choices")
        for position, choice in enumerate(choices if isinstance(choices, list) else ()):
            if isinstance(choice, dict):
                index = _index(choice, position)
                self._choices.setdefault(index, _Choice()).add(choice)

    def body(self) -> Json:
        head = {"id": self._head.get("id"), "object": "chat.completion"} | self._head
        choices = [self._choices[index].body(index) for index in sorted(self._choices)]
        result = head | {"choices": choices}
        return result if self._usage is None else result | {"usage": self._usage}

    def finished(self) -> bool:
        """Has every choice that began its finish_reason?"""
        choices = self._choices.values()
        return bool(choices) and all(choice.finish_reason for choice in choices)

    def empty(self) -> bool:
        return not (self._head or self._choices or self._usage)


class _Choice:
    def __init__(self) -> None:
        self.finish_reason: str | None = None
        self._message: Json = {"role": "assistant", "content": None}
        self._calls: dict[int, Json] = {}
        self._function: Json | None = None
        self._logprobs: dict[str, list[Any]] | None = None

    def add(self, choice: Json) -> None:
        if isinstance(choice.get("finish_reason"), str):
            self.finish_reason = choice["finish_reason"]
        self._add_logprobs(choice.get("logprobs"))
        delta = choice.get("delta")
        if not isinstance(delta, dict):
            return
        for key, value in delta.items():
            self._add_field(key, value)

    def _add_field(self, key: str, value: Any) -> None:
        if value is None or key == "obfuscation":
            return
        if key == "tool_calls" and isinstance(value, list):
            self._add_calls(value)
        elif key == "function_call" and isinstance(value, dict):
            self._function = self._function or {}
            _merge_function(self._function, value)
        elif key == "role":
            self._message["role"] = value
        else:
            _merge(self._message, key, value)

    def _add_calls(self, deltas: list[Any]) -> None:
        for delta in deltas:
            if not isinstance(delta, dict):
                continue
            call = self._calls.setdefault(self._call_index(delta), {})
            for key, value in delta.items():
                if isinstance(value, dict):
                    _merge_function(call.setdefault(key, {}), value)
                elif key != "index" and value is not None:
                    call.setdefault(key, value)

    def _call_index(self, delta: Json) -> int:
        """Engines that leave the index out begin a new call with each id."""
        last = max(self._calls, default=-1)
        return _index(delta, last + 1 if delta.get("id") or last < 0 else last)

    def _add_logprobs(self, logprobs: Any) -> None:
        if not isinstance(logprobs, dict):
            return
        self._logprobs = self._logprobs if self._logprobs is not None else {}
        for key, values in logprobs.items():
            if isinstance(values, list):
                self._logprobs.setdefault(key, []).extend(values)

    def body(self, index: int) -> Json:
        message = {key: _plain(value) for key, value in self._message.items()}
        if self._calls:
            message["tool_calls"] = [_plain(self._calls[at]) for at in sorted(self._calls)]
        if self._function is not None:
            message["function_call"] = _plain(self._function)
        result = {"index": index, "message": message, "finish_reason": self.finish_reason}
        return result if self._logprobs is None else result | {"logprobs": self._logprobs}


def _merge(target: Json, key: str, value: Any) -> None:
    known = target.get(key)
    if isinstance(value, str):
        if not isinstance(known, _Text):
            known = target[key] = _Text()
        known.pieces.append(value)
    elif isinstance(value, list) and isinstance(known, list):
        known.extend(value)
    else:
        target[key] = list(value) if isinstance(value, list) else value


def _merge_function(target: Json, delta: Json) -> None:
    for key, value in delta.items():
        if key in _CALL_PIECES and isinstance(value, str):
            _merge(target, key, value)
        elif value is not None:
            target.setdefault(key, value)


def _plain(value: Any) -> Any:
    if isinstance(value, _Text):
        return value.joined()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _index(value: Json, default: int) -> int:
    index = value.get("index")
    return index if isinstance(index, int) and index >= 0 else default
