"""Requests that are ambiguous, malformed, too large, or merely unusual: bytes in, bytes out."""

from __future__ import annotations

import queue
import re
import time

import pytest

from tests.hazards.harness import Sidecar, wait_for
from tests.hazards.peers import (
    ANSWER,
    CANARY,
    QUESTION,
    Call,
    Upstream,
    chat,
    chunked,
    get,
    plain,
    post,
    sized,
)

REPLIES = re.compile(rb"HTTP/1\.1 \d\d\d ")
CHUNKED = "Transfer-Encoding: chunked\r\n"


def refused(sidecar: Sidecar, upstream: Upstream, data: bytes, *statuses: int) -> bytes:
    """Answered with one of these and closed; the upstream sees no request."""
    came = sidecar.raw(data)
    assert int(came.split(b" ")[1]) in statuses
    assert len(REPLIES.findall(came)) == 1
    assert b"Connection: close\r\n" in came
    assert b"understudy_error" in came
    assert CANARY.encode() not in came
    with pytest.raises(queue.Empty):
        upstream.calls.get(timeout=0.02)
    return came


def framed(lines: str, body: bytes = b"") -> bytes:
    return post("/v1/x", body, framing=lines)


AMBIGUOUS = {
    "length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "length twice": "Content-Length: 5\r\nContent-Length: 5\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n",
    "listed lengths": "Content-Length: 5, 5\r\n",
    **{f"length {v!r}": f"Content-Length: {v}\r\n" for v in (
        "+5", "0x5", "5_0", "", "-5", "5.0", "5 5", "9" * 30, "\xb2", "five")},
    **{f"coding {v!r}": f"Transfer-Encoding: {v}\r\n" for v in (
        "xchunked", "gzip, chunked", "chunked, chunked", "identity", "\x0bchunked", "chunked\x00",
        '"chunked"', "", "chunked;q=1", "chunked, gzip")},
    "coding twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "codings mixed": "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_ambiguous_framing_is_refused(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    refused(sidecar, upstream, framed(AMBIGUOUS[name], b"0\r\n\r\n"), 400)


def test_chunks_with_http_1_0_are_refused(sidecar: Sidecar, upstream: Upstream) -> None:
    request = framed(CHUNKED, b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    refused(sidecar, upstream, request, 400)


def headed(line: str) -> bytes:
    return get("/v1/models", line + "\r\n")


MALFORMED = {
    "bare LF": b"GET /v1/models HTTP/1.1\nHost: app\n\n",
    "bare CR": headed("A: b\rc"),
    "folded header": headed("A: b\r\n  folded"),
    "NUL in a value": headed("A: b\x00c"),
    "control in a value": headed("A: b\x01c"),
    "no colon": headed("Abc"),
    "space before the colon": headed("A : b"),
    "space in a name": headed("A b: c"),
    "empty name": headed(": b"),
    "obs-text in a name": headed("A\xe4: b"),
    "no Host": b"GET /v1/models HTTP/1.1\r\n\r\n",
    "two Hosts": headed("Host: other"),
    "Host is no host": b"GET /v1/models HTTP/1.1\r\nHost: a b/c\r\n\r\n",
    "empty Host": b"GET /v1/models HTTP/1.1\r\nHost: \r\n\r\n",
    "Host with a user": b"GET /v1/models HTTP/1.1\r\nHost: me@app\r\n\r\n",
    "unknown method": b"BREW /pot HTTP/1.1\r\nHost: app\r\n\r\n",
    "lower-case method": b"get /v1/models HTTP/1.1\r\nHost: app\r\n\r\n",
    "raw UTF-8 in the target": "GET /v1/\u00e4 HTTP/1.1\r\nHost: app\r\n\r\n".encode(),
    "control in the target": b"GET /v1/\x01 HTTP/1.1\r\nHost: app\r\n\r\n",
    "fragment": b"GET /v1/models#top HTTP/1.1\r\nHost: app\r\n\r\n",
    "no version": b"GET /v1/models\r\n\r\n",
    "HTTP/9.9": b"GET / HTTP/9.9\r\nHost: app\r\n\r\n",
    "http/1.1": b"GET / http/1.1\r\nHost: app\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(64),
    "Connection names a credential": headed("Connection: close, Authorization"),
    "Connection names the length": headed("Connection: Content-Length"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_requests_are_refused(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    refused(sidecar, upstream, MALFORMED[name], 400, 505)


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9"])
def test_another_version_is_refused_by_name(
    sidecar: Sidecar, upstream: Upstream, version: bytes
) -> None:
    refused(sidecar, upstream, b"GET / %b\r\nHost: app\r\n\r\n" % version, 505, 400)


def test_unknown_expectation_is_refused(sidecar: Sidecar, upstream: Upstream) -> None:
    refused(sidecar, upstream, headed("Expect: the-moon"), 417)


CHUNK_FAULTS = [
    b"0x4\r\nwxyz\r\n0\r\n\r\n", b"+4\r\nwxyz\r\n0\r\n\r\n", b"4\nwxyz\n0\n\n",
    b"4\r\nwxyz0\r\n\r\n",
    b"4\r\nwxyzzz\r\n0\r\n\r\n", b"\r\n4\r\nwxyz\r\n", b" 4\r\nwxyz\r\n0\r\n\r\n", b"-1\r\n\r\n",
    b"g\r\n\r\n", b"4_0\r\n", b"fffffffffffffffff\r\n", b"4\r\nwxyz\r\n0\n\n", b"4\x00\r\nwxyz\r\n",
]  # fmt: skip


@pytest.mark.parametrize("body", CHUNK_FAULTS)
def test_broken_chunks_never_end_cleanly_upstream(
    sidecar: Sidecar, upstream: Upstream, body: bytes
) -> None:
    with upstream.playing(plain):
        came = sidecar.raw(framed(CHUNKED, body))
        assert came.startswith(b"HTTP/1.1 400 ")
        assert len(REPLIES.findall(came)) == 1
        time.sleep(0.02)
        assert not any(call.request.whole for call in list(upstream.calls.queue))


FLOODS = {
    "one value over two reads": headed("A: " + "x" * (1 << 20)),
    "one value in one read": headed("A: " + "x" * 100_000),
    "many headers": get("/v1/models", "A: b\r\n" * 20_000),
    "over 256 headers": get("/v1/models", "A: b\r\n" * 300),
    "long target": get("/v1/" + "x" * 17_000),
    "very long target": get("/v1/" + "x" * (1 << 20)),
}


@pytest.mark.parametrize("name", FLOODS)
def test_heads_over_the_limits_are_refused(sidecar: Sidecar, upstream: Upstream, name: str) -> None:
    refused(sidecar, upstream, FLOODS[name], 431, 414)


BODY_FLOODS = {
    "long chunk extension": b"4;" + b"x" * (2 << 20),
    "endless trailer": b"0\r\nA: " + b"x" * (2 << 20),
    "many trailers": b"0\r\n" + b"A: b\r\n" * 300_000,
}


@pytest.mark.parametrize("name", BODY_FLOODS)
def test_floods_inside_a_body_are_refused(sidecar: Sidecar, name: str) -> None:
    before = sidecar.resident()
    came = sidecar.raw(framed(CHUNKED, BODY_FLOODS[name]))
    assert came.split(b" ")[1] in (b"400", b"431")
    assert sidecar.resident() - before < 8 << 20


@pytest.mark.parametrize(
    "request_",
    [headed("Cookie: " + "x" * 16_000), get("/v1/" + "x" * 8000), headed("A: " + "x" * 60_000)],
)
def test_large_heads_within_the_limits_pass(
    sidecar: Sidecar, upstream: Upstream, request_: bytes
) -> None:
    assert sidecar.exchange(request_).body == ANSWER
    sent = upstream.next_call().request
    assert sum(len(value) for _, value in sent.headers) + len(sent.start) > 7900


def test_headers_pass_in_order_and_to_the_byte(sidecar: Sidecar, upstream: Upstream) -> None:
    odd = 'X-Odd: 1\r\nX-EMPTY:\r\nx-odd: caf\xe9 100%\r\nX-Odd: "q\\"\r\nX-%s: %d\r\n'
    dropped = "Keep-Alive: 5\r\nTE: trailers\r\nProxy-Authorization: Basic eA==\r\nX-Mine: 1\r\n"
    request = get("/v1/models?a=%2e%2E;b[]=%00&c", odd + dropped + "Connection: x-mine\r\n")
    assert sidecar.exchange(request, "GET").status == 200
    call = upstream.next_call()
    assert call.target == b"/v1/models?a=%2e%2E;b[]=%00&c"
    assert call.request.headers == [
        (b"Host", b"127.0.0.1:%d" % upstream.port),
        (b"Authorization", b"Bearer %b-key" % CANARY.encode()),
        (b"Cookie", b"session=%b-cookie" % CANARY.encode()),
        (b"X-Odd", b"1"),
        (b"X-EMPTY", b""),
        (b"x-odd", b"caf\xe9 100%"),
        (b"X-Odd", b'"q\\"'),
        (b"X-%s", b"%d"),
    ]


def test_trailers_are_dropped(sidecar: Sidecar, upstream: Upstream) -> None:
    body = chunked(b"abc") + b"0\r\nAuthorization: Bearer evil\r\nX-Sum: 9\r\n\r\n"
    client = sidecar.connect()
    client.send(framed(CHUNKED, body))
    assert client.reply().status == 200
    request = upstream.next_call().request
    assert request.body == b"abc"
    assert b"Bearer evil" not in [value for _, value in request.headers]
    client.send(get("/v1/models"))
    assert client.reply("GET").status == 200
    assert b"Bearer evil" not in [value for _, value in upstream.next_call().request.headers]


@pytest.mark.parametrize("body", [b"", QUESTION, chunked(QUESTION) + b"0\r\n\r\n"])
def test_an_offer_to_upgrade_is_not_taken_up(
    sidecar: Sidecar, upstream: Upstream, body: bytes
) -> None:
    """Java's client offers h2c with every first request over plain HTTP."""
    offer = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMA\r\n"
    framing = "" if body in (b"", QUESTION) else CHUNKED
    client = sidecar.connect()
    for split in (5000, 50, len(offer) + 200, 400):
        request_ = post("/v1/x", body, offer, framing)
        client.send(request_[:split])
        time.sleep(0.01)
        client.send(request_[split:])
        reply = client.reply()
        assert (reply.status, reply.body) == (200, ANSWER)
        request = upstream.next_call().request
        assert request.body == (QUESTION if body else b"")
        names = {name.lower() for name, _ in request.headers}
        assert not names & {b"connection", b"upgrade", b"http2-settings"}


@pytest.mark.parametrize(
    "request_",
    [
        b"CONNECT api.openai.com:443 HTTP/1.1\r\nHost: api.openai.com:443\r\n\r\n\x16\x03",
        b"GET http://other.example/ HTTP/1.1\r\nHost: other.example\r\n\r\n",
        b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
    ],
)
def test_it_is_no_forward_proxy(sidecar: Sidecar, upstream: Upstream, request_: bytes) -> None:
    refused(sidecar, upstream, request_, 405)


def test_expect_continue_is_answered_at_once(sidecar: Sidecar, upstream: Upstream) -> None:
    client = sidecar.connect()
    framing = "Expect: 100-continue\r\nContent-Length: 4\r\n"
    client.send(framed(framing))
    assert client.until(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"body")
    assert client.reply().status == 200
    request = upstream.next_call().request
    assert (request.body, request.all(b"expect")) == (b"body", [])
    client.send(framed(framing, b"body"))  # and when the body does not wait
    assert client.reply().status in (100, 200)


def test_http_1_0(sidecar: Sidecar, upstream: Upstream) -> None:
    bare = sidecar.raw(b"GET /v1/models HTTP/1.0\r\n\r\n")
    head, _, body = bare.partition(b"\r\n\r\n")
    assert (head.split(b" ")[1], body) == (b"200", ANSWER)
    client = sidecar.connect()
    for _ in range(2):
        client.send(b"GET /v1/models HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\n\r\n")
        assert client.reply("GET").all(b"connection") == [b"keep-alive"]


def test_http_1_0_gets_streams_without_chunks(sidecar: Sidecar, upstream: Upstream) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with upstream.saying(head + chunked(b"one", b"two") + b"0\r\n\r\n"):
        came = sidecar.raw(b"GET /v1/models HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    head, _, body = came.partition(b"\r\n\r\n")
    assert body == b"onetwo"
    assert b"Transfer-Encoding" not in head


def named(call: Call) -> None:
    """Answer with the target and body; later calls are faster."""
    body = call.target + b" " + call.read_body()
    time.sleep(0.05 if call.target.endswith(b"0") else 0)
    call.send(sized(body))


def test_pipelined_requests_are_answered_in_order(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.playing(named):
        client = sidecar.connect()
        client.send(b"".join(get(f"/v1/{number}") for number in range(200)))
        for number in range(200):
            assert client.reply("GET").body == b"/v1/%d " % number


def test_a_chunked_upload_with_another_request_behind_it(
    sidecar: Sidecar, upstream: Upstream
) -> None:
    """What comes while the first is in flight must not end its body a second time."""
    with upstream.playing(named):
        client = sidecar.connect()
        client.send(framed(CHUNKED, chunked(b"abc") + b"0\r\n\r\n").replace(b"/v1/x", b"/v1/0"))
        time.sleep(0.02)
        client.send(get("/v1/1"))
        time.sleep(0.01)
        client.send(get("/v1/2"))
        assert [client.reply().body for _ in range(3)] == [b"/v1/0 abc", b"/v1/1 ", b"/v1/2 "]


def test_a_bad_request_behind_a_good_one(sidecar: Sidecar, upstream: Upstream) -> None:
    client = sidecar.connect()
    client.send(get("/v1/models") + b"rubbish\r\n\r\n")
    assert client.reply("GET").body == ANSWER
    assert client.reply("GET").status == 400
    assert client.rest() == b""


def test_half_closed_clients_are_answered(sidecar: Sidecar, upstream: Upstream) -> None:
    client = sidecar.connect()
    client.send(post("/v1/a") + get("/v1/b"))
    client.socket.shutdown(1)
    assert [client.reply().status, client.reply("GET").status] == [200, 200]
    assert client.rest() == b""


@pytest.mark.parametrize("part", [b"GET /v1/mod", post("/v1/x", QUESTION)[:-5]])
def test_a_request_that_ends_early_is_none(
    sidecar: Sidecar, upstream: Upstream, part: bytes
) -> None:
    client = sidecar.connect()
    client.send(part)
    client.socket.shutdown(1)
    assert client.rest() == b""
    assert not any(call.request.whole for call in list(upstream.calls.queue))


def test_slow_heads_and_bodies_are_cut(sidecar: Sidecar, upstream: Upstream) -> None:
    drips = [sidecar.connect() for _ in range(20)]
    for client in drips:
        client.send(b"GET /v1/models HTTP/1.1\r\nHo")
    body = sidecar.connect()
    body.send(framed("Content-Length: 10\r\n", b"12345"))
    began = time.monotonic()
    assert sidecar.exchange(get("/v1/models"), "GET").status == 200
    assert time.monotonic() - began < 0.5
    assert {client.reply().status for client in drips} == {408}
    assert body.reply().status == 408
    assert 1.4 < time.monotonic() - began < 3


def test_a_client_that_never_reads_is_let_go(sidecar: Sidecar, upstream: Upstream) -> None:
    with upstream.playing(lambda call: call.send(sized(bytes(32 << 20)))):
        client = sidecar.connect()
        client.send(get("/v1/files/a/content"))
        wait_for(lambda: sidecar.health()["clients"] > 1, 2)
        wait_for(lambda: sidecar.health()["clients"] == 1, 6)


def test_connections_are_kept_on_both_sides(sidecar: Sidecar, upstream: Upstream) -> None:
    client = sidecar.connect()
    client.send(get("/v1/models"))
    client.reply("GET")
    before = upstream.connections
    for number in range(20):
        client.send(post(chat(f"kept-{number}")))
        assert client.reply().body == ANSWER
    assert upstream.connections == before
    assert sidecar.row("kept-19")["outcome"] == "ok"
