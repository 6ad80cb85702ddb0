"""Raw sockets on both sides: what is sent, to the byte, and an upstream that plays any part."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CANARY = "sk-canary-3f9c17d2e8"
SECRETS = f"Authorization: Bearer {CANARY}-key\r\nCookie: session={CANARY}-cookie\r\n"
QUESTION = b'{"model":"gpt-4o-mini","messages":[{"role":"user","content":"hello"}]}'
ANSWER = b'{"id":"chatcmpl-1","object":"chat.completion","choices":[]}'
EVENTS = [
    b'data: {"choices":[{"delta":{"content":"one"}}]}\n\n',
    b'data: {"choices":[{"delta":{"content":"two"}}]}\n\n',
]
SSE_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
GONE_SECONDS = 4  # a second is promised; the rest is for a busy test machine


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def sized(body: bytes, status: bytes = b"200 OK", headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, headers, len(body), body)


def post(target: str, body: bytes = QUESTION, headers: str = "", framing: str = "") -> bytes:
    framing = framing or f"Content-Length: {len(body)}\r\n"
    head = (
        f"POST {target} HTTP/1.1\r\nHost: app\r\n{SECRETS}"
        f"Content-Type: application/json\r\n{headers}{framing}\r\n"
    )
    return head.encode("latin-1") + body


def get(target: str, headers: str = "") -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: app\r\n{SECRETS}{headers}\r\n".encode("latin-1")


def chat(tag: str) -> str:
    """A chat call's target that its row can be found by."""
    return f"/v1/chat/completions?before={tag}"


def reset(connection: socket.socket) -> None:
    """Close with RST instead of FIN."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


@dataclass
class Message:
    """A request or reply as it came: its start line, headers, and body as far as it got."""

    start: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    whole: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def status(self) -> int:
        return int(self.start.split(b" ")[1])


class Peer:
    """One end of a connection, with a buffer. Never raises for a peer that went away."""

    def __init__(self, connection: socket.socket, seconds: float = 5.0) -> None:
        self.socket = connection
        self.socket.settimeout(seconds)
        self.buffer = b""
        self.ended: str | None = None  # "closed" or "reset" once the peer is gone
        self.ended_at = 0.0  # time.monotonic() of that
        self.heard_secret = False
        self._last = b""

    def send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            self.socket.sendall(data)

    def fill(self) -> bool:
        """Read once more. False: there is no more."""
        try:
            data = self.socket.recv(256 * 1024)
        except ConnectionError:
            self._end("reset")
            return False
        if not data:
            self._end("closed")
        self.heard_secret |= CANARY.encode() in self._last + data
        self._last = data[-len(CANARY) :]
        self.buffer += data
        return bool(data)

    def _end(self, how: str) -> None:
        self.ended_at = self.ended_at or time.monotonic()
        self.ended = self.ended or how

    def until(self, mark: bytes) -> bytes:
        """All up to and with `mark`; less when the peer ends."""
        while mark not in self.buffer and self.fill():
            pass
        end = self.buffer.find(mark)
        return self.take(len(self.buffer) if end < 0 else end + len(mark))

    def take(self, size: int) -> bytes:
        while len(self.buffer) < size and self.fill():
            pass
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def rest(self) -> bytes:
        while self.fill():
            pass
        return self.take(len(self.buffer))

    def wait_ended(self, seconds: float = GONE_SECONDS) -> bool:
        """Does the peer go away in time?"""
        self.socket.settimeout(seconds)
        try:
            self.rest()
        except TimeoutError:
            return False
        finally:
            with contextlib.suppress(OSError):
                self.socket.settimeout(5.0)
        return True

    def message_head(self) -> Message:
        head = self.until(b"\r\n\r\n")
        lines = head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        pairs = [line.partition(b":") for line in lines[1:]]
        return Message(lines[0], [(name, value.strip()) for name, _, value in pairs])

    def message_body(self, message: Message, until_close: bool) -> Message:
        if message.all(b"transfer-encoding") == [b"chunked"]:
            self._chunks(message)
        elif lengths := message.all(b"content-length"):
            message.body = self.take(int(lengths[0]))
            message.whole = len(message.body) == int(lengths[0])
        elif until_close:
            message.body = self.rest()
            message.whole = self.ended == "closed"
        else:
            message.whole = True
        return message

    def _chunks(self, message: Message) -> None:
        while line := self.until(b"\r\n"):
            if not line.endswith(b"\r\n"):
                return
            size = int(line, 16)
            data = self.take(size + 2)
            if size == 0:
                message.whole = data == b"\r\n"
                return
            message.body += data[:size]
            if len(data) < size + 2:
                return

    def reply(self, method: str = "POST") -> Message:
        """The next final reply, whole or as far as it came."""
        message = self.message_head()
        bodiless = method == "HEAD" or message.start.split(b" ")[1:2] in ([b"204"], [b"304"])
        if bodiless or not message.start:
            message.whole = bool(message.start)
            return message
        return self.message_body(message, until_close=True)

    def close(self) -> None:
        self.socket.close()


class Call(Peer):
    """A request as the upstream gets it. Play its part with `send`, `reset` and `close`."""

    def __init__(self, connection: socket.socket, buffer: bytes) -> None:
        super().__init__(connection, 10.0)
        self.buffer = buffer
        self.request = self.message_head()

    @property
    def target(self) -> bytes:
        return self.request.start.split(b" ")[1]

    def read_body(self) -> bytes:
        return self.message_body(self.request, until_close=False).body

    def reset(self) -> None:
        reset(self.socket)


Answer = Callable[[Call], None]


def plain(call: Call) -> None:
    call.read_body()
    call.send(sized(ANSWER, headers=b"Content-Type: application/json\r\n"))


class Upstream:
    """Accepts connections; each request on them is answered by what `answer` is at that time."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.answer: Answer = plain
        self.calls: queue.Queue[Call] = queue.Queue()
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        buffer = b""
        with contextlib.suppress(OSError), connection:
            while True:
                connection.settimeout(None)
                while b"\r\n\r\n" not in buffer:
                    data = connection.recv(65536)
                    if not data:
                        return
                    buffer += data
                call = Call(connection, buffer)
                self.calls.put(call)
                self.answer(call)
                buffer = call.buffer

    def next_call(self) -> Call:
        return self.calls.get(timeout=5)

    @contextlib.contextmanager
    def playing(self, answer: Answer) -> Iterator[None]:
        """Answer so for the time being."""
        self.forget_calls()
        self.answer = answer
        try:
            yield
        finally:
            self.answer = plain

    def saying(self, *parts: bytes) -> contextlib.AbstractContextManager[None]:
        """Read the request, send these bytes and close."""

        def answer(call: Call) -> None:
            call.read_body()
            for part in parts:
                call.send(part)
            call.socket.close()

        return self.playing(answer)

    def forget_calls(self) -> None:
        while not self.calls.empty():
            self.calls.get_nowait()

    def close(self) -> None:
        self.listener.close()
