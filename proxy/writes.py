"""Writes of one turn of the loop, done together at its end.

Each write to a peer that sleeps wakes it: an interrupt to another core, dearer than all our own
work on a request. Peers that are served one after the other, with our work in between, go to sleep
each time; served in one go they are still awake. With one connection there is nothing to wait for:
the turn ends at once.
"""

from __future__ import annotations

import asyncio
from typing import Protocol


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
        self._due: list[Writer] = []

    def add(self, writer: Writer) -> None:
        if not self._due:
            self._loop.call_soon(self._flush)
        self._due.append(writer)

    def _flush(self) -> None:
        due, self._due = self._due, []
        for writer in due:
            writer.flush()
