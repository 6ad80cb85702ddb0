"""Large and odd bodies on their way to the upstream: streamed, untouched, never gathered."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import (
    ANSWER,
    EVENTS,
    SSE_HEAD,
    Call,
    Peer,
    Upstream,
    chat,
    chunked,
    post,
    sized,
)

MIB = 1 << 20
TRANSCRIBE = "/v1/audio/transcriptions?before="
BOUNDARY = "--=_odd'()+,-./:?"
MULTIPART = f'Content-Type: multipart/form-data; boundary="{BOUNDARY}"\r\n'
FRAMINGS = ["sized", "chunked"]
PIECE = hashlib.sha256(b"sound").hexdigest().encode() * 4096  # 256 KiB


@dataclass
class Taker:
    """An upstream that counts and hashes a body while it comes, and then answers."""

    size: int = 0
    hash: str = ""
    done: threading.Event = field(default_factory=threading.Event)

    def __call__(self, call: Call) -> None:
        digest = hashlib.sha256()
        if call.request.all(b"transfer-encoding"):
            while length := int(call.until(b"\r\n"), 16):
                self._take(call, length, digest.update)
                call.take(2)
            call.take(2)
        else:
            self._take(call, int(call.request.all(b"content-length")[0]), digest.update)
        self.hash = digest.hexdigest()
        self.done.set()
        call.send(sized(ANSWER, headers=b"Content-Type: application/json\r\n"))

    def _take(self, call: Call, length: int, update: Callable[[bytes], None]) -> None:
        while length:
            data = call.take(min(length, 1 << 16))
            assert data, "the body was cut"
            update(data)
            self.size += len(data)
            length -= len(data)


def upload_head(target: str, framing: str, size: int) -> bytes:
    said = f"Content-Length: {size}\r\n" if framing == "sized" else "Transfer-Encoding: chunked\r\n"
    head = post(target, b"", framing=said)
    if target.startswith(TRANSCRIBE):
        head = head.replace(b"Content-Type: application/json\r\n", MULTIPART.encode())
    return head


def send_pieces(client: Peer, framing: str, count: int) -> None:
    for _ in range(count):
        client.send(chunked(PIECE) if framing == "chunked" else PIECE)


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("target", [TRANSCRIBE, chat("")])
def test_a_hundred_megabytes_are_streamed(
    sidecar: Sidecar, upstream: Upstream, target: str, framing: str
) -> None:
    """T15."""
    count = 400  # times 256 KiB: 100 MiB
    tag = f"hundred-{framing}-{len(target)}"
    taker = Taker()
    with upstream.playing(taker):
        before = sidecar.resident()
        client = sidecar.connect(20)
        client.send(upload_head(target + tag, framing, count * len(PIECE)))
        send_pieces(client, framing, count // 2)
        wait_for(lambda: taker.size > 30 * MIB, 5)  # half of it is sent
        most = sidecar.resident()
        send_pieces(client, framing, count - count // 2)
        client.send(b"0\r\n\r\n" if framing == "chunked" else b"")
        assert client.reply().body == ANSWER
        most = max(most, sidecar.resident())
    assert taker.size == count * len(PIECE)
    assert taker.hash == hashlib.sha256(PIECE * count).hexdigest()
    assert most - before < 16 * MIB
    row = sidecar.row(tag)
    assert (row["outcome"], row["status"]) == ("ok", 200)
    assert row["request_bytes"] == count * len(PIECE)
    assert (row["truncated"], row["request_note"]) == (1, "cut: limit")
    assert row["request"] is None if target == TRANSCRIBE else len(row["request"]) <= 8 * MIB


PARTS = {
    "an odd boundary": f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n',
    "quotes in a name": f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="a\\"b\\\\"; '
    'filename="c\\";\\r\\n.wav"\r\n\r\n\x00\xff\r\n',
    "a boundary inside": f"--{BOUNDARY}\r\n\r\n--{BOUNDARY}x\r\n-{BOUNDARY}--\r\n",
    "no part at all": "not multipart",
}


@pytest.mark.parametrize("ending", ["", f"--{BOUNDARY}--", f"--{BOUNDARY}--\r\nand more"])
@pytest.mark.parametrize("name", PARTS)
def test_multipart_passes_to_the_byte(
    sidecar: Sidecar, upstream: Upstream, name: str, ending: str
) -> None:
    """T16: whatever it says, or lacks at its end."""
    body = (PARTS[name] + ending).encode("latin-1")
    head = upload_head(f"{TRANSCRIBE}parts", "sized", len(body))
    assert sidecar.exchange(head + body).body == ANSWER
    call = upstream.next_call()
    assert call.request.body == body
    assert call.request.all(b"content-type") == [MULTIPART[14:-2].encode()]


@pytest.mark.parametrize("framing", FRAMINGS)
@pytest.mark.parametrize("status", [b"413 Payload Too Large", b"401 Unauthorized"])
def test_an_early_refusal_reaches_a_client_that_still_uploads(
    sidecar: Sidecar, upstream: Upstream, framing: str, status: bytes
) -> None:
    """T17: whole, to a client that reads only when it has sent all; and the upload stops."""
    tag = f"early-{framing}-{status[:3].decode()}"
    said = b'{"error":{"message":"no"}}'
    arrived: list[int] = []

    def answer(call: Call) -> None:
        call.take(100_000)
        call.send(sized(said, status, b"Connection: close\r\n"))
        while call.fill():
            arrived.append(len(call.take(len(call.buffer))))

    with upstream.playing(answer):
        client = sidecar.connect()
        client.send(upload_head(chat(tag), framing, 500 * len(PIECE)))
        send_pieces(client, framing, 400)
        reply = client.reply()
        assert (reply.status, reply.body, reply.whole) == (int(status[:3]), said, True)
        assert reply.all(b"connection") == [b"close"]
        call = upstream.next_call()
        wait_for(lambda: call.ended, 1.5)
    assert sum(arrived) < 200 * len(PIECE), "the upload went on"
    row = sidecar.row(tag)
    assert (row["status"], row["outcome"]) == (int(status[:3]), "ok")
    assert row["response"].encode() == said


def test_an_upstream_that_refuses_early_and_closes_is_still_heard(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """T17: it does not read the rest, so its system answers that with RST."""

    def answer(call: Call) -> None:
        call.send(sized(b"too large", b"413 Payload Too Large", b"Connection: close\r\n"))
        call.socket.close()

    for framing in FRAMINGS * 5:
        with upstream.playing(answer):
            client = sidecar.connect()
            client.send(upload_head("/v1/files", framing, 40 * len(PIECE)))
            reply = client.reply()
            send_pieces(client, framing, 4)
            assert (reply.status, reply.body, reply.whole) == (413, b"too large", True)


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
