"""What OpenAI's own files hold: chats for fine-tuning, and completions that it stored.

Fine-tuning: a line is {"messages": [...], "tools": [...]}, the last message is what was answered
(platform.openai.com/docs/guides/supervised-fine-tuning). Stored completions: pages of
`GET /v1/chat/completions`, or their completions a line each, with `messages`, which the API lists
apart (`GET /v1/chat/completions/{id}/messages`): the list itself, or that answer.
"""

from __future__ import annotations

from typing import Final

from store.imports import (
    OPENAI_HOST,
    Format,
    Imported,
    Unusable,
    completion,
    completion_of,
    known,
    messages_of,
    moment,
    said,
)
from store.values import Json, text_of

# Of a stored completion: what was asked, where the rest was answered.
_ASKED: Final = (
    "temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "tools", "tool_choice",
    "response_format", "metadata",
)  # fmt: skip
_ANSWERED: Final = (
    "id", "object", "created", "model", "choices", "usage", "service_tier", "system_fingerprint"
)  # fmt: skip


def _is_training(record: Json) -> bool:
    """Logs of others have messages, too."""
    return isinstance(record.get("messages"), list) and not record.keys() & {"object", "call_type"}


def _training(record: Json) -> Imported:
    *asked, last = messages_of(record.get("messages"), "messages")
    if last["role"] != "assistant":
        raise Unusable("messages: the last is not the assistant's")
    if last.get("weight") == 0:
        raise Unusable("messages: the last has weight 0, and is not to be learned from")
    messages_of(asked, "messages: before the last")
    message = {name: value for name, value in last.items() if name != "weight"}
    return Imported(record | {"messages": asked}, completion(message))


def _is_stored(record: Json) -> bool:
    return record.get("object") == "chat.completion"


def _stored(record: Json) -> Imported:
    if completion_of(record) is None:
        raise Unusable("choices: no message")
    found = record.get("messages")
    if found is None:
        raise Unusable("its messages are not in the file: add what .../{id}/messages answers")
    listed = found.get("data") if isinstance(found, dict) else found
    messages = [_message(each) for each in messages_of(listed, "messages")]
    request = {"model": record.get("model"), "messages": messages}
    request |= {name: record[name] for name in _ASKED if record.get(name) not in (None, {}, [])}
    return Imported(
        known(request, record.get("input_user")),
        {name: record[name] for name in _ANSWERED if name in record},
        source=said(record, ("id",)),
        at=moment(record.get("created")),
        request_id=text_of(record.get("request_id")),
    )


def _message(stored: Json) -> Json:
    """As it was sent: the store adds an id, and names parts of a content apart."""
    parts = stored.get("content_parts")
    message = {
        name: value
        for name, value in stored.items()
        if name not in ("id", "content_parts") and (value is not None or name == "content")
    }
    return message | {"content": parts} if parts else message


TRAINING: Final = Format("openai-chat", "chats for fine-tuning", _is_training, _training)
STORED: Final = Format(
    "openai-stored", "stored completions of OpenAI", _is_stored, _stored, host=OPENAI_HOST
)
