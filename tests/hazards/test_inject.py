"""Usage asked for behind the app's back: it is in the record, and the app sees nothing of it."""

from __future__ import annotations

import gzip
import queue
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
import pytest
from openai import OpenAI

from bin.standin import Standin
from tests.e2e import harness as e2e
from tests.hazards.harness import Baseline, Sidecar, calm, sound
from tests.hazards.peers import SSE_HEAD, Call, Message, Upstream, chat, chunked, post, sized

KEY = "sk-none"
BODY = b'{"model":"gpt-4o-mini", "stream":true,"messages":[{"role":"user","content":"hi"}] }'
ASKED = BODY[:-1] + b',"stream_options":{"include_usage":true}}'
PLAIN = [
    b": ping\n\n",
    b'data: {"id":"c1","object":"chat.completion.chunk","choices":[{"index":0,"delta":'
    b'{"role":"assistant","content":"a \\"usage\\":null"}}],"obfuscation":"x1"}\n\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"b"},"usage":null}]}\r\n\r\n',
    b'data: {"id":"c1","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
    b"data: [DONE]\n\n",
]
TOLD = [
    PLAIN[0],
    PLAIN[1].replace(b',"obf', b',"usage":null,"obf'),
    PLAIN[2].replace(b"}]}", b'}],"usage":null}'),
    PLAIN[3].replace(b"}]}", b'}], "usage": null}'),
    b'data: {"id":"c1","choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7,'
    b'"total_tokens":18}}\n\n',
    PLAIN[4],
]
POLICY: dict[str, Any] = {
    "capture": {"inject_usage": True},
    "record": {"stream_events": True},
    "identity": {"tenant": ["header:x-team"]},
    "privacy": {
        "rules": [{"tenant": "meta", "mode": "metadata"}, {"tenant": "off", "mode": "off"}]
    },
}


@dataclass
class Scene:
    sidecar: Sidecar
    upstream: Upstream
    picky: Upstream  # refuses what it does not know


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    upstream, picky = Upstream(), Upstream()
    elsewhere = [{"prefix": "/picky", "url": f"http://127.0.0.1:{picky.port}", "strip": True}]
    root = tmp_path_factory.mktemp("inject")
    sidecar = Sidecar(root, upstream.port, policy=POLICY | {"upstreams": elsewhere})
    try:
        sidecar.start()
        before = Baseline.of(sidecar)
        yield Scene(sidecar, upstream, picky)
        assert sidecar.health()["inject_failed"] == 0
        calm(sidecar, before)
        assert sidecar.stop() == 0
        sound(sidecar)
    finally:
        sidecar.kill()
        upstream.close()
        picky.close()


@pytest.fixture(autouse=True)
def cleared(scene: Scene) -> Iterator[None]:
    yield
    scene.sidecar.close_clients()
    scene.upstream.forget_calls()


def wants(body: bytes) -> bool:
    return bool((orjson.loads(body).get("stream_options") or {}).get("include_usage"))


def as_openai(call: Call) -> None:
    events = TOLD if wants(call.read_body()) else PLAIN
    call.send(SSE_HEAD + chunked(*events) + b"0\r\n\r\n")


def asked(scene: Scene, request: bytes, tag: str = "") -> tuple[Message, Message]:
    """The request as the upstream got it, and the reply as the client did."""
    with scene.upstream.playing(as_openai):
        reply = scene.sidecar.exchange(request)
        return scene.upstream.next_call().request, reply


# -- the official SDK


def test_the_sdk_sees_the_same_stream_and_the_record_has_the_usage(tmp_path: Path) -> None:
    with e2e.Upstream(Standin(latency=0.0)) as direct, e2e.Upstream(Standin(latency=0.0)) as other:
        port = urlsplit(other.url).port
        assert port is not None
        sidecar = Sidecar(tmp_path, port, policy=POLICY)
        try:
            sidecar.start()
            relayed = _streamed(f"http://127.0.0.1:{sidecar.address[1]}/v1", "sdk")
            assert relayed == _streamed(direct.base_url, "sdk")
            assert len(relayed) > 3
            row = sidecar.row("sdk")
            assert sidecar.health()["inject_failed"] == 0
            assert sidecar.stop() == 0
        finally:
            sidecar.kill()
        (seen,), (expected,) = other.received, direct.received
        assert dict(seen.headers)["Accept-Encoding"] == "identity"
        assert wants(seen.body) and not wants(expected.body)
    assert (row["usage_note"], row["complete"]) == (None, 1)
    assert row["input_tokens"] > 0 and row["output_tokens"] > 0
    assert orjson.loads(row["request"]) == orjson.loads(expected.body)


def _streamed(base: str, tag: str) -> list[Any]:
    with OpenAI(base_url=base, api_key=KEY, max_retries=0) as client:
        stream = client.chat.completions.create(
            model="gpt-4o-mini",
            messages=[{"role": "user", "content": "What is it?"}],
            stream=True,
            extra_query={"before": tag},
        )
        return [chunk.model_dump(exclude={"created"}, exclude_unset=True) for chunk in stream]


# -- to the byte


def test_the_fewest_bytes_are_changed(scene: Scene) -> None:
    headers = "Accept-Encoding: gzip, br\r\nX-A: 1\r\n"
    sent, reply = asked(scene, post(chat("bytes"), BODY, headers))
    assert sent.body == ASKED
    assert sent.all(b"accept-encoding") == [b"identity"]
    assert sent.all(b"content-length") == [b"%d" % len(ASKED)]
    assert sent.all(b"x-a") == [b"1"]
    assert (reply.status, reply.whole, reply.body) == (200, True, b"".join(PLAIN))
    row = scene.sidecar.row("bytes")
    assert row["request"].encode() == BODY
    assert row["events"].encode() == b"".join(TOLD).replace(b',"obfuscation":"x1"', b"")
    assert (row["input_tokens"], row["output_tokens"]) == (11, 7)
    assert (row["request_bytes"], row["response_bytes"]) == (len(BODY), len(b"".join(TOLD)))


def test_on_one_connection_again_and_again(scene: Scene) -> None:
    times = 3
    client = scene.sidecar.connect()
    with scene.upstream.playing(as_openai):
        for _ in range(times):
            client.send(post(chat("again"), BODY))
            assert client.reply().body == b"".join(PLAIN)
            client.send(post(chat("between")))
            assert client.reply().body == b"".join(PLAIN)
        bodies = [scene.upstream.next_call().request.body for _ in range(2 * times)]
    assert bodies[::2] == [ASKED] * times
    assert not any(map(wants, bodies[1::2]))


@pytest.mark.parametrize(
    "target", ["/v1/completions", "/openai/deployments/d/chat/completions?api-version=2025-01-01"]
)
def test_other_shapes_of_the_same(scene: Scene, target: str) -> None:
    sent, reply = asked(scene, post(target, BODY))
    assert (sent.body, reply.body) == (ASKED, b"".join(PLAIN))


def test_a_body_in_chunks(scene: Scene) -> None:
    body = chunked(BODY[:9], BODY[9:]) + b"0\r\n\r\n"
    sent, reply = asked(scene, post(chat("chunks"), body, framing="Transfer-Encoding: chunked\r\n"))
    assert (sent.body, sent.whole, sent.all(b"content-length")) == (ASKED, True, [])
    assert sent.all(b"accept-encoding") == [b"identity"]
    assert (reply.whole, reply.body) == (True, b"".join(PLAIN))


def test_an_old_client(scene: Scene) -> None:
    request = post(chat("old"), BODY).replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    sent, reply = asked(scene, request)
    assert (sent.body, reply.body) == (ASKED, b"".join(PLAIN))


def test_a_stream_with_a_length(scene: Scene) -> None:
    told = b"".join(TOLD)
    with scene.upstream.saying(sized(told, headers=b"Content-Type: text/event-stream\r\n")):
        reply = scene.sidecar.exchange(post(chat("sized"), BODY))
    assert (reply.whole, reply.body) == (True, b"".join(PLAIN))
    assert reply.all(b"content-length") == []
    assert scene.sidecar.row("sized")["input_tokens"] == 11


def test_events_cut_anywhere(scene: Scene) -> None:
    told = b"".join(TOLD)
    client = scene.sidecar.connect()
    for cut in range(1, len(told), 3):
        parts = chunked(told[:cut]), chunked(told[cut:]) + b"0\r\n\r\n"

        def answer(call: Call, parts: tuple[bytes, bytes] = parts) -> None:
            call.read_body()
            call.send(SSE_HEAD + parts[0])
            call.send(parts[1])

        with scene.upstream.playing(answer):
            client.send(post(chat("cut"), BODY))
            reply = client.reply()
        assert (reply.whole, reply.body) == (True, b"".join(PLAIN))


def test_no_event_waits_for_the_next(scene: Scene) -> None:
    heard: queue.Queue[bool] = queue.Queue()
    answers: list[bool] = []

    def stepwise(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD)
        for event in TOLD:
            call.send(chunked(event))
            if event is not TOLD[4]:  # of which the client hears nothing
                answers.append(heard.get(timeout=5))
        call.send(b"0\r\n\r\n")

    with scene.upstream.playing(stepwise):
        client = scene.sidecar.connect()
        client.send(post(chat("steps"), BODY))
        client.message_head()
        for event in PLAIN:
            assert client.take(len(chunked(event))) == chunked(event)
            heard.put(True)
        assert client.take(5) == b"0\r\n\r\n"
    assert answers == [True] * len(PLAIN)


def test_a_stream_that_breaks_off_looks_broken(scene: Scene) -> None:
    part = b'data: {"choices":[],"us'
    with scene.upstream.saying(SSE_HEAD + chunked(TOLD[1], part)):
        reply = scene.sidecar.exchange(post(chat("broken"), BODY))
    assert (reply.whole, reply.body) == (False, PLAIN[1] + part)
    row = scene.sidecar.row("broken")
    assert (row["outcome"], row["complete"]) == ("upstream_truncated", 0)
    assert row["response_bytes"] == len(TOLD[1] + part)


def test_a_great_event_passes(scene: Scene) -> None:
    great = b'data: {"choices":[{"delta":{"content":"%b"}}],"usage":null}\n\n' % (b"x" * (2 << 20))
    stream = SSE_HEAD + chunked(TOLD[1], great, *TOLD[3:]) + b"0\r\n\r\n"
    with scene.upstream.saying(stream):
        reply = scene.sidecar.exchange(post(chat("great"), BODY))
    assert reply.whole
    assert reply.body == PLAIN[1] + great + b"".join(PLAIN[3:])


# -- what is left alone

BIG = BODY[:-1] + b',"user":"%b"}' % (b"u" * (256 << 10))
LEFT = {
    "it asks already": post(chat("left-asks"), ASKED),
    "no stream": post(chat("left-whole")),
    "too long": post(chat("left-big"), BIG),
    "too long in chunks": post(
        chat("left-chunks"), chunked(BIG, b""), framing="Transfer-Encoding: chunked\r\n"
    ),
    "no JSON": post(chat("left-odd"), BODY[:-1] + b',"model":"twice"}'),
    "another call": post("/v1/responses?before=left-responses", BODY),
    "embeddings": post("/v1/embeddings?before=left-embeddings", BODY),
    "metadata": post(chat("left-meta"), BODY, "X-Team: meta\r\n"),
    "off": post(chat("left-off"), BODY, "X-Team: off\r\n"),
    "no-store": post(chat("left-no-store"), BODY, "x-understudy-no-store: 1\r\n"),
    "another type": post(chat("left-type"), BODY).replace(b"application/json", b"text/plain", 1),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_asked(scene: Scene, name: str) -> None:
    request = LEFT[name]
    wanted = PLAIN if name != "it asks already" else TOLD
    with scene.upstream.playing(as_openai):
        reply = scene.sidecar.exchange(request)
        sent = scene.upstream.next_call().request
    assert sent.all(b"accept-encoding") == []
    assert sent.body == (BIG if name.startswith("too long") else request.partition(b"\r\n\r\n")[2])
    assert reply.body == b"".join(wanted)


def test_a_request_that_is_encoded_is_not_asked(scene: Scene) -> None:
    body = gzip.compress(BODY)
    with scene.upstream.saying(SSE_HEAD + chunked(*TOLD) + b"0\r\n\r\n"):
        reply = scene.sidecar.exchange(post(chat("zip"), body, "Content-Encoding: gzip\r\n"))
        assert scene.upstream.next_call().request.body == body
    assert reply.body == b"".join(TOLD)


def test_a_reply_that_is_compressed_all_the_same_passes(scene: Scene) -> None:
    zipped = gzip.compress(b"".join(TOLD))
    head = SSE_HEAD.replace(b"Content-Type", b"Content-Encoding: gzip\r\nContent-Type")
    with scene.upstream.saying(head + chunked(zipped) + b"0\r\n\r\n"):
        reply = scene.sidecar.exchange(post(chat("zipped"), BODY))
    assert (reply.whole, reply.body) == (True, zipped)
    assert scene.sidecar.row("zipped")["input_tokens"] == 11


def test_a_reply_that_is_no_stream_passes(scene: Scene) -> None:
    error = b'{"error":{"message":"no","usage":null}}'
    with scene.upstream.saying(sized(error, b"429 Too Many Requests")):
        reply = scene.sidecar.exchange(post(chat("error"), BODY))
    assert (reply.status, reply.body) == (429, error)
    assert reply.all(b"content-length") == [b"%d" % len(error)]


def test_an_upstream_that_refuses_the_option_is_not_asked_again(scene: Scene) -> None:
    error = b'{"error":{"message":"Unrecognized request argument supplied: stream_options"}}'

    def refuse(call: Call) -> None:
        asks = wants(call.read_body())
        call.send(sized(error, b"400 Bad Request") if asks else sized(b"{}"))

    client = scene.sidecar.connect()
    with scene.picky.playing(refuse):
        client.send(post("/picky" + chat("refused"), BODY) * 2)
        first, second = client.reply(), client.reply()
    assert (first.status, first.body) == (400, error)
    assert (second.status, second.body) == (200, b"{}")
    sent, _ = asked(scene, post(chat("others"), BODY))
    assert sent.body == ASKED
