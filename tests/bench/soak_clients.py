"""The clients of a soak: each kind of call checks what it gets, or goes away in the middle."""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from bin.wire_frames import BINARY, CLOSE, PING, TEXT, Frame, read_frame
from tests.bench.soak_wire import PIECE, Cut, Head, Line, Weight, noise, weight_of
from tests.hazards.peers import CANARY, SECRETS

CHAT: Final = "/v1/chat/completions"
FILES: Final = "/v1/files"


class Wrong(Exception):
    """A client got something else than it should have."""


@dataclass(frozen=True, slots=True)
class Asker:
    """One worker of the load, for one call. `number` is a token that no other call has."""

    address: tuple[str, int]
    chance: random.Random
    number: int
    lines: list[Line] = field(default_factory=list)

    async def line(self) -> Line:
        line = await Line.to(self.address)
        self.lines.append(line)
        return line

    def close(self) -> None:
        """The call is over, well or not."""
        for line in self.lines:
            line.close()


def head(method: str, target: str, play: str, length: int | None = 0, more: str = "") -> bytes:
    """`length` None: chunked."""
    framing = f"Content-Length: {length}" if length is not None else "Transfer-Encoding: chunked"
    said = (
        f"{method} {target} HTTP/1.1\r\nHost: app\r\n{SECRETS}X-Play: {play}\r\n"
        f"Content-Type: application/json\r\n{more}{framing}\r\n\r\n"
    )
    return said.encode()


def question(number: int, stream: bool = False, size: int = 2000) -> bytes:
    asked = f"{number} " + "x" * size
    said = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": asked}]}
    return json.dumps(said | ({"stream": True} if stream else {})).encode()


def must(truth: bool, what: str) -> None:
    if not truth:
        raise Wrong(what)


async def _answered(line: Line, weight: Weight) -> None:
    """The answer says that the upstream got just what was sent."""
    reply = await line.head()
    body = await line.body(reply)
    must(reply.status == 200, f"{reply.start!r} {body[:200]!r}")
    content = json.loads(body)["choices"][0]["message"]["content"]
    must(content.encode() == bytes(weight), f"sent {bytes(weight)!r}, arrived {content!r}")


async def _post(line: Line, body: bytes, play: str = "weigh") -> Weight:
    await line.send(head("POST", CHAT, play, len(body)) + body)
    return weight_of(iter((body,)))


async def plain(asker: Asker) -> None:
    """A few calls on one connection."""
    line = await asker.line()
    for turn in range(asker.chance.randrange(1, 5)):
        await _answered(line, await _post(line, question(asker.number * 10 + turn)))


async def pipelined(asker: Asker) -> None:
    line = await asker.line()
    bodies = [question(asker.number * 10 + turn, size=100) for turn in range(8)]
    sent = [head("POST", CHAT, "weigh", len(body)) + body for body in bodies]
    await line.send(b"".join(sent))
    for body in bodies:
        await _answered(line, weight_of(iter((body,))))


async def stream(asker: Asker) -> None:
    line = await asker.line()
    count = asker.chance.randrange(2, 60)
    await _post(line, question(asker.number, stream=True), f"stream {asker.number} {count}")
    said = await line.body(await line.head())
    events = [piece for piece in said.split(b"\n\n") if piece]
    must(len(events) == count + 1, f"{len(events)} events instead of {count + 1}")
    for at, event in enumerate(events[:-1]):
        must(b'"%d.%d "' % (asker.number, at) in event, f"event {at}: {event!r}")
    must(events[-1] == b"data: [DONE]", f"it ends in {events[-1]!r}")


def _multipart(size: int, seed: int) -> Iterator[bytes]:
    yield b'--b"o\r\nContent-Disposition: form-data; name="fi\\"le"; filename="a.wav"\r\n\r\n'
    yield from noise(size, seed)
    yield b'\r\n--b"o--\r\n'


async def upload(asker: Asker, size: int | None = None, chunked: bool | None = None) -> None:
    size = asker.chance.randrange(1, 8 << 20) if size is None else size
    chunked = asker.chance.random() < 0.5 if chunked is None else chunked
    pieces = _multipart(size, asker.number)
    length = None if chunked else sum(map(len, _multipart(0, 0))) + size
    line = await asker.line()
    await line.send(head("POST", FILES, "weigh", length))
    await _answered(line, await line.send_body(pieces, chunked))


async def picture(asker: Asker) -> None:
    """A large body that is recorded."""
    body = question(asker.number, size=asker.chance.randrange(200_000, 1_000_000))
    line = await asker.line()
    await _answered(line, await _post(line, body))


async def download(asker: Asker, size: int | None = None, chunked: bool | None = None) -> None:
    size = asker.chance.randrange(1, 8 << 20) if size is None else size
    chunked = asker.chance.random() < 0.5 if chunked is None else chunked
    line = await asker.line()
    play = f"download {size} {asker.number} {int(chunked)}"
    await line.send(head("GET", f"{FILES}/f/content", play))
    got = await line.weigh(await line.head())
    must(got == weight_of(noise(size, asker.number)), f"{got} of {size} bytes")


async def slow_reader(asker: Asker) -> None:
    size = 2 << 20
    line = await asker.line()
    await line.send(head("GET", f"{FILES}/f/content", f"download {size} {asker.number} 0"))
    reply, got = await line.head(), 0
    async for piece in line.pieces(reply):
        got += len(piece)
        await asyncio.sleep(0.02 * len(piece) / PIECE)
    must(got == size, f"{got} of {size} bytes")


async def websocket(asker: Asker) -> None:
    key = base64.b64encode(asker.chance.randbytes(16)).decode()
    more = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n"
    asked = head("GET", "/v1/realtime?model=x", "websocket", 0, more)
    line = await asker.line()
    await line.send(asked.replace(b"Content-Length: 0", b"Sec-WebSocket-Version: 13"))
    must((await line.head()).status == 101, "no switch of protocol")
    for _ in range(asker.chance.randrange(1, 12)):
        size = asker.chance.choice((5, 200, 5000, 70_000))
        frame = Frame(asker.chance.choice((TEXT, BINARY)), asker.chance.randbytes(size))
        must(await _echo(line, frame) == frame, "another message came back")
    must((await _echo(line, Frame(PING, b"still?"))).payload == b"still?", "no pong")
    if asker.chance.random() < 0.3:
        line.reset()
        return
    must(await _echo(line, Frame(CLOSE, b"\x03\xe8")) == Frame(CLOSE, b"\x03\xe8"), "no goodbye")
    await asyncio.wait_for(line.gone(), 5)


async def _echo(line: Line, frame: Frame) -> Frame:
    await line.send(frame.bytes(masked=True))
    data = b""
    while (found := read_frame(data)) is None:
        more = await line.reader.read(1 << 16)
        must(bool(more), "the session ended")
        data += more
    return found[0]


# -- clients that leave


def _leave(line: Line, asker: Asker) -> None:
    line.reset() if asker.chance.random() < 0.5 else line.close()


async def leaves_before(asker: Asker) -> None:
    line = await asker.line()
    await _post(line, question(asker.number), "stall")
    await asyncio.sleep(asker.chance.random() * 0.2)
    _leave(line, asker)


async def leaves_midway(asker: Asker) -> None:
    line = await asker.line()
    await _post(line, question(asker.number, stream=True), "endless")
    await line.head()
    await line.reader.readuntil(b'"%d "' % asker.chance.randrange(4))
    _leave(line, asker)


async def leaves_in_upload(asker: Asker) -> None:
    line = await asker.line()
    await line.send(head("POST", FILES, "swallow", 50_000_000))
    for piece in noise(asker.chance.randrange(1, 1 << 20), asker.number):
        await line.send(piece)
    _leave(line, asker)


# -- upstreams that break, and requests that are none


def _must_be_ours(reply: Head, body: bytes, status: int) -> None:
    must(reply.status == status, f"{reply.start!r} instead of {status}")
    must(json.loads(body)["error"]["type"] == "understudy_error", f"{body[:200]!r}")
    must(CANARY.encode() not in body, "a secret in the body of an error")


async def no_answer(asker: Asker) -> None:
    line = await asker.line()
    await _post(line, question(asker.number), "reset 0")
    reply = await line.head()
    _must_be_ours(reply, await line.body(reply), 502)


async def broken_stream(asker: Asker) -> None:
    line = await asker.line()
    play = asker.chance.choice(("cut", "reset 2"))
    await _post(line, question(asker.number, stream=True), play)
    reply = await line.head()
    try:
        body = await line.body(reply)
    except Cut:
        return
    raise Wrong(f"a stream that broke ended cleanly: {body[-100:]!r}")


async def refused_early(asker: Asker) -> None:
    line = await asker.line()
    await line.send(head("POST", FILES, "refuse-early", 50_000_000))
    await line.send(bytes(100_000))
    reply = await line.head()
    must((reply.status, await line.body(reply)) == (413, b"too large"), f"{reply.start!r}")


_BAD: Final = (
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x00c\r\n\r\n", 400),
    (b"rubbish\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    (b"POST / HTTP/1.1\r\nHost: a\r\nExpect: tea\r\nContent-Length: 1\r\n\r\nx", 417),
)


async def bad_request(asker: Asker) -> None:
    data, status = asker.chance.choice(_BAD)
    line = await asker.line()
    await line.send(data.replace(b"Host: a\r\n", b"Host: a\r\n" + SECRETS.encode(), 1))
    reply = await line.head()
    _must_be_ours(reply, await line.body(reply), status)
    await asyncio.wait_for(line.gone(), 5)


Kind = Callable[[Asker], Awaitable[None]]
# How often of each, in percent or so.
KINDS: Final[dict[Kind, int]] = {
    plain: 40,
    stream: 20,
    pipelined: 4,
    websocket: 4,
    upload: 3,
    download: 3,
    picture: 1,
    slow_reader: 2,
    leaves_before: 4,
    leaves_midway: 4,
    leaves_in_upload: 2,
    no_answer: 3,
    broken_stream: 5,
    refused_early: 2,
    bad_request: 4,
}
