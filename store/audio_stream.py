"""Audio streams: a transcript in pieces, or speech in pieces of base64."""

from __future__ import annotations

import base64
import binascii
from typing import Final

from store.messages import Assembled, Json, Messages

# Three bytes make four letters: pieces of whole groups may be joined as they are.
_GROUP: Final = 4


def transcript(messages: Messages) -> Assembled:
    """As a transcription that was not streamed; `segments` where speakers were told apart.

    `transcript.text.done` holds the whole text; without it, what the deltas brought.
    """
    done: Json | None = None
    pieces: list[str] = []
    logprobs: list[object] = []
    segments: list[Json] = []
    for message in messages:
        kind = message.pop("type", None)
        message.pop("obfuscation", None)
        if kind == "transcript.text.delta":
            delta, odds = message.get("delta"), message.get("logprobs")
            pieces += [delta] if isinstance(delta, str) else []
            logprobs += odds if isinstance(odds, list) else []
        elif kind == "transcript.text.segment":
            segments.append({"type": kind} | message)
        elif kind == "transcript.text.done":
            done = message
    if done is None and not pieces and not segments:
        return messages.result(None, False)
    told: Json = {"text": "".join(pieces)} | ({"logprobs": logprobs} if logprobs else {})
    body = (told if done is None else done) | ({"segments": segments} if segments else {})
    return messages.result(body, done is not None)


def speech(messages: Messages) -> Assembled:
    """`audio`, base64, and `usage`; the answer that is not streamed is the sound itself."""
    pieces: list[str] = []
    body: Json = {}
    done = False
    for message in messages:
        kind = message.pop("type", None)
        message.pop("obfuscation", None)
        if kind == "speech.audio.delta":
            piece = message.get("audio")
            pieces += [piece] if isinstance(piece, str) else []
        elif kind == "speech.audio.done":
            done = True
            body |= message
    if not pieces and not done:
        return messages.result(None, False)
    return messages.result({"audio": joined(pieces)} | body, done)


def joined(pieces: list[str]) -> str | None:
    """One base64 text of several; None if one of them is none."""
    if all(len(piece) % _GROUP == 0 and not piece.endswith("=") for piece in pieces[:-1]):
        return "".join(pieces)
    try:
        sound = b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except (binascii.Error, ValueError):
        return None
    return base64.b64encode(sound).decode()
