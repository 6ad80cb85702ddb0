"""From a name to a connected socket: shared look-ups, and a race among the addresses (RFC 8305)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import chain, zip_longest
from typing import Any, Final

Address = tuple[int, tuple[Any, ...]]  # family, socket address
Resolve = Callable[[str, int], Awaitable[list[Address]]]
Attempt = Callable[[Address], Awaitable[socket.socket]]

# The next address is tried when the one before has not answered (RFC 8305 section 5).
RACE_SECONDS: Final = 0.25
# A dead peer shows in about two minutes, and silence in a long call keeps its place in a NAT.
_KEEPALIVE: Final = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4))


async def resolve(host: str, port: int) -> list[Address]:
    """What the system's resolver says, on a thread of its own; an address is found at once."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, where) for family, _, _, _, where in found]


class Lookups:
    """Asks for each new connection, so that a change is seen; those in flight are shared.

    A resolver that hangs so holds one thread for each name, not one for each request.
    """

    def __init__(self, resolve: Resolve = resolve, most: int | None = None) -> None:
        """`most`: look-ups at once; further names wait."""
        self._resolve = resolve
        self._turn = contextlib.nullcontext() if most is None else asyncio.Semaphore(most)
        self._in_flight: dict[tuple[str, int], asyncio.Task[list[Address]]] = {}

    async def find(self, host: str, port: int) -> list[Address]:
        """Addresses in the order to try them. Raises OSError."""
        asked = (host, port)
        task = self._in_flight.get(asked)
        if task is None:
            task = asyncio.get_running_loop().create_task(
                self._look_up(host, port), name=f"look up {host}"
            )
            self._in_flight[asked] = task
            task.add_done_callback(lambda done: self._landed(asked, done))
        return interleaved(await asyncio.shield(task))

    async def _look_up(self, host: str, port: int) -> list[Address]:
        async with self._turn:
            return await self._resolve(host, port)

    def _landed(self, asked: tuple[str, int], task: asyncio.Task[list[Address]]) -> None:
        del self._in_flight[asked]
        if not task.cancelled():
            task.exception()  # whoever asked may be gone


def interleaved(addresses: Iterable[Address]) -> list[Address]:
    """Families in turn, beginning with that of the first: a broken IPv6 costs one delay."""
    families: dict[int, list[Address]] = {}
    for address in addresses:
        families.setdefault(address[0], []).append(address)
    turns = zip_longest(*families.values())
    return [address for address in chain.from_iterable(turns) if address is not None]


async def connect(address: Address) -> socket.socket:
    """A connected socket that sends at once and notices a dead peer. Raises OSError."""
    made = socket.socket(address[0], socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            if hasattr(socket, name):
                made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        await _connect(made, address[1])
    except BaseException:
        made.close()
        raise
    return made


async def _connect(made: socket.socket, where: tuple[Any, ...]) -> None:
    """The loop's own sock_connect asks a resolver's thread even for an address: those may hang."""
    loop = asyncio.get_running_loop()
    error = made.connect_ex(where)
    if error == errno.EINPROGRESS:
        writable = asyncio.Event()
        loop.add_writer(made, writable.set)
        try:
            await writable.wait()
        finally:
            loop.remove_writer(made)
        error = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


async def race(
    addresses: list[Address], attempt: Attempt = connect, delay: float = RACE_SECONDS
) -> socket.socket:
    """The first that connects; the next begins after `delay`, or at once when one fails.

    Raises the last failure when all fail.
    """
    waiting, running = deque(addresses), set[asyncio.Task[socket.socket]]()
    failure: BaseException = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    try:
        while waiting or running:
            if waiting:
                running.add(_begun(attempt(waiting.popleft())))
            done, _ = await asyncio.wait(
                running,
                timeout=delay if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for task in done:
                running.remove(task)
                failed = task.exception()
                if failed is None:
                    return task.result()
                failure = failed
    finally:
        await _call_off(running)
    raise failure


def _begun(attempt: Awaitable[socket.socket]) -> asyncio.Task[socket.socket]:
    async def run() -> socket.socket:
        return await attempt

    return asyncio.get_running_loop().create_task(run(), name="connect")


async def _call_off(running: set[asyncio.Task[socket.socket]]) -> None:
    for task in running:
        task.cancel()
    for late in await asyncio.gather(*running, return_exceptions=True):
        if isinstance(late, socket.socket):
            late.close()
