"""What a streamed answer amounts to: the JSON that would have come without streaming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from store.audio_stream import speech, transcript
from store.chat_runs import chat
from store.completions_stream import completion
from store.images_stream import images
from store.messages import Assembled, Messages
from store.responses_stream import response
from store.sse import Events, read

__all__ = ["Assembled", "assemble", "assemble_events"]


def assemble(endpoint: str, body: bytes, whole: bool) -> Assembled:
    """`whole`: the body ended cleanly. Of one that did not, what had arrived is used."""
    if endpoint not in _ASSEMBLERS:
        return Assembled(None, whole, note="a stream of a kind that is not reassembled")
    return assemble_events(endpoint, read(body, whole))


def assemble_events(endpoint: str, events: Events) -> Assembled:
    """The same of events that are cut up already. `endpoint` is one that streams."""
    return _ASSEMBLERS[endpoint](Messages(events))


_ASSEMBLERS: Final[dict[str, Callable[[Messages], Assembled]]] = {
    "chat.completions": chat,
    "completions": completion,
    "responses": response,
    "responses.stored": response,  # of one that is read again while it is being made
    "responses.websocket": response,
    "audio.transcriptions": transcript,
    "audio.speech": speech,
    "images.generations": images,
    "images.edits": images,
}
