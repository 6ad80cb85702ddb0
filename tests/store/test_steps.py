"""Rows are made in step: the same as one by one, and nothing of it stays behind."""

from __future__ import annotations

import base64
import gc
import itertools
from pathlib import Path

import orjson
import pytest

from policies.spool import Event, unpack
from store.ingest import _BYTES_IN_STEP, Ingest
from store.rows import Unreadable, build
from store.schema import prepare
from store.spool_reader import Piece, Position
from store.steps import Steps, in_step, whole
from tests.store.making import (
    SSE_HEADERS,
    Exchange,
    chat_request,
    delta,
    home,
    making,
    rows,
    stream_of,
)
from tests.store.sockets import Talk
from tests.store.test_rows_kept import talked


def counting(log: list[str], name: str, steps: int, fails: bool = False) -> Steps[str]:
    for number in range(steps):
        log.append(f"{name}{number}")
        yield
    if fails:
        raise ValueError(name)
    return name


def test_the_first_step_of_each_then_the_second() -> None:
    log: list[str] = []
    found = in_step([counting(log, "a", 2), counting(log, "b", 1, True), counting(log, "c", 3)])
    assert log == ["a0", "b0", "c0", "a1", "c1", "c2"]
    assert (found[0], found[2]) == ("a", "c")
    assert isinstance(found[1], ValueError)
    assert found[1].__traceback__ is None  # whose frames hold on to what they worked at
    assert whole(counting([], "d", 4)) == "d"
    with pytest.raises(ValueError, match="e"):
        whole(counting([], "e", 1, True))


PICTURE = base64.b64encode(bytes(range(256)) * 64).decode()


def exchanges() -> dict[str, bytes]:
    """Records, by what they are."""
    talk = Talk()
    talk.say("client", '{"type":"response.create","model":"gpt-4o","input":"hi"}')
    talk.say("server", '{"type":"response.completed","response":{"id":"resp_1","output":[]}}')
    form = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nwhisper-1\r\n--b--\r\n'
    said = stream_of(delta(content="a@b.com hello"), delta(finish="stop"))
    plain = {
        "chat": Exchange(),
        "stream": Exchange(
            request=orjson.dumps(chat_request(stream=True)), response=said,
            response_headers=SSE_HEADERS,
        ),
        "broken": Exchange(request=b'{"messages":[{"role":"user"', response=b"nope"),
        "picture": Exchange(request=orjson.dumps(chat_request(PICTURE))),
        "speech": Exchange(
            target="/v1/audio/speech", response=b"\xff\xfb123",
            response_headers=[("content-type", "audio/mpeg")],
        ),
        "form": Exchange(
            target="/v1/audio/transcriptions", request=form,
            request_headers=[("content-type", "multipart/form-data; boundary=b")],
        ),
        "personal": Exchange(
            request=orjson.dumps(chat_request("write to a@b.com")), more_opened={"mode": "redacted"}
        ),
        "unreadable": Exchange(request_headers=[1, 2]),  # type: ignore[list-item]
    }  # fmt: skip
    made = {name: one.records() for name, one in plain.items()}
    made["turns"] = talked(talk, "/v1/responses")
    made["session"] = talked(talk, "/v1/realtime")
    return made


def events_of(records: bytes) -> list[Event]:
    return [event for batch in unpack(records) for event in batch.events]


@pytest.mark.parametrize("name", exchanges())
def test_an_exchange_leaves_no_cycle_behind(name: str) -> None:
    """The recorder looks for garbage rarely: a cycle would hold bodies by the hundred."""
    events = events_of(exchanges()[name])
    personal = {"mode": "redacted", "recognisers": ["email"]}
    recording = making(privacy=personal, record={"stream_events": True, "realtime": "audio"})

    def make() -> None:
        (found,) = in_step([build("r", events[0].exchange, events, recording)])
        assert isinstance(found, Unreadable) == (name == "unreadable")

    make()  # what is cached
    gc.collect()
    gc.disable()
    try:
        for _ in range(5):
            make()
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_many_large_ones_are_made_a_few_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, sizes = home(tmp_path), list[int]()
    at.root.mkdir()
    ingest = Ingest(prepare(at.database), making(), at.files)
    made = ingest._make_rows

    def seen(batch: object) -> None:
        sizes.append(len(batch.ready))  # type: ignore[attr-defined]
        made(batch)  # type: ignore[arg-type]

    monkeypatch.setattr(ingest, "_make_rows", seen)
    text = "x" * (_BYTES_IN_STEP // 4)
    every = [Exchange(number=n, request=orjson.dumps(chat_request(text))) for n in range(1, 11)]
    events = list(itertools.chain.from_iterable(events_of(one.records()) for one in every))
    ingest.apply("run", 1.0, Piece(events, Position(1, 1)))
    assert sizes == [4, 4, 2]
    assert [one["seq"] for one in rows(at, "SELECT seq FROM exchanges ORDER BY number")] == list(
        range(1, 11)
    )
