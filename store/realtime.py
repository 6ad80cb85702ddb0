"""Realtime sockets for the record: the JSON messages of both sides in their order, as JSON lines.

    {"at": 0.25, "from": "client", "message": {"type": "input_audio_buffer.append", …}}

`at` is in seconds since the socket was fed its first byte. A message is written down as it was
sent, but for audio: where the policy does not keep it, each base64 text of it becomes
`{"bytes": n}`, n after decoding. What is no JSON object is there as `"text"` or, as its size alone,
as `"binary"`. Pure, sans-IO; the messages themselves are in openai-python's `types/realtime`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import orjson

from store.deflate import Side
from store.frames import Message, Socket
from store.values import Json, json_object

# Of the server's deltas only these hold audio: a transcript's ends in "audio_transcript.delta".
_AUDIO_DELTA: Final = "audio.delta"
_MARK: Final = b"audio"


class RealtimeReader:
    """Fed the raw bytes after the 101, each side's as they came; gives lines of the record."""

    def __init__(self, extensions: str | None, keeps_audio: bool) -> None:
        self._socket = Socket(extensions)
        self._start: float | None = None
        self._keeps_audio = keeps_audio

    def notes(self) -> dict[Side, str]:
        """Why a side could not be read to its end."""
        return self._socket.notes()

    def feed(self, side: Side, at: float, data: bytes) -> list[bytes]:
        """Lines, each with its line end."""
        start = self._start = at if self._start is None else self._start
        messages = self._socket.side(side).feed(at, data)
        return [_line(side, message, start, self._keeps_audio) for message in messages]


def deltas(lines: Iterable[bytes]) -> Iterator[str]:
    """Texts that came in pieces, in the lines of a session."""
    for line in lines:
        message = json_object(line)
        event = message.get("message") if message is not None else None
        if isinstance(event, dict) and str(event.get("type")).endswith(".delta"):
            piece = event.get("delta")
            if isinstance(piece, str):
                yield piece


def _line(side: Side, message: Message, start: float, keeps_audio: bool) -> bytes:
    kind, text = _said(message, keeps_audio)
    head = b'{"at":%.6f,"from":"%s","%s":' % (message.at - start, side.encode(), kind)
    return head + text + b"}\n"


def _said(message: Message, keeps_audio: bool) -> tuple[bytes, bytes]:
    """The name of what a line holds, and its JSON."""
    event = json_object(message.data)
    if event is None:
        if message.text:
            return b"text", orjson.dumps(message.data.decode())
        return b"binary", b"%d" % len(message.data)
    dropped = not keeps_audio and _MARK in message.data and _drop_audio(event)
    if not dropped and b"\n" not in message.data and b"\r" not in message.data:
        return b"message", message.data
    text = _dumped(event)
    return (b"binary", b"%d" % len(message.data)) if text is None else (b"message", text)


def _drop_audio(event: Json) -> bool:
    """Replace what is audio in a message; False when there was none."""
    found = False
    kind = event.get("type")
    if isinstance(kind, str) and kind.endswith(_AUDIO_DELTA):
        found = _replace(event, "delta")
    waiting: list[Any] = [event]
    while waiting:  # no recursion: an app may nest as deep as it likes
        value = waiting.pop()
        if isinstance(value, dict):
            found = _replace(value, "audio") or found
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return found


def _replace(holder: Json, name: str) -> bool:
    audio = holder.get(name)
    if not isinstance(audio, str):
        return False
    holder[name] = {"bytes": len(audio) * 3 // 4 - audio[-2:].count("=")}
    return True


def _dumped(event: Json) -> bytes | None:
    """None for what is nested deeper than it can be written."""
    try:
        return orjson.dumps(event)
    except TypeError:  # a lone surrogate, or some hundred levels
        pass
    try:
        return json.dumps(event, separators=(",", ":")).encode()
    except RecursionError:
        return None
