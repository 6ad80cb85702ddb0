"""Idle upstream connections per origin, and new ones."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Awaitable
from typing import Final, TypeVar

from policies.policy import Connections, Timeouts
from proxy.dial import Dialer
from proxy.heads import Refused
from proxy.known import KnownReplies
from proxy.origin import Origin
from proxy.upstream import UpstreamConnection
from proxy.writes import Writes

T = TypeVar("T")
_MOST_KNOWN: Final = 256


class Pool:
    """Idle connections per origin, newest first; few, and a few seconds old at most."""

    def __init__(
        self, writes: Writes, dialer: Dialer, timeouts: Timeouts, limits: Connections
    ) -> None:
        self.writes = writes
        self._dialer = dialer
        self._connect_timeout = timeouts.upstream_connect
        self._idle_timeout = timeouts.upstream_keepalive
        self._most = limits.idle
        self._most_each = min(limits.idle, limits.idle_per_upstream)
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._known: dict[Origin, KnownReplies] = {}
        self.trailers_dropped = 0

    def known(self, origin: Origin) -> KnownReplies:
        if len(self._known) > _MOST_KNOWN:  # clients of the forward proxy may name any
            self._known.clear()
        return self._known.setdefault(origin, KnownReplies())

    def take(self, origin: Origin) -> UpstreamConnection | None:
        """An idle connection that still lives."""
        idle = self._idle.get(origin)
        while idle:
            connection = idle.pop()
            if connection.alive():
                connection.reused = True
                return connection
            connection.abandon()
        return None

    async def connect(self, origin: Origin) -> UpstreamConnection:
        """A new connection. Raises Refused: 502 when there is none, 504 when it took too long."""
        return await self._in_time(
            self._dialer.open(origin, lambda: UpstreamConnection(self, origin))
        )

    async def reach(self, origin: Origin) -> socket.socket:
        """A bare connection, for a tunnel. Raises Refused as `connect` does."""
        return await self._in_time(self._dialer.reach(origin))

    async def _in_time(self, opening: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(self._connect_timeout):
                return await opening
        except Refused:
            raise
        except TimeoutError:
            raise Refused(
                504, "upstream_connect_timeout", "the upstream did not accept in time"
            ) from None
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise Refused(
                502, "upstream_unreachable", f"the upstream can't be reached: {why}"
            ) from None
        except Exception as error:
            # A name that can't be encoded, a library's surprise: the app must have its answer.
            raise Refused(
                502, "upstream_unreachable", f"the upstream can't be reached: {error!r}"
            ) from error

    def release(self, connection: UpstreamConnection) -> None:
        """Keep it for the next call. Where there are too many, the oldest goes."""
        if not connection.reused:
            self._remember(connection)
        connection.idle_since = time.monotonic()
        idle = self._idle.setdefault(connection.origin, [])
        idle.append(connection)
        if len(idle) > self._most_each:
            idle.pop(0).abandon()
        elif len(self._idle) > 1 and sum(map(len, self._idle.values())) > self._most:
            kept = filter(None, self._idle.values())
            min(kept, key=lambda connections: connections[0].idle_since).pop(0).abandon()

    def forget(self, connection: UpstreamConnection) -> None:
        """It is lost, or of no further use."""
        if not connection.reused:
            self._remember(connection)
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

    def _remember(self, connection: UpstreamConnection) -> None:
        if connection.origin.tls:
            self._dialer.remember(connection.transport)

    def expire(self, now: float) -> None:
        """Close what has been idle too long: shorter than the peer does, to avoid the race."""
        for origin, idle in list(self._idle.items()):
            old = [c for c in idle if now - c.idle_since > self._idle_timeout]
            for connection in old:
                connection.abandon()
            self._idle[origin] = [c for c in idle if c not in old]
            if not self._idle[origin]:
                del self._idle[origin]

    def close(self) -> None:
        for idle in self._idle.values():
            for connection in idle:
                connection.abandon()
        self._idle.clear()
