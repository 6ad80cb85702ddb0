"""A client's connection: requests in order, replies in order, and what ends it.

The reader only notes; after each read `_advance` acts, so that what one read brought goes on in
one write. Pipelined requests wait, with reading paused, until it is their turn.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import time
from typing import TYPE_CHECKING, Final, cast

from proxy.answers import error_answer
from proxy.exchange import Exchange
from proxy.heads import Refused, ResponseHead, chunk
from proxy.injected import InjectedExchange
from proxy.relay import Relay
from proxy.request_reader import Reading, Request, RequestReader
from proxy.writes import AT_ONCE, write_out

if TYPE_CHECKING:
    from policies.forward import Target

# A closed client and one that only closed its sending side look the same. An answer that is on its
# way may still arrive for this long; then the client counts as gone and the upstream is let go.
_HALF_CLOSE_GRACE: Final = 0.5
# Closing with bytes unread sends RST, and a client that still uploads may never read our reply.
_LINGER: Final = 1.0
_MOST_EARLY: Final = 64 * 1024  # bytes behind an offer to upgrade, until it is decided


class ClientConnection(asyncio.Protocol):
    def __init__(self, relay: Relay, site: Reading | None = None) -> None:
        """`site`: of the intercepted host that it was opened to."""
        self._relay = relay
        self._transport = cast(asyncio.Transport, None)
        self._reader = RequestReader(site or relay)
        self._trusted = site is not None  # else by its address
        self._requests = self._reader.requests
        self._out: list[bytes] = []  # of the reply, not yet written
        self._tunnel: Exchange | None = None  # another protocol is spoken
        self._closing = False  # no further request is read
        self._upstream_full = False
        self._chunked_reply = False
        self.write_full = False
        self._full_since = 0.0
        self._last_read = time.monotonic()
        self._idle = True  # between requests
        self._fresh = True  # no request yet
        self._paused = False
        self._gone_at: float | None = None

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._relay.clients.add(self)
        if not self._trusted:
            peer = transport.get_extra_info("peername")
            self._trusted = self._relay.forward.access.trusts(peer)

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        if self._tunnel is not None:
            self._tunnel.raw(data)
            return
        reader = self._reader
        now = time.monotonic()
        if self._idle or (reader.incoming is not None and reader.incoming.head is not None):
            self._last_read = now  # a head has one deadline, a body one for each pause
        self._idle = False
        reader.feed(data)
        if self._requests and self._requests[-1].refused is not None:
            self._closing = True
        self._advance()

    def eof_received(self) -> bool:
        waiting = bool(self._requests) and self._requests[-1].ended
        if not waiting or self._tunnel is not None:
            return False
        self._gone_at = time.monotonic() + _HALF_CLOSE_GRACE
        self._closing = True
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.clients.discard(self)
        self._closing = True
        for request in self._requests:
            if request.exchange is not None:
                request.exchange.client_gone(error)
        self._requests.clear()
        self._tunnel = None
        self._reader.close()

    def pause_writing(self) -> None:
        self.write_full = True
        self._full_since = time.monotonic()
        self._tell_full(True)

    def resume_writing(self) -> None:
        self.write_full = False
        self._tell_full(False)

    def _tell_full(self, full: bool) -> None:
        exchange = self._requests[0].exchange if self._requests else None
        if exchange is not None:
            exchange.client_full(full)

    # -- acting on what was read

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

    def _start(self, request: Request) -> bool:
        """False: nothing to do yet, or the connection is done for."""
        if request.head is None:
            if request.refused is not None:
                self._refuse_unparsed(request.refused)
            return False
        self._fresh = False
        self._relay.requests += 1
        stranger = None if self._trusted else self._relay.forward.stranger(request.head)
        traits = self._relay.traits(request.head)
        if traits.ours:
            return self._answer_ourselves(request, stranger)
        if request.refused is None:
            request.refused = stranger
        if request.connect is not None and request.refused is None:
            return self._hand_over(request.connect)
        if self._relay.limits.bounds_requests and request.refused is None:
            request.refused = self._relay.overload()
        kind = InjectedExchange if traits.injects else Exchange
        request.exchange = kind(self, self._relay, request.head, request.length)
        waits = request.head.expects_continue and request.refused is None
        if waits and not request.pieces and not request.ended:
            self._out.append(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.flush()
        return True

    def _hand_over(self, asked: Target) -> bool:
        """What follows is a tunnel's: this connection is not ours any more."""
        self.flush()
        early = self._reader.take_early()
        self._requests.clear()
        self.update_reading()
        self._closing = True
        self._relay.clients.discard(self)
        self._reader.close()
        if self._gone_at is not None:  # it has hung up already
            self._transport.close()
            return False
        self._relay.forward.open(self._relay, asked, self._transport, early)
        return False

    def _answer_ourselves(self, request: Request, stranger: Refused | None) -> bool:
        if not request.ended and request.refused is None:
            request.pieces.clear()
            return False  # its body first, unread
        assert request.head is not None
        try:
            head, body = self._relay.own_page(request.head.target, stranger)
        except Refused as refused:
            head, body = error_answer(refused)
        self._write_answer(request, head, body)
        self._requests.popleft()
        self._ended(request)
        return False

    def _feed(self, request: Request) -> None:
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
        self._out.append(head.wire(http11=True, keep_alive=False) + body)
        self._requests.clear()
        self._close_gently()

    def update_reading(self) -> None:
        """Reading pauses while the upstream is full, a body waits, or another request does."""
        pause = self._upstream_full or len(self._requests) > 1 or self._holds_too_much()
        if pause == self._paused or self._transport.is_closing() or self._gone_at is not None:
            return
        self._paused = pause
        self._last_read = time.monotonic()  # not the client's silence, while nothing is read
        (self._transport.pause_reading if pause else self._transport.resume_reading)()

    def _holds_too_much(self) -> bool:
        if not self._requests:
            return False
        exchange, early = self._requests[0].exchange, self._requests[-1].early
        return (exchange is not None and exchange.holds_too_much()) or (
            early is not None and len(early) > _MOST_EARLY
        )

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
        self._out.append(head.wire(http11, request.keep_alive))

    def switch(self, head: ResponseHead) -> None:
        """The upstream agreed to speak another protocol: from here on we only pass bytes."""
        request = self._requests[0]
        assert request.exchange is not None
        self._out.append(head.wire(http11=True, keep_alive=True))
        self._chunked_reply = False
        self._tunnel = request.exchange
        if early := self._reader.take_early():
            self._tunnel.raw(early)
        self.update_reading()

    def hang_up(self) -> None:
        """The upstream ended the other protocol; what it said last still goes out."""
        self._requests.clear()
        self._close()

    def reply_body(self, pieces: list[bytes], framed: bytes) -> None:
        if not self._chunked_reply:
            self._out += pieces
        else:
            self._out.append(framed or chunk(pieces))
        if len(self._out[-1]) >= AT_ONCE:
            self.flush()

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

    def _finish_with(self, request: Request, head: ResponseHead, body: bytes) -> None:
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

    def _write_answer(self, request: Request, head: ResponseHead, body: bytes) -> None:
        assert request.head is not None
        if self._is_last():
            request.keep_alive = False
        data = head.wire(request.head.http11, request.keep_alive)
        self._out.append(data if request.head.method == b"HEAD" else data + body)
        self.flush()

    def _ended(self, request: Request) -> None:
        """A reply is out: on to the next request, or the end."""
        self._upstream_full = False
        if not request.keep_alive:
            self._requests.clear()
            (self._close if request.ended else self._close_gently)()
        elif request.early is not None:  # the offer to upgrade was refused: HTTP goes on
            asyncio.get_running_loop().call_soon(self._read_early)
        elif self._requests:
            asyncio.get_running_loop().call_soon(self._advance)
        else:
            self._wait_for_next()

    def _wait_for_next(self) -> None:
        self._idle = True
        self._last_read = time.monotonic()
        self.update_reading()

    def _read_early(self) -> None:
        early = self._reader.take_early()
        self._wait_for_next()
        if early:
            self.data_received(early)

    # -- time

    def check(self, now: float) -> None:
        """Called every 250 ms."""
        if self._gone_at is not None and now > self._gone_at:
            self._transport.abort()
            return
        if self._paused and self._is_reset():
            self._transport.abort()
            return
        if self._requests and self._requests[0].exchange is not None:
            self._requests[0].exchange.check(now)
        silent = now - self._last_read
        timeouts = self._relay.timeouts
        if self.write_full and now - self._full_since > timeouts.upstream_idle:
            self._transport.abort()  # it reads nothing; connection_lost says the rest
            return
        if (self._requests and self._requests[-1].ended) or not self._transport.is_reading():
            return
        if self._idle and not self._fresh:
            if silent > timeouts.client_idle:
                self._close()
        elif self._reader.incoming is not None and self._reader.incoming.head is not None:
            if silent > timeouts.client_body:
                self._time_out("the rest of the request did not arrive in time")
        elif silent > timeouts.client_head:
            self._time_out("the request's head did not arrive in time")

    def _is_reset(self) -> bool:
        """Nothing is read, so the loop does not see it."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), 0)
        return bool(poll.poll(0))

    def _time_out(self, message: str) -> None:
        if not self._requests:
            self._close()
            return
        self._reader.stop(Refused(408, "request_timeout", message))
        self._closing = True
        self._advance()

    def drain(self) -> None:
        """No further requests; idle connections end now."""
        if not self._requests:
            self._close()

    def abort(self) -> None:
        """We end it; whatever is open ends with it."""
        if self._requests and (exchange := self._requests[0].exchange) is not None:
            exchange.stop("the sidecar stopped")
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
