"""Writes of one turn of the loop, and what can wait until they are done.

Each write to a peer that sleeps wakes it: an interrupt to another core, dearer than all our own
work on a request. Peers that are served one after the other, with our work in between, go to sleep
each time; served in one go they are still awake. So in a crowd writes wait for the end of the turn.
With few connections there is nothing to wait for, and they go out at once. Either way work that no
peer waits for comes after them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

_CROWD: Final = 2  # more writes than that in a turn
# So much is written at once, crowd or not: libuv reads a socket up to 32 times in a turn, 256 KiB
# each, and only a write that does not go through makes it stop.
AT_ONCE: Final = 64 * 1024


class Writer(Protocol):
    def flush(self) -> None:
        """Write what is held. May be called when nothing is, or when the connection is gone."""


def write_out(transport: asyncio.WriteTransport, out: list[bytes]) -> None:
    """All of `out` in one system call; nothing, when there is nothing or nobody to write to."""
    if out and not transport.is_closing():
        transport.write(out[0] if len(out) == 1 else b"".join(out))


class Writes:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._turn = False  # has anything come in this turn?
        self._crowded = False  # did the last turn have many?
        self._count = 0
        self._due: list[Writer] = []
        self._after: list[Callable[[], None]] = []

    def add(self, writer: Writer) -> None:
        """`writer` has something to write."""
        if not self._turn:
            self._begin_turn()
        self._count += 1
        if self._crowded:
            self._due.append(writer)
        else:
            writer.flush()

    def then(self, work: Callable[[], None]) -> None:
        """Do this when the writes of this turn are out."""
        if not self._turn:
            self._begin_turn()
        self._after.append(work)

    def _begin_turn(self) -> None:
        self._turn = True
        self._loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn = False
        self._crowded = self._count > _CROWD
        self._count = 0
        due, self._due = self._due, []
        after, self._after = self._after, []
        for work in (*(writer.flush for writer in due), *after):
            try:
                work()
            except Exception as error:  # the others' must be done all the same
                self._loop.call_exception_handler({"message": "a write failed", "exception": error})
