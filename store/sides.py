"""One side of an exchange as the record keeps it: text, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from store.decode import ENDS_EARLY, decode
from store.values import Json, utf8

_TEXT_TYPES: Final = ("text/", "application/json", "application/x-ndjson", "application/jsonl")
_SAMPLE: Final = 512  # bytes that decide whether it is text, where nobody says


@dataclass(slots=True)
class Side:
    """`raw`: freed of its encoding. `text`: the same as text, None for the reason in `note`. With
    both, the text is not all there is."""

    raw: bytes | None = None
    text: str | None = None
    note: str | None = None


def side_of(pieces: list[bytes], headers: dict[str, str], cut: object, outcome: str) -> Side:
    """Of a body that was cut, by us or by a broken exchange, what had arrived."""
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    partial = bool(cut) or outcome != "ok"
    side = Side(note=f"cut: {cut}" if cut else None)
    if not body:
        return side
    encoding = headers.get("content-encoding")
    if encoding:
        decoded = decode(body, encoding)
        if decoded.data is None or (
            decoded.error and not (partial and decoded.error == ENDS_EARLY)
        ):
            return Side(note=decoded.error)
        body = decoded.data
    side.raw = body
    if is_binary(headers.get("content-type"), body):
        side.note = side.note or "binary"
        return side
    side.text = utf8(body, partial)
    if side.text is None:
        side.text = body.decode("utf-8", "backslashreplace")
        side.note = side.note or "not UTF-8: other bytes are written as \\x.."
    return side


def is_binary(content_type: str | None, body: bytes) -> bool:
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind.startswith(_TEXT_TYPES) or kind.endswith(("+json", "+xml")):
        return False
    if kind.startswith(("audio/", "image/", "video/", "multipart/")):
        return True
    return b"\0" in body[:_SAMPLE]


def value_of(body: Json | None, *path: str) -> Any:
    """What lies at a path of keys, None where it ends."""
    found: Any = body
    for key in path:
        if not isinstance(found, dict):
            return None
        found = found.get(key)
    return found
