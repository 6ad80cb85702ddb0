"""Idle upstream connections per origin, and new ones."""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any

from proxy.heads import Refused
from proxy.known import KnownReplies
from proxy.origin import Origin
from proxy.upstream import UpstreamConnection
from proxy.writes import Writes


class Pool:
    """Idle connections per origin, newest first; a few seconds old at most."""

    def __init__(self, writes: Writes, connect_timeout: float, idle_timeout: float) -> None:
        self.writes = writes
        self._connect_timeout = connect_timeout
        self._idle_timeout = idle_timeout
        self._idle: dict[Origin, list[UpstreamConnection]] = {}
        self._tls: ssl.SSLContext | None = None
        self._known: dict[Origin, KnownReplies] = {}
        self.trailers_dropped = 0

    def known(self, origin: Origin) -> KnownReplies:
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
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout):
                protocol = await self._open(loop, origin)
        except TimeoutError:
            raise Refused(
                504, "upstream_connect_timeout", "the upstream did not accept in time"
            ) from None
        except ssl.SSLError as error:
            raise Refused(
                502, "upstream_tls", f"TLS with the upstream failed: {error.reason}"
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
        return protocol

    async def _open(self, loop: asyncio.AbstractEventLoop, origin: Origin) -> UpstreamConnection:
        def factory() -> UpstreamConnection:
            return UpstreamConnection(self, origin)

        if origin.path:
            return (await loop.create_unix_connection(factory, origin.path))[1]
        options: dict[str, Any] = {}
        if origin.tls:
            options = {"ssl": self._context(), "server_hostname": origin.host}
        return (await loop.create_connection(factory, origin.host, origin.port, **options))[1]

    def _context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            self._tls.set_alpn_protocols(["http/1.1"])
        return self._tls

    def release(self, connection: UpstreamConnection) -> None:
        connection.idle_since = time.monotonic()
        self._idle.setdefault(connection.origin, []).append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        idle = self._idle.get(connection.origin)
        if idle and connection in idle:
            idle.remove(connection)

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
