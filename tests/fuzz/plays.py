"""A play: a relay, its clients and upstreams, and the order in which they move."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.known import KnownRequests
from proxy.relay import Relay
from tests.fuzz.ends import Seen, Sending, Upstreams
from tests.fuzz.pipes import Network, Pipe, client_of, relay_on

_MOST_TURNS: Final = 3000
_QUIET_TURNS: Final = 12
_AGES: Final = 1e6  # seconds: past every deadline


@dataclass
class Client:
    """`pieces` are sent one by one, and `later` ones once anything has been heard.

    `leaves`: it resets its connection when all is sent.
    """

    pieces: deque[bytes]
    leaves: bool = False
    later: deque[bytes] = field(default_factory=deque)
    pipe: Pipe = field(init=False)

    def move(self) -> bool:
        if self.pipe.is_closing():
            return False
        if self.heard and not self.pieces:
            self.pieces, self.later = self.later, deque()
        if self.pieces:
            self.pipe.deliver(self.pieces.popleft())
            return True
        if self.leaves:
            self.leaves = False
            self.pipe.reset()
            return True
        return False

    @property
    def heard(self) -> bytes:
        return bytes(self.pipe.written)


@dataclass
class Play:
    """`moves`: who moves next, drawn; when they are used up, everybody moves until all is quiet."""

    clients: list[Client]
    answer: Callable[[Seen], Sending]
    moves: Iterable[int] = ()
    known: KnownRequests = field(default_factory=KnownRequests)
    turns_to_connect: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)
    relay: Relay = field(init=False)
    upstreams: Upstreams = field(init=False)

    def run(self) -> Play:
        """To the point where nothing moves any more."""
        asyncio.run(self._run(self._play))
        return self

    def run_out(self) -> Play:
        """And then past every deadline: nothing may be left."""
        asyncio.run(self._run(self._play_out))
        return self

    async def _run(self, play: Callable[[], Coroutine[Any, Any, None]]) -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: self.faults.append(context))
        network = Network(self.turns_to_connect)
        self.relay = relay_on(network, self.known)
        self.upstreams = Upstreams(network, self.answer)
        for client in self.clients:
            client.pipe = client_of(self.relay)
        try:
            await play()
        finally:
            for pipe in self._pipes():
                pipe.discard()
        assert self.faults == []

    async def _play(self) -> None:
        for move in self.moves:
            await self._move(move)
        for pipe in self._pipes():
            pipe.choke(False)
        await self._settle()
        assert not any(client.pieces and not client.pipe.is_closing() for client in self.clients)

    async def _play_out(self) -> None:
        await self._play()
        for client in self.clients:
            client.pipe.deliver(None)
        await self._settle()
        for _ in range(3):
            for connection in list(self.relay.clients):
                connection.check(time.monotonic() + _AGES)
            await self._settle()
        self.relay.pool.close()
        await self._settle()
        assert not self.relay.clients, "a connection outlives every deadline"
        assert not self.relay.tasks
        assert self.relay.in_flight == 0
        assert all(pipe.gone for pipe in self._pipes())

    def _pipes(self) -> list[Pipe]:
        return [client.pipe for client in self.clients] + self.upstreams.network.opened

    async def _move(self, move: int) -> None:
        """0: the loop turns; 1 to 3: a client, an upstream, or who takes what they are sent."""
        kind, which = move % 4, move // 4
        if kind == 1:
            self.clients[which % len(self.clients)].move()
        elif kind == 2:
            self.upstreams.move()
        elif kind == 3:
            pipes = self._pipes()
            pipes[which % len(pipes)].choke(which % 3 > 0)
        else:
            await asyncio.sleep(0)

    async def _settle(self) -> None:
        quiet, unread = 0, -1
        for _ in range(_MOST_TURNS):
            moved = [client.move() for client in self.clients]
            moved.append(self.upstreams.move())
            await asyncio.sleep(0)
            before, unread = unread, sum(pipe.unread for pipe in self._pipes())
            quiet = 0 if any(moved) or unread != before else quiet + 1
            if quiet > _QUIET_TURNS:
                return
        raise AssertionError("it never comes to rest")
