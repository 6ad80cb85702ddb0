"""An upstream that limits, redirects, dies or can't be reached: what the app gets of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from store.record import Record
from tests.hazards.harness import Sidecar, sound, wait_for
from tests.hazards.peers import (
    ANSWER,
    CANARY,
    Call,
    Message,
    Upstream,
    chat,
    get,
    post,
    sized,
)

JSON = b"Content-Type: application/json\r\n"


def shown(sidecar: Sidecar) -> set[str]:
    """Ids of the exchanges that a candidate is shown, to be compared."""
    record = Record(sidecar.home / "understudy.db", sidecar.root / "none.sock")
    return {pair.exchange_id for pair in record.unobserved("nobody", 10_000)}


# -- limits, redirects, odd statuses

LIMITS = (
    b"Retry-After: 7\r\nretry-after-ms: 7000\r\nx-should-retry: true\r\n"
    b"x-ratelimit-remaining-requests: 0\r\nx-ratelimit-reset-tokens: 6m0s\r\n"
    b"Set-Cookie: a=1\r\nset-cookie: b=2\r\nX-E: \r\n"
)


@pytest.mark.parametrize("status", [b"429 Too Many Requests", b"503 Gone Fishing", b"529 Overload"])
def test_limits_pass_untouched_and_nothing_is_tried_again(
    sidecar: Sidecar, upstream: Upstream, status: bytes
) -> None:
    """T53: to try again is the SDK's; each attempt is a row, and none is learned from."""
    tag, said = f"limit-{status[:3].decode()}", sized(b'{"error":{}}', status, LIMITS + JSON)

    def answer(call: Call) -> None:
        call.read_body()
        call.send(said)

    with upstream.playing(answer):
        client = sidecar.connect()
        for attempt in range(3):
            client.send(post(chat(tag), headers=f"x-stainless-retry-count: {attempt}\r\n"))
            assert client.take(len(said)) == said  # the very bytes
            assert upstream.calls.qsize() == attempt + 1
        time.sleep(0.3)
        assert upstream.calls.qsize() == 3
        assert client.buffer == b""
    rows = wait_for(lambda: (found := sidecar.rows(tag)) and len(found) == 3 and found, 5)
    assert [row["retry_count"] for row in rows] == [0, 1, 2]
    assert {(row["status"], row["outcome"]) for row in rows} == {(int(status[:3]), "ok")}
    assert not {row["id"] for row in rows} & shown(sidecar)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_pass_and_are_not_followed(
    sidecar: Sidecar, upstream: Upstream, status: int
) -> None:
    """T54."""
    there = b"Location: http://127.0.0.1:%d/elsewhere\r\n" % upstream.port
    said = sized(b"moved", b"%d Moved" % status, there)

    def answer(call: Call) -> None:
        call.read_body()
        call.send(said)

    with upstream.playing(answer):
        for request in (get(chat(f"moved-{status}")), post(chat(f"moved-{status}"))):
            client = sidecar.connect()
            client.send(request)
            assert client.take(len(said)) == said
        time.sleep(0.2)
        assert upstream.calls.qsize() == 2
    rows = wait_for(lambda: len(found := sidecar.rows(f"moved-{status}")) == 2 and found, 5)
    assert {(row["status"], row["outcome"]) for row in rows} == {(status, "ok")}


ODD_STATUS = {
    b"HTTP/1.1 999 Odd": b"HTTP/1.1 999 Odd",
    b"HTTP/1.1 600 x": b"HTTP/1.1 600 x",
    b"HTTP/1.1 200": b"HTTP/1.1 200 ",
    b"HTTP/1.1 200 ": b"HTTP/1.1 200 ",
    "HTTP/1.1 200 Größe ✓".encode(): "HTTP/1.1 200 Größe ✓".encode(),
    b"HTTP/1.1 200 \xff\x80": b"HTTP/1.1 200 \xff\x80",
    b"HTTP/1.1 199 Huh": b"HTTP/1.1 502 Bad Gateway",
    b"HTTP/1.1 1000 Huh": b"HTTP/1.1 502 Bad Gateway",
    b"HTTP/1.1 99 Huh": b"HTTP/1.1 502 Bad Gateway",
    b"HTTP/1.1 000 Huh": b"HTTP/1.1 502 Bad Gateway",
}


@pytest.mark.parametrize("line", ODD_STATUS)
def test_odd_statuses_pass_or_are_an_error(
    sidecar: Sidecar, upstream: Upstream, line: bytes
) -> None:
    """T57."""
    tag = f"odd-{list(ODD_STATUS).index(line)}"
    client = sidecar.connect()

    def answer(call: Call) -> None:  # and stay: an end that comes late would meet the next request
        call.read_body()
        call.send(line + b"\r\nContent-Length: 2\r\n\r\nhi")

    with upstream.playing(answer):
        client.send(post(chat(tag)))
        reply = client.reply()
    assert reply.start == ODD_STATUS[line]
    client.send(post(chat(f"{tag}-next")))
    assert client.reply().body == ANSWER
    if reply.status == 502:
        assert orjson.loads(reply.body)["error"]["type"] == "understudy_error"
        assert sidecar.row(tag)["status"] is None
    else:
        assert reply.body == b"hi"
        assert sidecar.row(tag)["status"] == reply.status


def test_the_same_call_twice_is_two_calls(sidecar: Sidecar, upstream: Upstream) -> None:
    """T56: an Idempotency-Key is the upstream's affair."""
    client = sidecar.connect()
    for _ in range(2):
        client.send(post(chat("twice"), headers="Idempotency-Key: idem-17\r\n"))
        assert client.reply().body == ANSWER
    calls = [upstream.next_call(), upstream.next_call()]
    assert [call.request.all(b"idempotency-key") for call in calls] == [[b"idem-17"]] * 2
    rows = wait_for(lambda: len(found := sidecar.rows("twice")) == 2 and found, 5)
    assert len({row["id"] for row in rows}) == 2
    assert len({row["request_hash"] for row in rows}) == 1
    (key,) = {row["key_hash"] for row in rows}
    assert key


# -- connections that die

METHODS = ["GET", "HEAD", "DELETE", "PUT", "POST", "PATCH"]
AGAIN = METHODS[:4]


def request_of(method: str, target: str) -> bytes:
    if method in ("GET", "HEAD", "DELETE"):
        return get(target).replace(b"GET", method.encode(), 1)
    return post(target, b"precious").replace(b"POST", method.encode(), 1)


def answer_of(call: Call) -> None:
    """What arrived is the answer, so that a half of it would be seen."""
    body = call.read_body()
    said = sized(body or ANSWER)
    call.send(said.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if _is_head(call) else said)


def _is_head(call: Call) -> bool:
    return call.request.start.startswith(b"HEAD")


def end(call: Call, how: str) -> None:
    call.reset() if how == "rst" else call.socket.close()


def nth(upstream: Upstream, call: Call, number: int) -> bool:
    return list(upstream.calls.queue).index(call) == number


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("method", METHODS)
def test_a_reused_connection_that_dies_with_the_request(
    sidecar: Sidecar, upstream: Upstream, method: str, how: str
) -> None:
    """T8: once more on a fresh one, if that is harmless: not what could be done twice then."""

    def dies_second(call: Call) -> None:
        if nth(upstream, call, 1):
            call.read_body()
            end(call, how)
        else:
            answer_of(call)

    tag = f"stale-{method}-{how}"
    with upstream.playing(dies_second):
        client = sidecar.connect()
        client.send(get("/v1/first"))
        client.reply()
        opened = upstream.connections
        client.send(request_of(method, chat(tag)))
        reply = client.reply(method)
        again = method in AGAIN
        assert reply.status == (200 if again else 502)
        assert upstream.calls.qsize() == (3 if again else 2)
        assert upstream.connections == opened + again
        if method == "PUT":
            assert reply.body == b"precious"
    row = sidecar.row(tag)
    cut = "upstream_reset" if how == "rst" else "upstream_truncated"
    assert (row["outcome"], row["status"]) == (("ok", 200) if again else (cut, None))


@pytest.mark.parametrize("comes_first", ["the end", "the request"])
@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("method", METHODS)
def test_a_connection_that_died_before_a_byte_was_written(
    sidecar: Sidecar, upstream: Upstream, method: str, how: str, comes_first: str
) -> None:
    """T8: whatever the method, a fresh one takes its place, even if its end and the request are
    seen in the same turn."""
    over, ended = threading.Event(), threading.Event()  # the first call

    def dies_idle(call: Call) -> None:
        first = nth(upstream, call, 0)
        answer_of(call)
        if first:
            over.wait(5)
            end(call, how)
            ended.set()

    with upstream.playing(dies_idle):
        client = sidecar.connect()
        client.send(get("/v1/first"))
        client.reply()
        with sidecar.frozen():
            if comes_first == "the request":
                client.send(request_of(method, "/v1/second"))
            over.set()
            assert ended.wait(5)
            if comes_first == "the end":
                client.send(request_of(method, "/v1/second"))
        assert client.reply(method).status == 200
        assert upstream.calls.qsize() == 2


def test_only_once_more(sidecar: Sidecar, upstream: Upstream) -> None:
    """T8: what dies on the fresh connection, too, is an error."""

    def dies(call: Call) -> None:
        answer_of(call) if nth(upstream, call, 0) else call.reset()

    with upstream.playing(dies):
        client = sidecar.connect()
        client.send(get("/v1/first"))
        client.reply()
        client.send(get(chat("once-more")))
        assert client.reply("GET").status == 502
        assert upstream.calls.qsize() == 3
    assert sidecar.row("once-more")["outcome"] == "upstream_reset"


def test_nothing_is_tried_again_once_a_reply_has_begun(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """T8: the client has a part of it already."""

    def dies(call: Call) -> None:
        if nth(upstream, call, 0):
            answer_of(call)
        else:
            call.send(sized(ANSWER)[:-9])
            call.socket.close()

    with upstream.playing(dies):
        client = sidecar.connect()
        client.send(get("/v1/first"))
        client.reply()
        client.send(get(chat("begun")))
        reply = client.reply("GET")
        assert (reply.body, reply.whole) == (ANSWER[:-9], False)
        assert upstream.calls.qsize() == 2
    assert sidecar.row("begun")["outcome"] == "upstream_truncated"


# -- upstreams that can't be reached


@pytest.fixture(scope="module")
def closed_port() -> Iterator[int]:
    """Taken, and not listened on: what connects to it is refused."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("name", ["refused", "no such name"])
def test_an_upstream_that_is_not_there_is_said_at_once(
    tmp_path: Path, closed_port: int, name: str
) -> None:
    """T55."""
    policy = {} if name == "refused" else {"upstream": "http://no-such-name.invalid"}
    sidecar = Sidecar(tmp_path, closed_port, policy=policy)
    try:
        sidecar.start()
        took = []
        for number in range(3):
            began = time.monotonic()
            reply = sidecar.exchange(post(chat(f"dead-{number}")))
            took.append(time.monotonic() - began)
            _says(reply, "upstream_unreachable")
            row = sidecar.row(f"dead-{number}")
            assert (row["outcome"], row["status"]) == ("upstream_unreachable", None)
            assert sidecar.health()["status"] == "ok"
        assert min(took) < 0.1
        sidecar.close_clients()
        assert sidecar.stop() == 0
        sound(sidecar)
    finally:
        sidecar.kill()


def _says(reply: Message, code: str) -> None:
    assert reply.status == 502
    error = orjson.loads(reply.body)["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("understudy_error", code)
    assert reply.all(b"x-understudy-error") == [code.encode()]
    assert b"Traceback" not in reply.body


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
            _says(reply, "upstream_tls")
            assert received[0].startswith(b"\x16\x03")
            assert CANARY.encode() not in received[0]
            assert sidecar.row("no-tls")["outcome"] == "upstream_unreachable"
            sidecar.close_clients()
            assert sidecar.stop() == 0
            sound(sidecar)
        finally:
            sidecar.kill()
            thread.join(1)
