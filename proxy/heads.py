"""Heads, sans-IO: what a message's head means, and the head that goes on in its place.

Strict in, canonical out (RFC 9112 section 6, RFC 9110 section 7.6.1): a head is parsed once,
ambiguity is refused, and the head that is sent on is written from the parsed parts. Names keep
their case, values their bytes, headers their order and repeats. llhttp has refused bad characters
and conflicting lengths by now; what it lets pass and we must not is checked here.

An app sends the same header names call after call. What follows from the names alone (where the
length stands, what is dropped, what may be written down) is worked out once, as a `Shape`, and a
head is then one `%` of a template with the values: a third of the cost of a loop over headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter
from typing import Final, NamedTuple

Names = tuple[bytes, ...]
Values = list[bytes]
Pairs = list[tuple[bytes, bytes]]

CHUNKED: Final = -1  # body length: in chunks
UNTIL_CLOSE: Final = -2  # body length: all until the connection ends (responses only)

MOST_HEAD_BYTES: Final = 64 * 1024
MOST_HEADERS: Final = 256
MOST_TARGET: Final = 16 * 1024
_MOST_SHAPES: Final = 1024

_HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
     b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"http2-settings", b"expect")
)  # fmt: skip
_CREDENTIALS: Final = frozenset(
    (b"authorization", b"api-key", b"x-api-key", b"openai-organization", b"openai-project")
)
_LISTED: Final = frozenset(
    b"""accept accept-encoding accept-language age allow cache-control connection content-encoding
    content-length content-type date expect host idempotency-key location openai-beta
    openai-processing-ms openai-version prefer retry-after retry-after-ms server traceparent
    transfer-encoding user-agent vary via x-request-id x-session-id x-should-retry
    x-understudy-error x-understudy-served-by""".split()
)
_LISTED_PREFIXES: Final = (b"x-stainless-", b"x-ratelimit-")
# A Connection header that names one of these would strip it for us, not for the upstream.
_NEVER_HOP: Final = re.compile(rb"authorization|host|cookie|content-.*")
_PLAIN_CONNECTION: Final = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b""))
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%-]+(:\d*)?|\[[0-9A-Fa-f:.]+\](:\d*)?")
_LENGTH: Final = re.compile(rb"\d{1,18}")


class Refused(Exception):
    """A message we don't pass on. `status` 400 and up for the client; `code` for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def _bad(message: str) -> Refused:
    return Refused(400, "bad_request", message)


Pick = Callable[[Values], tuple[bytes, ...]]


def _picker(indexes: list[int]) -> Pick:
    """The values at these places, as a tuple."""
    if not indexes:
        return lambda values: ()
    if len(indexes) == 1:
        only = indexes[0]
        return lambda values: (values[only],)
    return itemgetter(*indexes)


class Shape:
    """What follows from a list of header names.

    `template % kept(values)` are the headers to send on; `json % (values of listed, hidden)` is
    their record, values of listed names as they are and all others hashed.
    """

    __slots__ = ("hidden", "json", "kept", "listed", "memo", "names", "places", "template")

    def __init__(self, names: Names, dropped: frozenset[bytes], host: bytes | None) -> None:
        self.names = names
        # Records by values: an app's requests carry the same ones again and again, replies don't.
        self.memo: dict[tuple[tuple[bytes, ...], tuple[bytes, ...]], bytes] | None = None
        lower = [name.lower() for name in names]
        self.places: dict[bytes, list[int]] = {}
        for index, name in enumerate(lower):
            self.places.setdefault(name, []).append(index)
        lines, kept = [], []
        for index, name in enumerate(lower):
            if name in dropped:
                continue
            shown = names[index].replace(b"%", b"%%")
            if name == b"host" and host is not None:
                lines.append(shown + b": " + host.replace(b"%", b"%%") + b"\r\n")
            else:
                lines.append(shown + b": %b\r\n")
                kept.append(index)
        if host is not None and b"host" not in self.places:
            lines.insert(0, b"Host: " + host.replace(b"%", b"%%") + b"\r\n")
        self.template = b"".join(lines)
        self.kept = _picker(kept)
        listed = [i for i, n in enumerate(lower) if n in _LISTED or n.startswith(_LISTED_PREFIXES)]
        hidden = [i for i in range(len(names)) if i not in listed]
        # The length differs from call to call, and the record counts the bytes itself.
        listed = [i for i in listed if lower[i] != b"content-length"]
        self.listed, self.hidden = _picker(listed), _picker(hidden)
        # Names are tokens (RFC 9110 section 5.6.2): nothing in them needs escaping but '%' here.
        shown_names = [names[i].replace(b"%", b"%%") for i in listed + hidden]
        self.json = b"[" + b",".join(b'["%b",%%b]' % n for n in shown_names) + b"]"

    def place(self, name: bytes) -> int:
        """Where the (first) header of this name stands; -1: nowhere."""
        places = self.places.get(name)
        return places[0] if places else -1

    def head(self, values: Values) -> bytes:
        return self.template % self.kept(values)


class RequestShape(Shape):
    """`fault`: refused whatever the values are."""

    __slots__ = ("connection", "content_encoding", "content_type", "credentials", "expect", "fault",
                 "host", "length", "retry_count", "session", "transfer_encoding")  # fmt: skip

    def __init__(self, names: Names, dropped: frozenset[bytes], host: bytes) -> None:
        super().__init__(names, dropped, host)
        self.memo = {}
        self.connection = self.place(b"connection")
        self.content_encoding = self.place(b"content-encoding")
        self.content_type = self.place(b"content-type")
        self.expect = self.place(b"expect")
        self.host = self.place(b"host")
        self.length = self.place(b"content-length")
        self.retry_count = self.place(b"x-stainless-retry-count")
        self.session = self.place(b"x-session-id")
        self.transfer_encoding = self.place(b"transfer-encoding")
        self.credentials = _picker(
            sorted(i for name in _CREDENTIALS for i in self.places.get(name, ()))
        )
        self.fault = self._fault()

    def _fault(self) -> str | None:
        if len(self.places.get(b"host", ())) > 1:
            return "more than one Host header"
        if self.length >= 0 and self.transfer_encoding >= 0:
            return "both Content-Length and Transfer-Encoding"
        if len(self.places.get(b"transfer-encoding", ())) > 1:
            return "a Transfer-Encoding other than 'chunked'"
        if len(self.places.get(b"content-length", ())) > 1:
            return "Content-Length is not one whole number"
        return None


class RequestHead:
    """A request's head, checked. `length`: bytes of the body, 0 for none, or CHUNKED."""

    __slots__ = ("http11", "length", "method", "path", "shape", "target", "values")

    def __init__(
        self, method: bytes, target: bytes, http11: bool, shape: RequestShape, values: Values
    ) -> None:
        self.method = method
        self.target = target
        mark = target.find(b"?")
        self.path = target if mark < 0 else target[:mark]
        self.http11 = http11
        self.shape = shape
        self.values = values
        self.length = self._length()

    def _length(self) -> int:
        shape = self.shape
        if shape.length >= 0:
            value = self.values[shape.length]
            if not _LENGTH.fullmatch(value):
                raise _bad("Content-Length is not one whole number")
            return int(value)
        if shape.transfer_encoding < 0:
            return 0
        if not self.http11:
            raise _bad("Transfer-Encoding on HTTP/1.0")
        if self.values[shape.transfer_encoding].lower() != b"chunked":
            raise _bad("a Transfer-Encoding other than 'chunked'")
        return CHUNKED

    def _at(self, place: int) -> bytes:
        return self.values[place] if place >= 0 else b""

    @property
    def content_type(self) -> bytes:
        return self._at(self.shape.content_type)

    @property
    def content_encoding(self) -> bytes:
        return self._at(self.shape.content_encoding)

    @property
    def retry_count(self) -> bytes:
        return self._at(self.shape.retry_count)

    @property
    def session(self) -> bytes:
        return self._at(self.shape.session)

    @property
    def expects_continue(self) -> bool:
        return self.shape.expect >= 0

    @property
    def credentials(self) -> tuple[bytes, ...]:
        return self.shape.credentials(self.values)

    @property
    def asks_for_websocket(self) -> bool:
        offers = self.shape.places.get(b"upgrade", ())
        return any(self.values[place].lower() == b"websocket" for place in offers)

    def framing_only(self) -> bytes:
        """A head that says no more than how its body is framed."""
        chunks = self.length == CHUNKED
        framing = b"Transfer-Encoding: chunked" if chunks else b"Content-Length: %d" % self.length
        return b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing

    def bytes(self, prefix: bytes) -> bytes:
        """The head for the upstream: its own Host, no hop-by-hop headers, framing by us."""
        framing = b"Transfer-Encoding: chunked\r\n" if self.length == CHUNKED else b""
        return b"%b %b%b HTTP/1.1\r\n%b%b\r\n" % (
            self.method, prefix, self.target, self.shape.head(self.values), framing,
        )  # fmt: skip


class RequestHeads:
    """Reads requests on their way to one upstream, whose Host they get. Bounded caches."""

    def __init__(self, origin_host: bytes) -> None:
        self._host = origin_host
        self._shapes: dict[tuple[Names, bytes], RequestShape] = {}
        self._good_hosts: set[bytes] = set()

    def read(
        self, method: bytes, target: bytes, version: str, names: Names, values: Values
    ) -> RequestHead:
        """The request's head, checked. Raises Refused."""
        if version != "1.1" and version != "1.0":
            raise Refused(505, "http_version", f"HTTP/{version} is not spoken here; use HTTP/1.1")
        shape = self._shapes.get((names, b"")) or self._learn(names, b"")
        if shape.connection >= 0 and (
            values[shape.connection] not in _PLAIN_CONNECTION
            or len(shape.places[b"connection"]) > 1
        ):
            connection = b",".join(values[i] for i in shape.places[b"connection"])
            shape = self._shapes.get((names, connection)) or self._learn(names, connection)
        if shape.fault is not None:
            raise _bad(shape.fault)
        if b"#" in target:  # RFC 9112 section 3.2: a fragment is never sent
            raise _bad("the request target has a fragment")
        if shape.expect >= 0 and values[shape.expect].lower() != b"100-continue":
            raise Refused(417, "expectation_failed", "only 'Expect: 100-continue' is known")
        http11 = version == "1.1"
        if shape.host >= 0:
            self._check_host(values[shape.host])
        elif http11:
            raise _bad("no Host header")
        return RequestHead(method, target, http11, shape, values)

    def _check_host(self, host: bytes) -> None:
        if host in self._good_hosts:
            return
        if not _HOST.fullmatch(host):
            raise _bad("the Host header is not a host")
        if len(self._good_hosts) < _MOST_SHAPES:
            self._good_hosts.add(host)

    def _learn(self, names: Names, connection: bytes) -> RequestShape:
        named = {part.strip().lower() for part in connection.split(b",")} - {b""}
        for name in named:
            if _NEVER_HOP.fullmatch(name):
                raise _bad(f"Connection must not name {name.decode('latin-1')}")
        shape = RequestShape(names, _HOP | named, self._host)
        if len(self._shapes) >= _MOST_SHAPES:
            self._shapes.clear()
        self._shapes[names, connection] = shape
        return shape


class ResponseHead(NamedTuple):
    """A response's head. `length`: bytes of body, CHUNKED or UNTIL_CLOSE; 0 for none."""

    status: int
    reason: bytes
    shape: Shape
    values: Values
    length: int

    def bytes(self, http11: bool, keep_alive: bool) -> bytes:
        """The head for the client. Content-Length stays as it came; a body without one is chunked
        for HTTP/1.1 and ends with the connection for HTTP/1.0."""
        framing = b"Transfer-Encoding: chunked\r\n" if self.length < 0 and http11 else b""
        if not keep_alive:
            framing += b"Connection: close\r\n"
        elif not http11:
            framing += b"Connection: keep-alive\r\n"
        return b"HTTP/1.1 %d %b\r\n%b%b\r\n" % (
            self.status, self.reason, self.shape.head(self.values), framing,
        )  # fmt: skip

    def pairs(self) -> Pairs:
        return list(zip(self.shape.names, self.values, strict=True))


_response_shapes: dict[tuple[Names, bytes], Shape] = {}
# A reply that lists these in Connection would lose them on the way; they are end-to-end.
_KEPT: Final = frozenset((b"content-length", b"content-type", b"content-encoding"))


def response_shape(names: Names, connection: bytes = b"") -> Shape:
    shape = _response_shapes.get((names, connection))
    if shape is None:
        named = {part.strip().lower() for part in connection.split(b",")} - _KEPT
        shape = Shape(names, _HOP | named, None)
        if len(_response_shapes) >= _MOST_SHAPES:
            _response_shapes.clear()
        _response_shapes[names, connection] = shape
    return shape


def response_of(status: int, reason: bytes, pairs: Pairs, length: int) -> ResponseHead:
    """A response of our own making."""
    shape = response_shape(tuple(name for name, _ in pairs))
    return ResponseHead(status, reason, shape, [value for _, value in pairs], length)


def read_response(
    status: int, reason: bytes, version: str, names: Names, values: Values, method: bytes
) -> ResponseHead:
    """The response's head, checked. Raises Refused (502): the upstream is broken, not the client.

    RFC 9112 section 6.3: no body for HEAD, 1xx, 204 and 304, whatever the headers say.
    """
    if version != "1.1" and version != "1.0":
        raise _broken("the upstream spoke an unknown HTTP version")
    shape = response_shape(names)
    places = shape.places
    connection = places.get(b"connection")
    if connection is not None and (
        values[connection[0]] not in _PLAIN_CONNECTION or len(connection) > 1
    ):
        shape = response_shape(names, b",".join(values[i] for i in connection))
    length = _response_length(places, values)
    if method == b"HEAD" or status in (204, 304) or status < 200:
        length = 0
    return ResponseHead(status, reason, shape, values, length)


def _response_length(places: dict[bytes, list[int]], values: Values) -> int:
    lengths = places.get(b"content-length")
    encodings = places.get(b"transfer-encoding")
    if encodings is not None:
        if lengths is not None or [values[i].lower() for i in encodings] != [b"chunked"]:
            raise _broken("the upstream's reply has ambiguous framing")
        return CHUNKED
    if lengths is None:
        return UNTIL_CLOSE
    value = values[lengths[0]]
    if not _LENGTH.fullmatch(value) or any(values[i] != value for i in lengths):
        raise _broken("the upstream's reply has no clear length")
    return int(value)


def _broken(message: str) -> Refused:
    return Refused(502, "bad_upstream_reply", message)


def is_too_large(names: list[bytes], values: list[bytes], read: int) -> bool:
    """`read`: bytes read since the last body. Only when they are many is it worth adding up."""
    if len(names) > MOST_HEADERS:
        return True
    if read <= MOST_HEAD_BYTES:
        return False
    return sum(map(len, names)) + sum(map(len, values)) + 4 * len(names) > MOST_HEAD_BYTES


def chunk(pieces: list[bytes]) -> bytes:
    """One chunk that holds all the pieces."""
    if len(pieces) == 1:
        return b"%x\r\n%b\r\n" % (len(pieces[0]), pieces[0])
    return b"%x\r\n%b\r\n" % (sum(map(len, pieces)), b"".join(pieces))
