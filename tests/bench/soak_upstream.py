"""The upstream of a soak. The header X-Play of a request says which part it plays: it answers,
streams, stalls, breaks off, or speaks WebSocket."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from bin.wire_frames import CLOSE, accept, read_frame
from tests.bench.soak_wire import Cut, Head, Line, noise
from tests.hazards.peers import ANSWER

_JSON: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
_SSE: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_BINARY: Final = b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\n"
STALL_SECONDS: Final = 20.0  # longer than any client of the soak waits


@dataclass(frozen=True, slots=True)
class Call:
    line: Line
    head: Head
    name: bytes  # the play's
    words: list[int]  # its parameters

    @classmethod
    def of(cls, line: Line, head: Head) -> Call:
        name, *words = head.fields.get(b"x-play", b"plain").split()
        return cls(line, head, name, [int(word) for word in words])

    async def event(self, content: str) -> None:
        said = {"object": "chat.completion.chunk", "choices": [{"delta": {"content": content}}]}
        await self.chunk(b"data: " + json.dumps(said).encode() + b"\n\n")

    async def chunk(self, data: bytes) -> None:
        await self.line.send(b"%x\r\n%b\r\n" % (len(data), data))


async def _plain(call: Call) -> None:
    await call.line.weigh(call.head)
    await call.line.send(_JSON % (len(ANSWER), ANSWER))


async def _weigh(call: Call) -> None:
    """The answer is the body's size and hash."""
    weight = await call.line.weigh(call.head)
    message = {"role": "assistant", "content": bytes(weight).decode()}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
    said = {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": usage}
    body = json.dumps(said).encode()
    await call.line.send(_JSON % (len(body), body))


async def _stream(call: Call) -> None:
    """Parameters: a token that is in each event, and how many there are."""
    token, count = call.words
    await call.line.weigh(call.head)
    await call.line.send(_SSE)
    for number in range(count):
        await call.event(f"{token}.{number} ")
        await asyncio.sleep(0.002)
    await call.chunk(b"data: [DONE]\n\n")
    await call.line.send(b"0\r\n\r\n")


async def _download(call: Call) -> None:
    """Parameters: size, seed, and whether it is chunked."""
    size, seed, chunked = call.words
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % size
    await call.line.send(_BINARY + framing + b"\r\n\r\n")
    await call.line.send_body(noise(size, seed), bool(chunked))


async def _stall(call: Call) -> None:
    await call.line.weigh(call.head)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(call.line.gone(), STALL_SECONDS)
    call.line.close()


async def _endless(call: Call) -> None:
    await call.line.weigh(call.head)
    await call.line.send(_SSE)
    for number in range(int(STALL_SECONDS * 20)):
        await call.event(f"{number} ")
        await asyncio.sleep(0.05)
    call.line.reset()


async def _swallow(call: Call) -> None:
    """Read a body that never ends."""
    await call.line.weigh(call.head)


async def _reset(call: Call) -> None:
    """Parameter: after how many events. With none there is no answer at all."""
    await call.line.weigh(call.head)
    if call.words[0]:
        await call.line.send(_SSE)
        for number in range(call.words[0]):
            await call.event(f"{number} ")
        await asyncio.sleep(0.01)
    call.line.reset()


async def _cut(call: Call) -> None:
    """A stream that ends without its last chunk."""
    await call.line.weigh(call.head)
    await call.line.send(_SSE)
    await call.event("half ")
    call.line.close()


async def _refuse_early(call: Call) -> None:
    said = b"too large"
    head = b"HTTP/1.1 413 Payload Too Large\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    await call.line.send(head % len(said) + said)
    await asyncio.wait_for(call.line.gone(), STALL_SECONDS)
    call.line.close()


async def _websocket(call: Call) -> None:
    """Echo frames until one says goodbye."""
    key = accept(call.head.fields[b"sec-websocket-key"])
    await call.line.send(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + key + b"\r\n\r\n"
    )
    data = b""
    while more := await call.line.reader.read(1 << 16):
        data += more
        while found := read_frame(data):
            frame, size = found
            data = data[size:]
            await call.line.send(frame.echo().bytes(masked=False))
            if frame.opcode == CLOSE:
                call.line.close()
                return


_PLAYS: Final[dict[bytes, Callable[[Call], Awaitable[None]]]] = {
    b"plain": _plain,
    b"weigh": _weigh,
    b"stream": _stream,
    b"download": _download,
    b"stall": _stall,
    b"endless": _endless,
    b"swallow": _swallow,
    b"reset": _reset,
    b"cut": _cut,
    b"refuse-early": _refuse_early,
    b"websocket": _websocket,
}


@dataclass(slots=True)
class Upstream:
    """`open`: connections that the sidecar holds to it. `faults`: what should not have been."""

    port: int = 0
    open: int = 0
    calls: int = 0
    faults: list[str] = field(default_factory=list)
    _server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
        self.port = self._server.sockets[0].getsockname()[1]

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = Line(reader, writer)
        play = b""
        self.open += 1
        try:
            while not writer.is_closing():
                call = Call.of(line, await line.head())
                self.calls += 1
                play = call.name
                await _PLAYS[play](call)
        except (Cut, ConnectionError, TimeoutError):
            pass  # the sidecar let go, which is its right
        except Exception as error:
            self.faults.append(f"upstream, {play.decode()}: {error!r}")
        finally:
            self.open -= 1
            line.close()
