"""TLS between a transport and a protocol, without the loop's own: each side sees plain bytes.

What came before the handshake can be fed in, and a read costs no exception: the loop's TLS does
neither. It is a protocol for the transport below, and a transport for the protocol above.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

_READ: Final = 64 * 1024
_RECORD: Final = 16 * 1024  # what one write makes a record of (RFC 8446 section 5.1)


class Secured(asyncio.Protocol):
    """`shaken` is told how the handshake ended: None, or what it failed with.

    `start` it on a connected transport, with what has come in so far.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        above: asyncio.Protocol,
        shaken: Callable[[Exception | None], None],
        server_name: str | None = None,
    ) -> None:
        """`server_name`: of the peer, if we are its client."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_name is None, server_name
        )
        self._above = above
        self._shaken: Callable[[Exception | None], None] | None = shaken
        self._transport = cast(asyncio.Transport, None)
        self._closing = False
        self._said_goodbye = False
        self._ended = False  # the peer sends no more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.data_received(b"")

    def start(self, transport: asyncio.Transport, early: bytes = b"") -> None:
        self._transport = transport
        transport.set_protocol(self)
        self.data_received(early)

    # -- a protocol for what is below

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._shaken is not None and not self._shake():
            return
        self._read()

    def eof_received(self) -> bool:
        if self._shaken is not None or self._ended:
            return False
        self._ended = True
        return bool(self._above.eof_received())

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        if self._shaken is not None:
            shaken, self._shaken = self._shaken, None
            shaken(error or ConnectionResetError("the connection ended in the handshake"))
            return
        self._above.connection_lost(error)

    def pause_writing(self) -> None:
        if self._shaken is None:
            self._above.pause_writing()

    def resume_writing(self) -> None:
        if self._shaken is None:
            self._above.resume_writing()

    def _shake(self) -> bool:
        """Is the handshake done?"""
        assert self._shaken is not None
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except (ssl.SSLError, ssl.CertificateError) as error:
            self._flush()  # our alert
            shaken, self._shaken = self._shaken, lambda _: None
            self._closing = True
            self._transport.close()
            shaken(error)
            return False
        shaken, self._shaken = self._shaken, None
        self._flush()
        shaken(None)
        self._above.connection_made(cast(asyncio.Transport, self))
        return True

    def _read(self) -> None:
        tls, incoming = self._tls, self._incoming
        pieces = []
        ended = False
        try:
            # A record that is not whole yet has been taken in: nothing is pending then, and to
            # ask for more would cost an exception.
            while incoming.pending or tls.pending():
                data = tls.read(_READ)
                if not data:
                    ended = True
                    break
                pieces.append(data)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._broken(pieces, error)
            return
        if self._outgoing.pending:
            self._flush()  # an answer of TLS itself, such as to a key update
        if pieces:
            self._above.data_received(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        if ended and not self._ended:
            self._ended = True
            if not self._above.eof_received():
                self.close()

    def _broken(self, pieces: list[bytes], error: ssl.SSLError) -> None:
        """What was sound counts; nothing after it can be trusted, its end neither."""
        if pieces:
            self._above.data_received(b"".join(pieces))
        self._flush()
        self._closing = True
        self._transport.abort()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())

    # -- a transport for what is above

    def write(self, data: bytes) -> None:
        if self._closing or self._said_goodbye:
            return
        if len(data) <= _RECORD:
            self._tls.write(data)
        else:
            rest = memoryview(data)
            while rest:
                rest = rest[self._tls.write(rest) :]
        self._flush()

    def write_eof(self) -> None:
        """We say no more, and still hear."""
        self._say_goodbye()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def close(self) -> None:
        if self._closing:
            return
        self._say_goodbye()
        self._closing = True
        self._transport.close()

    def _say_goodbye(self) -> None:
        """Without it the end could be anybody's (RFC 8446 section 6.1)."""
        if self._transport.is_closing() or self._said_goodbye:
            return
        self._said_goodbye = True
        with suppress(ssl.SSLError, ValueError):
            self._tls.unwrap()
        self._flush()

    def abort(self) -> None:
        self._closing = True
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._above = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._above

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._tls
        return self._transport.get_extra_info(name, default)

    def can_write_eof(self) -> bool:
        return True

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()
