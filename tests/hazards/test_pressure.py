"""Much at once, or next to nothing for long: memory stays bounded, and nobody else is held up."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.hazards.harness import Sidecar, Stage, stage, wait_for
from tests.hazards.peers import (
    ANSWER,
    EVENTS,
    GONE_SECONDS,
    SSE_HEAD,
    Call,
    Message,
    Upstream,
    chat,
    chunked,
    get,
    post,
    sized,
)
from tests.hazards.test_streams import STREAMED, content, silent

MIB = 1 << 20


@pytest.fixture(scope="module")
def on_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The record keeps the events too: no load is lighter for the recorder."""
    with stage(tmp_path_factory.mktemp("stage"), {"record": {"stream_events": True}}) as set_up:
        yield set_up


@contextlib.contextmanager
def in_background(work: Callable[[], None]) -> Iterator[None]:
    """Meanwhile. Its failure is the test's."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(20)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


def waits(sidecar: Sidecar, count: int, pause: float = 0.01) -> list[float]:
    """How long so many good requests take one after the other, the shortest first."""
    client, found = sidecar.connect(), []
    for _ in range(count):
        began = time.monotonic()
        client.send(get("/_understudy/health"))
        assert client.reply("GET").status == 200
        found.append(time.monotonic() - began)
        time.sleep(pause)
    return sorted(found)


def nearly_all(found: list[float]) -> float:
    """The 90th percentile: a busy machine holds up the test itself now and then."""
    return found[len(found) * 9 // 10]


# -- much


def test_ten_thousand_events_a_second(sidecar: Sidecar, upstream: Upstream) -> None:
    """T11: all arrive, and the loop turns often enough for others."""
    batch = chunked(*[EVENTS[0]] * 100)

    def flood(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD)
        began = time.monotonic()
        for number in range(100):
            time.sleep(max(0.0, began + number / 100 - time.monotonic()))
            call.send(batch)
        call.send(b"0\r\n\r\n")

    replies: list[Message] = []
    before = sidecar.resident()
    with upstream.playing(flood):
        client = sidecar.connect(20)
        client.send(post(chat("flood"), STREAMED))
        with in_background(lambda: replies.append(client.reply())):
            lags = waits(sidecar, 50)
    assert (replies[0].body, replies[0].whole) == (EVENTS[0] * 10_000, True)
    assert nearly_all(lags) < 0.05
    assert sidecar.resident() - before < 16 * MIB
    assert sidecar.row("flood")["response_bytes"] == 10_000 * len(EVENTS[0])


def test_an_event_of_two_mebibytes(sidecar: Sidecar, upstream: Upstream) -> None:
    """T11: a picture, say, in one line."""
    event = b'data: {"choices":[{"delta":{"content":"' + b"QUJD" * (MIB // 2) + b'"}}]}\n\n'
    said = SSE_HEAD + chunked(EVENTS[0], event, EVENTS[1]) + b"0\r\n\r\n"

    def answer(call: Call) -> None:
        call.read_body()
        call.send(said)

    before = sidecar.resident()
    with upstream.playing(answer):
        for number in range(5):
            client = sidecar.connect()
            client.send(post(chat(f"picture-{number}"), STREAMED))
            reply = client.reply()
            assert (reply.body, reply.whole) == (EVENTS[0] + event + EVENTS[1], True)
    assert sidecar.resident() - before < 16 * MIB
    row = sidecar.row("picture-0")
    assert row["events"].encode() == EVENTS[0] + event + EVENTS[1]
    assert content(row) == "one" + "QUJD" * (MIB // 2) + "two"
    assert (row["truncated"], row["error"]) == (0, None)


def test_a_client_that_does_not_read_pauses_the_upstream(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """T13."""
    sent: list[int] = []
    total = 256 * MIB

    def flood(call: Call) -> None:
        call.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        with contextlib.suppress(OSError):
            while sum(sent) < total:
                sent.append(call.socket.send(bytes(1 << 18)))

    with upstream.playing(flood):
        before = sidecar.resident()
        client = sidecar.connect()
        client.send(get("/v1/files/a/content"))
        wait_for(lambda: sent, 5)
        _wait_until_still(sent)
        assert sum(sent) - _unread(upstream.port) < 16 * MIB
        assert sidecar.resident() - before < 16 * MIB
        assert nearly_all(waits(sidecar, 20)) < 0.1  # others are not held up
        upstream.answer = lambda call: call.send(sized(ANSWER))
        assert sidecar.exchange(get("/v1/models"), "GET").body == ANSWER
        client.close()


def _wait_until_still(sent: list[int]) -> None:
    count = -1
    while count != len(sent):
        count = len(sent)
        time.sleep(0.3)


def _unread(port: int) -> int:
    """Bytes from this port that the kernel still holds: in the sender's queue or the receiver's."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    end = f":{port:04X}"
    sending = sum(int(line[4].split(":")[0], 16) for line in lines if line[1].endswith(end))
    unread = sum(int(line[4].split(":")[1], 16) for line in lines if line[2].endswith(end))
    return sending + unread


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


# -- next to nothing


def test_clients_that_drip_their_heads_are_cut(sidecar: Sidecar, upstream: Upstream) -> None:
    """T14: none sooner than the timeout, all soon after, with 408 or none; others don't notice."""
    limit = sidecar.timeouts["client_head"]
    drippers = [sidecar.connect() for _ in range(60)]
    began, took = time.monotonic(), []
    for dripper in drippers:
        dripper.send(b"GET /v1/models HTTP/1.1\r\nX: ")
    while (open_ := sidecar.health()["clients"]) > 1:
        assert open_ >= 61 or time.monotonic() - began > limit - 0.3
        assert time.monotonic() - began < limit + 5
        for dripper in drippers:
            dripper.send(b"x")
        asked = time.monotonic()
        assert sidecar.exchange(post("/v1/chat/completions")).body == ANSWER
        took.append(time.monotonic() - asked)
    assert nearly_all(sorted(took)) < 0.5
    said = [dripper.rest() for dripper in drippers]
    assert all(one == b"" or one.startswith(b"HTTP/1.1 408 ") for one in said)


@pytest.mark.parametrize("framing", ["Content-Length: 99\r\n", "Transfer-Encoding: chunked\r\n"])
def test_a_body_that_stalls_is_cut(sidecar: Sidecar, upstream: Upstream, framing: str) -> None:
    """T14: by the pause inside it, however long it takes in all."""
    limit = sidecar.timeouts["client_body"]
    tag = f"stall-{len(framing)}"
    piece = chunked(b"1234") if "chunked" in framing else b"1234"
    client = sidecar.connect(limit + 2)
    client.send(post(chat(tag), piece, framing=framing))
    for _ in range(2):
        time.sleep(limit * 0.6)
        client.send(piece)  # slow, but alive
    paused = time.monotonic()
    reply = client.reply()
    assert limit - 0.5 < time.monotonic() - paused < limit + 4
    assert reply.status == 408
    call = upstream.next_call()
    wait_for(lambda: call.ended, GONE_SECONDS)
    assert not call.request.whole
    row = sidecar.row(tag)
    assert (row["outcome"], row["complete"], row["request_bytes"]) == ("refused", 0, 12)


# -- many that fail


def test_what_fails_leaves_nothing_behind(sidecar: Sidecar, upstream: Upstream) -> None:
    """I3: what a connection held goes with it, however it ended."""
    bad = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"
    begun = post("/v1/files", bytes(100_000), framing="Content-Length: 9000000\r\n")

    def fail(count: int) -> None:
        for _ in range(count):
            with contextlib.closing(sidecar.connect()) as client:
                client.send(bad)
                assert client.reply().status == 431
            with contextlib.closing(sidecar.connect()) as client:
                client.send(begun)
                upstream.next_call()

    with upstream.playing(silent):
        fail(30)  # the allocator takes its share
        before = sidecar.resident()
        fail(300)
        wait_for(lambda: sidecar.health()["clients"] == 1, 3)
        assert sidecar.resident() - before < 4 * MIB
