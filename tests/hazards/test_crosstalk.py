"""Calls at once, and bytes cut anywhere: each client gets its own answer, to the byte."""

from __future__ import annotations

import random
import socket
import threading
import time

import orjson
import pytest

from store.record import Record
from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import (
    ANSWER,
    SSE_HEAD,
    Call,
    Upstream,
    chat,
    chunked,
    plain,
    post,
    sized,
)

OK = b"HTTP/1.1 200 OK\r\n"
CALLS = 200


def question(number: int) -> bytes:
    message = {"role": "user", "content": f"question {number}"}
    asked = {"model": "gpt-4o-mini", "stream": number % 2 == 1, "messages": [message]}
    return orjson.dumps(asked)


def answer(call: Call) -> None:
    """`answer n` to `question n`, streamed to every other."""
    asked = orjson.loads(call.read_body())
    text = asked["messages"][0]["content"].replace("question", "answer")
    if not asked["stream"]:
        message = {"role": "assistant", "content": text}
        said = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
        call.send(sized(orjson.dumps(said), headers=b"Content-Type: application/json\r\n"))
        return
    call.send(SSE_HEAD)
    for piece in (*text, None):
        delta = {"content": piece} if piece else {}
        choice = {"index": 0, "delta": delta, "finish_reason": None if piece else "stop"}
        call.send(chunked(b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"))
    call.send(chunked(b"data: [DONE]\n\n") + b"0\r\n\r\n")


def text_of(body: bytes) -> str:
    """What a client is told."""
    if not body.startswith(b"data: "):
        return str(orjson.loads(body)["choices"][0]["message"]["content"])
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")[:-2]]
    deltas = [orjson.loads(event)["choices"][0]["delta"] for event in events]
    return "".join(delta.get("content", "") for delta in deltas)


def test_calls_at_once_do_not_mix(sidecar: Sidecar, upstream: Upstream) -> None:
    """T18: client, row and the pair that a candidate is shown agree, for each of them."""
    got: dict[int, str] = {}
    together = threading.Barrier(CALLS)

    def one(number: int) -> None:
        client = sidecar.connect(20)
        together.wait(20)
        client.send(post(chat(f"n{number}"), question(number)))
        got[number] = text_of(client.reply().body)

    with upstream.playing(answer):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(CALLS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = {number: f"answer {number}" for number in range(CALLS)}
    assert got == expected
    rows = wait_for(lambda: len(found := sidecar.rows("n%")) == CALLS and found, 10)
    assert {_number(row["path"]): _told(row) for row in rows} == expected
    assert {_number(row["path"]): _asked(row["request"]) for row in rows} == {
        number: f"question {number}" for number in expected
    }
    record = Record(sidecar.home / "understudy.db", sidecar.root / "none.sock")
    shown = {pair.exchange_id: pair for pair in record.unobserved("nobody", 2 * CALLS)}
    for row in rows:
        pair = shown[row["id"]]
        assert pair.control == f"answer {_number(row['path'])}"
        assert pair.request == orjson.loads(row["request"])


def _number(path: str) -> int:
    return int(path.rpartition("=n")[2])


def _told(row: dict[str, str]) -> str:
    return text_of(row["response"].encode())


def _asked(request: str) -> str:
    return str(orjson.loads(request)["messages"][0]["content"])


@pytest.mark.parametrize("framing", ["sized", "chunked", "close"])
def test_replies_arrive_to_the_byte_wherever_they_are_split(
    sidecar: Sidecar, upstream: Upstream, framing: str
) -> None:
    chance = random.Random(framing)
    body = chance.randbytes(40_000) + b"\r\n0\r\n\r\n\xed\xa0\x80" + chance.randbytes(1000)
    pieces = _split(chance, body, 12)
    said = {
        "sized": sized(body),
        "chunked": SSE_HEAD + chunked(*pieces) + b"0\r\n\r\n",
        "close": OK + b"\r\n" + body,
    }[framing]

    def in_parts(call: Call) -> None:
        call.read_body()
        call.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in _split(chance, said, 8):
            call.send(part)
            time.sleep(0.001)
        if framing == "close":
            call.socket.close()

    with upstream.playing(in_parts):
        client = sidecar.connect()
        for _ in range(15):
            client.send(post("/v1/x"))
            reply = client.reply()
            assert reply.whole
            assert reply.body == body


@pytest.mark.parametrize("framing", ["sized", "chunked"])
def test_requests_arrive_to_the_byte_wherever_they_are_split(
    sidecar: Sidecar, upstream: Upstream, framing: str
) -> None:
    chance = random.Random(framing)
    with upstream.playing(plain):
        client = sidecar.connect()
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for _ in range(15):
            body = chance.randbytes(chance.randrange(1, 30_000))
            request = post("/v1/x", body)
            if framing == "chunked":
                chunks = chunked(*_split(chance, body, 5)) + b"0\r\n\r\n"
                request = post("/v1/x", chunks, framing="Transfer-Encoding: chunked\r\n")
            for part in _split(chance, request, 8):
                client.send(part)
                time.sleep(0.001)
            assert client.reply().body == ANSWER
            call = upstream.next_call()
            assert call.request.whole
            assert call.request.body == body


def _split(chance: random.Random, data: bytes, parts: int) -> list[bytes]:
    points = sorted(chance.sample(range(1, len(data)), min(parts, len(data) - 1)))
    ends = [*points, len(data)]
    return [data[a:b] for a, b in zip([0, *points], ends, strict=True)]
