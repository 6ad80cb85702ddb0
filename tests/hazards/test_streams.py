"""Streams that end where they should not, on either side, and events that are cut anywhere."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.hazards.harness import Sidecar, Stage, stage, wait_for
from tests.hazards.peers import (
    ANSWER,
    EVENTS,
    SSE_HEAD,
    Call,
    Upstream,
    chat,
    chunked,
    post,
    reset,
    sized,
)

PROMPT_SECONDS = 1.0  # who is left lets go
STREAMED = b'{"model":"gpt-4o-mini","stream":true,"messages":[{"role":"user","content":"hi"}]}'
LAST = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'
WHOLE = SSE_HEAD + chunked(*EVENTS, LAST) + b"0\r\n\r\n"


@pytest.fixture(scope="module")
def on_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The record keeps the events too, so that they can be compared to the byte."""
    with stage(tmp_path_factory.mktemp("stage"), {"record": {"stream_events": True}}) as set_up:
        yield set_up


def content(row: dict[str, Any]) -> str:
    """What the streamed answer amounts to, as recorded."""
    return str(orjson.loads(row["response"])["choices"][0]["message"]["content"])


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


def leave(client: socket.socket, how: str) -> float:
    """Close with FIN or RST; when that was."""
    client.close() if how == "fin" else reset(client)
    return time.monotonic()


def let_go(call: Call, since: float) -> None:
    """The upstream's connection ended promptly."""
    wait_for(lambda: call.ended, 3 * PROMPT_SECONDS)
    assert call.ended_at - since < PROMPT_SECONDS


def learned(sidecar: Sidecar) -> list[str]:
    """Targets of the pairs that a candidate is shown, and compared on."""
    return [
        row["path"]
        for row in sidecar.query("SELECT path FROM teacher_pairs JOIN exchanges USING (id)")
    ]


# -- clients that leave


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_client_leaves_in_mid_stream(sidecar: Sidecar, upstream: Upstream, how: str) -> None:
    """T1."""
    with upstream.playing(endless):
        client = sidecar.connect()
        client.send(post(chat(f"mid-{how}"), STREAMED))
        client.until(EVENTS[1])
        call = upstream.next_call()
        let_go(call, leave(client.socket, how))
    row = sidecar.row(f"mid-{how}")
    assert (row["outcome"], row["complete"], row["status"]) == ("client_abort", 0, 200)
    assert row["response_bytes"] == len(b"".join(EVENTS))
    assert row["events"].encode() == b"".join(EVENTS)
    assert content(row) == "onetwo"
    assert "Traceback" not in sidecar.errors()


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_client_leaves_before_the_first_byte(
    sidecar: Sidecar, upstream: Upstream, how: str
) -> None:
    """T2."""
    with upstream.playing(silent):
        client = sidecar.connect()
        client.send(post(chat(f"early-{how}")))
        call = upstream.next_call()
        wait_for(lambda: call.request.whole, 5)
        let_go(call, leave(client.socket, how))
    row = sidecar.row(f"early-{how}")
    assert (row["outcome"], row["complete"], row["status"]) == ("client_abort", 0, None)
    assert (row["served_by"], row["response"], row["response_bytes"]) == (None, None, 0)
    assert row["events"] is None


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("framing", ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"])
def test_client_leaves_in_mid_upload(
    sidecar: Sidecar, upstream: Upstream, framing: str, how: str
) -> None:
    """T3: what it began must not look finished to the upstream."""
    tag = f"upload-{len(framing)}-{how}"
    with upstream.playing(read_only):
        client = sidecar.connect()
        body = chunked(b"x" * 100) if "chunked" in framing else b"x" * 100
        client.send(post(chat(tag), body, framing=framing))
        call = upstream.next_call()
        wait_for(lambda: sidecar.connections_to(upstream.port) == 1, 5)
        time.sleep(0.1)
        let_go(call, leave(client.socket, how))
    assert call.request.body == b"x" * 100
    assert not call.request.whole
    row = sidecar.row(tag)
    assert (row["outcome"], row["complete"], row["status"]) == ("client_abort", 0, None)
    assert row["request_bytes"] == 100


# -- upstreams that break


def test_upstream_resets_in_mid_stream(sidecar: Sidecar, upstream: Upstream) -> None:
    """T4."""

    def answer(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD + chunked(*EVENTS))
        time.sleep(0.1)
        call.reset()

    with upstream.playing(answer):
        client = sidecar.connect()
        client.send(post(chat("reset"), STREAMED))
        head = client.message_head()
        said = client.rest()
    assert head.status == 200
    assert said == chunked(*EVENTS) or said == chunked(b"".join(EVENTS))  # and no last chunk
    row = sidecar.row("reset")
    assert (row["outcome"], row["complete"], row["status"]) == ("upstream_reset", 0, 200)
    assert row["events"].encode() == b"".join(EVENTS)
    assert content(row) == "onetwo"


def test_a_broken_stream_teaches_nothing(sidecar: Sidecar, upstream: Upstream) -> None:
    """T4: neither exported as training data nor compared with a candidate."""

    def broken(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD + chunked(*EVENTS, LAST))  # all was said, but for the end itself
        call.reset()

    def whole(call: Call) -> None:
        call.read_body()
        call.send(WHOLE)

    for tag, answer in (("taught", whole), ("untaught", broken)):
        with upstream.playing(answer):
            sidecar.exchange(post(chat(tag), STREAMED.replace(b"hi", tag.encode())))
    assert sidecar.row("untaught")["outcome"] == "upstream_reset"
    assert sidecar.row("taught")["outcome"] == "ok"
    assert chat("taught") in learned(sidecar)
    assert chat("untaught") not in learned(sidecar)
    exported = _export(sidecar)
    assert '"taught"' in exported
    assert '"untaught"' not in exported


def _export(sidecar: Sidecar) -> str:
    out: Path = sidecar.root / "pairs.jsonl"
    command = [sys.executable, "-P", "-m", "bin.cli", "export", "--home", str(sidecar.home)]
    subprocess.run([*command, "--out", str(out)], check=True, capture_output=True)
    return out.read_text()


CUT = {
    "inside a chunk": (SSE_HEAD + chunked(EVENTS[0]) + b"40\r\nhalf", EVENTS[0] + b"half"),
    "no last chunk": (SSE_HEAD + chunked(*EVENTS), b"".join(EVENTS)),
    "half a last chunk": (SSE_HEAD + chunked(*EVENTS) + b"0\r\n", b"".join(EVENTS)),
    "sized body short": (sized(ANSWER)[:-10], ANSWER[:-10]),
}  # fmt: skip


@pytest.mark.parametrize("name", CUT)
def test_upstream_ends_too_early(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    """T5."""
    said, body = CUT[name]
    tag = "cut-" + name.replace(" ", "-")
    with upstream.saying(said):
        reply = sidecar.exchange(post(chat(tag), STREAMED))
    assert (reply.status, reply.body, reply.whole) == (200, body, False)
    row = sidecar.row(tag)
    assert (row["outcome"], row["complete"], row["status"]) == ("upstream_truncated", 0, 200)
    assert row["response_bytes"] == len(body)
    assert chat(tag) not in learned(sidecar)


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
    """T6."""
    idle = sidecar.timeouts["upstream_idle"]
    with upstream.playing(silent):
        asked = time.monotonic()
        reply = sidecar.exchange(post(chat("never")))
        assert idle <= time.monotonic() - asked < idle + 4
        call = upstream.next_call()
        let_go(call, time.monotonic())
    assert reply.status == 504
    error = orjson.loads(reply.body)["error"]
    assert (error["type"], error["code"]) == ("understudy_error", "upstream_idle_timeout")
    assert reply.all(b"x-understudy-error") == [b"upstream_idle_timeout"]
    row = sidecar.row("never")
    assert (row["outcome"], row["status"], row["served_by"]) == ("timeout", None, None)


def test_upstream_falls_silent_in_mid_stream(sidecar: Sidecar, upstream: Upstream) -> None:
    """T7: as if the network were gone. The client sees a broken stream, not an end."""
    with upstream.playing(endless):
        client = sidecar.connect()
        client.send(post(chat("black-hole"), STREAMED))
        client.until(EVENTS[1] + b"\r\n")
        last = time.monotonic()
        assert _kept_alive(upstream.port)
        assert client.rest() == b""
        idle = sidecar.timeouts["upstream_idle"]
        assert idle - 0.5 < time.monotonic() - last < idle + 4
        let_go(upstream.next_call(), client.ended_at)
    row = sidecar.row("black-hole")
    assert (row["outcome"], row["complete"], row["status"]) == ("timeout", 0, 200)
    assert chat("black-hole") not in learned(sidecar)


def _kept_alive(port: int) -> bool:
    """Does the system probe the one connection to this port? Its timer is of that kind, then."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    (timer,) = [ln[5] for ln in lines if ln[2].endswith(f":{port:04X}") and ln[3] == "01"]
    return timer.startswith("02:")


# -- events that are cut anywhere

ODD_EVENTS = (
    b": a comment\r\n\r\n"
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,'
    b'"delta":{"role":"assistant","content":"Gr\xc3\xbc\xc3\x9fe "}}]}\r\n\r\n'
    b'event: message\rdata: {"id":"c1",\r'
    b'data: "choices":[{"index":0,"delta":{"content":"two"}}]}\r\r'
    b'data:{"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    b"data: [DONE]\n\n"
)


def test_events_cut_at_every_byte_are_the_same_events(sidecar: Sidecar, upstream: Upstream) -> None:
    """T9: for the client to the byte, and for the record."""
    cuts = range(1, len(ODD_EVENTS))
    client = sidecar.connect()
    for cut in cuts:
        with upstream.playing(partial(_in_two, cut=cut)):
            client.send(post(chat("split"), STREAMED))
            reply = client.reply()
        assert (reply.body, reply.whole) == (ODD_EVENTS, True)
    rows = wait_for(lambda: (r := sidecar.rows("split")) and len(r) == len(cuts) and r, 10)
    assert {row["events"].encode() for row in rows} == {ODD_EVENTS}
    assert {(row["complete"], row["finish_reason"], row["error"]) for row in rows} == {
        (1, "stop", None)
    }
    assert len({row["response"] for row in rows}) == 1
    assert content(rows[0]) == "Grüße two"


def _in_two(call: Call, cut: int) -> None:
    call.read_body()
    call.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    call.send(SSE_HEAD + chunked(ODD_EVENTS[:cut]))
    time.sleep(0.001)
    call.send(chunked(ODD_EVENTS[cut:]) + b"0\r\n\r\n")


NO_TEXT = {
    "invalid UTF-8": b'data: {"choices":[{"delta":{"content":"\xff\xfe"}}]}\n\n',
    "a lone surrogate": b'data: {"choices":[{"delta":{"content":"\xed\xa0\x80"}}]}\n\n',
    "an escaped surrogate": b'data: {"choices":[{"delta":{"content":"\\ud800"}}]}\n\n',
    "NUL": b'data: {"choices":[{"delta":{"content":"\x00"}}]}\n\n',
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_events_that_are_no_text_pass_and_are_marked(
    sidecar: Sidecar, upstream: Upstream, name: str
) -> None:
    """T10: the event that can't be read is skipped, and the row says so."""
    tag = "no-text-" + name.replace(" ", "-")
    events = [EVENTS[0], NO_TEXT[name], EVENTS[1], LAST]
    with upstream.saying(SSE_HEAD + chunked(*events) + b"0\r\n\r\n"):
        reply = sidecar.exchange(post(chat(tag), STREAMED))
    assert (reply.body, reply.whole) == (b"".join(events), True)
    row = sidecar.row(tag)
    assert row["error"].startswith("parse_error")
    assert (row["outcome"], row["complete"]) == ("ok", 0)
    assert content(row) == "onetwo"
    assert row["events"] == b"".join(events).decode("utf-8", "backslashreplace")
    assert chat(tag) not in learned(sidecar)


def test_events_arrive_as_they_are_sent(sidecar: Sidecar, upstream: Upstream) -> None:
    """T12: nothing is gathered on the way."""
    sent: list[float] = []
    got: list[float] = []

    def ticking(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD)
        for _ in range(4):
            time.sleep(0.5)
            sent.append(time.monotonic())
            call.send(chunked(EVENTS[0]))
        call.send(b"0\r\n\r\n")

    with upstream.playing(ticking):
        client = sidecar.connect()
        asked = time.monotonic()
        client.send(post(chat("ticks"), STREAMED))
        client.message_head()
        for _ in range(4):
            client.until(EVENTS[0] + b"\r\n")
            got.append(time.monotonic())
        assert client.take(5) == b"0\r\n\r\n"
    late = sorted(b - a for a, b in zip(sent, got, strict=True))
    assert late[1] < 0.05  # a busy machine may hold up two of the four
    row = sidecar.row("ticks")
    assert 450 < row["ttft_ms"] < (got[0] - asked) * 1000 + 50
