"""A whole relay in one process, on connections in memory: no sockets, no clock, no chance."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from policies.policy import Connections, Timeouts
from proxy.client import ClientConnection
from proxy.dial import Dialer
from proxy.divert import Diverter
from proxy.forward import Forwarding
from proxy.known import KnownRequests
from proxy.limits import Limits
from proxy.metrics import Meter
from proxy.origin import Origin
from proxy.pool import Pool
from proxy.relay import Relay
from proxy.routes import Routes
from proxy.watch import Watch
from proxy.writes import Writes
from tests.fuzz.readings import REDACTOR, ROUTE

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Pipe(asyncio.Transport):
    """The relay's end of a connection. As strict as uvloop's: a dead one must be left alone.

    `written` is what has reached the far end, `ended` how the relay ended it: "eof" (it still
    reads), "close" or "abort". `deliver`, `finish`, `reset` and `choke` are the far end's doing.
    """

    def __init__(self) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._protocol: Any = None
        self._inbox: deque[bytes | None] = deque()
        self._socket, self._far_socket = (
            socket.socketpair()
        )  # readable while the inbox is not empty
        self._unsent = bytearray()
        self._reading = True
        self._choked = False
        self._eof = False
        self.written = bytearray()
        self.ended: str | None = None
        self.gone = False

    # -- the far end's

    def deliver(self, data: bytes | None) -> None:
        """None: the end of what it sends."""
        if self.gone:
            return
        if not self._inbox:
            self._far_socket.send(b"x")
        self._inbox.append(data)
        self._wake()

    def reset(self) -> None:
        self._loop.call_soon(self._lose, ConnectionResetError())

    def choke(self, choked: bool) -> None:
        """It takes nothing more, or takes everything again."""
        if self.gone or choked == self._choked:
            return
        self._choked = choked
        (self._protocol.pause_writing if choked else self._protocol.resume_writing)()
        if not choked:
            self._send()

    def discard(self) -> None:
        """The play is over."""
        self._socket.close()
        self._far_socket.close()

    @property
    def unread(self) -> int:
        """Of what was delivered, how much the relay has not read yet, or never will."""
        return len(self._inbox)

    # -- the relay's

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def write(self, data: Any) -> None:
        self._alive()
        if self._eof:
            raise RuntimeError("write after write_eof")
        if self.ended not in ("close", "abort"):
            self._unsent += data
            self._send()

    def write_eof(self) -> None:
        self._alive()
        self._eof = True
        self._send()

    def close(self) -> None:
        if self.ended not in ("close", "abort"):
            self.ended = "close"
            self._send()

    def abort(self) -> None:
        if self.ended != "abort":
            self.ended = "abort"
            self._unsent.clear()
            self._loop.call_soon(self._lose, None)

    def is_closing(self) -> bool:
        return self.ended in ("close", "abort") or self.gone

    def is_reading(self) -> bool:
        return self._reading and not self.is_closing()

    def pause_reading(self) -> None:
        self._alive()
        self._reading = False

    def resume_reading(self) -> None:
        self._alive()
        self._reading = True
        self._wake()

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        known = {"socket": self._socket, "peername": ("127.0.0.1", 40000)}
        return known.get(name, default)

    # -- between the two

    def _alive(self) -> None:
        if self.gone:
            raise RuntimeError("the transport is closed")

    def _wake(self) -> None:
        self._loop.call_soon(self._take)

    def _take(self) -> None:
        if self.is_closing() or not self._reading or not self._inbox:
            return
        data = self._inbox.popleft()
        if not self._inbox:
            self._socket.recv(1)
        if data is not None:
            self._protocol.data_received(data)
        elif not self._protocol.eof_received():
            self.close()
        if self._inbox:
            self._wake()

    def _send(self) -> None:
        if self._choked:
            return
        self.written += self._unsent
        self._unsent.clear()
        if self._eof and self.ended is None:
            self.ended = "eof"
        if self.ended == "close":
            self._loop.call_soon(self._lose, None)

    def _lose(self, error: Exception | None) -> None:
        if not self.gone:
            self.gone = True
            self.discard()
            self._protocol.connection_lost(error)


class Network(Dialer):
    """Every origin is one pipe away. `turns`: of the loop until a connection stands."""

    def __init__(self, turns: int = 0) -> None:
        self.turns = turns
        self.opened: list[Pipe] = []

    async def open(self, origin: Origin, factory: Callable[[], P]) -> P:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        protocol, pipe = factory(), Pipe()
        pipe.set_protocol(protocol)
        protocol.connection_made(pipe)
        self.opened.append(pipe)
        return protocol


class NoMeter(Meter):
    """Nobody asks for figures."""

    def __init__(self) -> None:
        self.run_dir = Path("none")
        self.resident = 0

    def tick(self, relay: Relay, at: float | None = None) -> None:
        return None


def relay_on(network: Network, known: KnownRequests) -> Relay:
    pool = Pool(Writes(asyncio.get_running_loop()), network, Timeouts(), Connections())
    return Relay(
        pool=pool,
        timeouts=Timeouts(),
        redactor=REDACTOR,
        diverter=Diverter(Watch(None, Path("none")), pool),
        meter=NoMeter(),
        routes=Routes(ROUTE),
        limits=Limits(),
        forward=Forwarding(),
        known=known,
    )


def client_of(relay: Relay) -> Pipe:
    protocol, pipe = ClientConnection(relay), Pipe()
    pipe.set_protocol(protocol)
    protocol.connection_made(pipe)
    return pipe
