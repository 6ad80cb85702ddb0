"""Opens connections to origins: straight or through a proxy, in TLS or not, never to ourselves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import TypeVar

from policies.listeners import Listeners
from policies.way_out import UpstreamProxy, WayOut
from proxy.addresses import Lookups, race
from proxy.heads import Refused
from proxy.origin import Origin
from proxy.tls import UpstreamTls, reason
from proxy.tunnel import tunnel

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Dialer:
    """One connection at a time, never kept. A unix socket is dialled as it is."""

    def __init__(
        self, way_out: WayOut, listeners: Listeners, lookups: Lookups | None = None
    ) -> None:
        self._way_out = way_out
        self._listeners = listeners
        self._lookups = lookups or Lookups()
        self._tls = UpstreamTls()  # now, not in a call's path: it reads files for some 30 ms

    async def open(self, origin: Origin, factory: Callable[[], P]) -> P:
        """Raises OSError when it can't be reached, Refused when it is but must not be used."""
        loop = asyncio.get_running_loop()
        if origin.path:
            return (await loop.create_unix_connection(factory, origin.path))[1]
        connected = await self._connected(origin)
        if origin.tls:
            return await self._secured(connected, origin.host, factory)
        return (await loop.create_connection(factory, sock=connected))[1]

    def remember(self, transport: asyncio.BaseTransport) -> None:
        """Its TLS session may spare the next connection a handshake."""
        self._tls.remember(transport)

    async def _connected(self, origin: Origin) -> socket.socket:
        """A socket with the origin at its other end."""
        proxy = self._way_out.proxy_for(origin.host, origin.port, origin.tls)
        if proxy is None:
            connected = await self._reached(origin.host, origin.port)
        else:
            connected = await self._proxy_reached(proxy)
        try:
            self._refuse_ourselves(connected)
            if proxy is not None:
                await tunnel(connected, proxy, origin.host, origin.port)
        except BaseException:
            connected.close()
            raise
        return connected

    async def _reached(self, host: str, port: int) -> socket.socket:
        return await race(await self._lookups.find(host, port))

    async def _proxy_reached(self, proxy: UpstreamProxy) -> socket.socket:
        try:
            return await self._reached(proxy.host, proxy.port)
        except OSError as error:
            why = error.strerror or type(error).__name__
            message = f"the proxy on the way to the upstream can't be reached: {why}"
            raise Refused(502, "upstream_proxy", message) from None

    def _refuse_ourselves(self, connected: socket.socket) -> None:
        """Each request would make another, without end."""
        if self._listeners.reached(connected.getpeername()[:2], connected.getsockname()[0]):
            raise Refused(508, "loop", "the upstream's address is this sidecar's own")

    async def _secured(self, connected: socket.socket, host: str, factory: Callable[[], P]) -> P:
        """TLS on a connected socket. No byte of a call is sent before the peer is verified."""
        loop = asyncio.get_running_loop()
        try:
            return (
                await loop.create_connection(
                    factory, sock=connected, ssl=self._tls, server_hostname=host
                )
            )[1]
        except OSError as error:
            self._tls.forget(host)  # should the session be what it stumbled over
            message = f"TLS with the upstream failed: {reason(error)}"
            raise Refused(502, "upstream_tls", message) from None
