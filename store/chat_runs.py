"""Chat streams, read quickly: most chunks of one differ in nothing but one text and its padding.

Of such a run only the first chunk is parsed. The bytes before and behind its text are the template:
a chunk with the same bytes there says the same but for the text, and that is taken as it lies.
A template is proved before use: with another text in it, it must parse to the same chunk with that
other text. Whatever does not fit is parsed as usual, so the result is the same, in less than half
the time (100 chunks of 330 bytes: 114 us; each parsed: 260 us).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import orjson

from store.chat import ChatAssembly
from store.messages import Assembled, Json, Messages

_NO_TEXT: Final = ("role", "obfuscation")
_PADDING: Final = b'"obfuscation":"'
_PROBE: Final = "a text that no template was made of"
_STRING: Final = re.compile(rb'\s*"((?:[^"\\]|\\.)*+)"')
# Choices that interleave make each template useless at once.
_MOST_TEMPLATES: Final = 8
# Those behind one that is no valid text have to be looked at again.
_MOST_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class _Said:
    """Choice, field and tool call of the one text in a chunk, and all else that the chunk says."""

    index: int
    key: str
    call: int | None
    text: str
    rest: list[Json]


@dataclass(frozen=True, slots=True)
class Template:
    """prefix, a text, suffix; where there is padding, then that and `closing`.

    `said` is of the chunk that it was made of, `into` where its texts go.
    """

    prefix: bytes
    suffix: bytes
    closing: bytes | None
    said: _Said
    into: list[str]

    def proved(self) -> bool:
        """Another text in it changes the text, the padding and nothing else."""
        tail = b"" if self.closing is None else b"x" + self.closing
        try:
            probe = orjson.loads(self.prefix + _PROBE.encode() + self.suffix + tail)
        except orjson.JSONDecodeError:
            return False
        said = _only_text(probe)
        return said is not None and said.text == _PROBE and self.allows(said)

    def allows(self, said: _Said | None) -> bool:
        return (
            said is not None
            and (said.index, said.key, said.call)
            == (self.said.index, self.said.key, self.said.call)
            and said.rest == self.said.rest
        )


def chat(messages: Messages) -> Assembled:
    """The answer that the chunks of a chat.completions stream amount to."""
    assembly = ChatAssembly()
    template: Template | None = None
    tried = 0
    place, end = 0, len(messages.data)
    while place < end and not messages.done:
        if template is not None and (taken := _run(messages.data, place, template)):
            place += taken
            continue
        chunk = messages.at(place)
        if chunk is not None:
            assembly.add(chunk)
            if template is not None or tried < _MOST_TEMPLATES:
                said = _only_text(chunk)
                if template is None or not template.allows(said):
                    template = None
                    if said is not None and tried < _MOST_TEMPLATES:
                        tried += 1
                        template = _template(messages.data[place], said, assembly)
        place += 1
    body = None if assembly.empty() else assembly.body()
    return messages.result(body, assembly.finished())


def _run(data: list[bytes], place: int, template: Template) -> int:
    """Take what fits from here on; how many events that were."""
    prefix, suffix = template.prefix, template.suffix
    start = len(prefix)
    texts: list[bytes] = []
    tails: list[bytes] = []
    for piece in islice(data, place, place + _MOST_AT_ONCE):
        head, found, tail = piece.rpartition(suffix)
        if not found or not head.startswith(prefix):
            break
        texts.append(head[start:])
        tails.append(tail)
    fitting = _padded_all(tails, template.closing)
    return _take(texts[:fitting], template.into)


def _padded_all(tails: list[bytes], closing: bytes | None) -> int:
    """How many, from the first on, have no more behind the text than a template allows."""
    if closing is None:
        return next((place for place, tail in enumerate(tails) if tail), len(tails))
    lines = b"\n".join([*tails, b""])
    paddings = lines.replace(closing + b"\n", b"")
    if not paddings or paddings.isalnum():  # no line end is left: there was one `closing` a tail
        return len(tails)
    for place, tail in enumerate(tails):
        padding = tail.removesuffix(closing)
        if not tail.endswith(closing) or (padding and not padding.isalnum()):
            return place
    return len(tails)


def _take(texts: list[bytes], into: list[str]) -> int:
    """Only as many as are valid texts, each for itself."""
    if not texts:
        return 0
    listed = b'["%b"]' % b'","'.join(texts)
    # Quotes that are not escaped, when no text ends in what may escape the quote behind it.
    quotes = listed.replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"')
    if quotes == 2 * len(texts) and b'\\","' not in listed:
        try:
            into.extend(orjson.loads(listed))
            return len(texts)
        except orjson.JSONDecodeError:
            pass
    for taken, text in enumerate(texts):
        try:
            into.append(orjson.loads(b'"%b"' % text))
        except orjson.JSONDecodeError:
            return taken
    return len(texts)


def _template(data: bytes, said: _Said, assembly: ChatAssembly) -> Template | None:
    into = assembly.text(said.index, said.key, said.call)
    field = b'"%b":' % said.key.encode()
    at = data.find(field, data.find(b'"delta"'))
    found = _STRING.match(data, at + len(field)) if at >= 0 else None
    if into is None or found is None:
        return None
    suffix, closing = _padded(data[found.end(1) :])
    template = Template(data[: found.start(1)], suffix, closing, said, into)
    return template if template.proved() else None


def _padded(rest: bytes) -> tuple[bytes, bytes | None]:
    before, found, padding = rest.rpartition(_PADDING)
    quote = padding.find(b'"')
    if not found or quote < 0:
        return rest, None
    return before + found, padding[quote:]


def _only_text(chunk: Json) -> _Said | None:
    """Whatever else is in the chunk may be said again without changing the answer."""
    choices = chunk.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(choice, dict) or choice.get("logprobs") is not None:
        return None
    index, delta = choice.get("index"), choice.get("delta")
    if type(index) is not int or not isinstance(delta, dict):
        return None
    texts = [key for key in delta if delta[key] is not None and key not in _NO_TEXT]
    if len(texts) != 1:
        return None
    key, value = texts[0], delta[texts[0]]
    call = None
    around: list[Json] = []
    if key == "tool_calls":
        if (found := _only_call(value)) is None:
            return None
        one, function = found
        key, value, call = "arguments", function["arguments"], one["index"]
        around = [_without(one, "function"), _without(function, "arguments")]
    if not isinstance(value, str):
        return None
    rest = [_without(chunk, "choices"), _without(choice, "delta"), _without(delta, texts[0])]
    return _Said(index, key, call, value, rest + around)


def _only_call(calls: Any) -> tuple[Json, Json] | None:
    """The one call that a delta is of, and its function, whose arguments are a text."""
    call = calls[0] if isinstance(calls, list) and len(calls) == 1 else None
    if not isinstance(call, dict) or type(call.get("index")) is not int:
        return None
    function = call.get("function")
    if not isinstance(function, dict) or not isinstance(function.get("arguments"), str):
        return None
    return call, function


def _without(value: Json, key: str) -> Json:
    return {name: item for name, item in value.items() if name not in (key, "obfuscation")}
