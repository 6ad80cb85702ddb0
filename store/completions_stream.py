"""Legacy completions: text and log probabilities joined by choice."""

from __future__ import annotations

from store.messages import Assembled, Json, Messages, Text, index_of, plain


def completion(messages: Messages) -> Assembled:
    head: Json = {}
    choices: dict[int, Json] = {}
    for message in messages:
        usage = message.pop("usage", None)
        if usage and isinstance(usage, dict):
            head["usage"] = usage
        pieces = message.pop("choices", None)
        message.pop("obfuscation", None)
        head |= {key: value for key, value in message.items() if value is not None}
        for piece in pieces if isinstance(pieces, list) else ():
            if isinstance(piece, dict):
                _add(choices, piece)
    if not head and not choices:
        return messages.result(None, False)
    ended = bool(choices) and all(choice["finish_reason"] for choice in choices.values())
    body = head | {"choices": [plain(choices[index]) for index in sorted(choices)]}
    return messages.result(body, ended)


def _add(choices: dict[int, Json], piece: Json) -> None:
    index = index_of(piece)
    known = choices.get(index)
    if known is None:
        known = {"text": Text(), "index": index, "logprobs": None, "finish_reason": None}
        choices[index] = known
    for key, value in piece.items():
        if key == "text":
            if isinstance(value, str):
                known["text"].pieces.append(value)
        elif key == "logprobs":
            if isinstance(value, dict):
                known["logprobs"] = _longer(known["logprobs"] or {}, value)
        elif value is not None and key not in ("index", "obfuscation"):
            known[key] = value


def _longer(known: Json, more: Json) -> Json:
    """Log probabilities are parallel lists, one item a token; some are never told."""
    for key, values in more.items():
        if isinstance(values, list) and isinstance(known.get(key), list):
            known[key].extend(values)
        else:
            known[key] = known.get(key) if values is None else values
    return known
