"""Other protocols on an HTTP connection: an offer that is taken up is relayed as it is, and what
is none is answered as HTTP."""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from collections.abc import Callable

import pytest

from tests.hazards.cases import SEEN
from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import (
    CANARY,
    GONE_SECONDS,
    Call,
    Upstream,
    chat,
    post,
    reset,
)
from tests.hazards.websocket import (
    KEY,
    PING,
    PONG,
    SWITCHING,
    agreed,
    assent,
    echo,
    frame,
    offer,
    opened,
    text,
)

# -- accepted


def test_an_offer_and_its_assent_pass_to_the_byte(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.playing(echo):
        for _ in range(SEEN):
            client = opened(sidecar)
            request = upstream.next_call().request
            client.close()
            assert request.start == b"GET /v1/realtime?model=gpt-realtime HTTP/1.1"
            assert request.headers == [
                (b"Host", b"127.0.0.1:%d" % upstream.port),
                (b"Authorization", b"Bearer %b-key" % CANARY.encode()),
                (b"Cookie", b"session=%b-cookie" % CANARY.encode()),
                (b"Connection", b"Upgrade"),
                (b"Upgrade", b"websocket"),
                (b"Sec-WebSocket-Version", b"13"),
                (b"Sec-WebSocket-Key", KEY),
                (b"Sec-WebSocket-Protocol",
                 b"realtime, openai-insecure-api-key.%b-ws" % CANARY.encode()),
            ]  # fmt: skip


FRAMES = {
    "text": text(b'{"type":"session.update"}'),
    "text that is not UTF-8": text(b"\xed\xa0\x80\xff\x00"),
    "empty": text(b""),
    "125, 126 and 65,536 bytes": text(b"a" * 125) + text(b"b" * 126) + text(b"c" * 65_536),
    "1 MiB": frame(2, os.urandom(1 << 20), os.urandom(4)),
    "fragments with a ping between": frame(1, b"one ", b"maSK", final=False) + PING
    + frame(0, b"two", b"Mask"),
    "ping": PING,
    "pong": frame(10, b"", b"pong"),
    "no frame at all": bytes(range(256)),
    "what looks like HTTP": b"GET / HTTP/1.1\r\nHost: app\r\n\r\nHTTP/1.1 200 OK\r\n\r\n0\r\n\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_frames_pass_to_the_byte_both_ways(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    frames = FRAMES[name]
    with upstream.playing(echo):
        client = opened(sidecar)
        for _ in range(3):
            client.send(frames)
            assert client.take(len(frames)) == frames
        client.close()
    assert client.buffer == b""


def test_what_is_sent_before_the_assent_arrives_behind_it(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """In order, up to what a client may have sent by then; the rest waits in its socket."""
    frames = b"".join(text(b"%d" % number) * 50 for number in range(200))
    assert len(frames) > 64 * 1024
    with upstream.playing(echo):
        client = sidecar.connect()
        client.send(offer() + frames)
        assert client.until(b"\r\n\r\n") == assent()
        assert client.take(len(frames)) == frames
        client.close()


def test_what_comes_with_the_assent_arrives_behind_it(sidecar: Sidecar, upstream: Upstream) -> None:
    first = frame(1, b'{"type":"session.created"}')

    def answer(call: Call) -> None:
        call.send(assent() + first)
        assert call.take(len(PING)) == PING
        call.send(PONG)
        call.rest()

    with upstream.playing(answer):
        for _ in range(SEEN):
            client = opened(sidecar)
            assert client.take(len(first)) == first
            client.send(PING)
            assert client.take(len(PONG)) == PONG
            client.close()


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 3000, 4999])
def test_close_codes_and_reasons_pass_both_ways(
    sidecar: Sidecar, upstream: Upstream, code: int
) -> None:
    theirs = frame(8, struct.pack(">H", code) + "schl\u00fcss".encode())
    ours = frame(8, struct.pack(">H", code) + b"bye", b"mask")
    heard: list[bytes] = []

    def answer(call: Call) -> None:
        agreed(call)
        call.send(theirs)
        heard.append(call.take(len(ours)))
        call.socket.close()

    with upstream.playing(answer):
        client = opened(sidecar)
        assert client.take(len(theirs)) == theirs
        client.send(ours)
        assert (client.rest(), client.ended) == (b"", "closed")
    assert heard == [ours]


# -- one side dies: both are gone within a second, and what was said before has arrived

ENDS: dict[str, Callable[[socket.socket], None]] = {"closed": socket.socket.close, "reset": reset}


@pytest.mark.parametrize("how", ENDS)
def test_a_client_that_dies_takes_the_upstream_with_it(
    sidecar: Sidecar, upstream: Upstream, how: str
) -> None:
    seen: list[tuple[bytes, bool]] = []

    def answer(call: Call) -> None:
        agreed(call)
        first = call.take(len(PING))
        call.send(PONG)
        seen.append((first, call.wait_ended(GONE_SECONDS)))
        done.set()

    done = threading.Event()
    with upstream.playing(answer):
        client = opened(sidecar)
        client.send(PING)
        assert client.take(len(PONG)) == PONG
        ENDS[how](client.socket)
        assert done.wait(5)
    assert seen == [(PING, True)]
    wait_for(lambda: sidecar.health()["clients"] == 1, 2)


@pytest.mark.parametrize("how", ENDS)
def test_an_upstream_that_dies_takes_the_client_with_it(
    sidecar: Sidecar, upstream: Upstream, how: str
) -> None:
    def answer(call: Call) -> None:
        agreed(call)
        call.send(PONG)
        call.take(len(PING))
        ENDS[how](call.socket)

    with upstream.playing(answer):
        client = opened(sidecar)
        assert client.take(len(PONG)) == PONG
        client.send(PING)
        assert client.wait_ended(GONE_SECONDS)
    client.close()
    wait_for(lambda: sidecar.health()["clients"] == 1, 2)


def test_the_last_words_of_either_side_arrive(sidecar: Sidecar, upstream: Upstream) -> None:
    """What was written before the end is not lost with it, 4 MiB of it either."""
    last = frame(2, os.urandom(4 << 20), b"mask")
    heard: list[bytes] = []
    done = threading.Event()

    def says(call: Call) -> None:
        call.send(assent(call.request.all(b"sec-websocket-key")[0]) + last)
        call.socket.close()

    def hears(call: Call) -> None:
        agreed(call)
        heard.append(call.rest())
        done.set()

    with upstream.playing(says):
        client = opened(sidecar)
        assert client.rest() == last
    with upstream.playing(hears):
        client = opened(sidecar)
        client.send(last)
        client.socket.shutdown(socket.SHUT_WR)
        assert done.wait(5)
    assert heard == [last]


# -- back-pressure, and the record


def pushed(connection: socket.socket, piece: bytes, most: int) -> int:
    """Bytes that go out until for half a second none do."""
    connection.setblocking(False)
    sent = 0
    while sent < most and select.select([], [connection], [], 0.5)[1]:
        sent += connection.send(piece)
    return sent


MOST = 128 << 20
BUFFERS = 24 << 20  # what the system holds for two connections, and we


def test_a_client_that_does_not_read_stops_the_upstream(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    sent: list[int] = []
    done = threading.Event()

    def answer(call: Call) -> None:
        agreed(call)
        sent.append(pushed(call.socket, bytes(1 << 16), MOST))
        done.set()
        call.socket.close()

    before = sidecar.resident()
    with upstream.playing(answer):
        client = opened(sidecar)
        assert done.wait(20)
        assert sent[0] < BUFFERS
        assert sidecar.resident() - before < 8 << 20
        assert len(client.rest()) == sent[0]  # and none of it is lost


def test_an_upstream_that_does_not_read_stops_the_client(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    go_on, got = threading.Event(), threading.Event()
    heard: list[int] = []

    def answer(call: Call) -> None:
        agreed(call)
        go_on.wait(20)
        heard.append(len(call.rest()))
        got.set()

    before = sidecar.resident()
    with upstream.playing(answer):
        client = opened(sidecar)
        sent = pushed(client.socket, bytes(1 << 16), MOST)
        assert sent < BUFFERS
        assert sidecar.resident() - before < 8 << 20
        go_on.set()
        client.socket.setblocking(True)
        client.socket.shutdown(socket.SHUT_WR)
        assert got.wait(20)
    assert heard == [sent]


def test_a_switched_exchange_is_recorded_with_its_bytes_counted(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    with upstream.playing(echo):
        client = opened(sidecar, f"/v1/realtime?model=gpt-realtime&api-key={CANARY}&before=talk")
        client.send(PING)
        assert client.take(len(PING)) == PING
        client.close()
    row = sidecar.row("talk")
    assert (row["status"], row["outcome"]) == (101, "ok")
    assert (row["request_bytes"], row["response_bytes"]) == (len(PING), len(PING))


def chat_offer(tag: str) -> bytes:
    """On the one kind of call whose bodies are kept, in a protocol that is plain text."""
    return post(chat(tag), b"", "Connection: Upgrade\r\nUpgrade: telnet\r\n", "X-None: 1\r\n")


def talk(sidecar: Sidecar, upstream: Upstream, tag: str, said: bytes, answered: bytes) -> None:
    def answer(call: Call) -> None:
        call.send(SWITCHING + b"Connection: Upgrade\r\nUpgrade: telnet\r\n\r\n")
        call.take(len(said))
        call.send(answered)
        call.rest()

    with upstream.playing(answer):
        client = sidecar.connect()
        client.send(chat_offer(tag))
        assert client.until(b"\r\n\r\n").startswith(SWITCHING)
        client.send(said)
        assert client.take(len(answered)) == answered
        client.close()


def test_what_nobody_can_read_is_counted_and_not_kept(sidecar: Sidecar, upstream: Upstream) -> None:
    talk(sidecar, upstream, "raw", b"hello there", b"who is it?")
    row = sidecar.row("raw")
    assert (row["request"], row["response"], row["events"]) == (None, None, None)
    assert (row["status"], row["outcome"], row["truncated"]) == (101, "ok", 0)
    assert (row["request_bytes"], row["response_bytes"]) == (11, 10)
    assert row["usage_note"] == "another protocol than HTTP"


ASKED = b'{"type": "response.create", "model": "gpt-5", "input": "%b"}'
FINAL = b'{"id":"%b","object":"response","status":"completed","model":"gpt-5","output":[]}'


def turns(*answers: tuple[bytes, bytes]) -> Callable[[Call], None]:
    """Assents; then for each request that comes whole, the answer with that id."""

    def answer(call: Call) -> None:
        agreed(call)
        for asked, name in answers:
            call.take(len(asked))
            for kind in (b"created", b"completed"):
                message = b'{"type":"response.%b","response":%b}' % (kind, FINAL % name)
                call.send(frame(1, message))
        call.rest()

    return answer


def test_the_record_holds_both_directions_of_each_turn(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    asked = [text(ASKED % said) for said in (b"hello there", b"and again")]
    with upstream.playing(turns((asked[0], b"resp_1"), (asked[1], b"resp_2"))):
        client = opened(sidecar, "/v1/responses?before=turns")
        for one, name in zip(asked, (b"resp_1", b"resp_2"), strict=True):
            client.send(one)
            client.until(b'"response.completed","response":' + FINAL % name + b"}")
        client.close()
    rows = wait_for(lambda: len(found := sidecar.rows("turns")) == 3 and found, 5)
    *kept, whole = sorted(rows, key=lambda row: (row["seq"] is not None, row["started_at"]))
    assert (whole["endpoint"], whole["status"], whole["request"]) == (
        "responses.websocket", 101, None,
    )  # fmt: skip
    assert [(row["endpoint"], row["seq"], row["outcome"], row["complete"]) for row in kept] == [
        ("responses", None, "ok", 1)
    ] * 2
    assert {row["request"]: row["response"] for row in kept} == {
        (ASKED % b"hello there").decode(): (FINAL % b"resp_1").decode(),
        (ASKED % b"and again").decode(): (FINAL % b"resp_2").decode(),
    }


def test_a_long_talk_is_recorded_to_its_end(sidecar: Sidecar, upstream: Upstream) -> None:
    """What bounds a body bounds no turns."""
    limit = 8 << 20
    first, last = text(ASKED % b"first"), text(ASKED % b"the end")
    large = text(b"x" * (limit + 1))
    with upstream.playing(turns((first, b"resp_1"), (large + last, b"resp_2"))):
        client = opened(sidecar, "/v1/responses?before=long")
        client.send(first)
        client.until(b'"response.completed","response":' + FINAL % b"resp_1" + b"}")
        client.send(large + last)
        client.until(b'"response.completed","response":' + FINAL % b"resp_2" + b"}")
        client.close()
    rows = wait_for(lambda: len(found := sidecar.rows("long")) == 3 and found, 5)
    socket_row = next(row for row in rows if row["seq"] is not None)
    assert (socket_row["truncated"], socket_row["outcome"]) == (0, "ok")
    assert socket_row["request_bytes"] == len(first + large + last)
    told = {row["response_id"]: (row["request"], row["response"], row["error"]) for row in rows}
    assert told == {
        None: (None, None, None),
        "resp_1": ((ASKED % b"first").decode(), (FINAL % b"resp_1").decode(), None),
        "resp_2": ((ASKED % b"the end").decode(), (FINAL % b"resp_2").decode(), None),
    }


def test_many_that_come_and_go_leave_nothing(sidecar: Sidecar, upstream: Upstream) -> None:
    before = sidecar.descriptors()
    with upstream.playing(echo):
        for number in range(60):
            client = opened(sidecar)
            client.send(PING)
            client.take(len(PING))
            (reset if number % 2 else socket.socket.close)(client.socket)
    wait_for(lambda: sidecar.health()["clients"] == 1, 2)
    wait_for(lambda: sidecar.descriptors() <= before + 2, 2)
