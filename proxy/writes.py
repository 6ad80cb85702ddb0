"""Writes of one turn of the loop, done together at its end where there are many.

Each write to a peer that sleeps wakes it: an interrupt to another core, dearer than all our own
work on a request. Peers that are served one after the other, with our work in between, go to sleep
each time; served in one go they are still awake. With few connections there is nothing to wait for,
and waiting for the end of the turn would be the dearer part.
"""

from __future__ import annotations

import asyncio
import time
from typing import Final, Protocol

# So many writes in so many seconds are a crowd: some 10,000 requests a second. One connection can
# make 12 in a millisecond.
_CROWD: Final = 20
_WINDOW: Final = 0.001
# So much is written at once, crowd or not: libuv reads a socket up to 32 times in a turn, 256 KiB
# each, and only a write that does not go through makes it stop.
AT_ONCE: Final = 64 * 1024

_monotonic: Final = time.monotonic


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
        self._crowded = False
        self._count = 0  # in this window
        self._window_ends = 0.0
        self._due: list[Writer] = []

    def add(self, writer: Writer) -> None:
        """`writer` has something to write."""
        self._count += 1
        now = _monotonic()
        if now >= self._window_ends:
            self._crowded = self._count > _CROWD
            self._count = 0
            self._window_ends = now + _WINDOW
        if not self._crowded:
            writer.flush()
            return
        if not self._due:
            self._loop.call_soon(self._end_turn)
        self._due.append(writer)

    def _end_turn(self) -> None:
        due, self._due = self._due, []
        for writer in due:
            try:
                writer.flush()
            except Exception as error:  # the others' must be done all the same
                self._loop.call_exception_handler({"message": "a write failed", "exception": error})
