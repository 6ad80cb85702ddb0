"""Realtime sockets as JSON lines: everything said, and the audio only where it is wanted."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from store.deflate import Side
from store.realtime import RealtimeReader
from tests.store.sockets import AGREEMENTS, Talk, frame

AUDIO = base64.b64encode(b"\x01\x02\x03\x04\x05" * 20).decode()


def read(
    pieces: list[tuple[Side, float, bytes]], extensions: str | None, keeps_audio: bool = False
) -> list[bytes]:
    reader = RealtimeReader(extensions, keeps_audio)
    found = [line for side, at, data in pieces for line in reader.feed(side, at, data)]
    assert reader.notes() == {}
    return found


def lines(talk: Talk, keeps_audio: bool = False) -> list[dict[str, Any]]:
    found = read(talk.pieces, talk.extensions, keeps_audio)
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in found)
    return [json.loads(line) for line in found]


def test_both_sides_in_their_order_with_times() -> None:
    talk = Talk()
    update = '{"type": "session.update",\n "session": {"audio": {"input": {}}, "voice": "żółw"}}'
    talk.say("client", update)
    talk.say("server", '{"type":"session.updated","n":123456789012345678901234567890}', 2)
    assert lines(talk) == [
        {"at": 0.0, "from": "client", "message": json.loads(update)},
        {
            "at": 1.0,
            "from": "server",
            "message": {"type": "session.updated", "n": 123456789012345678901234567890},
        },
    ]


@pytest.mark.parametrize(
    "message",
    [
        {"type": "input_audio_buffer.append", "audio": AUDIO},
        {"type": "session.input_audio_buffer.append", "audio": AUDIO},
        {"type": "response.audio.delta", "delta": AUDIO},
        {"type": "response.output_audio.delta", "delta": AUDIO, "item_id": "item_1"},
        {"type": "session.output_audio.delta", "delta": AUDIO},
        {"type": "response.content_part.done", "part": {"type": "audio", "audio": AUDIO}},
        {
            "type": "conversation.item.create",
            "item": {"content": [{"type": "input_audio", "audio": AUDIO, "transcript": "hi"}]},
        },
        {"type": "response.done", "response": {"output": [{"content": [{"audio": AUDIO}]}]}},
    ],
)
def test_audio_is_kept_only_by_policy(message: dict[str, Any]) -> None:
    talk = Talk()
    talk.say("client", json.dumps(message))
    wanted = json.loads(json.dumps(message).replace(f'"{AUDIO}"', '{"bytes": 100}'))
    assert [line["message"] for line in lines(talk)] == [wanted]
    assert [line["message"] for line in lines(talk, keeps_audio=True)] == [message]


def test_what_is_no_audio_stays_as_it_was_sent() -> None:
    talk = Talk()
    said = [
        '{"type": "response.audio_transcript.delta", "delta": "hello",  "x": 1, "x": 2}',
        '{"type": "response.output_text.delta", "delta": "the word audio"}',
        '{"type": "session.update", "session": {"modalities": ["audio"], "audio": null}}',
        '{"type": "other", "text": "\\ud800"}',
    ]
    for text in said:
        talk.say("server", text)
    found = read(talk.pieces, talk.extensions)
    assert [line.partition(b'"message":')[2] for line in found] == [
        text.encode() + b"}\n" for text in said
    ]


@pytest.mark.parametrize(
    ("payload", "size"), [("", 0), ("AA==", 1), ("AAA=", 2), ("AAAA", 3), ("AAAAAA==", 4)]
)
def test_the_size_of_audio(payload: str, size: int) -> None:
    talk = Talk()
    talk.say("client", json.dumps({"type": "input_audio_buffer.append", "audio": payload}))
    assert lines(talk)[0]["message"]["audio"] == {"bytes": size}


def test_what_is_no_json_object() -> None:
    talk = Talk()
    talk.say("client", "hello\n")
    talk.say("client", b"\x00\xff\xfe")
    talk.say("server", "NaN")
    odd = '{"type":"x","audio":"AAAA","text":"\\ud800"}'
    talk.say("server", odd)
    deep = '{"audio":"AAAA","x":' + "[" * 900 + "]" * 900 + "}"
    talk.say("server", deep)
    told = [{key: line[key] for key in line if key not in ("at", "from")} for line in lines(talk)]
    assert told[:4] == [
        {"text": "hello\n"},
        {"binary": 3},
        {"text": "NaN"},
        {"message": {"type": "x", "audio": {"bytes": 3}, "text": "\ud800"}},
    ]
    assert told[4] in (
        {"binary": len(deep)},
        {"message": json.loads(deep) | {"audio": {"bytes": 3}}},
    )


@pytest.mark.parametrize("agreement", AGREEMENTS)
def test_lines_are_the_same_byte_by_byte(agreement: str) -> None:
    talk = Talk(agreement)
    for number in range(6):
        talk.say("client", json.dumps({"type": "input_audio_buffer.append", "audio": AUDIO}))
        talk.say("server", json.dumps({"type": "response.text.delta", "delta": f"word {number}"}))
    single = [
        (side, at, data[place : place + 1])
        for side, at, data in talk.pieces
        for place in range(len(data))
    ]
    found = read(single, talk.extensions)
    assert found == read(talk.pieces, talk.extensions)
    assert len(found) == 12


def test_a_side_that_is_broken_is_noted_and_the_other_goes_on() -> None:
    reader = RealtimeReader(None, False)
    assert reader.feed("server", 1.0, b"\xff\xff") == []
    assert reader.feed("server", 1.5, frame(0x81, b"{}")) == []
    assert len(reader.feed("client", 2.0, frame(0x81, b"{}", b"\1\2\3\4"))) == 1
    assert reader.notes() == {"server": "a frame that begins with 0xff"}
