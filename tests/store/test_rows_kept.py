"""What is kept of a body under which mode, and where: files, sockets, placeholders."""

from __future__ import annotations

import json
import stat
from base64 import b64encode
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.fingerprint import task_id
from policies.home import Home
from policies.spool import Kind
from store.media import place, restored
from tests.store.fixtures.shape import FORM_TYPE, Part, form
from tests.store.making import (
    JSON_HEADERS,
    SSE_HEADERS,
    Exchange,
    Run,
    chat_answer,
    chat_request,
    delta,
    home,
    record_all,
    recorded,
    row,
    rows,
    stream_of,
)
from tests.store.sockets import PLAIN, TAKEOVER, Talk

SOUND = b"RIFF\x00\x00\x00\x00WAVE" + bytes(range(256)) * 8
PICTURE = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40
BEGAN = 1_735_732_800.0


def files(at: Home) -> dict[str, bytes]:
    """Of the folder, by hash."""
    found = [path for path in at.files.rglob("*") if path.is_file()] if at.files.exists() else []
    assert {stat.S_IMODE(path.stat().st_mode) for path in found} <= {0o600}
    return {path.parent.name + path.name: path.read_bytes() for path in found}


def holders(at: Home, secret: str) -> list[str]:
    """Files below the home folder that hold the text."""
    return [
        path.name
        for path in at.root.rglob("*")
        if path.is_file() and secret.encode() in path.read_bytes()
    ]


# -- files


def uploaded() -> Exchange:
    sent = form(Part("model", b"whisper-1"), Part("file", SOUND, "a.wav", "audio/wav"))
    headers = [("content-type", FORM_TYPE)]
    answer = b'{"text": "hi", "usage": {"type": "duration", "seconds": 60}}'
    target = "/v1/audio/transcriptions"
    return Exchange(request=sent, request_headers=headers, target=target, response=answer)


def test_an_uploaded_file_is_described_and_kept(tmp_path: Path) -> None:
    found = recorded(tmp_path, uploaded())
    ((name, data),) = files(home(tmp_path)).items()
    assert data == SOUND
    assert orjson.loads(found["asked"]) == {
        "model": "whisper-1",
        "file": {
            "filename": "a.wav", "content_type": "audio/wav", "bytes": len(SOUND),
            "file": f"understudy:file/{name}",
        },
    }  # fmt: skip
    assert rows(home(tmp_path), "SELECT * FROM files") == [
        {"hash": name, "bytes": len(SOUND), "media_type": "audio/wav", "uses": 1}
    ]
    assert (found["model"], found["bodies"]["request_note"]) == ("whisper-1", None)
    assert found["cost_usd"] == pytest.approx(0.006)  # a minute at $0.36 an hour


def test_an_uploaded_file_is_only_described_where_files_are_not_kept(tmp_path: Path) -> None:
    found = recorded(tmp_path, uploaded(), record={"media": False})
    said = orjson.loads(found["asked"])["file"]
    assert (said["bytes"], said["file"]) == (len(SOUND), None)
    assert files(home(tmp_path)) == {}
    assert rows(home(tmp_path), "SELECT * FROM files") == []


@pytest.mark.parametrize("keeps", [True, False])
def test_speech_is_a_file(tmp_path: Path, keeps: bool) -> None:
    one = Exchange(
        target="/v1/audio/speech",
        request=b'{"model": "tts-1", "input": "Hello", "voice": "alloy"}',
        response=SOUND,
        response_headers=[("content-type", "audio/wav; rate=8000")],
    )
    found = recorded(tmp_path, one, record={"media": keeps})
    kept = files(home(tmp_path))
    assert list(kept.values()) == [SOUND] * keeps
    assert orjson.loads(found["answered"]) == {
        "content_type": "audio/wav", "bytes": len(SOUND),
        "file": f"understudy:file/{next(iter(kept))}" if keeps else None,
    }  # fmt: skip
    assert (found["complete"], found["bodies"]["response_note"]) == (1, "binary")
    assert found["cost_usd"] == pytest.approx(0.000075)  # 5 characters at $15 a million


def test_a_picture_in_many_calls_is_one_file(tmp_path: Path) -> None:
    url = "data:image/png;base64," + b64encode(PICTURE).decode()
    parts = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]
    said = [{"role": "user", "content": parts}]
    sent = [orjson.dumps(chat_request() | {"messages": said, "n": n}) for n in (1, 2)]
    found = recorded(tmp_path, *(Exchange(number=n + 1, request=one) for n, one in enumerate(sent)))
    at = home(tmp_path)
    ((name, data),) = files(at).items()
    assert (data, place(at.files, name).read_bytes()) == (PICTURE, PICTURE)
    assert f'"data:image/png;base64,understudy:file/{name}"' in found["asked"]
    assert len(found["asked"]) < 500
    assert row(at, "SELECT * FROM files") == {
        "hash": name, "bytes": len(PICTURE), "media_type": "image/png", "uses": 2,
    }  # fmt: skip
    texts = [one["request"] for one in rows(at, "SELECT request FROM pairs ORDER BY number")]
    assert [restored(at.files, text).encode() for text in texts] == sent


# -- sockets


def talked(talk: Talk, target: str, **more: Any) -> bytes:
    """The records of a socket that said all of it."""
    one = Exchange(method="GET", target=target, request=b"", response=b"", at=BEGAN, **more)
    headers = [("x-ratelimit-limit-requests", "5"), ("x-request-id", "req_1")]
    if talk.extensions is not None:
        headers.append(("Sec-WebSocket-Extensions", talk.extensions))
    records = [one.opening(), one.record(Kind.RESPONSE_HEAD, {"status": 101, "headers": headers})]
    for side, at, data in talk.pieces:
        kind = Kind.REQUEST_BODY if side == "client" else Kind.RESPONSE_BODY
        records.append(one.record(kind, data, at - 100.0))
    return b"".join(records) + one.closing()


def recorded_socket(root: Path, records: bytes, **policy: Any) -> list[dict[str, Any]]:
    """The socket's row, then those of its turns."""
    at = home(root)
    run = Run(at)
    run.write(records)
    run.die()
    record_all(at, **policy)
    assert rows(at, "SELECT * FROM incidents") == []
    sql = (
        "SELECT e.*, t.request, t.response FROM exchanges AS e LEFT JOIN texts AS t USING (number)"
    )
    return rows(at, f"{sql} ORDER BY number")


def turn(talk: Talk, name: str, text: str, response: str) -> tuple[str, str]:
    """A whole turn; its request, and the response in it."""
    asked = json.dumps({"type": "response.create", "model": "gpt-5", "input": text})
    talk.say("client", asked)
    talk.say("server", json.dumps({"type": "response.created", "response": {"id": name}}))
    talk.say("server", f'{{"type":"response.completed","response":{response}}}')
    return asked, response


USED = '"usage":{"input_tokens":9,"output_tokens":3}'


@pytest.mark.parametrize("agreement", [PLAIN, TAKEOVER])
def test_turns_of_responses_are_rows_of_their_own(tmp_path: Path, agreement: str) -> None:
    talk = Talk(agreement)
    first = '{"id":"r1","status":"completed","model":"gpt-5",' + USED + "}"
    odd = '{"id":"r2","status":"completed","model":"gpt-5","said":"\\ud800",' + USED + "}"
    texts = [turn(talk, "r1", "Where is Żółw?", first), turn(talk, "r2", "And now?", odd)]
    talk.say("client", json.dumps({"type": "response.create", "model": "gpt-5"}))
    talk.close("client", 1000)
    socket, *turns = recorded_socket(tmp_path, talked(talk, "/v1/responses"))
    assert (socket["endpoint"], socket["status"], socket["seq"]) == ("responses.websocket", 101, 1)
    assert (socket["request"], socket["usage_note"]) == (None, "another protocol than HTTP")
    assert [(one["request"], one["response"]) for one in turns[:2]] == texts
    for number, one in enumerate(turns[:2], 1):
        assert (one["endpoint"], one["status"], one["outcome"]) == ("responses", 200, "ok")
        assert (one["complete"], one["seq"], one["response_id"]) == (1, None, f"r{number}")
        assert (one["input_tokens"], one["output_tokens"], one["model"]) == (9, 3, "gpt-5")
        # 9 at $1.25, 3 at $10 for a million
        assert one["cost_usd"] == pytest.approx(0.00004125, rel=1e-12)
        assert one["id"][:13] == socket["id"][:13] and one["id"] != socket["id"]
    # On the second: three messages each, one a second.
    assert [one["started_at"][17:23] for one in turns] == ["00.000", "03.000", "06.000"]
    assert [one["latency_ms"] for one in turns[:2]] == [2000.0, 2000.0]
    last = turns[2]
    assert (last["status"], last["served_by"], last["complete"]) == (None, None, 0)
    assert last["error"] == "the client closed the socket: 1000"
    assert row(home(tmp_path), "SELECT recorded, highest_seq FROM runs") == {
        "recorded": 1, "highest_seq": 1,
    }  # fmt: skip
    limits = rows(home(tmp_path), "SELECT number FROM rate_limits")
    assert limits == [{"number": socket["number"]}]


@pytest.mark.parametrize(
    ("realtime", "audio"), [("text", {"bytes": 6}), ("audio", "QUJDREVG"), ("off", None)]
)
def test_a_realtime_session_as_lines(tmp_path: Path, realtime: str, audio: object) -> None:
    talk = Talk(TAKEOVER)
    talk.say("client", '{"type":"input_audio_buffer.append","audio":"QUJDREVG"}')
    talk.say("server", '{"type":"response.done","n":1}')
    (one,) = recorded_socket(tmp_path, talked(talk, "/v1/realtime"), record={"realtime": realtime})
    assert (one["endpoint"], one["status"], one["complete"]) == ("realtime", 101, 1)
    if realtime == "off":
        assert rows(home(tmp_path), "SELECT * FROM bodies") == []
        assert one["usage_note"] == "another protocol than HTTP"
        return
    lines = row(home(tmp_path), "SELECT events FROM bodies")["events"].splitlines()
    append = {"type": "input_audio_buffer.append", "audio": audio}
    assert [orjson.loads(line) for line in lines] == [
        {"at": 0.0, "from": "client", "message": append},
        {"at": 1.0, "from": "server", "message": {"type": "response.done", "n": 1}},
    ]
    assert one["usage_note"] == "a session of several answers"


# -- modes

EMAIL = "jane.roe@example.com"
KEY_SAID = "sk-proj-" + "Ab3dEf6hIj9lMn2pQr5tUv8x" * 2


def private(streamed: bool, mode: str) -> Exchange:
    asked = chat_request(f"I am {EMAIL}.", user=EMAIL, stream=streamed)
    asked["messages"][0]["content"] = f"Serve {EMAIL} and tim@example.org."
    one = Exchange(request=orjson.dumps(asked), more_opened={"mode": mode})
    if streamed:
        half = len(EMAIL) // 2
        chunks = (delta(content="Hi " + EMAIL[:half]), delta(content=EMAIL[half:], finish="stop"))
        one.response, one.response_headers = stream_of(*chunks), SSE_HEADERS
    else:
        one.response = orjson.dumps(chat_answer("Hi " + EMAIL))
    return one


@pytest.mark.parametrize("streamed", [False, True])
def test_redacted_bodies_hold_placeholders(tmp_path: Path, streamed: bool) -> None:
    one = private(streamed, "redacted")
    found = recorded(tmp_path, one, privacy={"mode": "redacted", "recognisers": ["email"]})
    asked, answered = orjson.loads(found["asked"]), orjson.loads(found["answered"])
    assert [message["content"] for message in asked["messages"]] == [
        "Serve <EMAIL_1> and <EMAIL_2>.", "I am <EMAIL_1>.",
    ]  # fmt: skip
    assert answered["choices"][0]["message"]["content"] == "Hi <EMAIL_1>"
    assert found["task_id"] == task_id("chat.completions", orjson.loads(one.request))
    assert found["privacy"] == "redacted"
    assert str(found["user"]).startswith("hash:")
    prompt = row(home(tmp_path), "SELECT system_prompt FROM tasks")["system_prompt"]
    assert prompt == "Serve <EMAIL_1> and <EMAIL_2>."
    assert holders(home(tmp_path), EMAIL) == []


@pytest.mark.parametrize("streamed", [False, True])
def test_full_bodies_are_as_they_were(tmp_path: Path, streamed: bool) -> None:
    """Recognisers are for `redacted` alone."""
    one = private(streamed, "full")
    found = recorded(tmp_path, one, privacy={"recognisers": ["email"]})
    assert found["asked"] == one.request.decode()
    said = orjson.loads(found["answered"])["choices"][0]["message"]["content"]
    assert (said, found["user"], found["privacy"]) == ("Hi " + EMAIL, EMAIL, "full")
    assert holders(home(tmp_path), EMAIL) == ["understudy.db"]


@pytest.mark.parametrize(("said", "kept"), [((EMAIL[:3], EMAIL[3:]), False), (("a", "b"), True)])
def test_events_that_hide_something_between_them_are_not_kept(
    tmp_path: Path, said: tuple[str, str], kept: bool
) -> None:
    chunks = [delta(content=piece) | {"obfuscation": "xYz"} for piece in said]
    one = Exchange(response=stream_of(*chunks, delta(finish="stop")))
    one.response_headers, one.more_opened = SSE_HEADERS, {"mode": "redacted"}
    policy = {"privacy": {"recognisers": ["email"]}, "record": {"stream_events": True}}
    found = recorded(tmp_path, one, **policy)
    events = found["bodies"]["events"]
    assert (events is not None, found["bodies"]["response_note"] is None) == (kept, kept)
    assert "obfuscation" not in (events or "")
    assert holders(home(tmp_path), EMAIL) == []


def test_an_error_in_a_stream_names_nobody(tmp_path: Path) -> None:
    body = stream_of(delta(content="a"), {"error": {"message": f"{EMAIL} is blocked"}})
    one = Exchange(response=body, response_headers=SSE_HEADERS, more_opened={"mode": "redacted"})
    found = recorded(tmp_path, one, privacy={"recognisers": ["email"]})
    assert found["error"] == "stream: <EMAIL_1> is blocked"
    assert holders(home(tmp_path), EMAIL) == []


@pytest.mark.parametrize("mode", ["full", "redacted"])
def test_credentials_are_removed_in_every_mode(tmp_path: Path, mode: str) -> None:
    asked = chat_request(f"My key is {KEY_SAID}, keep it.")
    one = Exchange(request=orjson.dumps(asked), more_opened={"mode": mode})
    one.response = orjson.dumps(chat_answer(f"Noted: {KEY_SAID}"))
    found = recorded(tmp_path, one)
    said = orjson.loads(found["asked"])["messages"][1]["content"]
    assert said == "My key is <SECRET_1>, keep it."
    answer = orjson.loads(found["answered"])["choices"][0]["message"]["content"]
    assert answer == "Noted: <SECRET_1>"
    assert holders(home(tmp_path), KEY_SAID) == []


def test_of_metadata_there_is_a_row_and_no_body(tmp_path: Path) -> None:
    sizes = {"request_bytes": 800, "response_bytes": 90}
    one = Exchange(
        request=b"",
        response=b"",
        request_headers=[*JSON_HEADERS, ("x-understudy-tenant", "acme")],
        more_opened={"mode": "metadata"},
        more_closed={"task_id": "f" * 32, "request_hash": "e" * 32, **sizes},
    )
    found = recorded(tmp_path, one)
    assert rows(home(tmp_path), "SELECT * FROM bodies") == []
    assert rows(home(tmp_path), "SELECT * FROM tasks") == []
    told = {
        "privacy": "metadata", "task_id": "f" * 32, "request_hash": "e" * 32, "status": 200,
        "outcome": "ok", "complete": 1, "truncated": 0, "tenant": "acme", "model": None,
        "input_tokens": None, "usage_note": "no body is kept (privacy: metadata)",
        "cost_usd": None, "cost_note": "no body is kept (privacy: metadata)", "error": None,
        "upstream_request_id": "req_1", **sizes,
    }  # fmt: skip
    assert {name: found[name] for name in told} == told
    assert rows(home(tmp_path), "SELECT * FROM incidents") == []
