"""One connection to an upstream: sends a call, reads its reply, and tells the receiver."""

from __future__ import annotations

import asyncio
import select
import time
from typing import Final, Protocol, cast

from proxy.heads import UNTIL_CLOSE, Refused, ResponseHead
from proxy.known import KnownReplies
from proxy.origin import Origin
from proxy.reply_reader import ReplyReader
from proxy.writes import AT_ONCE, Writes, write_out

_LAST_WORDS: Final = 1.0  # seconds


class Keeper(Protocol):
    """What a connection needs of the pool that made it."""

    writes: Writes
    trailers_dropped: int

    def known(self, origin: Origin) -> KnownReplies: ...
    def release(self, connection: UpstreamConnection) -> None: ...
    def forget(self, connection: UpstreamConnection) -> None: ...


class Receiver(Protocol):
    """Who hears what an upstream connection gets."""

    def response_begun(self, head: ResponseHead) -> None: ...
    def response_body(self, pieces: list[bytes], framed: bytes = b"") -> None:
        """`framed`: the same as whole chunks, if that is how they came."""

    def response_ended(self) -> None: ...
    def response_lost(self, error: Refused) -> None: ...
    def read_done(self) -> None:
        """All that one read brought has been told: the time to write."""

    def upload_full(self, full: bool) -> None: ...


class UpstreamConnection(asyncio.Protocol):
    """One call at a time."""

    def __init__(self, pool: Keeper, origin: Origin) -> None:
        self._pool = pool
        self.origin = origin
        self.transport = cast(asyncio.Transport, None)
        self.receiver: Receiver | None = None
        self.idle_since = 0.0
        self.reused = False
        self.last_read = 0.0
        self._usable = True
        self._out: list[bytes] = []  # not yet written
        self._poll: select.poll | None = None
        self._reader = ReplyReader(pool.known(origin))

    # -- for the pool's callers

    def begin(self, receiver: Receiver, method: bytes, data: bytes, upgrade: bytes = b"") -> None:
        """Send the head, and what body is there, of the next call."""
        self.receiver = receiver
        self._reader.begin(method, upgrade)
        self.last_read = time.monotonic()
        self.send(data)

    def send(self, data: bytes) -> None:
        self._out.append(data)
        if len(self._out) == 1:
            self._pool.writes.add(self)
        if len(data) >= AT_ONCE:
            self.flush()

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

    def finish(self) -> None:
        """Nothing more is to be sent on a connection that speaks another protocol now."""
        self.receiver = None
        self._usable = False
        self.flush()
        self.transport.close()  # with what it has not taken yet, for which it has a moment
        asyncio.get_running_loop().call_later(_LAST_WORDS, self.transport.abort)

    def pause(self, paused: bool) -> None:
        if self.transport is None or self.transport.is_closing():
            return
        if paused == self.transport.is_reading():
            self.last_read = time.monotonic()  # not its silence, while nothing is read
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
        try:
            self._reader.feed(data)
        except Refused as refused:
            self._tell()
            self._drop()
            self._lost(refused)
            return
        self._tell()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        self._usable = False
        self._pool.forget(self)
        if self.receiver is not None:
            self._ended(error)
        self._reader.close()

    def _ended(self, error: Exception | None) -> None:
        """In the middle of a call: for some replies that is their end."""
        reader = self._reader
        if error is None and (reader.length == UNTIL_CLOSE or reader.raw):
            reader.ended = True
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

    # -- what follows from a read

    def _tell(self) -> None:
        """Hand on what one read brought: at most one head, one list of pieces, one end."""
        receiver, reader = self.receiver, self._reader
        if receiver is None:
            return
        if reader.head is not None:
            head, reader.head = reader.head, None
            receiver.response_begun(head)
        if reader.pieces:
            pieces, reader.pieces = reader.pieces, []
            framed, reader.framed = reader.framed, b""
            receiver.response_body(pieces, framed)
        if reader.ended and self.receiver is receiver:
            self._finish(receiver)
        receiver.read_done()

    def _finish(self, receiver: Receiver) -> None:
        self.receiver = None
        reader = self._reader
        reusable = reader.reusable
        self._pool.trailers_dropped += reader.trailers
        reader.reset()
        receiver.response_ended()
        # An upload that it did not take would go out before the next call.
        taken = not self._out and not self.transport.get_write_buffer_size()
        if reusable and taken and self._usable and not self.transport.is_closing():
            self._pool.release(self)
        else:
            self._drop()

    def _lost(self, error: Refused) -> None:
        receiver, self.receiver = self.receiver, None
        if receiver is not None:
            receiver.response_lost(error)

    def _drop(self) -> None:
        self._usable = False
        self._pool.forget(self)
        self.transport.abort()
