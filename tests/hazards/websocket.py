"""WebSockets by hand: the offer, the assent, and frames as bytes (RFC 6455)."""

from __future__ import annotations

import base64
import hashlib
import struct

from tests.hazards.harness import Sidecar
from tests.hazards.peers import (
    CANARY,
    Call,
    Peer,
    get,
)

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
OFFER = (
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    f"Sec-WebSocket-Key: {KEY.decode()}\r\n"
)
SUBPROTOCOLS = f"Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{CANARY}-ws\r\n"
SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\n"


def offer(target: str = "/v1/realtime?model=gpt-realtime", lines: str = OFFER) -> bytes:
    return get(target, lines + SUBPROTOCOLS)


def accept(key: bytes) -> bytes:
    """RFC 6455 section 4.2.2."""
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest)


def assent(key: bytes = KEY) -> bytes:
    return SWITCHING + (
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %b\r\n"
        b"Sec-WebSocket-Protocol: realtime\r\n\r\n" % accept(key)
    )


def frame(code: int, payload: bytes, mask: bytes = b"", final: bool = True) -> bytes:
    """RFC 6455 section 5.2."""
    first = bytes([(0x80 if final else 0) | code])
    masked = 0x80 if mask else 0
    if len(payload) < 126:
        size = bytes([masked | len(payload)])
    elif len(payload) < 1 << 16:
        size = struct.pack(">BH", masked | 126, len(payload))
    else:
        size = struct.pack(">BQ", masked | 127, len(payload))
    if mask:
        repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
        number = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        payload = number.to_bytes(len(payload), "big")
    return first + size + mask + payload


def text(payload: bytes) -> bytes:
    return frame(1, payload, b"mask")


PING, PONG = frame(9, b"are you there", b"ping"), frame(10, b"are you there")


def agreed(call: Call) -> None:
    call.send(assent(call.request.all(b"sec-websocket-key")[0]))


def echo(call: Call) -> None:
    """Assent, then everything comes back as it came, until the client has no more."""
    agreed(call)
    call.send(call.buffer)
    call.buffer = b""
    while call.fill():
        call.send(call.take(len(call.buffer)))


def opened(sidecar: Sidecar, target: str = "/v1/realtime?model=gpt-realtime") -> Peer:
    client = sidecar.connect()
    client.send(offer(target))
    assert client.until(b"\r\n\r\n") == assent()
    return client
