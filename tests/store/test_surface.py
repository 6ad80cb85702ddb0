"""Our reading of every kind of call, against the official SDK's reading of the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from openai._models import construct_type
from openai._streaming import SSEDecoder
from openai._types import omit
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types import Completion, ImagesResponse
from openai.types.audio import Transcription
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent

from policies.endpoints import classify
from store import multipart
from store.streams import assemble
from tests.store.surface import FIXTURES, Fixture

Json = dict[str, Any]

STREAMS = [one for one in FIXTURES if one.streamed]
FORMS = [one for one in FIXTURES if one.asked is not None]


def of(*endpoints: str) -> list[Fixture]:
    return [one for one in STREAMS if one.endpoint in endpoints]


def name(fixture: Fixture) -> str:
    return fixture.name


def heard(fixture: Fixture) -> Iterator[Json]:
    """What the SDK's decoder makes of the bytes; it stops where the SDK's stream does."""
    for event in SSEDecoder().iter_bytes(iter([fixture.response])):
        if event.data.startswith("[DONE]"):
            return
        message = event.json()
        if message.get("error") or event.event == "error":
            return
        yield message


def lean(value: Any) -> Any:
    """Without what says nothing, what is only the SDK's own, and what it does not put together."""
    dropped = ("obfuscation", "parsed", "parsed_arguments", "content_filter_results")
    if isinstance(value, dict):
        kept = {key: lean(item) for key, item in value.items() if key not in dropped}
        return {key: item for key, item in kept.items() if item not in (None, [], {})}
    return [lean(item) for item in value] if isinstance(value, list) else value


def read_by_sdk(kind: Any, value: object) -> Any:
    return lean(construct_type(value=value, type_=kind).model_dump(warnings=False))  # type: ignore[attr-defined]


def assembled(fixture: Fixture) -> Json:
    body = assemble(fixture.endpoint, fixture.response, True).body
    assert body is not None
    return body


@pytest.mark.parametrize("fixture", FIXTURES, ids=name)
def test_its_name_says_what_it_is(fixture: Fixture) -> None:
    assert classify(fixture.method, fixture.path.partition("?")[0]).name == fixture.endpoint


@pytest.mark.parametrize("fixture", STREAMS, ids=name)
def test_a_stream_amounts_to_the_answer_that_was_written_by_hand(fixture: Fixture) -> None:
    found = assemble(fixture.endpoint, fixture.response, True)
    assert found.body == fixture.expected
    assert (found.finished, found.error) == (fixture.finished, fixture.error)
    assert b"obfuscation" not in orjson.dumps(found.body)


@pytest.mark.parametrize("fixture", FORMS, ids=name)
def test_a_form_is_told_as_json(fixture: Fixture) -> None:
    read = multipart.read(fixture.request, fixture.content_type)
    assert read is not None and read.whole
    assert orjson.loads(multipart.as_json(read, lambda data, kind: None)) == fixture.asked


@pytest.mark.parametrize("fixture", of("chat.completions"), ids=name)
def test_chat_is_what_the_sdk_accumulates(fixture: Fixture) -> None:
    state: Any = ChatCompletionStreamState()
    for chunk in heard(fixture):
        chunk.setdefault("choices", [])  # the SDK breaks where a gateway leaves them out
        state.handle_chunk(construct_type(value=chunk, type_=ChatCompletionChunk))
    theirs = lean(state.current_completion_snapshot.model_dump(warnings=False))
    for choice in theirs["choices"]:
        for call in choice["message"].get("tool_calls", ()):
            call.pop("index")
    ours = read_by_sdk(ChatCompletion, assembled(fixture))
    if theirs.pop("id") == "":  # the SDK keeps the empty head that Azure begins with
        assert ours["choices"] == theirs["choices"] and ours["usage"] == theirs["usage"]
    else:
        ours.pop("id")
        assert ours == theirs | {"object": "chat.completion"}


@pytest.mark.parametrize("fixture", of("responses"), ids=name)
def test_a_response_is_what_the_sdk_accumulates(fixture: Fixture) -> None:
    state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
    last: Json = {}
    for event in heard(fixture):
        state.handle_event(construct_type(value=event, type_=ResponseStreamEvent))
        last = event
    ours = read_by_sdk(Response, assembled(fixture))
    if state._completed_response is not None:
        assert ours == lean(state._completed_response.model_dump(warnings=False))
    elif fixture.finished or last["type"] == "response.failed":
        assert ours == read_by_sdk(Response, last["response"])
    else:
        snapshot = state._ResponseStreamState__current_snapshot
        assert texts(ours) == texts(lean(snapshot.model_dump(warnings=False)))
        assert texts(ours)


def texts(response: Json) -> list[Any]:
    """What the SDK puts together of a response that is not complete."""
    found: list[Any] = []
    for item in response["output"]:
        if item["type"] == "message":
            found += [part["text"] for part in item["content"]]
        elif item["type"] == "function_call":
            found.append((item["name"], item["arguments"]))
    return found


@pytest.mark.parametrize("fixture", of("audio.transcriptions"), ids=name)
def test_a_transcript_is_its_last_event(fixture: Fixture) -> None:
    events = list(heard(fixture))
    ours = read_by_sdk(Transcription, assembled(fixture))
    deltas = [event["delta"] for event in events if event["type"] == "transcript.text.delta"]
    assert ours["text"].endswith("".join(deltas))
    if events[-1]["type"] == "transcript.text.done":
        assert ours.items() >= lean({**events[-1], "type": None}).items()


@pytest.mark.parametrize("fixture", of("images.generations", "images.edits"), ids=name)
def test_an_image_is_its_last_event(fixture: Fixture) -> None:
    final = list(heard(fixture))[-1]
    ours = construct_type(value=assembled(fixture), type_=ImagesResponse)
    assert isinstance(ours, ImagesResponse) and ours.data and ours.usage
    assert ours.data[0].b64_json == final["b64_json"]
    assert ours.usage.to_dict() == final["usage"]
    assert (ours.created, ours.size, ours.quality) == (
        final["created_at"], final["size"], final["quality"],
    )  # fmt: skip


@pytest.mark.parametrize("fixture", of("completions"), ids=name)
def test_a_completion_is_its_chunks_in_a_row(fixture: Fixture) -> None:
    ours = construct_type(value=assembled(fixture), type_=Completion)
    assert isinstance(ours, Completion)
    chunks = [construct_type(value=chunk, type_=Completion) for chunk in heard(fixture)]
    for choice in ours.choices:
        pieces = [piece for chunk in chunks for piece in chunk.choices  # type: ignore[attr-defined]
                  if piece.index == choice.index]  # fmt: skip
        assert choice.text == "".join(piece.text for piece in pieces)
        assert choice.finish_reason == pieces[-1].finish_reason
