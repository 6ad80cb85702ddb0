"""What an app or an upstream says outside of a body's plain fields is redacted as well."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path
from typing import Any

import orjson
import pytest

from policies.spool import Kind
from tests.store.fixtures.shape import FORM_TYPE, Part, form
from tests.store.making import (
    JSON_HEADERS,
    Exchange,
    Run,
    chat_answer,
    chat_request,
    home,
    record_all,
    recorded,
    row,
    rows,
)
from tests.store.sockets import PLAIN, Talk

KEY = "sk-proj-" + "abcdefghijklmnop0123456789ABCDEFGHIJ" * 2
NAME = "jane.roe@example.com"
OPAQUE = "Zq81opaque77tokenXY"
REDACTED = {"privacy": {"mode": "redacted", "recognisers": ["email"]}}
MODE = {"mode": "redacted"}


def private(**more: Any) -> Exchange:
    return Exchange(more_opened=MODE, **more)


def holders(tmp_path: Path, secret: str) -> list[str]:
    """Files that the recorder wrote and that hold the text, the spool aside."""
    at = home(tmp_path)
    written = [path for path in at.root.rglob("*") if path.is_file() and path.suffix != ".seg"]
    return [path.name for path in written if secret.encode() in path.read_bytes()]


def test_the_row_is_redacted_like_its_bodies(tmp_path: Path) -> None:
    answer = chat_answer() | {"id": NAME, "model": KEY, "service_tier": NAME}
    answer["choices"][0]["finish_reason"] = NAME
    answer["usage"]["note"] = f"{NAME} {KEY}"
    asked = chat_request() | {"model": NAME, "previous_response_id": NAME}
    one = private(
        request=orjson.dumps(asked),
        response=orjson.dumps(answer),
        target=f"/openai/deployments/{KEY}/chat/completions?api-version={NAME}",
        request_headers=[*JSON_HEADERS, ("Idempotency-Key", NAME)],
        response_headers=[JSON_HEADERS[0], ("x-request-id", NAME)],
    )
    found = recorded(tmp_path, one, **REDACTED)
    task = row(home(tmp_path), "SELECT * FROM tasks")
    said = repr((found, task))
    assert (NAME in said, KEY in said) == (False, False)
    assert found["model"] == task["model"] == "<EMAIL_1>"
    assert found["response_id"] == found["previous_response_id"]
    assert found["response_id"].startswith("hash:")
    assert found["input_tokens"] == 9
    assert (holders(tmp_path, NAME), holders(tmp_path, KEY)) == ([], [])


@pytest.mark.parametrize("mode", ["full", "redacted"])
def test_secret_fields_of_what_is_not_one_whole_object(tmp_path: Path, mode: str) -> None:
    whole = orjson.dumps({"model": "m", "input": "x", "password": OPAQUE, "last": "abc"})
    for number, body in enumerate((whole[:-3], b"[" + whole + b"]", whole + b"\n" + whole)):
        folder = tmp_path / str(number)
        folder.mkdir()
        one = Exchange(request=body, response=body, target="/v1/responses")
        one.more_opened = {"mode": mode}
        found = recorded(folder, one)
        assert OPAQUE not in repr(found)
        assert found["text_asked"] == body.decode().replace(OPAQUE, "<SECRET_1>")
        assert found["text_answered"] == found["text_asked"]


def test_names_outside_of_strings_are_found(tmp_path: Path) -> None:
    found = recorded(tmp_path, private(request=f"[{NAME} wrote".encode()), **REDACTED)
    assert found["text_asked"] == "[<EMAIL_1> wrote"


def test_secret_fields_of_realtime_messages(tmp_path: Path) -> None:
    tool = {"type": "mcp", "server_label": "a", "headers": {"X-A": OPAQUE}}
    one = Exchange(method="GET", target="/v1/realtime", request=b"", response=b"", status=101)
    talk = Talk(PLAIN)
    message = {"type": "session.update", "session": {"tools": [tool]}}
    talk.say("client", orjson.dumps(message).decode())
    data = talk.pieces[-1][2]
    head = one.record(Kind.RESPONSE_HEAD, {"status": 101, "headers": []}, 0.1)
    run = Run(home(tmp_path))
    run.write(one.opening(), head, one.record(Kind.REQUEST_BODY, data, 0.2), one.closing())
    run.die()
    record_all(home(tmp_path), record={"realtime": "text"})
    (line,) = orjson.loads("[" + row(home(tmp_path), "SELECT events FROM bodies")["events"] + "]")
    (kept,) = line["message"]["session"]["tools"]
    assert kept == tool | {"headers": {"X-A": "<SECRET_1>"}}


def test_a_file_that_is_a_secret_is_not_kept(tmp_path: Path) -> None:
    long = b64encode(bytes(range(256)) * 64).decode()
    asked = chat_request() | {"password": f"data:image/png;base64,{long}"}
    found = recorded(tmp_path, Exchange(request=orjson.dumps(asked)))
    assert orjson.loads(found["text_asked"])["password"] == "<SECRET_1>"
    assert rows(home(tmp_path), "SELECT * FROM files") == []


@pytest.mark.parametrize("mode", ["full", "redacted"])
def test_files_that_are_text_are_redacted(tmp_path: Path, mode: str) -> None:
    line = orjson.dumps({"body": {"user": NAME, "password": OPAQUE, "say": KEY}}) + b"\n"
    inline = b64encode(f"for {NAME} {KEY} ".encode() * 200).decode()
    upload = Exchange(
        number=1, target="/v1/files", more_opened={"mode": mode},
        request=form(Part("file", line, "batch.jsonl", "application/jsonl")),
        request_headers=[("Content-Type", FORM_TYPE)],
        response_headers=[("Content-Type", "application/octet-stream")],
        response=f"\0{NAME} {KEY}".encode(),
    )  # fmt: skip
    asked = chat_request() | {"file": f"data:text/plain;base64,{inline}"}
    chat = Exchange(number=2, request=orjson.dumps(asked), more_opened={"mode": mode})
    recorded(tmp_path, upload, chat, **REDACTED)
    kept = [path.read_bytes() for path in home(tmp_path).files.rglob("*") if path.is_file()]
    everything = b"".join(kept)
    assert len(kept) == 3
    assert (KEY.encode() in everything, OPAQUE.encode() in everything) == (False, False)
    assert (NAME.encode() in everything) == (mode == "full")
    assert {b"\0", b"{", b"f"} == {data[:1] for data in kept}


def test_a_binary_file_stays_as_it_is(tmp_path: Path) -> None:
    sound = b"RIFF\xff\xff\xff\xffWAVE" + NAME.encode()
    one = private(target="/v1/audio/speech", response=sound)
    one.response_headers = [("Content-Type", "audio/wav")]
    recorded(tmp_path, one, **REDACTED)
    (path,) = [path for path in home(tmp_path).files.rglob("*") if path.is_file()]
    assert path.read_bytes() == sound
