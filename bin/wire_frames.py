"""WebSocket frames (RFC 6455 section 5), as far as an echo needs them: none fragmented."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# A client's mask must be unforeseeable in the wild; here both runs must send the same bytes.
_MASK: Final = b"\x13\x37\xc0\xde"


@dataclass(frozen=True, slots=True)
class Frame:
    opcode: int
    payload: bytes

    def bytes(self, masked: bool) -> bytes:
        size = len(self.payload)
        if size < 126:
            length = bytes([size | masked << 7])
        elif size < 1 << 16:
            length = bytes([126 | masked << 7]) + size.to_bytes(2, "big")
        else:
            length = bytes([127 | masked << 7]) + size.to_bytes(8, "big")
        head = bytes([0x80 | self.opcode]) + length
        return head + _MASK + _mask(self.payload, _MASK) if masked else head + self.payload

    def echo(self) -> Frame:
        return Frame(PONG if self.opcode == PING else self.opcode, self.payload)


def read_frame(data: bytes) -> tuple[Frame, int] | None:
    """The first frame and its size on the wire; None: not all of it is there."""
    if len(data) < 2:
        return None
    masked, size, at = data[1] >> 7, data[1] & 127, 2
    if size >= 126:
        at += 2 if size == 126 else 8
        size = int.from_bytes(data[2:at], "big")
    mask = data[at : at + 4 * masked]
    at += 4 * masked
    if len(data) < at + size:
        return None
    payload = data[at : at + size]
    return Frame(data[0] & 15, _mask(payload, mask) if masked else payload), at + size


def accept(key: bytes) -> bytes:
    """The value of Sec-WebSocket-Accept for a client's key."""
    return base64.b64encode(hashlib.sha1(key + _GUID).digest())


def _mask(payload: bytes, mask: bytes) -> bytes:
    repeated = mask * (len(payload) // 4 + 1)
    pairs = zip(payload, repeated, strict=False)
    return bytes(byte ^ key for byte, key in pairs)
