"""An upstream that is broken, slow, gone, or says odd things: what the client gets of it."""

from __future__ import annotations

import gzip
import random
import signal
import socket
import threading
import time
from pathlib import Path

import orjson
import pytest

from tests.hazards.harness import Sidecar
from tests.hazards.peers import (
    ANSWER,
    CANARY,
    EVENTS,
    SSE_HEAD,
    Call,
    Upstream,
    chat,
    chunked,
    get,
    plain,
    post,
    sized,
)

OK = b"HTTP/1.1 200 OK\r\n"
BROKEN = {
    "two lengths": OK + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\nabc",
    "length and chunks": OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bad length": OK + b"Content-Length: 3x\r\n\r\nabc",
    "unknown coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "NUL in a header": OK + b"A: b\x00c\r\nContent-Length: 0\r\n\r\n",
    "CR in a header": OK + b"A: b\rc\r\nContent-Length: 0\r\n\r\n",
    "folded header": OK + b"A: b\r\n c\r\nContent-Length: 0\r\n\r\n",
    "rubbish": b"hello there\r\n\r\n",
    "huge head": OK + b"A: " + b"x" * (5 << 20) + b"\r\n\r\n",
    "large head in one read": OK + b"A: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "many headers": OK + b"A: b\r\n" * 300 + b"Content-Length: 0\r\n\r\n",
    "unasked switch of protocol": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n"
    b"Connection: Upgrade\r\n\r\n\x00\x01",
    "flood of interim replies": b"HTTP/1.1 102 Processing\r\n\r\n" * 50_000,
    "another version": b"HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "only a head, cut": OK + b"Content-Le",
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_replies_become_one_clean_error(
    sidecar: Sidecar, upstream: Upstream, name: str
) -> None:
    client = sidecar.connect()
    tag = "broken-" + name.replace(" ", "-")
    with upstream.saying(BROKEN[name]):
        client.send(post(chat(tag)))
        reply = client.reply()
    assert reply.status == 502
    error = orjson.loads(reply.body)["error"]
    assert error["type"] == "understudy_error"
    assert reply.all(b"x-understudy-error") == [error["code"].encode()]
    client.send(post(chat(tag + "-next")))  # the next request gets its own answer
    assert client.reply().body == ANSWER
    row = sidecar.row(tag)
    assert (row["status"], row["complete"]) == (None, 0)
    assert row["outcome"] in ("upstream_truncated", "upstream_reset")


def test_a_broken_chunk_in_mid_reply_breaks_the_reply(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.saying(SSE_HEAD + chunked(EVENTS[0]) + b"zz\r\nrubbish"):
        reply = sidecar.exchange(post(chat("bad-chunk")))
    assert (reply.body, reply.whole) == (EVENTS[0], False)
    assert sidecar.row("bad-chunk")["outcome"] == "upstream_truncated"


def test_endless_trailers_of_a_reply_are_cut(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.saying(SSE_HEAD + chunked(EVENTS[0]) + b"0\r\nA: " + b"x" * (2 << 20)):
        reply = sidecar.exchange(post(chat("trailers")))
    assert (reply.body, reply.whole) == (EVENTS[0], False)


STRAY = {
    "extra bytes": sized(ANSWER) + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen",
    "extra rubbish": sized(ANSWER) + b"rubbish",
    "extra bytes later": sized(ANSWER) + b"",
}


@pytest.mark.parametrize("name", STRAY)
def test_bytes_behind_a_reply_never_answer_the_next_request(
    sidecar: Sidecar, upstream: Upstream, name: str
) -> None:
    def answer(call: Call) -> None:
        call.read_body()
        call.send(STRAY[name])
        if name == "extra bytes later":
            time.sleep(0.05)
            call.send(sized(b"stolen"))

    client = sidecar.connect()
    with upstream.playing(answer):
        client.send(post("/v1/x"))
        assert client.reply().body == ANSWER
        time.sleep(0.1)
    client.send(post("/v1/x"))
    assert client.reply().body == ANSWER


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("HEAD", OK + b"Content-Length: 500\r\n\r\n"),
        ("HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
    ],
)
def test_replies_without_a_body_leave_both_connections_usable(
    sidecar: Sidecar, upstream: Upstream, method: str, said: bytes
) -> None:
    with upstream.playing(lambda call: call.send(said)):
        client = sidecar.connect()
        connections = []
        for _ in range(3):
            client.send(get("/v1/models").replace(b"GET", method.encode(), 1))
            reply = client.reply(method)
            assert reply.start == said.split(b"\r\n")[0]
            assert client.buffer == b""
            connections.append(upstream.connections)
    assert connections[1] == connections[2]


def test_a_body_behind_a_reply_that_has_none_is_dropped(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    with upstream.playing(lambda call: call.send(sized(b"stolen"))):
        client = sidecar.connect()
        client.send(get("/v1/models").replace(b"GET", b"HEAD", 1))
        assert client.reply("HEAD").status == 200
    client.send(get("/v1/models"))
    assert client.reply("GET").body == ANSWER


def test_interim_replies_do_not_hide_the_final_one(sidecar: Sidecar, upstream: Upstream) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"
    with upstream.saying(b"HTTP/1.1 100 Continue\r\n\r\n", hints, sized(ANSWER)):
        reply = sidecar.exchange(post(chat("interim")))
    assert (reply.status, reply.body) == (200, ANSWER)
    assert reply.all(b"link") == []


def test_limits_pass_untouched_and_nothing_is_tried_again(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    headers = (
        b"Retry-After: 7\r\nretry-after-ms: 7000\r\nx-should-retry: true\r\n"
        b"x-ratelimit-remaining-requests: 0\r\nSet-Cookie: a=1\r\nset-cookie: b=2\r\nX-E: \r\n"
    )
    for status in (b"429 Too Many Requests", b"503 Service Unavailable", b"529 Overloaded"):
        tag = f"limit-{status[:3].decode()}"
        said = sized(b'{"error":{}}', status, headers)

        def answer(call: Call, said: bytes = said) -> None:
            call.read_body()
            call.send(said)

        with upstream.playing(answer):
            client = sidecar.connect()
            client.send(post(chat(tag), headers="x-stainless-retry-count: 1\r\n"))
            assert client.take(len(said)) == said  # the very bytes
            assert upstream.calls.qsize() == 1
        row = sidecar.row(tag)
        assert (row["status"], row["retry_count"]) == (int(status[:3]), 1)
        assert row["outcome"] == "ok"


def test_encoded_bodies_pass_to_the_byte(sidecar: Sidecar, upstream: Upstream) -> None:
    bodies = {"gzip": gzip.compress(ANSWER), "br": b"\x00\xff broken", "odd": bytes(range(256))}
    for coding, body in bodies.items():
        head = b"Content-Type: application/json\r\nContent-Encoding: %b\r\n" % coding.encode()
        with upstream.saying(sized(body, headers=head)):
            reply = sidecar.exchange(
                post(chat(f"coded-{coding}"), body, f"Content-Encoding: {coding}\r\n")
            )
        assert (reply.body, reply.all(b"content-encoding")) == (body, [coding.encode()])
        assert upstream.next_call().request.body == body
    assert sidecar.row("coded-gzip")["response"] == ANSWER.decode()


def test_a_stale_connection_is_replaced(sidecar: Sidecar, upstream: Upstream) -> None:
    """What may be sent twice is; a POST is not, once a byte of it is out."""

    def once(call: Call) -> None:
        call.read_body()
        if upstream.calls.qsize() > 1:
            call.reset() if call.request.start.startswith(b"POST") else call.socket.close()
        else:
            call.send(sized(ANSWER))

    def bound(call: Call) -> None:
        """The first call is answered, the second dropped, the third answered."""
        call.read_body()
        call.send(sized(call.request.body)) if upstream.calls.qsize() != 2 else call.reset()

    put = post("/v1/x", b"precious", framing="Content-Length: 8\r\n").replace(b"POST", b"PUT", 1)
    chunks = chunked(b"precious") + b"0\r\n\r\n"
    put_chunked = post("/v1/x", chunks, framing="Transfer-Encoding: chunked\r\n")
    put_chunked = put_chunked.replace(b"POST", b"PUT", 1)
    for request in (put, put_chunked):
        with upstream.playing(bound):
            client = sidecar.connect()
            client.send(post("/v1/first"))
            client.reply()
            client.send(request)
            reply = client.reply()
            assert (reply.status, reply.body) == (200, b"precious")
            assert upstream.calls.qsize() == 3
    with upstream.playing(once):
        client = sidecar.connect()
        client.send(post("/v1/first"))
        assert client.reply().status == 200
        client.send(post("/v1/second"))
        assert client.reply().status == 502
        assert upstream.calls.qsize() == 2


def test_a_connection_that_died_while_idle_is_not_used(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    with upstream.saying(sized(ANSWER)):
        client = sidecar.connect()
        for _ in range(3):
            client.send(post("/v1/x"))
            assert client.reply().status == 200
            time.sleep(0.05)


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

    def answer(call: Call) -> None:
        call.read_body()
        call.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in _split(chance, said, 8):
            call.send(part)
            time.sleep(0.001)
        if framing == "close":
            call.socket.close()

    with upstream.playing(answer):
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


def test_parallel_calls_get_their_own_answers(sidecar: Sidecar, upstream: Upstream) -> None:
    def echo(call: Call) -> None:
        call.send(sized(call.read_body()))

    wrong: list[int] = []

    def one(number: int) -> None:
        body = b'{"number":%d}' % number
        if sidecar.exchange(post(chat(f"parallel-{number}"), body)).body != body:
            wrong.append(number)

    with upstream.playing(echo):
        threads = [threading.Thread(target=one, args=(number,)) for number in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    for number in (0, 99, 199):
        row = sidecar.row(f"parallel-{number}")
        assert row["request"] == row["response"] == f'{{"number":{number}}}'


def test_a_dead_upstream_is_said_at_once_and_health_still_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    sidecar = Sidecar(tmp_path, port)
    try:
        sidecar.start()
        began = time.monotonic()
        reply = sidecar.exchange(post(chat("dead")))
        assert time.monotonic() - began < 0.5
        assert reply.status == 502
        assert orjson.loads(reply.body)["error"]["code"] == "upstream_unreachable"
        assert reply.all(b"x-understudy-error") == [b"upstream_unreachable"]
        assert b"Traceback" not in reply.body
        assert sidecar.health()["status"] == "ok"
        row = sidecar.row("dead")
        assert (row["outcome"], row["status"]) == ("upstream_unreachable", None)
        sidecar.close_clients()
        assert sidecar.stop() == 0
        assert sidecar.canaries() == []
    finally:
        sidecar.kill()


def test_a_request_is_never_sent_to_an_upstream_without_tls(tmp_path: Path) -> None:
    received = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sidecar = Sidecar(tmp_path, listener.getsockname()[1], scheme="https")

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                received.append(connection.recv(65536))
                connection.sendall(sized(ANSWER))

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            sidecar.start()
            reply = sidecar.exchange(post(chat("no-tls")))
            assert reply.status == 502
            assert orjson.loads(reply.body)["error"]["code"] == "upstream_tls"
            assert received[0].startswith(b"\x16\x03")
            assert CANARY.encode() not in received[0]
            assert sidecar.row("no-tls")["outcome"] == "upstream_unreachable"
            sidecar.close_clients()
            assert sidecar.stop() == 0
            assert sidecar.canaries() == []
        finally:
            sidecar.kill()
            thread.join(1)


def test_told_to_stop_it_finishes_what_streams(tmp_path: Path) -> None:
    go_on = threading.Event()
    ending = chunked(EVENTS[1] + b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def answer(call: Call) -> None:
        call.read_body()
        if call.target.endswith(b"before=drain"):
            call.send(SSE_HEAD + chunked(EVENTS[0]))
            go_on.wait(5)
            call.send(ending)
        else:
            call.send(sized(ANSWER))

    upstream = Upstream()
    sidecar = Sidecar(tmp_path, upstream.port)
    try:
        sidecar.start()
        upstream.answer = answer
        client, idle = sidecar.connect(), sidecar.connect()
        idle.send(post(chat("idle")))
        idle.reply()
        sidecar.row("idle")
        client.send(post(chat("drain")))
        client.until(EVENTS[0] + b"\r\n")
        sidecar.process.send_signal(signal.SIGTERM)
        assert idle.rest() == b""  # ended at once
        assert sidecar.process.poll() is None
        go_on.set()
        assert client.rest() == ending
        assert sidecar.process.wait(15) == 0
        assert sidecar.row("drain")["complete"] == 1
        sidecar.close_clients()
    finally:
        sidecar.kill()
        upstream.close()
