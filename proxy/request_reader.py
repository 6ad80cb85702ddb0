"""Reads requests out of a client's bytes, sans-IO: what was asked, and what is refused.

Known heads (see `known`) and bodies of a given length are read here; all else is the parser's. Its
callbacks only note, so that what one read brought goes on in one write.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

import httptools

from proxy.answers import refusal_of
from proxy.heads import (
    MOST_HEAD_BYTES,
    MOST_HEADERS,
    MOST_TARGET,
    Refused,
    RequestHead,
    RequestHeads,
    is_too_large,
)
from proxy.known import KnownRequests
from proxy.shapes import Names

if TYPE_CHECKING:
    from policies.forward import Target
    from proxy.exchange import Exchange

_TOO_LARGE: Final = (431, "head_too_large", "the head is over 64 KiB or 256 headers")


class Request:
    """One request that may still be coming in, or be waiting for its turn.

    `length` as in RequestHead, but of this request; `early`: bytes behind an offer to upgrade,
    which are another protocol's if it is taken up and HTTP if not. `connect`: whom a CONNECT asks
    for; what comes behind it is theirs.
    """

    __slots__ = ("connect", "early", "ended", "exchange", "head", "keep_alive", "length", "pieces",
                 "refused")  # fmt: skip

    def __init__(self) -> None:
        self.head: RequestHead | None = None
        self.length = 0
        self.refused: Refused | None = None
        self.pieces: list[bytes] = []
        self.early: bytes | None = None
        self.connect: Target | None = None
        self.ended = False
        self.keep_alive = True
        self.exchange: Exchange | None = None


class Reading(Protocol):
    """What a reader shares with the others of its process."""

    known: KnownRequests

    def asked(self, target: bytes) -> bytes: ...
    def heads(self, target: bytes) -> RequestHeads: ...
    def connect(self, target: bytes) -> Target: ...
    def note_trailers(self, count: int) -> None: ...


class RequestReader:
    """`feed` it bytes: `requests` grows, and its last one. The owner takes requests off the front.

    After a fault the last request has it in `refused`, and nothing more may be fed: what follows
    can't be trusted to be a request.
    """

    def __init__(self, shared: Reading) -> None:
        self._shared = shared
        self.requests: deque[Request] = deque()
        self.incoming: Request | None = None
        self._left = 0  # bytes of a body that is counted, not parsed
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._head_bytes = 0
        self._raw = b""  # this read, and those before it that hold the start of the same head
        self._line_end = 0  # in it, of the last request line
        self._body_follows = False  # see `_go_on`
        self._read: RequestHead | None = None  # the first head of this read, if it may be learnt

    def feed(self, data: bytes) -> None:
        while data:
            if self._left:
                data = self._count(data)
            elif self.incoming is not None and self.incoming.early is not None:
                self.incoming.early += data
                return
            elif self.incoming is None and not self._head_bytes:
                known = self._shared.known.find(data)
                if known is None:
                    self._parse(data, True)
                    return
                head, end, length = known
                self._begin_known(head, length)
                data = data[end:]
            else:
                self._parse(data, False)
                return

    def stop(self, why: Refused) -> None:
        if self.incoming is None:
            self.incoming = Request()
            self.requests.append(self.incoming)
        self.incoming.refused = why.with_traceback(None)  # or it would hold the frame it is held by
        self.incoming = None

    def close(self) -> None:
        """Nothing more comes. The parser and its reader hold each other, and what was read with
        them: for longer than memory lasts, if left to the collector."""
        del self._parser
        self.incoming = None  # its exchange holds the client, who holds us

    def take_early(self) -> bytes:
        """What came behind an offer to upgrade, now that it is decided."""
        request, self.incoming = self.incoming, None
        assert request is not None and request.early is not None
        early, request.early = request.early, None
        return early

    # -- without the parser

    def _begin_known(self, head: RequestHead, length: int) -> None:
        request = Request()
        request.head = head
        request.length = length
        self.requests.append(request)
        if length:
            self._left = length
            self.incoming = request
        else:
            request.ended = True

    def _count(self, data: bytes) -> bytes:
        """Take the body's part of `data`; the rest of it."""
        request = self.incoming
        assert request is not None
        left = self._left - len(data)
        if left > 0:
            request.pieces.append(data)
            self._left = left
            return b""
        rest = data[self._left :] if left else b""
        request.pieces.append(data[: self._left] if left else data)
        self._left = 0
        request.ended = True
        self.incoming = None
        return rest

    # -- with the parser

    def _parse(self, data: bytes, fresh: bool) -> None:
        """`fresh`: `data` begins where a message does."""
        self._head_bytes += len(data)
        self._read = None
        self._raw += data
        try:
            self._feed_parser(data)
        except httptools.HttpParserError as error:
            self.stop(refusal_of(error))
            return
        if fresh and self._read is not None:
            self._shared.known.learn(data, self._read)
        if self.incoming is None or self.incoming.head is not None:
            self._raw, self._line_end = b"", 0
        # Of heads, trailers and chunk extensions: whatever is read and is no body.
        flooded = self._head_bytes > MOST_HEAD_BYTES or len(self._names) > MOST_HEADERS
        if flooded and self.incoming is not None and self.incoming.early is None:
            self.stop(Refused(*_TOO_LARGE))

    def _feed_parser(self, data: bytes) -> None:
        while data:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = self._go_on(data[upgrade.args[0] :])

    def _go_on(self, rest: bytes) -> bytes:
        """The parser takes what follows an offer to upgrade for another protocol. The offer may be
        refused (RFC 9110 section 7.8): keep the rest until that is known. An offer that we don't
        pass on is refused as it stands: a new parser goes on, where a body begins if need be."""
        self._parser = httptools.HttpRequestParser(self)
        request = self.requests[-1]
        if request.head is not None and (request.head.upgrade or request.connect is not None):
            request.early = rest
            self.incoming = request
            return b""
        if self._body_follows and request.head is not None:
            self._parser.feed_data(request.head.framing_only())
        return rest

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if self._body_follows:
            return
        self.incoming = Request()
        self.requests.append(self.incoming)
        self._target = b""

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._names.append(name)
        self._values.append(value)

    def on_headers_complete(self) -> None:
        names, self._names = self._names, []
        values, self._values = self._values, []
        if self._body_follows:
            self._body_follows = False
            return
        request = self.incoming
        assert request is not None
        request.keep_alive = self._parser.should_keep_alive()
        request.head = self._head(names, values)
        request.length = request.head.length
        if self._read is None and request.keep_alive:
            self._read = request.head

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0
        if self.incoming is not None:
            self.incoming.pieces.append(data)

    def on_message_complete(self) -> None:
        if self._body_follows:
            return
        if self.incoming is not None:
            self.incoming.ended = True
        self.incoming = None
        self._head_bytes = 0
        if self._names:  # trailers: dropped, never merged
            self._shared.note_trailers(len(self._names))
            self._names, self._values = [], []

    def _head(self, names: list[bytes], values: list[bytes]) -> RequestHead:
        if len(self._target) > MOST_TARGET:
            raise Refused(414, "target_too_long", "the request target is over 16 KiB")
        method, version = self._parser.get_method(), self._parser.get_http_version()
        line = b"%b %b HTTP/%b\r\n" % (method, self._target, version.encode())
        if is_too_large(names, values, len(line)):
            raise Refused(*_TOO_LARGE)
        at = self._raw.find(line, self._line_end)
        if at < 0:  # RFC 9112 section 3: single spaces, and HTTP's own name
            raise Refused(400, "bad_request", "the request line is not 'method target HTTP/1.1'")
        self._line_end = at + len(line)
        if method == b"CONNECT":
            return self._tunnel_head(version, tuple(names), values)
        target = self._shared.asked(self._target)
        if target.startswith(b"*") and (target, method) != (b"*", b"OPTIONS"):
            raise Refused(405, "bad_target", "only OPTIONS asks for '*'")
        head = self._shared.heads(target).read(method, target, version, tuple(names), values)
        if self._parser.should_upgrade() and not head.upgrade:
            self._body_follows = head.length != 0
        return head

    def _tunnel_head(self, version: str, names: Names, values: list[bytes]) -> RequestHead:
        """Of a CONNECT, which has no body (RFC 9110 section 9.3.6)."""
        assert self.incoming is not None
        asked = self._shared.connect(self._target)
        head = self._shared.heads(b"/").read(b"CONNECT", b"/", version, names, values)
        if head.length:
            raise Refused(400, "bad_request", "a CONNECT has no body")
        self.incoming.connect = asked
        self.incoming.keep_alive = False  # not to be learnt: what follows is no HTTP
        return head
