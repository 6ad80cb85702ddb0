"""Heads, sans-IO: what a message's head means, and the head that goes on in its place.

Strict in, canonical out (RFC 9112 section 6, RFC 9110 section 7.6.1): a head is parsed once,
ambiguity is refused, and the head that is sent on is written from the parsed parts. Names keep
their case, values their bytes, headers their order and repeats. llhttp has refused bad characters
and conflicting lengths by now; what it lets pass and we must not is checked here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

Headers = list[tuple[bytes, bytes]]

CHUNKED: Final = -1  # body length: in chunks
UNTIL_CLOSE: Final = -2  # body length: all until the connection ends (responses only)

MOST_HEAD_BYTES: Final = 64 * 1024
MOST_HEADERS: Final = 256
MOST_TARGET: Final = 16 * 1024

_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
     b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"http2-settings")
)  # fmt: skip
_CREDENTIALS: Final = frozenset(
    (b"authorization", b"api-key", b"x-api-key", b"openai-organization", b"openai-project")
)
# A Connection header that names one of these would strip it for us, not for the upstream.
_NEVER_HOP: Final = re.compile(rb"authorization|host|cookie|content-.*")
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%-]+(:\d*)?|\[[0-9A-Fa-f:.]+\](:\d*)?")
_LENGTH: Final = re.compile(rb"\d{1,18}")


class Refused(Exception):
    """A message we don't pass on. `status` 400 and up for the client; `code` for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def _bad(message: str) -> Refused:
    return Refused(400, "bad_request", message)


@dataclass(slots=True)
class RequestHead:
    """A request's head, and what the headers said.

    `length`: bytes of the body, 0 for none, or CHUNKED. `dropped`: names that end here, lower case.
    """

    method: bytes
    target: bytes
    http11: bool
    headers: Headers
    length: int = 0
    host: bytes | None = None
    content_type: bytes = b""
    content_encoding: bytes = b""
    expects_continue: bool = False
    upgrade: bytes = b""
    retry_count: bytes = b""
    session: bytes = b""
    credentials: tuple[bytes, ...] = ()
    dropped: frozenset[bytes] = _HOP

    @property
    def path(self) -> bytes:
        mark = self.target.find(b"?")
        return self.target if mark < 0 else self.target[:mark]


@dataclass(slots=True)
class _Seen:
    """Headers of a request that decide something, gathered in one pass."""

    lengths: list[bytes] = field(default_factory=list)
    encodings: list[bytes] = field(default_factory=list)
    hosts: list[bytes] = field(default_factory=list)
    connection: list[bytes] = field(default_factory=list)
    credentials: list[bytes] = field(default_factory=list)


_FIELDS: Final = {
    b"content-type": "content_type",
    b"content-encoding": "content_encoding",
    b"upgrade": "upgrade",
    b"x-stainless-retry-count": "retry_count",
    b"x-session-id": "session",
}
_LISTS: Final = {
    b"content-length": "lengths",
    b"transfer-encoding": "encodings",
    b"host": "hosts",
    b"connection": "connection",
} | dict.fromkeys(_CREDENTIALS, "credentials")
_INTERESTING: Final = frozenset(_FIELDS) | frozenset(_LISTS) | {b"expect"}


def read_request(method: bytes, target: bytes, version: str, headers: Headers) -> RequestHead:
    """The request's head, checked. Raises Refused."""
    if version not in ("1.1", "1.0"):
        raise Refused(505, "http_version", f"HTTP/{version} is not spoken here; use HTTP/1.1")
    head = RequestHead(method, target, version == "1.1", headers)
    seen = _Seen()
    for name, value in headers:
        lower = name.lower()
        if lower in _INTERESTING:
            _note(head, seen, lower, value)
    head.credentials = tuple(seen.credentials)
    head.host = _only_host(seen.hosts, head.http11)
    head.length = _body_length(seen, head.http11)
    if seen.connection:
        head.dropped = _hop_names(seen.connection)
    return head


def _note(head: RequestHead, seen: _Seen, lower: bytes, value: bytes) -> None:
    if lower in _LISTS:
        getattr(seen, _LISTS[lower]).append(value)
    elif lower == b"expect":
        if value.lower() != b"100-continue":
            raise Refused(417, "expectation_failed", "only 'Expect: 100-continue' is known")
        head.expects_continue = True
    else:
        setattr(head, _FIELDS[lower], value)


def _only_host(hosts: list[bytes], http11: bool) -> bytes | None:
    if len(hosts) > 1:
        raise _bad("more than one Host header")
    if not hosts:
        if http11:
            raise _bad("no Host header")
        return None
    if not _HOST.fullmatch(hosts[0]):
        raise _bad("the Host header is not a host")
    return hosts[0]


def _body_length(seen: _Seen, http11: bool) -> int:
    if seen.encodings:
        if seen.lengths:
            raise _bad("both Content-Length and Transfer-Encoding")
        if not http11:
            raise _bad("Transfer-Encoding on HTTP/1.0")
        if len(seen.encodings) > 1 or seen.encodings[0].lower() != b"chunked":
            raise _bad("a Transfer-Encoding other than 'chunked'")
        return CHUNKED
    if not seen.lengths:
        return 0
    if len(seen.lengths) > 1 or not _LENGTH.fullmatch(seen.lengths[0]):
        raise _bad("Content-Length is not one whole number")
    return int(seen.lengths[0])


def _hop_names(values: list[bytes]) -> frozenset[bytes]:
    named = {part.strip().lower() for value in values for part in value.split(b",")}
    for name in named:
        if _NEVER_HOP.fullmatch(name):
            raise _bad(f"Connection must not name {name.decode('latin-1')}")
    return _HOP | named


def request_bytes(head: RequestHead, origin_host: bytes, prefix: bytes) -> bytes:
    """The head for the upstream: its own Host, no hop-by-hop headers, framing written by us."""
    parts = [head.method, b" ", prefix, head.target, b" HTTP/1.1\r\n"]
    if head.host is None:
        parts += (b"Host: ", origin_host, b"\r\n")
    dropped = head.dropped
    for name, value in head.headers:
        lower = name.lower()
        if lower in dropped or lower == b"expect":
            continue
        if lower == b"host":
            value = origin_host
        parts += (name, b": ", value, b"\r\n")
    if head.length == CHUNKED:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


@dataclass(slots=True)
class ResponseHead:
    """A response's head. `length`: bytes of body, CHUNKED or UNTIL_CLOSE; 0 for none."""

    status: int
    reason: bytes
    headers: Headers
    length: int


def read_response(
    status: int, reason: bytes, version: str, headers: Headers, method: bytes
) -> ResponseHead:
    """The response's head, checked. Raises Refused (502): the upstream is broken, not the client.

    RFC 9112 section 6.3: no body for HEAD, 1xx, 204 and 304, whatever the headers say.
    """
    if version not in ("1.1", "1.0"):
        raise Refused(502, "bad_upstream_reply", "the upstream spoke an unknown HTTP version")
    lengths = []
    encodings = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-length":
            lengths.append(value)
        elif lower == b"transfer-encoding":
            encodings.append(value.lower())
    if encodings and (lengths or encodings != [b"chunked"]):
        raise Refused(502, "bad_upstream_reply", "the upstream's reply has ambiguous framing")
    if any(not _LENGTH.fullmatch(value) for value in lengths) or len(set(lengths)) > 1:
        raise Refused(502, "bad_upstream_reply", "the upstream's reply has no clear length")
    if method == b"HEAD" or status in (204, 304) or status < 200:
        return ResponseHead(status, reason, headers, 0)
    if encodings:
        return ResponseHead(status, reason, headers, CHUNKED)
    return ResponseHead(status, reason, headers, int(lengths[0]) if lengths else UNTIL_CLOSE)


def response_bytes(
    head: ResponseHead, *, http11: bool, keep_alive: bool, extra: Headers | None = None
) -> bytes:
    """The head for the client. Content-Length stays as it came; a body without one is chunked for
    HTTP/1.1 and ends with the connection for HTTP/1.0."""
    parts = [b"HTTP/1.1 %d %b\r\n" % (head.status, head.reason)]
    dropped = _HOP
    named = [value for name, value in head.headers if name.lower() == b"connection"]
    if named:
        dropped = _HOP | {p.strip().lower() for v in named for p in v.split(b",")} - _KEPT
    for name, value in head.headers:
        if name.lower() not in dropped:
            parts += (name, b": ", value, b"\r\n")
    for name, value in extra or ():
        parts += (name, b": ", value, b"\r\n")
    if head.length < 0 and http11:
        parts.append(b"Transfer-Encoding: chunked\r\n")
    if not keep_alive:
        parts.append(b"Connection: close\r\n")
    elif not http11:
        parts.append(b"Connection: keep-alive\r\n")
    parts.append(b"\r\n")
    return b"".join(parts)


# A reply that lists these in Connection would lose them on the way; they are end-to-end.
_KEPT: Final = frozenset((b"content-length", b"content-type", b"content-encoding"))


def chunk(pieces: list[bytes]) -> bytes:
    """One chunk that holds all the pieces."""
    size = sum(map(len, pieces))
    return b"".join((b"%x\r\n" % size, *pieces, b"\r\n"))
