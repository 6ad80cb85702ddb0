"""Heads, sans-IO: what a message's head means, and the head that goes on in its place.

Strict in, canonical out (RFC 9112 section 6, RFC 9110 section 7.6.1): a head is parsed once,
ambiguity is refused, and the head that is sent on is written from the parsed parts. Names keep
their case, values their bytes, headers their order and repeats. llhttp has refused bad characters
and conflicting lengths by now; what it lets pass and we must not is checked here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from proxy.routes import Route
from proxy.shapes import HOP, MOST_SHAPES, Names, RequestShape, Shape, Values, keep

if TYPE_CHECKING:
    from proxy.relay import Traits

Pairs = list[tuple[bytes, bytes]]

CHUNKED: Final = -1  # body length: in chunks
UNTIL_CLOSE: Final = -2  # body length: all until the connection ends (responses only)

MOST_HEAD_BYTES: Final = 64 * 1024
MOST_HEADERS: Final = 256
MOST_TARGET: Final = 16 * 1024

# A Connection header that names one of these would strip it for us, not for the upstream.
_NEVER_HOP: Final = re.compile(rb"authorization|host|cookie|content-.*")
_PLAIN_CONNECTION: Final = frozenset((b"keep-alive", b"close", b"Keep-Alive", b"Close", b""))
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%-]+(:\d*)?|\[[0-9A-Fa-f:.]+\](:\d*)?")
_LONGEST_HOST: Final = 255 + len(":65535")
_LENGTH: Final = re.compile(rb"\d{1,18}")
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # in no reason (RFC 9112 section 4)
# HTTP itself in another version, or TLS: what follows would be no business of this connection's.
_NO_UPGRADE: Final = re.compile(rb"(?i)h2c?|https?(/.*)?|tls(/.*)?")
_ACCEPT_ENCODING: Final = re.compile(rb"(?i)(?<=\n)(accept-encoding):[^\r]*")
_CONTENT_LENGTH: Final = re.compile(rb"(?i)(?<=\n)content-length:[^\r]*\r\n")
_NO: Final = frozenset((b"0", b"false", b"no"))
_TOKEN: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+(/[!#$%&'*+.^_`|~0-9A-Za-z-]+)?")


class Refused(Exception):
    """A message we don't pass on. `status` 400 and up for the client; `code` for programs."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


def _bad(message: str) -> Refused:
    return Refused(400, "bad_request", message)


class RequestHead:
    """A request's head, checked; one for all requests whose heads differ in Content-Length alone.

    `length`: bytes of the body of the request it was read from, 0 for none, or CHUNKED.
    `upgrade`: the protocol offered in its place, empty if none is that we would relay.
    `traits`: what the relay makes of it, at first use.
    """

    __slots__ = ("after", "before", "expects_continue", "http11", "length", "method", "path",
                 "route", "shape", "target", "traits", "upgrade", "values")  # fmt: skip

    def __init__(
        self,
        method: bytes,
        target: bytes,
        http11: bool,
        shape: RequestShape,
        values: Values,
        route: Route,
    ) -> None:
        self.route = route
        self.method = method
        self.target = target
        self.path = target.partition(b"?")[0]
        self.http11 = http11
        self.shape = shape
        self.values = values
        self.length = self._length()
        self.upgrade = self._upgrade()
        self.expects_continue = http11 and shape.expect >= 0  # RFC 9110 section 10.1.1
        self.traits: Traits | None = None
        self.before, self.after = self._sent_on()

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

    def _upgrade(self) -> bytes:
        offered = self._at(self.shape.upgrade)
        if not offered or self.length != 0 or not self.http11:
            return b""
        known = _TOKEN.fullmatch(offered) and not _NO_UPGRADE.fullmatch(offered)
        return offered if known else b""

    def _sent_on(self) -> tuple[bytes, bytes]:
        """The head for the upstream, before and after the value of Content-Length."""
        framing = b"Transfer-Encoding: chunked\r\n" if self.length == CHUNKED else b""
        lines = self.shape.lines_upgrading if self.upgrade else self.shape.lines
        values = self.values
        if self.shape.length >= 0:
            values = [values[i] for i in range(len(self.shape.names))]
            values[self.shape.length] = b"\0"  # in no value: the parser refuses it
        head = b"%b %b HTTP/1.1\r\n%b%b\r\n" % (
            self.method, self.route.onward(self.target), lines(values), framing,
        )  # fmt: skip
        before, _, after = head.partition(b"\0")
        return before, after

    def wire(self, length: int) -> bytes:
        """The head for the upstream: its own Host, no hop-by-hop headers, framing by us."""
        if self.shape.length < 0:
            return self.before
        return b"%b%d%b" % (self.before, length, self.after)

    def _at(self, place: int) -> bytes:
        return self.values[place] if place >= 0 else b""

    @property
    def below(self) -> bytes:
        """The path without the prefix that led to its upstream."""
        return self.path[len(self.route.prefix) :]

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
    def no_store(self) -> bool:
        """Does it ask not to be recorded? Whatever does not clearly say no, does."""
        places = self.shape.no_store
        return bool(places) and any(self.values[i].lower() not in _NO for i in places)

    @property
    def is_plain_json(self) -> bool:
        """Is its body JSON, and not encoded?"""
        kind = self.content_type.partition(b";")[0].strip().lower()
        return kind == b"application/json" and not self.content_encoding

    def named(self, names: frozenset[bytes]) -> dict[str, str]:
        """Values of these headers, by lower-case name; of one that is repeated, the first."""
        places = self.shape.places
        return {
            name.decode("latin-1"): self.values[places[name][0]].decode("latin-1")
            for name in names
            if name in places
        }

    @property
    def proxy_authorization(self) -> bytes:
        """For us, and never sent on."""
        for name, value in zip(self.shape.names, self.shape.every(self.values), strict=True):
            if name.lower() == b"proxy-authorization":
                return value
        return b""

    @property
    def credentials(self) -> tuple[bytes, ...]:
        return self.shape.credentials(self.values)

    def framing_only(self) -> bytes:
        """A head that says no more than how its body is framed."""
        chunks = self.length == CHUNKED
        framing = b"Transfer-Encoding: chunked" if chunks else b"Content-Length: %d" % self.length
        return b"POST / HTTP/1.1\r\n%b\r\n\r\n" % framing


class RequestHeads:
    """Reads requests on one route, whose upstream's Host they get. Bounded caches.

    `readable`: headers whose values may be recorded besides the usual ones, in lower case.
    """

    def __init__(self, route: Route, readable: frozenset[bytes] = frozenset()) -> None:
        self._route = route
        self._readable = readable
        self._host = route.origin.host_header
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
        for place in shape.places.get(b"expect", ()):
            if values[place].lower() != b"100-continue":
                raise Refused(417, "expectation_failed", "only 'Expect: 100-continue' is known")
        http11 = version == "1.1"
        if shape.host >= 0:
            self._check_host(values[shape.host])
        elif http11:
            raise _bad("no Host header")
        return RequestHead(method, target, http11, shape, values, self._route)

    def _check_host(self, host: bytes) -> None:
        if host in self._good_hosts:
            return
        if len(host) > _LONGEST_HOST or not _HOST.fullmatch(host):
            raise _bad("the Host header is not a host")
        if len(self._good_hosts) < MOST_SHAPES:
            self._good_hosts.add(host)

    def _learn(self, names: Names, connection: bytes) -> RequestShape:
        named = frozenset(part.strip().lower() for part in connection.split(b",")) - {b""}
        for name in named:
            if _NEVER_HOP.fullmatch(name):
                raise _bad(f"Connection must not name {name.decode('latin-1')}")
        shape = RequestShape(names, named, self._host, self._readable)
        return keep(self._shapes, names, connection, shape)


class ResponseHead:
    """A response's head. `length`: bytes of body, CHUNKED or UNTIL_CLOSE; 0 for none.

    `lines`: status line and headers as they go on, hop-by-hop ones left out.
    """

    __slots__ = ("length", "lines", "shape", "status", "values")

    def __init__(
        self, status: int, length: int, lines: bytes, shape: Shape, values: Values
    ) -> None:
        self.status = status
        self.length = length
        self.lines = lines
        self.shape = shape
        self.values = values

    def wire(self, http11: bool, keep_alive: bool) -> bytes:
        """The head for the client. Content-Length stays as it came; a body without one is chunked
        for HTTP/1.1 and ends with the connection for HTTP/1.0."""
        framing = b"Transfer-Encoding: chunked\r\n" if self.length < 0 and http11 else b""
        if not keep_alive:
            framing += b"Connection: close\r\n"
        elif not http11:
            framing += b"Connection: keep-alive\r\n"
        return b"%b%b\r\n" % (self.lines, framing)

    def pairs(self) -> Pairs:
        return list(zip(self.shape.names, self.shape.every(self.values), strict=True))


_response_shapes: dict[tuple[Names, bytes], Shape] = {}
# A reply that lists these in Connection would lose them on the way; they are end-to-end.
_KEPT: Final = frozenset((b"content-length", b"content-type", b"content-encoding"))


def response_shape(names: Names, connection: bytes = b"") -> Shape:
    shape = _response_shapes.get((names, connection))
    if shape is None:
        named = {part.strip().lower() for part in connection.split(b",")} - _KEPT
        shape = keep(_response_shapes, names, connection, Shape(names, HOP | named))
    return shape


def response_of(status: int, reason: bytes, pairs: Pairs, length: int) -> ResponseHead:
    """A response of our own making, with all its headers."""
    shape = response_shape(tuple(name for name, _ in pairs))
    lines = b"HTTP/1.1 %d %b\r\n" % (status, reason)
    lines += b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    return ResponseHead(status, length, lines, shape, [value for _, value in pairs])


def _response(
    status: int, reason: bytes, shape: Shape, values: Values, length: int
) -> ResponseHead:
    headers = shape.lines_upgrading(values) if status == 101 else shape.lines(values)
    lines = b"HTTP/1.1 %d %b\r\n%b" % (status, reason, headers)
    return ResponseHead(status, length, lines, shape, values)


def read_response(
    status: int, reason: bytes, version: str, names: Names, values: Sequence[bytes], method: bytes
) -> ResponseHead:
    """The response's head, checked. Raises Refused (502): the upstream is broken, not the client.

    RFC 9112 section 6.3: no body for HEAD, 1xx, 204 and 304, whatever the headers say.
    """
    if version != "1.1" and version != "1.0":
        raise _broken("the upstream spoke an unknown HTTP version")
    if status < 100 or _CONTROL.search(reason):
        raise _broken("the upstream's reply has no status line that HTTP knows")
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
    return _response(status, reason, shape, values, length)


def _response_length(places: dict[bytes, list[int]], values: Sequence[bytes]) -> int:
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


def unencoded(head: RequestHead) -> RequestHead:
    """The same request, as it is sent on when its answer shall not be encoded."""
    other = copy.copy(head)
    other.before, before = _ACCEPT_ENCODING.subn(rb"\1: identity", head.before)
    other.after, after = _ACCEPT_ENCODING.subn(rb"\1: identity", head.after)
    if before or after:
        return other
    line = b"Accept-Encoding: identity\r\n\r\n"  # without one any coding would do
    if head.after:
        other.after = head.after.removesuffix(b"\r\n") + line
    else:
        other.before = head.before.removesuffix(b"\r\n") + line
    return other


def without_length(head: ResponseHead, length: int) -> ResponseHead:
    """The same reply, without Content-Length; `length` as in ResponseHead."""
    lines = _CONTENT_LENGTH.sub(b"", head.lines)
    return ResponseHead(head.status, length, lines, head.shape, head.values)


def is_too_large(names: list[bytes], values: list[bytes], start: int) -> bool:
    """`start`: bytes of the start line."""
    if len(names) > MOST_HEADERS:
        return True
    lines = sum(map(len, names)) + sum(map(len, values)) + len(b": \r\n") * len(names)
    return start + lines + len(b"\r\n") > MOST_HEAD_BYTES


def chunk(pieces: list[bytes]) -> bytes:
    """One chunk that holds all the pieces."""
    if len(pieces) == 1:
        return b"%x\r\n%b\r\n" % (len(pieces[0]), pieces[0])
    return b"%x\r\n%b\r\n" % (sum(map(len, pieces)), b"".join(pieces))
