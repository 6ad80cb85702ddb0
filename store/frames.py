"""WebSocket messages from the raw bytes of a connection, sans-IO (RFC 6455, RFC 7692).

A `Socket` holds two readers, one a direction, and is fed bytes cut anywhere. It only looks on: it
answers no ping and closes nothing, and what it meets is no reason to raise. A direction that can't
be read any further (a broken frame, a hole where bytes were not captured, a message that is too
large) stops with a `note`; the other goes on.

`Socket.state()` is what a reader in another process needs to go on from `FrameReader.read`, the
end of the last whole message. With context takeover a message may refer to the plain text before
it, so the state then holds the last 32 KiB of that: all that an inflater knows between messages.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from store.deflate import MOST_MESSAGE, Deflate, Inflater, NotInflated, Side, agreed
from store.values import Json

_CONTINUATION, _TEXT, _CLOSE = 0, 1, 8
_FINAL: Final = 0x80
_COMPRESSED: Final = 0x40
_OPENINGS: Final = frozenset((0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A))
_COMPRESSED_OPENINGS: Final = frozenset((0x41, 0x42, 0xC1, 0xC2))
_SMALL: Final = 4096
_XOR: Final = [bytes(byte ^ key for byte in range(256)) for key in range(256)]


@dataclass(frozen=True, slots=True)
class Message:
    """`began_at` and `at`: when its first and its last byte came, seconds of CLOCK_MONOTONIC."""

    data: bytes
    text: bool
    began_at: float
    at: float


@dataclass(frozen=True, slots=True)
class Closing:
    """A close frame. `code` is None when it said none."""

    code: int | None
    reason: str


class _Broken(Exception):
    """This direction can't be read any further."""


class FrameReader:
    """One direction. `read`: bytes of it up to the end of the last whole message, or of all that
    came once it has stopped; `note`: why it stopped, None while it is well.
    """

    def __init__(
        self, side: Side, deflate: Deflate | None = None, read: int = 0, window: bytes = b""
    ) -> None:
        self.read = read
        self.note: str | None = None
        self.closing: Closing | None = None
        self._masked = side == "client"
        self._inflater = Inflater(deflate, window) if deflate is not None else None
        self._openings = _OPENINGS | _COMPRESSED_OPENINGS if deflate else _OPENINGS
        self._pieces: list[bytes] = []
        self._fed = read  # bytes of this direction that came
        self._held = 0  # bytes in `_pieces`
        self._need = 2  # bytes that the frame at their beginning takes, as far as is known
        self._frame_began = 0.0
        self._opening = -1  # the first byte of a message in fragments
        self._opening_began = 0.0
        self._fragments = bytearray()

    @property
    def stopped(self) -> bool:
        return self.note is not None or self.closing is not None

    def window(self) -> bytes:
        """The plain text that the next message may refer to."""
        return self._inflater.window() if self._inflater is not None else b""

    def stop(self, note: str) -> None:
        """Nothing that follows can be placed: bytes are missing, or make no sense."""
        if not self.stopped:
            self.note = note
        self._let_go()

    def feed(self, at: float, data: bytes) -> Iterator[Message]:
        """The messages that are whole now. Exhaust it before the next `feed`."""
        self._fed += len(data)
        if self.stopped:
            self.read = self._fed
            return
        if not self._held:
            self._frame_began = at
        self._pieces.append(data)
        self._held += len(data)
        if self._held < self._need:
            return
        try:
            yield from self._messages(at, b"".join(self._pieces))
        except _Broken as error:
            self.stop(str(error))
        if self.closing is not None:
            self._let_go()

    def _messages(self, at: float, data: bytes) -> Iterator[Message]:
        base = self._fed - len(data)
        position, size = 0, len(data)
        while True:
            start, end = self._extent(data, position, size)
            if end > size:
                break
            first = data[position]
            payload = data[start:end]
            if self._masked and payload:
                payload = _unmasked(payload, data[start - 4 : start])
            message = self._frame(first, payload, at)
            position = end
            if self._opening < 0:
                self.read = base + end
            if self.closing is not None:
                return
            self._frame_began = at
            if message is not None:
                yield message
        rest = data[position:] if position else data
        self._pieces = [rest] if rest else []
        self._held, self._need = len(rest), end - position

    def _extent(self, data: bytes, position: int, size: int) -> tuple[int, int]:
        """Where the payload of a frame begins and ends; an end past `size` asks for more bytes."""
        start = position + 2
        if start > size:
            return start, start
        first, second = data[position], data[position + 1]
        if first not in self._openings:
            raise _Broken(f"a frame that begins with 0x{first:02x}")
        if second >> 7 != self._masked:
            raise _Broken("a frame without its mask" if self._masked else "a masked frame")
        length = second & 0x7F
        if length > 125:
            extra = 2 if length == 126 else 8
            start += extra
            if first & _CLOSE:
                raise _Broken("a control frame that is too long")
            if start > size:
                return start, start
            length = int.from_bytes(data[start - extra : start])
            _check_length(length, extra)
        start += 4 * self._masked
        return start, start + length

    def _frame(self, first: int, payload: bytes, at: float) -> Message | None:
        opcode = first & 0x0F
        if opcode >= _CLOSE:
            if opcode == _CLOSE:
                self.closing = _closing(payload)
            return None
        began = self._frame_began
        if opcode == _CONTINUATION:
            if self._opening < 0:
                raise _Broken("a continuation of nothing")
            self._keep(payload)
            if not first & _FINAL:
                return None
            payload = bytes(self._fragments)
            first, began = self._opening, self._opening_began
            self._opening, self._fragments = -1, bytearray()
        elif self._opening >= 0:
            raise _Broken("a message within another")
        elif not first & _FINAL:
            self._opening, self._opening_began = first, began
            self._keep(payload)
            return None
        return self._message(first, payload, began, at)

    def _keep(self, payload: bytes) -> None:
        self._fragments += payload
        if len(self._fragments) > MOST_MESSAGE:
            raise _Broken(_too_long(len(self._fragments)))

    def _message(self, first: int, data: bytes, began: float, at: float) -> Message:
        if first & _COMPRESSED and self._inflater is not None:
            try:
                data = self._inflater.inflate(data)
            except NotInflated as error:
                raise _Broken(str(error)) from None
        text = first & 0x0F == _TEXT
        if text and not data.isascii():
            try:
                data.decode()
            except UnicodeDecodeError:
                raise _Broken("a text that is not UTF-8") from None
        return Message(data, text, began, at)

    def _let_go(self) -> None:
        self.read = self._fed
        self._pieces, self._held = [], 0
        self._opening, self._fragments = -1, bytearray()
        self._inflater = None


class Socket:
    """Both directions of one connection. `state` comes from `state()` of a predecessor, which is
    then fed each direction from its `read` on.
    """

    def __init__(self, extensions: str | None, state: Json | None = None) -> None:
        state = state or {}
        self.client = _restored("client", extensions, state.get("client"))
        self.server = _restored("server", extensions, state.get("server"))

    def side(self, side: Side) -> FrameReader:
        return self.client if side == "client" else self.server

    def notes(self) -> dict[Side, str]:
        """Why a direction stopped before its close frame."""
        found: dict[Side, str] = {}
        if self.client.note is not None:
            found["client"] = self.client.note
        if self.server.note is not None:
            found["server"] = self.server.note
        return found

    def state(self) -> Json:
        return {"client": _state(self.client), "server": _state(self.server)}


def _state(reader: FrameReader) -> Json:
    closing = reader.closing
    return {
        "read": reader.read,
        "window": b64encode(reader.window()).decode(),
        "note": reader.note,
        "closing": None if closing is None else [closing.code, closing.reason],
    }


def _restored(side: Side, extensions: str | None, state: Json | None) -> FrameReader:
    if state is None:
        return FrameReader(side, agreed(extensions, side))
    window = b64decode(state["window"])
    reader = FrameReader(side, agreed(extensions, side), state["read"], window)
    reader.note = state["note"]
    reader.closing = None if state["closing"] is None else Closing(*state["closing"])
    return reader


def _check_length(length: int, extra: int) -> None:
    if length < (126 if extra == 2 else 1 << 16):
        raise _Broken("a length that is not in its shortest form")
    if length > MOST_MESSAGE:
        raise _Broken(_too_long(length))


def _too_long(length: int) -> str:
    return f"a message of {length} bytes, over {MOST_MESSAGE}"


def _closing(payload: bytes) -> Closing:
    if not payload:
        return Closing(None, "")
    if len(payload) == 1:
        raise _Broken("a close frame of one byte")
    return Closing(int.from_bytes(payload[:2]), payload[2:].decode(errors="replace"))


def _unmasked(data: bytes, key: bytes) -> bytes:
    """Through one large number while that is the faster way, else a table for each byte of the key
    (0.5 µs for 64 bytes; 500 MB/s).
    """
    size = len(data)
    if size > _SMALL:
        plain = bytearray(size)
        for lane, byte in enumerate(key):
            plain[lane::4] = data[lane::4].translate(_XOR[byte])
        return bytes(plain)
    keys = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(data) ^ int.from_bytes(keys)).to_bytes(size)
