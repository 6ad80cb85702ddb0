"""Offers of another protocol that are refused, or are none: HTTP goes on."""

from __future__ import annotations

import select
import socket

import pytest

from tests.hazards.cases import GOOD, SEEN, InTurn, calls_so_far
from tests.hazards.harness import Sidecar
from tests.hazards.peers import (
    ANSWER,
    QUESTION,
    Call,
    Upstream,
    chunked,
    post,
    sized,
)
from tests.hazards.websocket import (
    OFFER,
    SWITCHING,
    assent,
    offer,
    text,
)

# -- refused: a reply as any other, and HTTP goes on

REFUSALS = {
    "401": sized(b'{"error":{}}', b"401 Unauthorized", b"WWW-Authenticate: Bearer\r\n"),
    "200": sized(ANSWER, headers=b"Content-Type: application/json\r\n"),
    "400, bad key": sized(b"bad key", b"400 Bad Request"),
    "426": sized(b"", b"426 Upgrade Required", b"Sec-WebSocket-Version: 13\r\n"),
    "no body": b"HTTP/1.1 204 No Content\r\n\r\n",
    "404": sized(b"", b"404 Not Found"),
}


@pytest.mark.parametrize("behind", ["nothing", "in the same write", "before the answer", "after"])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_passes_to_the_byte_and_what_follows_is_http(
    sidecar: Sidecar, upstream: Upstream, name: str, behind: str
) -> None:
    """Not tunnelled: it reaches the upstream as the request that it is, written anew."""
    asked = post("/v1/next", b"next", "Keep-Alive: 5\r\n")
    said = REFUSALS[name]

    def refuse(call: Call) -> None:
        if behind == "before the answer":
            client.send(asked)
        call.send(said)

    for _ in range(SEEN):
        with upstream.playing(InTurn([refuse, sized(ANSWER)])):
            client = sidecar.connect()
            client.send(offer() + (asked if behind == "in the same write" else b""))
            assert client.take(len(said)) == said
            if behind in ("nothing", "after"):
                assert select.select([client.socket], [], [], 0.01)[0] == []  # it stays open
                client.send(asked)
            assert client.reply().body == ANSWER
            first, second = calls_so_far(upstream)
            assert first.request.all(b"upgrade") == [b"websocket"]
            assert (second.request.start, second.request.body) == (
                b"POST /v1/next HTTP/1.1", b"next",
            )  # fmt: skip
            assert second.request.all(b"keep-alive") == []
            client.close()


def test_rubbish_behind_a_refused_offer_is_refused(sidecar: Sidecar, upstream: Upstream) -> None:
    """Frames sent too early are no HTTP; the upstream never sees them."""
    said = REFUSALS["401"]
    with upstream.playing(InTurn([said])):
        client = sidecar.connect()
        client.send(offer() + text(b"too early"))
        assert client.take(len(said)) == said
        assert client.reply().status == 400
        assert client.rest() == b""
        (call,) = calls_so_far(upstream)
        assert call.buffer == b""


def test_a_refused_client_may_be_silent_as_long_as_any(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """The deadline for a head runs from a head's first byte, not from the refusal on."""
    said = REFUSALS["401"]
    with upstream.playing(InTurn([said, sized(ANSWER)])):
        client = sidecar.connect()
        client.send(offer())
        assert client.take(len(said)) == said
        head_deadline = sidecar.timeouts["client_head"]
        assert select.select([client.socket], [], [], head_deadline + 0.5)[0] == []
        client.send(GOOD)
        assert client.reply().body == ANSWER


# -- a switch that was not agreed on

DISAGREEING = {
    "another protocol": SWITCHING + b"Upgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "one more protocol": SWITCHING + b"Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n",
    "two protocols": SWITCHING
    + b"Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    "no protocol": SWITCHING + b"Connection: Upgrade\r\n\r\n",
    "no header": SWITCHING + b"\r\n",
    "control in a header": assent().replace(b"realtime", b"real\x01time"),
}


@pytest.mark.parametrize("name", DISAGREEING)
def test_a_switch_to_what_was_not_offered_is_an_error(
    sidecar: Sidecar, upstream: Upstream, name: str
) -> None:
    with upstream.playing(InTurn([DISAGREEING[name] + b"\x00stolen"], watches=True)) as _:
        turn = upstream.answer
        assert isinstance(turn, InTurn)
        client = sidecar.connect()
        client.send(offer())
        reply = client.reply("GET")
        assert reply.status == 502
        assert reply.all(b"x-understudy-error") == [b"bad_upstream_reply"]
        assert b"stolen" not in reply.body
        assert turn.dropped.get(timeout=5)
    client.send(GOOD)
    assert client.reply().body == ANSWER


NOT_OFFERED = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n",
    "h2c alone": "Connection: Upgrade\r\nUpgrade: h2c\r\n",
    "HTTP/2.0": "Connection: Upgrade\r\nUpgrade: HTTP/2.0\r\n",
    "TLS/1.0": "Connection: Upgrade\r\nUpgrade: TLS/1.0\r\n",
    "several": "Connection: Upgrade\r\nUpgrade: websocket, h2c\r\n",
    "unnamed foo": "Upgrade: foo\r\n",
    "unnamed websocket": "Upgrade: websocket\r\nConnection: keep-alive\r\n",
    "named, and none": "Connection: Upgrade\r\n",
    "empty": "Connection: Upgrade\r\nUpgrade:\r\n",
    "twice": "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: h2c\r\n",
}
BODIES = {"no body": b"", "a body": QUESTION, "chunks": chunked(QUESTION) + b"0\r\n\r\n"}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("name", NOT_OFFERED)
def test_what_is_no_offer_is_dropped_and_answered_as_http(
    sidecar: Sidecar, upstream: Upstream, name: str, body: str
) -> None:
    """Java's client offers h2c with every first request over plain HTTP."""
    framing = "Transfer-Encoding: chunked\r\n" if body == "chunks" else ""
    request = post("/v1/x", BODIES[body], NOT_OFFERED[name], framing)
    client = sidecar.connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for split in (len(request), 50, request.index(b"\r\n\r\n") + 4, len(request) - 3):
        client.send(request[:split])
        client.send(request[split:] + GOOD)
        assert [client.reply().body, client.reply().body] == [ANSWER, ANSWER]
        first, second = upstream.next_call().request, upstream.next_call().request
        assert first.body == (QUESTION if BODIES[body] else b"")
        names = {name.lower() for name, _ in first.headers}
        assert not names & {b"connection", b"upgrade", b"http2-settings"}
        assert second.body == b"hello"


def test_an_offer_with_a_body_is_answered_as_http(sidecar: Sidecar, upstream: Upstream) -> None:
    client = sidecar.connect()
    for _ in range(SEEN):
        client.send(post("/v1/x", b"hello", OFFER) + GOOD)
        assert [client.reply().body, client.reply().body] == [ANSWER, ANSWER]
        first, second = upstream.next_call().request, upstream.next_call().request
        assert (first.body, first.all(b"upgrade"), second.body) == (b"hello", [], b"hello")


def test_an_offer_of_http_1_0_is_answered_as_http(sidecar: Sidecar, upstream: Upstream) -> None:
    came = sidecar.raw(offer().replace(b"HTTP/1.1", b"HTTP/1.0", 1))
    assert came.startswith(b"HTTP/1.1 200 OK\r\n")
    assert upstream.next_call().request.all(b"upgrade") == []
