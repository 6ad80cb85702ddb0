"""One connection to an upstream: sends a call, reads its reply, and tells the receiver."""

from __future__ import annotations

import asyncio
import select
import time
from typing import Final, Protocol, cast

import httptools

from proxy.heads import (
    MOST_HEAD_BYTES,
    UNTIL_CLOSE,
    Refused,
    ResponseHead,
    is_too_large,
    read_response,
)
from proxy.origin import Origin
from proxy.writes import Writes, write_out

_TOO_LARGE: Final = "the upstream's head is over 64 KiB or 256 headers"


class Keeper(Protocol):
    """What a connection needs of the pool that made it."""

    writes: Writes
    trailers_dropped: int

    def release(self, connection: UpstreamConnection) -> None: ...
    def forget(self, connection: UpstreamConnection) -> None: ...


class Receiver(Protocol):
    """Who hears what an upstream connection gets."""

    def response_begun(self, head: ResponseHead) -> None: ...
    def response_body(self, pieces: list[bytes]) -> None: ...
    def response_ended(self) -> None: ...
    def response_lost(self, error: Refused) -> None: ...
    def read_done(self) -> None:
        """All that one read brought has been told: the time to write."""

    def upload_full(self, full: bool) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One connection, one call at a time. Callbacks of the parser only note; `_tell` acts."""

    def __init__(self, pool: Keeper, origin: Origin) -> None:
        self._pool = pool
        self.origin = origin
        self.transport = cast(asyncio.Transport, None)
        self.receiver: Receiver | None = None
        self.idle_since = 0.0
        self.reused = False
        self.last_read = 0.0
        self._method = b""
        self._usable = True
        self._out: list[bytes] = []  # not yet written
        self._poll: select.poll | None = None
        self._names: list[bytes] = []
        self._values: list[bytes] = []
        self._reason = b""
        self._head: ResponseHead | None = None
        self._pieces: list[bytes] = []
        self._length = 0
        self._in_body = False
        self._ended = False
        self._keeps_alive = False
        self._head_bytes = 0
        self._parser = httptools.HttpResponseParser(self)

    # -- for the pool's callers

    def begin(self, receiver: Receiver, method: bytes, data: bytes) -> None:
        """Send the head (and what body is there) of the next call."""
        self.receiver = receiver
        self._method = method
        self.last_read = time.monotonic()
        self.send(data)

    def send(self, data: bytes) -> None:
        if not self._out:
            self._pool.writes.add(self)
        self._out.append(data)

    def flush(self) -> None:
        out, self._out = self._out, []
        write_out(self.transport, out)

    def abandon(self) -> None:
        """The call is off: the upstream sees the connection end, never a clean end of a body."""
        self.receiver = None
        self._usable = False
        self._out = []
        if self.transport is not None:
            self.transport.abort()

    def pause(self, paused: bool) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if paused == self.transport.is_reading():
            (self.transport.pause_reading if paused else self.transport.resume_reading)()

    def alive(self) -> bool:
        """Dead before a byte is written? A closed peer shows as an end of file to be read."""
        if self.transport.is_closing():
            return False
        # Anything to read on an idle connection is its end, or bytes that nobody asked for.
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not self._poll.poll(0)

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.last_read = time.monotonic()
        if self.receiver is None:
            self._drop()  # bytes that no call asked for
            return
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("bad_upstream_reply", "the upstream switched protocols unasked")
            return
        except httptools.HttpParserError as error:
            self._tell()
            self._fail("bad_upstream_reply", _cause(error))
            return
        # Heads, interim replies, trailers, chunk extensions: whatever is read and is no body.
        if self._head_bytes > MOST_HEAD_BYTES and not self._ended:
            self._tell()
            self._fail("bad_upstream_reply", _TOO_LARGE)
            return
        self._tell()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._usable = False
        self._pool.forget(self)
        if self.receiver is None:
            return
        if error is None and self._length == UNTIL_CLOSE:
            self._ended = True
            self._tell()
            return
        code = "upstream_reset" if error is not None else "upstream_truncated"
        self._lost(
            Refused(502, code, "the upstream closed the connection before its reply was whole")
        )

    def pause_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upload_full(True)

    def resume_writing(self) -> None:
        if self.receiver is not None:
            self.receiver.upload_full(False)

    # -- httptools callbacks

    def on_message_begin(self) -> None:
        if self._ended:
            self._usable = False  # bytes behind the reply
        self._reason = b""

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._names.append(name)
        self._values.append(value)

    def on_headers_complete(self) -> None:
        names, self._names = self._names, []
        values, self._values = self._values, []
        status = self._parser.get_status_code()
        if 100 <= status < 200 or self._ended:
            return
        if is_too_large(names, values, self._head_bytes):
            raise Refused(502, "bad_upstream_reply", _TOO_LARGE)
        self._head = read_response(
            status,
            self._reason,
            self._parser.get_http_version(),
            tuple(names),
            values,
            self._method,
        )
        self._length = self._head.length
        self._keeps_alive = self._parser.should_keep_alive()
        self._in_body = True
        if self._method == b"HEAD":
            self._ended = True  # the parser would wait for the body that Content-Length names

    def on_body(self, data: bytes) -> None:
        self._head_bytes = 0
        if self._ended:
            self._usable = False  # a body behind a reply that has none
        else:
            self._pieces.append(data)

    def on_message_complete(self) -> None:
        if self._names:  # trailers: dropped, never merged
            self._pool.trailers_dropped += len(self._names)
            self._names, self._values = [], []
        if self._in_body:  # not so after an interim reply (1xx): the final one follows
            self._ended = True

    # -- what follows from it

    def _tell(self) -> None:
        """Hand on what one read brought: at most one head, one list of pieces, one end."""
        receiver = self.receiver
        if receiver is None:
            return
        head, self._head = self._head, None
        if head is not None:
            receiver.response_begun(head)
        if self._pieces:
            pieces, self._pieces = self._pieces, []
            receiver.response_body(pieces)
        if self._ended and self.receiver is receiver:
            self._finish(receiver)
        receiver.read_done()

    def _finish(self, receiver: Receiver) -> None:
        self.receiver = None
        reusable = (
            self._usable
            and self._length != UNTIL_CLOSE
            and self._keeps_alive
            and not self.transport.is_closing()
        )
        if self._method == b"HEAD":
            self._parser = httptools.HttpResponseParser(self)  # this one still waits for a body
        self._reset()
        receiver.response_ended()
        if reusable:
            self._pool.release(self)
        else:
            self._drop()

    def _fail(self, code: str, message: str) -> None:
        self._drop()
        self._lost(Refused(502, code, message))

    def _lost(self, error: Refused) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.response_lost(error)

    def _drop(self) -> None:
        self._usable = False
        self._pool.forget(self)
        self.transport.abort()

    def _reset(self) -> None:
        self._head = None
        self._pieces = []
        self._names = []
        self._values = []
        self._reason = b""
        self._length = 0
        self._in_body = False
        self._ended = False
        self._head_bytes = 0


def _cause(error: Exception) -> str:
    """The parser wraps what a callback raised."""
    inner = error.__context__
    if isinstance(inner, Refused):
        return inner.message
    return f"the upstream's reply is not HTTP: {error}"
