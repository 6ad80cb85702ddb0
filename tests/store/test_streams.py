"""Streams put together again, in every shape that has been seen."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import orjson
import pytest

from store.streams import Assembled, assemble
from tests.store.making import delta, stream_of


def chat(*chunks: object, done: bool = True) -> Assembled:
    return assemble("chat.completions", stream_of(*chunks, done=done), True)


def message(*chunks: object) -> dict[str, Any]:
    found = chat(*chunks)
    assert found.body is not None
    result: dict[str, Any] = found.body["choices"][0]["message"]
    return result


def call(index: int | None, **fields: Any) -> dict[str, Any]:
    place = {} if index is None else {"index": index}
    return delta(tool_calls=[place | fields])


def test_text_and_everything_around_it() -> None:
    first = delta(role="assistant", content="", refusal=None) | {
        "created": 5, "system_fingerprint": "fp", "service_tier": "default", "obfuscation": "xyz",
    }  # fmt: skip
    found = chat(first, delta(content="Hel"), delta(content="lo"), delta(finish="stop"))
    assert found == Assembled(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 5,
            "model": "m",
            "system_fingerprint": "fp",
            "service_tier": "default",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "Hello"},
                    "finish_reason": "stop",
                }
            ],
        },
        finished=True,
    )


def test_refusal_and_padding() -> None:
    found = message(delta(refusal="I "), delta(refusal="can't", obfuscation="pad"))
    assert found == {"role": "assistant", "content": None, "refusal": "I can't"}


def test_tool_calls_merge_by_index() -> None:
    found = message(
        call(0, id="a", type="function", function={"name": "f", "arguments": ""}),
        call(1, id="b", type="function", function={"name": "g", "arguments": "{"}),
        call(0, function={"arguments": '{"x":'}),
        call(1, id=None, function={"name": None, "arguments": "}"}),
        call(0, id="a", function={"name": "f", "arguments": "1}"}),
    )
    assert found["tool_calls"] == [
        {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
        {
            "id": "b",
            "type": "function",
            "function": {"name": "g", "arguments": "{}"},
        },
    ]


def test_tool_calls_without_an_index_begin_with_their_id() -> None:
    found = message(
        call(None, id="a", function={"name": "f", "arguments": "1"}),
        call(None, function={"arguments": "2"}),
        call(None, id="b", function={"name": "g", "arguments": "3"}),
    )
    assert [one["function"]["arguments"] for one in found["tool_calls"]] == ["12", "3"]


def test_custom_tools_and_the_old_function_call() -> None:
    custom = message(
        call(0, id="a", type="custom", custom={"name": "sh", "input": "l"}),
        call(0, custom={"input": "s"}),
    )
    assert custom["tool_calls"][0]["custom"] == {"name": "sh", "input": "ls"}
    old = message(
        delta(function_call={"name": "f", "arguments": "{"}),
        delta(function_call={"arguments": "}"}),
    )
    assert old["function_call"] == {"name": "f", "arguments": "{}"}


def test_choices_interleave_and_logprobs_add_up() -> None:
    def said(index: int, text: str) -> dict[str, Any]:
        chunk = delta(index, content=text)
        chunk["choices"][0]["logprobs"] = {"content": [{"token": text}], "refusal": None}
        return chunk

    found = chat(said(1, "b"), said(0, "a"), said(1, "B"), delta(1, "stop"), delta(0, "length"))
    assert found.body is not None
    first, second = found.body["choices"]
    assert (first["message"]["content"], first["finish_reason"]) == ("a", "length")
    assert (second["message"]["content"], second["finish_reason"]) == ("bB", "stop")
    assert second["logprobs"] == {"content": [{"token": "b"}, {"token": "B"}]}


def test_speech_in_a_chat_is_joined() -> None:
    found = message(
        delta(audio={"id": "a1", "transcript": "Hel"}),
        delta(audio={"id": "a1", "transcript": "lo", "data": "AAAA"}),
        delta(audio={"data": "BBBB", "expires_at": 5}),
        delta(audio=None),
    )
    assert found["audio"] == {
        "id": "a1", "transcript": "Hello", "data": "AAAABBBB", "expires_at": 5,
    }  # fmt: skip


def test_what_is_not_known_is_kept_where_it_was() -> None:
    first = {"id": "", "model": "", "created": 0, "choices": [], "seen": [1]}
    last = delta(content="b", reasoning_content="y", notes=[2])
    last["choices"][0]["verdict"] = {"b": 2}
    piece = delta(content="a", reasoning_content="x", notes=[1])
    piece["choices"][0]["verdict"] = {"a": 1}
    found = chat(first, piece, last)
    assert found.body is not None
    assert (found.body["id"], found.body["model"], found.body["seen"]) == ("c1", "m", [1])
    (choice,) = found.body["choices"]
    assert choice["verdict"] == {"a": 1, "b": 2}
    assert choice["message"] | {"content": "ab"} == choice["message"]
    assert (choice["message"]["reasoning_content"], choice["message"]["notes"]) == ("xy", [1, 2])


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


@pytest.mark.parametrize(
    "chunks",
    [
        [delta(content="a") | {"usage": None}, {"id": "c1", "choices": [], "usage": USAGE}],
        [delta(content="a"), delta(finish="stop") | {"usage": USAGE}],
        [delta(content="a"), {"usage": USAGE}],
        [delta(content="a") | {"usage": USAGE}, delta(finish="stop") | {"usage": None}],
        [{"id": "c1", "choices": None, "usage": USAGE}, delta(content="a")],
        [delta(content="a") | {"usage": {"prompt_tokens": 3}}, delta() | {"usage": USAGE}],
        [delta(content="a") | {"usage": USAGE}, delta(finish="stop") | {"usage": {}}],
    ],
)
def test_usage_in_every_shape(chunks: list[object]) -> None:
    found = chat(*chunks)
    assert found.body is not None and found.body["usage"] == USAGE


def test_whether_it_finished() -> None:
    assert not chat(delta(content="a"), done=False).finished
    assert chat(delta(content="a"), done=True).finished
    assert chat(delta(content="a"), delta(finish="stop"), done=False).finished
    one_of_two = [delta(0, "stop", content="a"), delta(1, content="b")]
    assert not chat(*one_of_two, done=False).finished


@pytest.mark.parametrize(
    "bad",
    [
        b'data: {"error": {"message": "overloaded"}}\n\n',
        b'event: error\ndata: {"message": "overloaded"}\n\n',
        b'data: {"error": "overloaded"}\n\n',
    ],
)
def test_an_error_in_the_stream(bad: bytes) -> None:
    body = stream_of(delta(content="a"), done=False) + bad
    found = assemble("chat.completions", body + b"data: [DONE]\n\n", True)
    assert (found.finished, found.error) == (False, "stream: overloaded")
    assert found.body is not None and found.body["choices"][0]["message"]["content"] == "a"


@pytest.mark.parametrize("bad", [b"\xff\xfe", b"{", b'"\\ud800"', b"\x00"])
def test_an_event_that_is_not_json_is_skipped_and_noted(bad: bytes) -> None:
    body = stream_of(delta(content="a"), done=False) + b"data: " + bad + b"\n\n"
    found = assemble("chat.completions", body + stream_of(delta(content="b")), True)
    assert found.body is not None and found.body["choices"][0]["message"]["content"] == "ab"
    assert not found.finished and str(found.error).startswith("parse_error")


@pytest.mark.parametrize("odd", [1, [], {"choices": 5}, {"choices": [None, {"delta": 7}]}])
def test_odd_chunks_break_nothing(odd: object) -> None:
    assert message(delta(content="a"), odd)["content"] == "a"


def test_a_cut_stream_gives_what_had_arrived() -> None:
    body = stream_of(delta(content="a"), delta(content="b"), done=False)
    found = assemble("chat.completions", body[:-4], False)
    assert found.body is not None and found.body["choices"][0]["message"]["content"] == "a"
    assert not found.finished


def test_nothing_at_all() -> None:
    assert assemble("chat.completions", b"", True).note == "the stream held no chunk"


def test_legacy_completions() -> None:
    def piece(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
        logprobs = {"tokens": [text]}
        choice = {"index": index, "text": text, "finish_reason": finish, "logprobs": logprobs}
        return {"id": "cmpl", "object": "text_completion", "choices": [choice], "usage": None}

    chunks = [piece(0, "a"), piece(1, "x"), piece(0, "b", "stop"), {"choices": [], "usage": USAGE}]
    found = assemble("completions", stream_of(*chunks), True)
    assert found.finished and found.body is not None
    assert [choice["text"] for choice in found.body["choices"]] == ["ab", "x"]
    assert found.body["choices"][0]["logprobs"] == {"tokens": ["a", "b"]}
    assert found.body["usage"] == USAGE


def test_images_without_one_that_is_finished() -> None:
    preview = {"type": "image_generation.partial_image", "b64_json": "AAAA", "size": "1x1",
               "partial_image_index": 0, "created_at": 5}  # fmt: skip
    found = assemble("images.generations", stream_of(preview, done=False), True)
    assert found == Assembled({"created": 5, "size": "1x1", "data": []}, False)
    done = {"type": "image_generation.completed", "b64_json": "B", "created_at": 6}
    found = assemble("images.generations", stream_of(preview, done, done, done=False), True)
    assert found.finished and found.body is not None
    assert found.body["data"] == [{"b64_json": "B"}, {"b64_json": "B"}]


@pytest.mark.parametrize(
    ("pieces", "whole"),
    [
        ([b"abc", b"def"], b"abcdef"),
        ([b"a", b"", b"bcde"], b"abcde"),
        ([b"a"], b"a"),
    ],
)
def test_speech_is_one_text_of_base64(pieces: list[bytes], whole: bytes) -> None:
    events = [
        {"type": "speech.audio.delta", "audio": b64encode(piece).decode()} for piece in pieces
    ]
    found = assemble("audio.speech", stream_of(*events, done=False), True)
    assert found.body == {"audio": b64encode(whole).decode()}
    assert not found.finished
    done = {"type": "speech.audio.done", "usage": {"total_tokens": 3}}
    found = assemble("audio.speech", stream_of(*events, done, done=False), True)
    assert found.finished and found.body is not None and found.body["usage"] == {"total_tokens": 3}


def test_speech_that_is_no_base64() -> None:
    odd = [{"type": "speech.audio.delta", "audio": text} for text in ("a=", "b")]
    found = assemble("audio.speech", stream_of(*odd, done=False), True)
    assert found.body == {"audio": None}


STREAMING = ["chat.completions", "completions", "responses", "responses.stored",
             "responses.websocket", "audio.transcriptions", "audio.speech", "images.generations",
             "images.edits"]  # fmt: skip


@pytest.mark.parametrize("endpoint", STREAMING)
def test_nothing_an_error_and_garbage_in_any_stream(endpoint: str) -> None:
    empty = assemble(endpoint, b"", True)
    assert (empty.body, empty.finished, empty.error) == (None, False, None)
    assert empty.note is not None
    said = assemble(endpoint, b'event: error\ndata: {"message": "overloaded"}\n\n', True)
    assert (said.finished, said.error) == (False, "stream: overloaded")
    for odd in (b"\xff", b"{", b'{"a": "\\udc00"}', b"\x00"):
        found = assemble(endpoint, b"data: " + odd + b"\n\n", True)
        assert (found.finished, str(found.error)[:11]) == (False, "parse_error")


def test_what_comes_after_the_end_is_nobodys() -> None:
    body = stream_of(delta(content="a")) + stream_of(delta(content="b"))
    found = assemble("chat.completions", body, True)
    assert found.body is not None and found.body["choices"][0]["message"]["content"] == "a"


def test_other_streams_are_kept_as_they_are() -> None:
    found = assemble("embeddings", orjson.dumps({}), True)
    assert found.body is None and found.note is not None
