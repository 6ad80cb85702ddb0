"""The client's side of a verification: sends requests as told, keeps what came back, and when."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from bin.wire_frames import CLOSE, Frame
from bin.wire_read import Headers, Message, Tape, WireError, read_reply
from bin.wire_request import Filling, Request, body_pieces, head_bytes
from bin.wire_upstream import READ_BYTES, Recorder

CONNECT_SECONDS: Final = 10.0
_CONTINUE_SECONDS: Final = 3.0


class AddressError(ValueError):
    """A URL that can't be used; one line for a person."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where to connect. `prefix` is the path that the URL has before that of a request."""

    host: str
    port: int
    tls: bool = False
    prefix: bytes = b""

    @classmethod
    def of(cls, url: str, option: str) -> Address:
        """Raises AddressError."""
        with contextlib.suppress(ValueError):
            parts = urlsplit(url)
            if parts.scheme in ("http", "https") and parts.hostname and not parts.username:
                tls = parts.scheme == "https"
                port = parts.port or (443 if tls else 80)
                return cls(parts.hostname, port, tls, parts.path.rstrip("/").encode("ascii"))
        raise AddressError(f"{option} {url!r}: must be http:// or https:// with a host")

    def filling(self, key: bytes | None) -> Filling:
        return Filling(self.authority, self.prefix, key)

    @property
    def authority(self) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        usual = self.port == (443 if self.tls else 80)
        return (host if usual else f"{host}:{self.port}").encode("ascii")

    def check(self, option: str) -> None:
        """Is anyone there? Raises AddressError."""
        try:
            self.connect().close()
        except OSError as error:
            raise AddressError(f"{option}: {self.host}:{self.port}: {error}") from None

    def connect(self) -> socket.socket:
        """Raises OSError."""
        plain = socket.create_connection((self.host, self.port), CONNECT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        if not self.tls:
            return plain
        try:
            return ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)
        except OSError:
            plain.close()
            raise


@dataclass(frozen=True, slots=True)
class Played:
    """One request as it was sent and its reply. `fault`: why there is no reply."""

    request: Request
    sent: Tape
    got: Tape
    reply: Message | None
    fault: str = ""


def play(
    conversation: Sequence[Request],
    address: Address,
    filling: Filling,
    more: Sequence[Headers],
    patience: float,
) -> list[Played]:
    """Send the requests over one connection. Errors come back as faults.

    `more`: headers added to each. `patience`: seconds without a byte of a reply.
    """
    heads = [
        head_bytes(request, filling, extra)
        for request, extra in zip(conversation, more, strict=True)
    ]
    try:
        connection = address.connect()
    except OSError as error:
        return [Played(r, Tape(), Tape(), None, f"no connection: {error}") for r in conversation]
    with connection:
        connection.settimeout(patience)
        return _Talk(connection).all(list(zip(conversation, heads, strict=True)))


class _Talk:
    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._got = Recorder()
        self._sent: list[Tape] = []
        self._ended = False
        self._fault = ""

    def all(self, requests: list[tuple[Request, bytes]]) -> list[Played]:
        played: list[Played] = []
        for index, (request, head) in enumerate(requests):
            if len(self._sent) <= index:
                self._send_group(requests[index:], head)
            played.append(self._reply(request, index))
        return played

    def _send_group(self, requests: list[tuple[Request, bytes]], head: bytes) -> None:
        """The next request, with those that are pipelined behind it in the same write."""
        first = requests[0][0]
        group = [(first, head)]
        for request, other in requests[1:]:
            if request.options.connection != "pipelined":
                break
            group.append((request, other))
        if len(group) == 1:
            self._sent.append(self._send_one(first, head))
            return
        wires = [data + b"".join(body_pieces(request)) for request, data in group]
        now = time.monotonic()
        self._write(b"".join(wires))
        self._sent += [Tape(wire, ((len(wire), now),)) for wire in wires]

    def _send_one(self, request: Request, head: bytes) -> Tape:
        sent = Recorder()
        if not request.paced and not request.expects:
            self._note_and_write(sent, head + b"".join(body_pieces(request)))
            return sent.tape()
        self._note_and_write(sent, head)
        if request.expects and not self._told_to_continue():
            return sent.tape()
        for piece in body_pieces(request):
            time.sleep(request.options.pause)
            self._note_and_write(sent, piece)
        return sent.tape()

    def _note_and_write(self, sent: Recorder, data: bytes) -> None:
        sent.add(data, time.monotonic())
        self._write(data)

    def _write(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            self._fault = f"sending failed: {error}"

    def _told_to_continue(self) -> bool:
        """False: a final reply came instead. Without any reply the body is sent all the same."""
        patience = self._socket.gettimeout()
        self._socket.settimeout(_CONTINUE_SECONDS)
        while b"\r\n\r\n" not in self._got.data and self._read():
            pass
        self._socket.settimeout(patience)
        self._fault = ""
        return not self._got.data or self._got.data.startswith(b"HTTP/1.1 100")

    def _read(self) -> bool:
        """Read once more. False: there is no more, or none in time."""
        try:
            data = self._socket.recv(READ_BYTES)
        except TimeoutError:
            self._fault = f"no further byte in {self._socket.gettimeout():g} s"
            return False
        except OSError as error:
            self._fault = f"connection lost: {error}"
            return False
        if data:
            self._got.add(data, time.monotonic())
        else:
            self._ended = True
        return bool(data)

    def _reply(self, request: Request, index: int) -> Played:
        try:
            reply = self._whole_reply(request)
        except WireError as error:
            got, self._fault = self._got.tape(), f"not HTTP/1.1: {error}"
            self._got = Recorder()
            return Played(request, self._sent[index], got, None, self._fault)
        if reply is None:
            fault = self._fault or "the connection ended before a reply"
            return Played(request, self._sent[index], self._got.tape(), None, fault)
        if reply.framing == "tunnel" and request.options.frames:
            return self._tunnel(request, reply, index)
        return Played(request, self._sent[index], self._got.cut(reply.end), reply)

    def _whole_reply(self, request: Request) -> Message | None:
        while True:
            reply = read_reply(bytes(self._got.data), request.method, self._ended)
            if reply is not None or self._ended or not self._read_or_end():
                return reply

    def _read_or_end(self) -> bool:
        return self._read() or self._ended

    def _tunnel(self, request: Request, reply: Message, index: int) -> Played:
        """Each frame is sent when the echo of the one before is there."""
        sent = Recorder()
        sent.add(self._sent[index].data, self._sent[index].marks[-1][1])
        expected = reply.head_end
        for frame in (*request.options.frames, Frame(CLOSE, b"\x03\xe8done")):
            self._note_and_write(sent, frame.bytes(masked=True))
            expected += len(frame.echo().bytes(masked=False))
            while len(self._got.data) < expected and self._read():
                pass
        while self._read():
            pass
        whole = read_reply(bytes(self._got.data), request.method, self._ended)
        return Played(request, sent.tape(), self._got.tape(), whole, "")
