"""Images in the shape of the answer that is not streamed; previews are dropped."""

from __future__ import annotations

from typing import Final

from store.messages import Assembled, Json, Messages

_IMAGE: Final = ("b64_json", "url", "revised_prompt")
_PREVIEW_ONLY: Final = (*_IMAGE, "partial_image_index")


def images(messages: Messages) -> Assembled:
    """Of `image_generation.*` and of `image_edit.*`. Without a finished image `data` is empty."""
    head: Json = {}
    data: list[Json] = []
    for message in messages:
        kind = message.pop("type", None)
        message.pop("obfuscation", None)
        if not isinstance(kind, str):
            continue
        if "created_at" in message:
            message["created"] = message.pop("created_at")
        if kind.endswith(".completed"):
            data.append({key: message.pop(key) for key in _IMAGE if key in message})
            head |= message
        elif kind.endswith(".partial_image"):
            head |= {key: value for key, value in message.items() if key not in _PREVIEW_ONLY}
    if not head and not data:
        return messages.result(None, False)
    return messages.result(head | {"data": data}, bool(data))
