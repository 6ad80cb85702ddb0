"""Streams that end where they should not, on either side."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest

from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import (
    ANSWER,
    EVENTS,
    GONE_SECONDS,
    SSE_HEAD,
    Call,
    Upstream,
    chat,
    chunked,
    get,
    post,
    reset,
    sized,
)

STREAMED = b'{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"hi"}]}'


def endless(call: Call) -> None:
    """Two events, then nothing: until the sidecar lets go."""
    call.read_body()
    call.send(SSE_HEAD + chunked(*EVENTS))
    call.wait_ended(10)


def silent(call: Call) -> None:
    call.read_body()
    call.wait_ended(10)


def read_only(call: Call) -> None:
    call.read_body()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_client_leaves_in_mid_stream(sidecar: Sidecar, upstream: Upstream, how: str) -> None:
    with upstream.playing(endless):
        client = sidecar.connect()
        client.send(post(chat(f"mid-{how}"), STREAMED))
        client.until(EVENTS[1])
        call = upstream.next_call()
        left = time.monotonic()
        client.close() if how == "fin" else reset(client.socket)
        wait_for(lambda: call.ended, GONE_SECONDS)
        assert time.monotonic() - left < GONE_SECONDS
    row = sidecar.row(f"mid-{how}")
    assert (row["outcome"], row["complete"], row["status"]) == ("client_abort", 0, 200)
    assert row["response_bytes"] == len(b"".join(EVENTS))
    assert "two" in row["response"]


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_client_leaves_before_the_first_byte(
    sidecar: Sidecar, upstream: Upstream, how: str
) -> None:
    with upstream.playing(silent):
        client = sidecar.connect()
        client.send(post(chat(f"early-{how}")))
        call = upstream.next_call()
        time.sleep(0.1)
        client.close() if how == "fin" else reset(client.socket)
        wait_for(lambda: call.ended, GONE_SECONDS)
    row = sidecar.row(f"early-{how}")
    assert (row["outcome"], row["complete"], row["status"]) == ("client_abort", 0, None)


@pytest.mark.parametrize("framing", ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_client_leaves_in_mid_upload(sidecar: Sidecar, upstream: Upstream, framing: str) -> None:
    tag = f"upload-{len(framing)}"
    with upstream.playing(read_only):
        client = sidecar.connect()
        body = chunked(b"x" * 100) if "chunked" in framing else b"x" * 100
        client.send(post(chat(tag), body, framing=framing))
        call = upstream.next_call()
        time.sleep(0.1)
        client.close()
        wait_for(lambda: call.ended, GONE_SECONDS)
    assert call.request.body == b"x" * 100
    assert not call.request.whole
    assert sidecar.row(tag)["outcome"] == "client_abort"


def test_upstream_resets_in_mid_stream(sidecar: Sidecar, upstream: Upstream) -> None:
    def answer(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD + chunked(*EVENTS))
        time.sleep(0.1)
        call.reset()

    with upstream.playing(answer):
        reply = sidecar.exchange(post(chat("reset"), STREAMED))
    assert (reply.status, reply.body, reply.whole) == (200, b"".join(EVENTS), False)
    row = sidecar.row("reset")
    assert (row["outcome"], row["complete"], row["status"]) == ("upstream_reset", 0, 200)
    assert "[DONE]" not in row["response"]


CUT = {
    "inside a chunk": (SSE_HEAD + chunked(EVENTS[0]) + b"40\r\nhalf", EVENTS[0] + b"half"),
    "no last chunk": (SSE_HEAD + chunked(*EVENTS), b"".join(EVENTS)),
    "sized body short": (sized(ANSWER)[:-10], ANSWER[:-10]),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_upstream_ends_too_early(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    said, body = CUT[name]
    tag = "cut-" + name.replace(" ", "-")
    with upstream.saying(said):
        reply = sidecar.exchange(post(chat(tag), STREAMED))
    assert (reply.status, reply.body, reply.whole) == (200, body, False)
    row = sidecar.row(tag)
    assert (row["outcome"], row["complete"], row["status"]) == ("upstream_truncated", 0, 200)


def test_a_cut_stream_looks_cut_to_a_client_without_chunks(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """With HTTP/1.0 the end of the connection is the end of the reply: only RST says 'broken'."""
    request = post(chat("old-cut"), STREAMED).replace(b"HTTP/1.1", b"HTTP/1.0", 1)

    def answer(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD + chunked(*EVENTS))
        time.sleep(0.1)
        call.reset()

    with upstream.playing(answer):
        client = sidecar.connect()
        client.send(request)
        reply = client.reply()
    assert reply.body == b"".join(EVENTS)
    assert client.ended == "reset"


def test_upstream_never_answers(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.playing(silent):
        reply = sidecar.exchange(post(chat("never")))
        assert reply.status == 504
        assert reply.all(b"x-understudy-error") == [b"upstream_idle_timeout"]
        wait_for(lambda: upstream.calls.queue[0].ended, GONE_SECONDS)
    row = sidecar.row("never")
    assert (row["outcome"], row["status"]) == ("timeout", None)


def test_upstream_falls_silent_in_mid_stream(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.playing(endless):
        reply = sidecar.exchange(post(chat("black-hole"), STREAMED))
    assert (reply.body, reply.whole) == (b"".join(EVENTS), False)
    assert sidecar.row("black-hole")["outcome"] == "timeout"


def test_an_early_refusal_reaches_a_client_that_still_uploads(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    def answer(call: Call) -> None:
        call.send(sized(b"too large", b"413 Payload Too Large", b"Connection: close\r\n"))
        call.wait_ended(5)

    with upstream.playing(answer):
        client = sidecar.connect()
        client.send(post(chat("early-413"), b"x" * 100_000, framing="Content-Length: 9000000\r\n"))
        for _ in range(80):
            client.send(b"x" * 100_000)
        reply = client.reply()
    assert (reply.status, reply.body, reply.whole) == (413, b"too large", True)
    call = upstream.next_call()
    wait_for(lambda: call.ended, GONE_SECONDS)


def test_early_reply_then_a_broken_chunk_is_no_second_head(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    def answer(call: Call) -> None:
        call.send(SSE_HEAD + chunked(EVENTS[0]))
        call.wait_ended(5)

    with upstream.playing(answer):
        client = sidecar.connect()
        client.send(post("/v1/x", chunked(b"part"), framing="Transfer-Encoding: chunked\r\n"))
        head = client.until(EVENTS[0] + b"\r\n")
        client.send(b"not a chunk\r\n")
        rest = client.rest()
    assert head.startswith(b"HTTP/1.1 200")
    assert rest == b""


def test_an_upload_that_stalls_while_the_reply_streams_is_no_second_head(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    def answer(call: Call) -> None:
        call.send(SSE_HEAD + chunked(EVENTS[0]))
        call.wait_ended(8)

    with upstream.playing(answer):
        client = sidecar.connect()
        client.send(post("/v1/x", chunked(b"part"), framing="Transfer-Encoding: chunked\r\n"))
        client.until(EVENTS[0] + b"\r\n")
        assert client.rest() == b""


def test_upload_and_reply_stream_at_the_same_time(sidecar: Sidecar, upstream: Upstream) -> None:
    def echo(call: Call) -> None:
        call.send(SSE_HEAD)
        while size := int(call.until(b"\r\n"), 16):
            call.send(chunked(call.take(size)))
            call.take(2)
        call.take(2)
        call.send(b"0\r\n\r\n")

    with upstream.playing(echo):
        client = sidecar.connect()
        client.send(post("/v1/x", b"", framing="Transfer-Encoding: chunked\r\n"))
        client.message_head()
        for number in range(5):
            client.send(chunked(b"ping %d" % number))
            assert client.until(b"\r\n") == b"6\r\n"
            assert client.take(8) == b"ping %d\r\n" % number
        client.send(b"0\r\n\r\n")
        assert client.rest() == b"0\r\n\r\n"


def test_an_upstream_that_does_not_read_pauses_the_client(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    go_on = threading.Event()

    def slow(call: Call) -> None:
        go_on.wait(10)
        call.read_body()
        call.send(sized(b"%d" % len(call.request.body)))

    total = 48 << 20
    with upstream.playing(slow):
        before = sidecar.resident()
        client = sidecar.connect()
        client.send(post("/v1/files", b"", framing=f"Content-Length: {total}\r\n"))
        sent = _send_while_it_goes(client.socket, total, 0.5)
        assert sent < total / 2
        assert sidecar.resident() - before < 16 << 20
        go_on.set()
        client.socket.settimeout(5)
        for _ in range(0, total - sent, 1 << 20):
            client.send(bytes(min(1 << 20, total - sent)))
            sent += min(1 << 20, total - sent)
        assert client.reply().body == b"%d" % total
        assert sidecar.resident() - before < 24 << 20


def _send_while_it_goes(connection: socket.socket, most: int, patience: float) -> int:
    connection.settimeout(patience)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < most:
            sent += connection.send(bytes(min(1 << 18, most - sent)))
    return sent


def test_an_upstream_that_never_reads_is_given_up(sidecar: Sidecar, upstream: Upstream) -> None:
    """A client that leaves meanwhile can't be seen: the clock has to end it."""

    def stuck(call: Call) -> None:
        time.sleep(4)
        call.reset()

    with upstream.playing(stuck):
        client = sidecar.connect()
        client.send(post(chat("stuck"), b"", framing="Content-Length: 50000000\r\n"))
        _send_while_it_goes(client.socket, 50_000_000, 0.3)
        client.close()
        wait_for(lambda: sidecar.health()["clients"] == 1, 3.5)
    assert sidecar.row("stuck")["outcome"] in ("timeout", "client_abort")


def test_a_client_that_does_not_read_pauses_the_upstream(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    sent = []

    def flood(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 268435456\r\n\r\n")
        with contextlib.suppress(OSError):
            call.socket.settimeout(1.0)
            for _ in range(1024):
                call.socket.sendall(bytes(1 << 18))
                sent.append(1 << 18)
        call.socket.close()

    with upstream.playing(flood):
        before = sidecar.resident()
        client = sidecar.connect()
        client.send(get("/v1/files/a/content"))
        time.sleep(0.6)
        assert sidecar.exchange(get("/_understudy/health"), "GET").status == 200
        assert sum(sent) < 24 << 20
        assert sidecar.resident() - before < 16 << 20
        client.close()


def test_pipelined_replies_are_held_back_for_a_client_that_does_not_read(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """Each reply fits in one read: the next must not be asked for and piled up behind it."""
    reply = sized(bytes(200_000))
    with upstream.playing(lambda call: call.send(reply)):
        before = sidecar.resident()
        client = sidecar.connect()
        client.send(get("/v1/models") * 300)
        time.sleep(1.0)
        assert sidecar.resident() - before < 16 << 20
        client.close()


def test_a_body_behind_a_waiting_request_is_not_gathered(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    with upstream.playing(silent):
        before = sidecar.resident()
        client = sidecar.connect()
        client.send(get("/v1/slow") + post("/v1/x", b"", framing="Content-Length: 99000000\r\n"))
        assert _send_while_it_goes(client.socket, 99_000_000, 0.3) < 24 << 20
        assert sidecar.resident() - before < 16 << 20
        client.close()


def test_a_body_for_the_sidecar_itself_is_not_gathered(sidecar: Sidecar) -> None:
    before = sidecar.resident()
    client = sidecar.connect()
    client.send(post("/_understudy/health", b"", framing="Content-Length: 64000000\r\n"))
    for _ in range(63):
        client.send(bytes(1_000_000))
    assert sidecar.resident() - before < 16 << 20
    client.send(bytes(1_000_000))
    assert client.reply().status == 200
    client.close()
