"""Heads: what is refused, what is dropped, how a body is framed, what is written in their place."""

from __future__ import annotations

import pytest

from proxy.answers import error_answer
from proxy.heads import (
    CHUNKED,
    UNTIL_CLOSE,
    Pairs,
    Refused,
    RequestHead,
    RequestHeads,
    ResponseHead,
    chunk,
    read_response,
    response_of,
)
from proxy.routes import Route

HOST = (b"Host", b"app")


def request(
    *pairs: tuple[bytes, bytes],
    version: str = "1.1",
    target: bytes = b"/v1/x",
    heads: RequestHeads | None = None,
    prefix: str = "",
) -> RequestHead:
    heads = heads or RequestHeads(Route.to("https://api.openai.com" + prefix))
    names = tuple(name for name, _ in pairs)
    return heads.read(b"POST", target, version, names, [value for _, value in pairs])


def response(
    *pairs: tuple[bytes, bytes], status: int = 200, method: bytes = b"GET", version: str = "1.1"
) -> ResponseHead:
    names = tuple(name for name, _ in pairs)
    return read_response(status, b"OK", version, names, [value for _, value in pairs], method)


REFUSED: list[tuple[int, str, Pairs]] = [
    (400, "no Host", []),
    (400, "more than one Host", [HOST, (b"host", b"app")]),
    (400, "not a host", [(b"Host", b"a b")]),
    (400, "not a host", [(b"Host", b"")]),
    (400, "both", [HOST, (b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")]),
    (400, "Content-Length", [HOST, (b"Content-Length", b"1"), (b"content-length", b"1")]),
    (400, "Content-Length", [HOST, (b"Content-Length", b"+1")]),
    (400, "Content-Length", [HOST, (b"Content-Length", b"1" * 19)]),
    (400, "other than 'chunked'", [HOST, (b"Transfer-Encoding", b"gzip, chunked")]),
    (400, "other than 'chunked'", [HOST, (b"Transfer-Encoding", b"")]),
    (400, "other than 'chunked'", [HOST, *[(b"Transfer-Encoding", b"chunked")] * 2]),
    (417, "100-continue", [HOST, (b"Expect", b"200-ok")]),
    *[
        (400, "must not name", [HOST, (b"Connection", b"close, " + name)])
        for name in (b"Authorization", b"host", b"COOKIE", b"Content-Type", b"content-encoding")
    ],
    (400, "must not name", [HOST, (b"Connection", b"close"), (b"Connection", b"close, host")]),
]


@pytest.mark.parametrize(("status", "says", "pairs"), REFUSED)
def test_requests_that_are_refused(status: int, says: str, pairs: Pairs) -> None:
    with pytest.raises(Refused) as refused:
        request(*pairs)
    assert refused.value.status == status
    assert says in refused.value.message


@pytest.mark.parametrize("version", ["2.0", "0.9", "1.2", "3.0"])
def test_other_versions_are_refused_by_name(version: str) -> None:
    with pytest.raises(Refused) as refused:
        request(HOST, version=version)
    assert refused.value.status == 505


def test_fragments_are_refused() -> None:
    with pytest.raises(Refused, match="fragment"):
        request(HOST, target=b"/v1/x#top")


def test_http_1_0_needs_no_host_and_takes_no_chunks() -> None:
    assert not request(version="1.0").http11
    with pytest.raises(Refused, match=r"HTTP/1\.0"):
        request(HOST, (b"Transfer-Encoding", b"chunked"), version="1.0")


@pytest.mark.parametrize(
    ("pairs", "length"),
    [
        ([], 0),
        ([(b"Content-Length", b"0")], 0),
        ([(b"Content-Length", b"007")], 7),
        ([(b"Transfer-Encoding", b"Chunked")], CHUNKED),
    ],
)
def test_a_request_body_has_one_length(pairs: Pairs, length: int) -> None:
    assert request(HOST, *pairs).length == length


def test_hop_by_hop_and_named_headers_are_dropped_and_the_rest_is_kept_as_it_came() -> None:
    head = request(
        (b"hOsT", b"app:80"),
        (b"X-One", b"1"),
        (b"Connection", b"x-mine"),
        (b"Keep-Alive", b"5"),
        (b"TE", b"trailers"),
        (b"Trailer", b"x"),
        (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"x"),
        (b"Proxy-Authorization", b"x"),
        (b"Expect", b"100-continue"),
        (b"X-Mine", b"2"),
        (b"x-one", b"caf\xe9"),
        (b"X-Empty", b""),
        (b"X-%s%%", b"100% %d %b"),
        (b"Transfer-Encoding", b"chunked"),
        prefix="/base",
    )
    assert head.wire(0) == (
        b"POST /base/v1/x HTTP/1.1\r\nhOsT: api.openai.com\r\nX-One: 1\r\nx-one: caf\xe9\r\n"
        b"X-Empty: \r\nX-%s%%: 100% %d %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    )


def test_what_one_connection_header_names_is_kept_for_the_next_request() -> None:
    heads = RequestHeads(Route.to("https://h"))
    pairs = [HOST, (b"Connection", b"x-a"), (b"X-A", b"1"), (b"X-B", b"2")]
    assert b"X-A" not in request(*pairs, heads=heads).wire(0)
    pairs[1] = (b"Connection", b"x-b")
    assert b"X-A: 1\r\n\r\n" in request(*pairs, heads=heads).wire(0)
    pairs[1] = (b"Connection", b"close")
    assert b"X-A: 1\r\nX-B: 2\r\n\r\n" in request(*pairs, heads=heads).wire(0)


def test_a_request_without_host_gets_one() -> None:
    assert request(version="1.0").wire(0) == b"POST /v1/x HTTP/1.1\r\nHost: api.openai.com\r\n\r\n"


def test_credentials_and_path() -> None:
    head = request(
        HOST, (b"openai-project", b"p"), (b"Authorization", b"k"), target=b"/v1/x?after=1"
    )
    assert sorted(head.credentials) == [b"k", b"p"]
    assert head.path == b"/v1/x"
    assert request(HOST).credentials == ()


LENGTHS: list[tuple[int, bytes, Pairs, int]] = [
    (200, b"GET", [], UNTIL_CLOSE),
    (200, b"GET", [(b"Content-Length", b"5")], 5),
    (200, b"GET", [(b"Content-Length", b"5"), (b"content-length", b"5")], 5),
    (200, b"GET", [(b"Transfer-Encoding", b"chunked")], CHUNKED),
    (200, b"HEAD", [(b"Content-Length", b"5")], 0),
    (200, b"HEAD", [(b"Transfer-Encoding", b"chunked")], 0),
    (204, b"GET", [(b"Content-Length", b"5")], 0),
    (304, b"GET", [(b"Content-Length", b"5")], 0),
    (304, b"GET", [], 0),
]


@pytest.mark.parametrize(("status", "method", "pairs", "length"), LENGTHS)
def test_a_reply_body_has_one_length(status: int, method: bytes, pairs: Pairs, length: int) -> None:
    assert response(*pairs, status=status, method=method).length == length


@pytest.mark.parametrize(
    "pairs",
    [
        [(b"Content-Length", b"5"), (b"Content-Length", b"6")],
        [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
        [(b"Content-Length", b"-5")],
        [(b"Content-Length", b"5, 5")],
        [(b"Transfer-Encoding", b"gzip")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
    ],
)
def test_replies_that_are_refused(pairs: Pairs) -> None:
    with pytest.raises(Refused) as refused:
        response(*pairs)
    assert (refused.value.status, refused.value.code) == (502, "bad_upstream_reply")


def test_a_reply_of_another_version_is_refused() -> None:
    with pytest.raises(Refused):
        response(version="2.0")


FRAMED = [
    ("sized", True, True, b"Content-Length: 3\r\n\r\n"),
    ("sized", True, False, b"Content-Length: 3\r\nConnection: close\r\n\r\n"),
    ("sized", False, True, b"Content-Length: 3\r\nConnection: keep-alive\r\n\r\n"),
    ("chunked", True, True, b"Transfer-Encoding: chunked\r\n\r\n"),
    ("chunked", False, False, b"Connection: close\r\n\r\n"),
    ("until close", True, True, b"Transfer-Encoding: chunked\r\n\r\n"),
    ("until close", False, False, b"Connection: close\r\n\r\n"),
]


@pytest.mark.parametrize(("framing", "http11", "keep_alive", "lines"), FRAMED)
def test_a_reply_is_framed_for_its_client(
    framing: str, http11: bool, keep_alive: bool, lines: bytes
) -> None:
    pairs = {
        "sized": [(b"Content-Length", b"3")],
        "chunked": [(b"Transfer-Encoding", b"chunked")],
        "until close": [],
    }[framing]
    head = response(*pairs, (b"Connection", b"close"))
    assert head.wire(http11, keep_alive) == b"HTTP/1.1 200 OK\r\n" + lines


def test_a_reply_keeps_repeats_order_and_case() -> None:
    pairs = [
        (b"Set-Cookie", b"a"),
        (b"X-%", b"%b"),
        (b"set-cookie", b"b"),
        (b"Content-Length", b"0"),
    ]
    assert response(*pairs).wire(True, True) == (
        b"HTTP/1.1 200 OK\r\nSet-Cookie: a\r\nX-%: %b\r\nset-cookie: b\r\nContent-Length: 0\r\n\r\n"
    )


def test_a_reply_can_not_strip_its_own_length() -> None:
    head = response(
        (b"Connection", b"content-length, x-a"), (b"Content-Length", b"3"), (b"X-A", b"1")
    )
    assert head.wire(True, True) == b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n"


def test_chunks() -> None:
    assert chunk([b"abc"]) == b"3\r\nabc\r\n"
    assert chunk([b"a" * 9, b"", b"b" * 9]) == b"12\r\n" + b"a" * 9 + b"b" * 9 + b"\r\n"


def test_errors_of_our_own_have_the_shape_that_sdks_know() -> None:
    head, body = error_answer(Refused(405, "forward_off", 'say "no"'))
    assert body == (
        b'{"error":{"message":"say \\"no\\"","type":"understudy_error","param":null,'
        b'"code":"forward_off"}}'
    )
    assert dict(head.pairs())[b"x-understudy-error"] == b"forward_off"
    assert dict(head.pairs())[b"Content-Length"] == b"%d" % len(body)
    assert b"Allow" in dict(head.pairs())
    assert response_of(200, b"OK", [], 0).wire(True, True) == b"HTTP/1.1 200 OK\r\n\r\n"
