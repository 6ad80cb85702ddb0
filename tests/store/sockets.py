"""Helpers: what two sides of a WebSocket send, made by the `websockets` library's own protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

from websockets.client import ClientProtocol
from websockets.extensions.permessage_deflate import (
    ClientPerMessageDeflateFactory,
    ServerPerMessageDeflateFactory,
)
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from store.deflate import Side

PLAIN = "plain"
TAKEOVER = "takeover"
NO_TAKEOVER = "no takeover"
SMALL_WINDOWS = "small windows"
ONE_SIDED = "takeover of the server's only"
AGREEMENTS = (PLAIN, TAKEOVER, NO_TAKEOVER, SMALL_WINDOWS, ONE_SIDED)

_SERVERS = {
    TAKEOVER: ServerPerMessageDeflateFactory(),
    NO_TAKEOVER: ServerPerMessageDeflateFactory(
        server_no_context_takeover=True, client_no_context_takeover=True
    ),
    SMALL_WINDOWS: ServerPerMessageDeflateFactory(
        server_max_window_bits=9, client_max_window_bits=10
    ),
    ONE_SIDED: ServerPerMessageDeflateFactory(client_no_context_takeover=True),
}


@dataclass
class Talk:
    """A conversation on one socket. `pieces`: what a spool would hold of it after the 101."""

    agreement: str = PLAIN
    pieces: list[tuple[Side, float, bytes]] = field(default_factory=list)
    extensions: str | None = None

    def __post_init__(self) -> None:
        self._time = count(100)
        compress = self.agreement != PLAIN
        offers = [ClientPerMessageDeflateFactory(client_max_window_bits=True)] if compress else None
        accepts = [_SERVERS[self.agreement]] if compress else None
        self.client = ClientProtocol(parse_uri("ws://example.test/"), extensions=offers)
        self.server = ServerProtocol(extensions=accepts)
        self.client.send_request(self.client.connect())
        self.server.receive_data(b"".join(self.client.data_to_send()))
        (request,) = self.server.events_received()
        response = self.server.accept(request)  # type: ignore[arg-type]
        self.server.send_response(response)
        self.client.receive_data(b"".join(self.server.data_to_send()))
        self.extensions = response.headers.get("Sec-WebSocket-Extensions")
        assert (self.extensions is not None) == compress

    def say(self, side: Side, text: str | bytes, fragments: int = 1) -> None:
        """A text, or for bytes a binary message; every fragment is followed by a ping."""
        data = text.encode() if isinstance(text, str) else text
        size = -(-len(data) // fragments) or 1
        parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
        protocol = self.client if side == "client" else self.server
        send: Callable[[bytes, bool], None] = (
            protocol.send_text if isinstance(text, str) else protocol.send_binary
        )
        for number, part in enumerate(parts):
            if number:
                protocol.send_ping(b"still here")
                send = protocol.send_continuation
            send(part, number == len(parts) - 1)
        self._hand_over(side)

    def ping(self, side: Side, data: bytes = b"") -> None:
        (self.client if side == "client" else self.server).send_ping(data)
        self._hand_over(side)

    def close(self, side: Side, code: int | None = None, reason: str = "") -> None:
        (self.client if side == "client" else self.server).send_close(code, reason)
        self._hand_over(side)

    def raw(self, side: Side) -> bytes:
        return b"".join(data for who, _, data in self.pieces if who == side)

    def _hand_over(self, side: Side) -> None:
        protocol = self.client if side == "client" else self.server
        sent = b"".join(protocol.data_to_send())
        if sent:
            self.pieces.append((side, float(next(self._time)), sent))


def frame(first: int, payload: bytes, key: bytes = b"") -> bytes:
    """A frame by hand; `key` masks it."""
    size = len(payload)
    flag = 0x80 if key else 0
    if size < 126:
        length = bytes((flag | size,))
    elif size < 1 << 16:
        length = bytes((flag | 126,)) + size.to_bytes(2)
    else:
        length = bytes((flag | 127,)) + size.to_bytes(8)
    masked = bytearray(payload)
    for lane, byte in enumerate(key):
        masked[lane::4] = (
            bytes(one ^ byte for one in payload[lane::4]) if byte else payload[lane::4]
        )
    return bytes((first,)) + length + key + masked
