"""Requests that are ambiguous, malformed, or merely unusual: refused whole, or passed to the byte.

Whatever a refused request looks like, the upstream sees nothing of it; and what is refused cold is
refused on a connection and behind a head that are known.
"""

from __future__ import annotations

import socket

import pytest

from policies.forward import Target
from proxy.heads import RequestHeads
from proxy.known import KnownReplies, KnownRequests
from proxy.reply_reader import ReplyReader
from proxy.request_reader import RequestReader
from proxy.routes import Route
from tests.hazards.cases import GOOD, REQUEST_WAYS, SEEN, refused, send_in_way, tried
from tests.hazards.harness import Sidecar
from tests.hazards.peers import (
    ANSWER,
    CANARY,
    Upstream,
    chunked,
    get,
    post,
    sized,
)

CHUNKED = "Transfer-Encoding: chunked\r\n"
HOST = b"Host: app\r\n\r\n"


def framed(lines: str, body: bytes = b"") -> bytes:
    return post("/v1/x", body, framing=lines)


def headed(line: str) -> bytes:
    return get("/v1/x", line + "\r\n")


class Shared:
    def __init__(self) -> None:
        self.known = KnownRequests()
        self.read = RequestHeads(Route.to("http://app"))

    def asked(self, target: bytes) -> bytes:
        return target

    def heads(self, target: bytes) -> RequestHeads:
        return self.read

    def connect(self, target: bytes) -> Target:
        raise AssertionError("no case asks for a tunnel")

    def note_trailers(self, count: int) -> None: ...


def test_what_these_tests_repeat_is_known_then() -> None:
    """Or the warm way would be a second cold one."""
    shared = Shared()
    RequestReader(shared).feed(GOOD)
    assert shared.known.find(GOOD) is not None
    replies = KnownReplies()
    reader = ReplyReader(replies)
    for _ in range(SEEN - 1):
        reader.begin(b"POST", b"")
        reader.feed(sized(ANSWER))
        reader.reset()
    assert replies.find(sized(ANSWER)) is not None


# -- lengths and codings

LENGTHS = (
    "+5", "0x5", "5_0", "", "-5", "5.0", "5 5", "9" * 30, "9" * 19, "0" * 18 + "5", "\xb2", "five",
    "5;", "5,", "5, 5", "5\x00", "\x0b5", "1e1", "'5'", "\xa05",
)  # fmt: skip
CODINGS = (
    "xchunked", "gzip, chunked", "chunked, chunked", "identity", "\x0bchunked", "chunked\x00",
    '"chunked"', "", "chunked;q=1", "chunked, gzip", "chunked,", ", chunked", "chunked chunked",
    "chunke", "chunked\x0c", "identity, chunked",
)  # fmt: skip
AMBIGUOUS = {
    "length and chunks": "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
    "chunks and length": "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    "length and no coding": "Content-Length: 5\r\nTransfer-Encoding: identity\r\n",
    "length twice": "Content-Length: 5\r\nContent-Length: 5\r\n",
    "two lengths": "Content-Length: 5\r\nContent-Length: 6\r\n",
    "length twice, cases": "Content-Length: 5\r\ncontent-length: 5\r\n",
    "length far from its double": "Content-Length: 5\r\nA: b\r\nContent-Length: 50\r\n",
    **{f"length {value!r}": f"Content-Length: {value}\r\n" for value in LENGTHS},
    **{f"coding {value!r}": f"Transfer-Encoding: {value}\r\n" for value in CODINGS},
    "coding twice": "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
    "codings mixed": "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked\r\n",
}


@tried(AMBIGUOUS)
def test_ambiguous_framing_is_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    body = b"hello" if "ength" in name else b"0\r\n\r\n"
    refused(sidecar, upstream, framed(AMBIGUOUS[name], body), 400, way=way)


@pytest.mark.parametrize("way", REQUEST_WAYS)
def test_chunks_with_http_1_0_are_refused(sidecar: Sidecar, upstream: Upstream, way: str) -> None:
    request = framed(CHUNKED, b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0", 1)
    refused(sidecar, upstream, request, 400, way=way)


SAME_LENGTH = ("5", "05", "0" * 14 + "5", "0" * 15 + "5", "0" * 16 + "5")


@pytest.mark.parametrize("spelled", SAME_LENGTH)
@pytest.mark.parametrize("way", REQUEST_WAYS)
def test_a_length_with_zeros_before_it_is_that_length(
    sidecar: Sidecar, upstream: Upstream, way: str, spelled: str
) -> None:
    """Nothing of the next request is taken for the body, and the length goes on in one spelling."""
    last = get("/v1/last", "Connection: close\r\n")
    case = framed(f"Content-Length: {spelled}\r\n", b"hello") + last
    heard = send_in_way(sidecar, upstream, way, GOOD, case)
    assert heard.statuses == [200, 200]
    first, second = (call.request for call in heard.calls)
    assert (first.body, first.all(b"content-length")) == (b"hello", [b"5"])
    assert second.start == b"GET /v1/last HTTP/1.1"


@pytest.mark.parametrize("way", REQUEST_WAYS)
def test_white_space_behind_a_length_never_moves_the_bodys_end(
    sidecar: Sidecar, upstream: Upstream, way: str
) -> None:
    last = get("/v1/last", "Connection: close\r\n")
    for space in (" ", "\t", "  \t "):
        case = framed(f"Content-Length: 5{space}\r\n", b"hello") + last
        heard = send_in_way(sidecar, upstream, way, GOOD, case)
        bodies = [call.request.body for call in heard.calls]
        assert (heard.statuses, bodies) in (([400], []), ([200, 200], [b"hello", b""]))


# -- syntax

MALFORMED = {
    "bare LF": b"POST /v1/x HTTP/1.1\nHost: app\n\n",
    "bare LF behind a header": GOOD.replace(b"Host: app\r\n", b"Host: app\n"),
    "bare LF behind the request line": GOOD.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\n"),
    "bare LF behind the length": GOOD.replace(b"Length: 5\r\n", b"Length: 5\n"),
    "bare LF before the body": GOOD.replace(b"\r\n\r\n", b"\r\n\n"),
    "bare CR": headed("A: b\rc"),
    "bare CR behind a header": GOOD.replace(b"Host: app\r\n", b"Host: app\r"),
    "bare CR behind the length": GOOD.replace(b"Length: 5\r\n", b"Length: 5\r\r\n"),
    "folded header": headed("A: b\r\n  folded"),
    "folded header, by a tab": headed("A: b\r\n\tfolded"),
    "folded length": GOOD.replace(b"Length: 5", b"Length:\r\n 5"),
    "space before the first header": GOOD.replace(b"Host:", b" Host:", 1),
    "NUL in a value": headed("A: b\x00c"),
    "NUL in a known value": GOOD.replace(b"application/json", b"application/\x00json"),
    **{f"control {code:#x} in a value": headed(f"A: b{chr(code)}c")
       for code in (*range(1, 9), *range(11, 13), *range(14, 32), 127)},
    "control in a known value": GOOD.replace(b"application/json", b"application/\x01json"),
    "NUL in a name": headed("A\x00: b"),
    "no colon": headed("Abc"),
    "space before the colon": headed("A : b"),
    "space before the length's colon": GOOD.replace(b"Length:", b"Length :"),
    "tab before the colon": headed("A\t: b"),
    "space in a name": headed("A b: c"),
    "empty name": headed(": b"),
    "obs-text in a name": headed("A\xe4: b"),
    **{f"{sign} in a name": headed(f"A{sign}: b") for sign in '"(),/;<=>?@[]{}\\'},
    "unknown method": GOOD.replace(b"POST", b"BREW", 1),
    "lower-case method": GOOD.replace(b"POST", b"post", 1),
    "longer method": GOOD.replace(b"POST", b"POSTS", 1),
    "tab behind the method": GOOD.replace(b"POST ", b"POST\t", 1),
    "two spaces behind the method": GOOD.replace(b"POST ", b"POST  ", 1),
    "two spaces before the version": GOOD.replace(b" HTTP", b"  HTTP", 1),
    "tab before the version": GOOD.replace(b" HTTP", b"\tHTTP", 1),
    "space behind the version": GOOD.replace(b"HTTP/1.1\r\n", b"HTTP/1.1 \r\n", 1),
    "space before the method": b" " + GOOD,
    "space in the target": GOOD.replace(b"/v1/x", b"/v1/x y", 1),
    "no target": b"POST  HTTP/1.1\r\n" + HOST,
    "another protocol": b"GET / RTSP/1.0\r\n" + HOST,
}  # fmt: skip


@tried(MALFORMED)
def test_malformed_requests_are_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    refused(sidecar, upstream, MALFORMED[name], 400, way=way)


TWO_SPACES = (b"POST  /v1/x HTTP/1.1\r\n", b"POST /v1/x  HTTP/1.1\r\n")


@pytest.mark.parametrize("line", TWO_SPACES)
def test_two_spaces_are_refused_wherever_the_line_is_cut(
    sidecar: Sidecar, upstream: Upstream, line: bytes
) -> None:
    for cut in range(1, len(line)):
        client = sidecar.connect()
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.send(line[:cut])
        client.send(line[cut:] + b"Content-Length: 0\r\n" + HOST)
        assert client.reply().status == 400
        assert client.rest() == b""
        client.close()
    assert upstream.calls.empty()


HOSTS = {
    "no Host": b"POST /v1/x HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "two Hosts": headed("Host: other"),
    "the same Host twice": headed("Host: app"),
    "two Hosts, cases": headed("hOST: app"),
    "two Hosts in HTTP/1.0": headed("Host: other").replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    **{f"Host {value!r}": GOOD.replace(b"Host: app", b"Host: " + value.encode("latin-1"))
       for value in ("a b", "a b/c", "", "me@app", "app/", "app?", "app#", "app:80:80", "app:x",
                     "[::1", "::1]", "a\\b", "http://app", "app:-1", "caf\xe9", "<app>", ":80")},
}  # fmt: skip


@tried(HOSTS)
def test_a_missing_repeated_or_invalid_host_is_refused(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    refused(sidecar, upstream, HOSTS[name], 400, way=way)


@pytest.mark.parametrize("way", REQUEST_WAYS)
@pytest.mark.parametrize("version", ["0.9", "2.0", "3.0", "9.9", "1.2"])
def test_another_version_is_refused_by_name(
    sidecar: Sidecar, upstream: Upstream, version: str, way: str
) -> None:
    case = GOOD.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1)
    refused(sidecar, upstream, case, 505, way=way)


NO_VERSION = {
    "no version": b"GET /v1/models\r\n\r\n",
    "http/1.1": GOOD.replace(b"HTTP/1.1", b"http/1.1", 1),
    "HTTP/1": GOOD.replace(b"HTTP/1.1", b"HTTP/1", 1),
    "HTTP/1.10": GOOD.replace(b"HTTP/1.1", b"HTTP/1.10", 1),
    "HTTP/01.1": GOOD.replace(b"HTTP/1.1", b"HTTP/01.1", 1),
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9),
    "TLS": bytes.fromhex("1603010200010001fc0303") + bytes(64),
    "rubbish": b"\x00\xff\xfe rubbish \r\n\r\n",
}


@tried(NO_VERSION)
def test_what_is_no_version_of_http_gets_one_clean_refusal(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    refused(sidecar, upstream, NO_VERSION[name], 400, 505, way=way)


def test_a_line_of_http_0_9_is_not_answered_as_one(sidecar: Sidecar, upstream: Upstream) -> None:
    """Such a client would take all that comes for the body: only a refusal may come."""
    came = sidecar.raw(b"GET /v1/x\r\n")
    assert came.startswith((b"HTTP/1.1 408 ", b"HTTP/1.1 505 ", b"HTTP/1.1 400 "))
    assert upstream.calls.empty()


# -- a known head and its neighbours: what is passed is passed as it came

OTHERS = {
    "one more header": GOOD.replace(b"\r\n\r\n", b"\r\nX-More: 1\r\n\r\n", 1),
    "one header fewer": GOOD.replace(b"Content-Type: application/json\r\n", b"", 1),
    "another case of a name": GOOD.replace(b"Content-Type", b"content-Type", 1),
    "another case of the length": GOOD.replace(b"Content-Length", b"CONTENT-LENGTH", 1),
    "another byte in a value": GOOD.replace(b"/json", b"/jsoN", 1),
    "another key": GOOD.replace(b"-key\r\n", b"-kez\r\n", 1),
    "another order": GOOD.replace(b"Host: app\r\n", b"", 1).replace(
        b"Content-Length", b"Host: app\r\nContent-Length", 1
    ),
    "a longer target": GOOD.replace(b"/v1/x", b"/v1/x?", 1),
    "another method": GOOD.replace(b"POST", b"PUT", 1),
    "no space behind a colon": GOOD.replace(b"Type: ", b"Type:", 1),
    "more space around a value": GOOD.replace(b" application/json\r\n", b" \t a/b \t\r\n", 1),
    "no length": GOOD.replace(b"Content-Length: 5\r\n", b"", 1).removesuffix(b"hello"),
    "length 0": GOOD.replace(b"Length: 5", b"Length: 0", 1).removesuffix(b"hello"),
    "chunks": framed(CHUNKED, chunked(b"hel", b"lo") + b"0\r\n\r\n"),
    "obs-text": GOOD.replace(b"/json", b"/j\xe9son", 1),
    "an empty value": GOOD.replace(b" application/json", b"", 1),
    "an empty line before it": b"\r\n" + GOOD,
}  # fmt: skip


def parsed(request: bytes, port: int) -> tuple[bytes, list[tuple[bytes, bytes]], bytes]:
    """What the upstream must get: by the test's own reading of the request."""
    head, _, body = request.removeprefix(b"\r\n").partition(b"\r\n\r\n")
    start, *lines = head.split(b"\r\n")
    pairs = [line.partition(b":") for line in lines]
    values = {b"host": b"127.0.0.1:%d" % port}
    headers = [(name, values.get(name.lower(), value.strip())) for name, _, value in pairs]
    return start, headers, b"hello" if body.endswith(b"0\r\n\r\n") else body


@tried(OTHERS)
def test_the_neighbours_of_a_known_head_pass_as_they_came(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    end = get("/v1/end", "Connection: close\r\n")
    heard = send_in_way(sidecar, upstream, way, GOOD, OTHERS[name] + end)
    assert heard.statuses == [200, 200]
    got = heard.calls[0].request
    start, headers, body = parsed(OTHERS[name], upstream.port)
    assert got.start.split(b" ")[0] == start.split(b" ")[0]
    assert got.start.split(b" ")[1].startswith(b"/v1/x")
    assert (got.headers, got.body, got.whole) == (headers, body, True)
    assert heard.calls[1].request.start == b"GET /v1/end HTTP/1.1"


CLOSING = {
    name: GOOD.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\n" + lines, 1)
    for name, lines in {
        "close": b"Connection: close\r\n",
        "Close": b"Connection: Close\r\n",
        "kept and closed": b"Connection: keep-alive\r\nConnection: close\r\n",
        "in a list": b"Connection: x-a, close\r\n",
        "of the proxy": b"Proxy-Connection: close\r\n",
    }.items()
} | {"HTTP/1.0": GOOD.replace(b"HTTP/1.1", b"HTTP/1.0", 1)}


@tried(CLOSING)
def test_a_request_that_ends_the_connection_ends_it_however_known(
    sidecar: Sidecar, upstream: Upstream, way: str, name: str
) -> None:
    heard = send_in_way(sidecar, upstream, way, GOOD, CLOSING[name])
    for _ in range(SEEN):  # it may have become known itself
        assert heard.statuses == [200]
        assert b"Connection: close\r\n" in heard.data
        assert [call.request.body for call in heard.calls] == [b"hello"]
        heard = send_in_way(sidecar, upstream, "as it is", GOOD, CLOSING[name])


# -- in pieces, in time


def test_a_known_head_is_read_wherever_it_is_cut(sidecar: Sidecar, upstream: Upstream) -> None:
    client = sidecar.connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for cut in range(1, len(GOOD)):
        client.send(GOOD[:cut])
        client.send(GOOD[cut:])
        assert client.reply().body == ANSWER
        request = upstream.next_call().request
        assert (request.body, len(request.headers)) == (b"hello", 5)


def test_headers_pass_in_order_and_to_the_byte(sidecar: Sidecar, upstream: Upstream) -> None:
    odd = 'X-Odd: 1\r\nX-EMPTY:\r\nx-odd: caf\xe9 100%\r\nX-Odd: "q\\"\r\nX-%s: %d\r\n'
    client = sidecar.connect()
    for _ in range(SEEN):
        client.send(get("/v1/models?a=%2e%2E;b[]=%00&c", odd))
        assert client.reply("GET").status == 200
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
