"""The deterministic upstream: answers as it is asked to, and keeps what it got to the byte.

A request says in `x-wire-reply` what the answer is, and in `x-wire-id` by what it is found again.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from bin.wire_frames import CLOSE, read_frame
from bin.wire_read import Message, Tape, WireError, read_request
from bin.wire_replies import REPLIES, Piece, Reply

ID: Final = b"x-wire-id"
REPLY: Final = b"x-wire-reply"
READ_BYTES: Final = 256 * 1024
_SECONDS: Final = 15.0  # no peer is waited for longer


@dataclass(slots=True)
class Record:
    """A request as it came, and the reply as it went. `fault`: why the request was no HTTP."""

    request: Tape
    message: Message | None
    reply: Tape = field(default_factory=Tape)
    fault: str = ""
    done: threading.Event = field(default_factory=threading.Event)


class Recorder:
    """Notes bytes of one direction with the time of each step; `cut` begins a new tape."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._marks: list[tuple[int, float]] = []

    def add(self, data: bytes, at: float) -> None:
        self.data += data
        self._marks.append((len(self.data), at))

    def tape(self) -> Tape:
        return Tape(bytes(self.data), tuple(self._marks))

    def cut(self, end: int) -> Tape:
        """The first `end` bytes; what lies behind them stays."""
        whole = self.tape()
        rest = whole.part(end, len(self.data))
        self.data, self._marks = bytearray(rest.data), list(rest.marks)
        return whole.part(0, end)


class Upstream:
    """Listens on a free port of loopback from `with` on; each connection has a thread."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._records: dict[bytes, list[Record]] = {}
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._closed = True
            for connection in (self._listener, *self._open):
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_SECONDS)
        self._listener.close()

    def take(self, name: bytes) -> list[Record]:
        """All requests that came under this id, and forget them. Their replies have gone out."""
        with self._lock:
            found = self._records.pop(name, [])
        for record in found:
            record.done.wait(_SECONDS)
        return found

    def keep(self, record: Record) -> None:
        names = record.message.all(ID) if record.message is not None else []
        with self._lock:
            self._records.setdefault(names[0] if names else b"", []).append(record)

    def _start(self, target: object, *values: object) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=values, name="wire upstream", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    return
                self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
        with connection, contextlib.suppress(OSError):
            _Line(self, connection).serve()
        with self._lock:
            self._open.discard(connection)


class _Line:
    """One connection: requests in order, each answered before the next is looked at."""

    def __init__(self, upstream: Upstream, connection: socket.socket) -> None:
        self._upstream = upstream
        self._socket = connection
        self._got = Recorder()
        self._sent = Recorder()

    def serve(self) -> None:
        while True:
            try:
                request = self._request()
            except WireError as error:
                self._upstream.keep(self._faulty(error))
                return
            if request is None:
                return
            if not self._answer(request):
                return

    def _faulty(self, error: WireError) -> Record:
        record = Record(self._got.tape(), None, fault=str(error))
        record.done.set()
        return record

    def _request(self) -> Message | None:
        """The next request; None: the peer has closed."""
        continued = False
        while (request := read_request(bytes(self._got.data))) is None:
            if not continued and self._waits_for_continue():
                continued = True
                self._send(b"HTTP/1.1 100 Continue\r\n\r\n")
            if not self._read():
                return None
        return request

    def _waits_for_continue(self) -> bool:
        head, end, body = bytes(self._got.data).partition(b"\r\n\r\n")
        return bool(end) and not body and b"\r\nexpect: 100-continue" in head.lower()

    def _read(self) -> bool:
        data = self._socket.recv(READ_BYTES)
        if data:
            self._got.add(data, time.monotonic())
        return bool(data)

    def _send(self, data: bytes) -> None:
        # The time before the write: from here on the bytes may be at the client.
        self._sent.add(data, time.monotonic())
        self._socket.sendall(data)

    def _answer(self, request: Message) -> bool:
        """Reply and keep the record. False: the connection is done for."""
        reply = _reply_to(request)
        if reply.upgrades:
            self._tunnel(request, reply)
            return False
        record = Record(self._got.cut(request.end), request)
        self._upstream.keep(record)
        try:
            self._play(reply.pieces)
        finally:
            record.reply = self._sent.cut(len(self._sent.data))
            record.done.set()
        return not reply.closes and request.version == b"HTTP/1.1"

    def _play(self, pieces: tuple[Piece, ...]) -> None:
        for piece in pieces:
            if piece.pause:
                time.sleep(piece.pause)
            self._send(piece.data)

    def _tunnel(self, request: Message, reply: Reply) -> None:
        """Echo frames until the client closes; the record is whole only then."""
        record = Record(Tape(), request)
        self._upstream.keep(record)
        try:
            self._play(reply.pieces)
            self._echo(request.end)
        finally:
            record.request = self._got.tape()
            record.message = read_request(record.request.data, upgrades=True)
            record.reply = self._sent.tape()
            record.done.set()

    def _echo(self, at: int) -> None:
        self._socket.settimeout(_SECONDS)
        while True:
            found = read_frame(bytes(self._got.data[at:]))
            if found is None:
                if not self._read():
                    return
                continue
            frame, size = found
            at += size
            self._send(frame.echo().bytes(masked=False))
            if frame.opcode == CLOSE:
                return


def _reply_to(request: Message) -> Reply:
    name = (request.all(REPLY) or [b"echo"])[0].decode("latin-1")
    reply = REPLIES.get(name, REPLIES["echo"])(request)
    return reply.head_only() if request.method == b"HEAD" else reply
