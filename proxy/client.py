"""A client's connection: requests in order, replies in order, and what ends it.

The parser's callbacks only note; after each read `_advance` acts, so that what one read brought
goes on in one write. Pipelined requests wait, with reading paused, until it is their turn.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections import deque
from typing import Final, cast

import httptools

from proxy.answers import error_answer, refusal_of
from proxy.exchange import Exchange
from proxy.heads import (
    MOST_HEAD_BYTES,
    MOST_HEADERS,
    MOST_TARGET,
    Refused,
    RequestHead,
    ResponseHead,
    chunk,
    is_too_large,
)
from proxy.relay import RESERVED, Relay
from proxy.writes import write_out

# A closed client and one that only closed its sending side look the same. An answer that is on its
# way may still arrive for this long; then the client counts as gone and the upstream is let go.
_HALF_CLOSE_GRACE: Final = 0.5
# Closing with bytes unread sends RST, and a client that still uploads may never read our reply.
_LINGER: Final = 1.0
_TOO_LARGE: Final = (431, "head_too_large", "the head is over 64 KiB or 256 headers")


class _Request:
    """One parsed request that may still be waiting for its turn."""

    __slots__ = ("ended", "exchange", "head", "keep_alive", "pieces", "refused")

    def __init__(self) -> None:
        self.head: RequestHead | None = None
        self.refused: Refused | None = None
        self.pieces: list[bytes] = []
        self.ended = False
        self.keep_alive = True
        self.exchange: Exchange | None = None


class ClientConnection(asyncio.Protocol):
    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._transport = cast(asyncio.Transport, None)
        self._parser = httptools.HttpRequestParser(self)
        self._requests: deque[_Request] = deque()
        self._out: list[bytes] = []  # of the reply, not yet written
        self._incoming: _Request | None = None
        self._target = b""
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._head_bytes = 0
        self._body_follows = False  # the head had an offer to upgrade, see `_parse`
        self._closing = False  # no further request is read
        self._upstream_full = False
        self._chunked_reply = False
        self.write_full = False
        self._last_read = time.monotonic()
        self._idle = True  # between requests
        self._fresh = True  # no request yet
        self._paused = False
        self._gone_at: float | None = None

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._relay.clients.add(self)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        now = time.monotonic()
        if self._idle or (self._incoming is not None and self._incoming.head is not None):
            self._last_read = now  # a head has one deadline, a body one for each pause
        self._idle = False
        self._head_bytes += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError as error:
            self._stop_reading(refusal_of(error))
        self._check_head_size()
        self._advance()

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # An offer to upgrade need not be taken up (RFC 9110 section 7.8), but the parser takes
            # what follows for another protocol: a new one goes on, where a body begins if need be.
            self._parser = httptools.HttpRequestParser(self)
            request = self._incoming
            if request is not None and request.head is not None:
                self._parser.feed_data(request.head.framing_only())
            if rest := data[upgrade.args[0] :]:
                self._parse(rest)

    def eof_received(self) -> bool:
        waiting = bool(self._requests) and self._requests[-1].ended
        if not waiting:
            return False
        self._gone_at = time.monotonic() + _HALF_CLOSE_GRACE
        self._closing = True
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.clients.discard(self)
        self._closing = True
        for request in self._requests:
            if request.exchange is not None:
                request.exchange.client_gone()
        self._requests.clear()

    def pause_writing(self) -> None:
        self.write_full = True
        self._tell_full(True)

    def resume_writing(self) -> None:
        self.write_full = False
        self._tell_full(False)

    def _tell_full(self, full: bool) -> None:
        exchange = self._requests[0].exchange if self._requests else None
        if exchange is not None:
            exchange.client_full(full)

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if self._body_follows:
            return
        self._incoming = _Request()
        self._requests.append(self._incoming)
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
        request = self._incoming
        assert request is not None
        request.keep_alive = self._parser.should_keep_alive()
        request.head = self._read_head(names, values)

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0
        if self._incoming is not None:
            self._incoming.pieces.append(data)

    def on_message_complete(self) -> None:
        if self._body_follows:
            return
        if self._incoming is not None:
            self._incoming.ended = True
        self._incoming = None
        self._head_bytes = 0
        if self._names:  # trailers: dropped, never merged
            self._relay.pool.trailers_dropped += len(self._names)
            self._names, self._values = [], []

    def _read_head(self, names: list[bytes], values: list[bytes]) -> RequestHead:
        if len(self._target) > MOST_TARGET:
            raise Refused(414, "target_too_long", "the request target is over 16 KiB")
        if is_too_large(names, values, self._head_bytes):
            raise Refused(*_TOO_LARGE)
        head = self._relay.heads.read(
            self._parser.get_method(),
            self._target,
            self._parser.get_http_version(),
            tuple(names),
            values,
        )
        if not self._target.startswith(b"/") and self._target != b"*":
            raise Refused(405, "forward_off", "this is no forward proxy; use OPENAI_BASE_URL")
        if self._parser.should_upgrade():
            if head.asks_for_websocket:
                # Clients of the Responses WebSocket fall back to HTTP on exactly this status.
                raise Refused(426, "upgrade_refused", "WebSocket is not relayed; use plain HTTP")
            self._body_follows = head.length != 0
        return head

    # -- acting on what was read

    def _check_head_size(self) -> None:
        """Of heads, trailers and chunk extensions: whatever is read and is no body."""
        flooded = self._head_bytes > MOST_HEAD_BYTES or len(self._names) > MOST_HEADERS
        if flooded and self._incoming is not None:
            self._stop_reading(Refused(*_TOO_LARGE))

    def _stop_reading(self, why: Refused) -> None:
        """What follows can't be trusted to be a request: answer what came before, then close."""
        self._closing = True
        if self._incoming is None:
            self._incoming = _Request()
            self._requests.append(self._incoming)
        self._incoming.refused = why
        self._incoming = None

    def _advance(self) -> None:
        """Move the first request on; start the next when its turn has come."""
        while self._requests:
            request = self._requests[0]
            if request.exchange is None and not self._start(request):
                break
            self._feed(request)
            if not self._requests or self._requests[0] is request:
                break
        self.update_reading()

    def _start(self, request: _Request) -> bool:
        """False: nothing to do yet, or the connection is done for."""
        if request.head is None:
            if request.refused is not None:
                self._refuse_unparsed(request.refused)
            return False
        self._fresh = False
        self._relay.requests += 1
        if request.head.path.startswith(RESERVED):
            return self._answer_ourselves(request)
        request.exchange = Exchange(self, self._relay, request.head)
        if request.head.expects_continue and not request.pieces and not request.ended:
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.flush()
        return True

    def _answer_ourselves(self, request: _Request) -> bool:
        if not request.ended and request.refused is None:
            request.pieces.clear()
            return False  # its body first, unread
        assert request.head is not None
        try:
            head, body = self._relay.own_answer(request.head)
        except Refused as refused:
            head, body = error_answer(refused)
        self._write_answer(request, head, body)
        self._requests.popleft()
        self._ended(request)
        return False

    def _feed(self, request: _Request) -> None:
        exchange = request.exchange
        assert exchange is not None
        if request.refused is not None and not exchange.done:
            answer = exchange.refuse(request.refused)
            if answer is not None:
                self._finish_with(request, *answer)
            return
        if request.pieces:
            pieces, request.pieces = request.pieces, []
            for piece in pieces:
                exchange.body(piece)
        if request.ended and not exchange.request_ended:
            exchange.request_ended = True
            exchange.waiting_since = time.monotonic()
        exchange.advance()

    def _refuse_unparsed(self, refused: Refused) -> None:
        self._relay.refused += 1
        head, body = error_answer(refused)
        self._out.append(head.bytes(http11=True, keep_alive=False) + body)
        self._requests.clear()
        self._close_gently()

    def update_reading(self) -> None:
        """Reading pauses while the upstream is full, a body waits, or another request does."""
        if self._transport.is_closing() or self._gone_at is not None:
            return
        exchange = self._requests[0].exchange if self._requests else None
        pause = (
            self._upstream_full
            or len(self._requests) > 1
            or (exchange is not None and exchange.holds_too_much())
        )
        if pause != self._paused:
            self._paused = pause
            (self._transport.pause_reading if pause else self._transport.resume_reading)()

    def pause_for_upstream(self, full: bool) -> None:
        self._upstream_full = full
        self.update_reading()

    # -- replies, called by the exchange whose turn it is

    def reply(self, exchange: Exchange, head: ResponseHead) -> None:
        request = self._requests[0]
        assert request.head is not None
        http11 = request.head.http11
        if head.length < 0 and not http11:
            request.keep_alive = False
        if not request.ended or self._is_last():
            request.keep_alive = False
        self._chunked_reply = head.length < 0 and http11
        self._out.append(head.bytes(http11, request.keep_alive))

    def reply_body(self, exchange: Exchange, pieces: list[bytes]) -> None:
        if self._chunked_reply:
            self._out.append(chunk(pieces))
        else:
            self._out += pieces

    def reply_ended(self, exchange: Exchange) -> None:
        if self._chunked_reply:
            self._out.append(b"0\r\n\r\n")
            self._chunked_reply = False
        request = self._requests.popleft()
        self._ended(request)

    def flush(self) -> None:
        """Nothing is written but here: replies go out in their order."""
        out, self._out = self._out, []
        write_out(self._transport, out)

    def refuse(self, exchange: Exchange, error: Refused) -> None:
        """The upstream failed before a byte had gone out: our error, in OpenAI's shape."""
        head, body = error_answer(error)
        self._finish_with(self._requests[0], head, body)

    def _finish_with(self, request: _Request, head: ResponseHead, body: bytes) -> None:
        if request.refused is not None or not request.ended:
            request.keep_alive = False
        self._write_answer(request, head, body)
        self._requests.popleft()
        self._ended(request)

    def break_off(self, exchange: Exchange) -> None:
        """End the connection short of the reply's end. What has been written still goes out:
        a chunked or sized body that stops early is visibly broken."""
        request = self._requests[0]
        self._requests.clear()
        self.flush()
        if request.head is not None and not request.head.http11:
            # The end of such a reply may be the end of the connection: only RST tells it is none.
            linger = struct.pack("ii", 1, 0)
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self._close()

    def _is_last(self) -> bool:
        """Is nothing read any more, and nothing waiting, behind the request whose turn it is?"""
        return (self._relay.draining or self._closing) and len(self._requests) == 1

    def _write_answer(self, request: _Request, head: ResponseHead, body: bytes) -> None:
        assert request.head is not None
        if self._is_last():
            request.keep_alive = False
        data = head.bytes(request.head.http11, request.keep_alive)
        self._out.append(data if request.head.method == b"HEAD" else data + body)
        self.flush()

    def _ended(self, request: _Request) -> None:
        """A reply is out: on to the next request, or the end."""
        self._upstream_full = False
        if not request.keep_alive:
            self._requests.clear()
            (self._close if request.ended else self._close_gently)()
        elif self._requests:
            asyncio.get_running_loop().call_soon(self._advance)
        else:
            self._idle = True
            self._last_read = time.monotonic()
            self.update_reading()

    # -- time

    def check(self, now: float) -> None:
        """Called every 250 ms."""
        if self._gone_at is not None and now > self._gone_at:
            self._transport.abort()
            return
        if self._requests and self._requests[0].exchange is not None:
            self._requests[0].exchange.check(now)
        silent = now - self._last_read
        timeouts = self._relay.timeouts
        if (self._requests and self._requests[-1].ended) or not self._transport.is_reading():
            return
        if self._idle and not self._fresh:
            if silent > timeouts.client_idle:
                self._close()
        elif self._incoming is not None and self._incoming.head is not None:
            if silent > timeouts.client_body:
                self._time_out("the rest of the request did not arrive in time")
        elif silent > timeouts.client_head:
            self._time_out("the request's head did not arrive in time")

    def _time_out(self, message: str) -> None:
        if not self._requests:
            self._close()
            return
        self._stop_reading(Refused(408, "request_timeout", message))
        self._advance()

    def drain(self) -> None:
        """No further requests; idle connections end now."""
        if not self._requests:
            self._close()

    def abort(self) -> None:
        self._transport.abort()

    def _close(self) -> None:
        self._leave()
        self._transport.close()

    def _leave(self) -> None:
        """The last of what we have to say; a client that never reads it is not waited for."""
        self._closing = True
        self.flush()
        self._gone_at = time.monotonic() + self._relay.timeouts.client_body

    def _close_gently(self) -> None:
        """The client may still be sending: say that we are done, and read on for a moment."""
        self._leave()
        if self._transport.is_closing():
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        if not self._transport.get_write_buffer_size():
            self._gone_at = time.monotonic() + _LINGER
