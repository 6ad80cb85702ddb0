"""How many tokens an exchange used, guessed where its answer states no usage.

Kept apart from what was stated, and marked by `method`. Characters: "on average, in practice, each
token corresponds to about 4 bytes" (tiktoken's README) of UTF-8, so a letter of Latin script weighs
a quarter of a token, one of Cyrillic a half, one of Chinese three quarters. Around each message
stand 3 tokens, 1 more for a name, and 3 before the answer (OpenAI's cookbook, counting tokens for
chat). Tools and schemas count as the JSON that they are: OpenAI writes them somewhat shorter.

tiktoken counts only with a vocabulary that is on disk already: nothing is ever downloaded.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import orjson

Count = Callable[[str], int]

CHARACTERS: Final = "characters"
_BYTES_A_TOKEN: Final = 4
_AROUND_MESSAGE: Final = 3
_NAMED: Final = 1
_BEFORE_ANSWER: Final = 3
_LONGEST_EXACT: Final = 1 << 20  # characters; past that a vocabulary would take seconds
_CALL_TEXTS: Final = ("name", "arguments", "input", "output")
_HELD_ELSEWHERE: Final = ("previous_response_id", "conversation", "prompt")


@dataclass(frozen=True, slots=True)
class Estimate:
    """None where there is nothing to count by: images, audio, files, history kept at OpenAI.

    `output_tokens` are those of the text that came: hidden reasoning comes on top. `method`:
    `characters`, or `tiktoken:` and the vocabulary.
    """

    input_tokens: int | None
    output_tokens: int | None
    method: str


class _Uncountable(Exception):
    """A part that no count of text can weigh."""


def estimate(
    endpoint: str,
    request: Mapping[str, Any],
    answer_text: str | None,
    model: str | None,
    vocabulary: Callable[[str], tuple[str, Count] | None] | None = None,
) -> Estimate:
    """`answer_text`: all that was generated, arguments of tools too; None when that isn't known.

    `vocabulary`: for a model, the method's name and what counts by it; else what is on disk.
    """
    found = (vocabulary or on_disk)(model) if model else None
    method, count = found or (CHARACTERS, by_characters)
    try:
        read = _READERS.get(endpoint)
        given = read(request, count) if read is not None else None
    except _Uncountable:
        given = None
    made = count(answer_text) if answer_text is not None and endpoint != "embeddings" else None
    return Estimate(given, made, method)


def by_characters(text: str) -> int:
    size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
    return -(-size // _BYTES_A_TOKEN)


# -- what a request says


def _chat(request: Mapping[str, Any], count: Count) -> int:
    messages = request.get("messages")
    if not isinstance(messages, list):
        raise _Uncountable
    total = _BEFORE_ANSWER
    for message in messages:
        if not isinstance(message, Mapping):
            raise _Uncountable
        total += _AROUND_MESSAGE + _content(message.get("content"), count)
        if isinstance(message.get("name"), str):
            total += _NAMED + count(message["name"])
        calls = message.get("tool_calls")
        for call in calls if isinstance(calls, list) else ():
            total += _call(call, count)
    return total + _schemas(request, ("tools", "functions", "response_format"), count)


def _responses(request: Mapping[str, Any], count: Count) -> int:
    if any(request.get(key) for key in _HELD_ELSEWHERE):
        raise _Uncountable
    given = request.get("input")
    items = [{"content": given}] if isinstance(given, str) else given
    if not isinstance(items, list):
        raise _Uncountable
    total = _BEFORE_ANSWER
    if isinstance(request.get("instructions"), str):
        total += _AROUND_MESSAGE + count(request["instructions"])
    for item in items:
        if not isinstance(item, Mapping) or item.get("type") == "item_reference":
            raise _Uncountable
        total += _AROUND_MESSAGE + _content(item.get("content"), count) + _texts(item, count)
    return total + _schemas(request, ("tools", "text"), count)


def _completions(request: Mapping[str, Any], count: Count) -> int:
    return _prompt(request.get("prompt"), count) + _prompt(request.get("suffix") or "", count)


def _embeddings(request: Mapping[str, Any], count: Count) -> int:
    return _prompt(request.get("input"), count)


_READERS: Final[Mapping[str, Callable[[Mapping[str, Any], Count], int]]] = {
    "chat.completions": _chat,
    "responses": _responses,
    "responses.websocket": _responses,  # of a turn: what its response.create asks
    "completions": _completions,
    "embeddings": _embeddings,
}


def _prompt(value: Any, count: Count) -> int:
    """A text, texts, tokens or lists of tokens; tokens are counted as they are."""
    if isinstance(value, str):
        return count(value)
    if not isinstance(value, list):
        raise _Uncountable
    return sum(
        _tokens_of(item) if isinstance(item, int | list) else _prompt(item, count) for item in value
    )


def _tokens_of(item: int | list[Any]) -> int:
    return len(item) if isinstance(item, list) else 1


def _content(content: Any, count: Count) -> int:
    if content is None:
        return 0
    if isinstance(content, str):
        return count(content)
    if not isinstance(content, list):
        raise _Uncountable
    return sum(_part(part, count) for part in content)


def _part(part: Any, count: Count) -> int:
    for key in ("text", "refusal"):
        if isinstance(part, Mapping) and isinstance(part.get(key), str):
            return count(part[key])
    raise _Uncountable


def _call(call: Any, count: Count) -> int:
    if not isinstance(call, Mapping):
        return 0
    inner = call.get("function") or call.get("custom")
    return _texts(inner, count) if isinstance(inner, Mapping) else 0


def _texts(item: Mapping[str, Any], count: Count) -> int:
    return sum(count(item[key]) for key in _CALL_TEXTS if isinstance(item.get(key), str))


def _schemas(request: Mapping[str, Any], keys: tuple[str, ...], count: Count) -> int:
    return sum(count(_json(request[key])) for key in keys if request.get(key))


def _json(value: Any) -> str:
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError):
        raise _Uncountable from None


# -- tiktoken


@lru_cache(maxsize=256)
def on_disk(model: str) -> tuple[str, Count] | None:
    """What counts for `model` by a vocabulary that tiktoken's own cache holds, or None."""
    try:
        import tiktoken.model  # an extra: not everyone has it

        name = tiktoken.model.encoding_name_for_model(model)
    except (ImportError, KeyError):
        return None
    return _by_vocabulary(name)


@lru_cache(maxsize=8)
def _by_vocabulary(name: str) -> tuple[str, Count] | None:
    from tiktoken import get_encoding, load

    if not hasattr(load, "read_file"):  # a later tiktoken that fetches by another way
        return None
    fetch, load.read_file = load.read_file, _refuse
    try:
        encoding = get_encoding(name)
    except (OSError, ValueError):
        return None
    finally:
        load.read_file = fetch

    def count(text: str) -> int:
        if len(text) > _LONGEST_EXACT:
            return by_characters(text)
        return len(encoding.encode_ordinary(text))

    return f"tiktoken:{name}", count


def _refuse(blobpath: str) -> bytes:
    raise FileNotFoundError(f"{blobpath} is not on disk, and is not fetched")
