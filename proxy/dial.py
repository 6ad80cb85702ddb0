"""Opens connections to origins: straight or through a proxy, in TLS or not, never to ourselves."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from ipaddress import ip_address
from typing import Final, TypeVar

from policies.forward import Rules, Target
from policies.listeners import Listeners
from policies.way_out import UpstreamProxy, WayOut
from proxy.addresses import Address, Lookups, Resolve, race, resolve
from proxy.heads import Refused
from proxy.origin import Origin
from proxy.secured import Secured
from proxy.tls import UpstreamTls, reason
from proxy.tunnel import tunnel

P = TypeVar("P", bound=asyncio.Protocol)
# The loop has four threads for look-ups. Names that clients choose, whose servers may never
# answer, take half of them at most.
_MOST_STRANGE: Final = 2


class Dialer:
    """One connection at a time, never kept. A unix socket is dialled as it is."""

    def __init__(
        self,
        way_out: WayOut,
        listeners: Listeners,
        resolve: Resolve = resolve,
        rules: Rules | None = None,
    ) -> None:
        """`rules`: for origins that clients named."""
        self._rules = rules
        self._way_out = way_out
        self._listeners = listeners
        self._lookups = Lookups(resolve)
        self._strange = Lookups(resolve, _MOST_STRANGE)
        self._tls = UpstreamTls()  # now, not in a call's path: it reads files for some 30 ms

    async def open(self, origin: Origin, factory: Callable[[], P]) -> P:
        """Raises OSError when it can't be reached, Refused when it is but must not be used."""
        loop = asyncio.get_running_loop()
        if origin.path:
            return (await loop.create_unix_connection(factory, origin.path))[1]
        connected = await self.reach(origin)
        if origin.tls:
            return await self._secured(connected, origin.host, factory)
        return (await loop.create_connection(factory, sock=connected))[1]

    def remember(self, transport: asyncio.BaseTransport) -> None:
        """Its TLS session may spare the next connection a handshake."""
        self._tls.remember(transport)

    async def reach(self, origin: Origin) -> socket.socket:
        """A socket with the origin at its other end. Raises as `open` does."""
        proxy = self._way_out.proxy_for(origin.host, origin.port, origin.tls)
        if proxy is None:
            connected = await race(await self._addresses(origin))
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

    async def _addresses(self, origin: Origin) -> list[Address]:
        """Looked up once, so that what was checked is what is dialled."""
        if not origin.guarded or self._rules is None:
            return await self._lookups.find(origin.host, origin.port)
        known = self._rules.intercepts(origin.host)
        lookups = self._lookups if known else self._strange
        found = await lookups.find(origin.host, origin.port)
        target = Target(origin.host, origin.port)
        whys = {
            where: self._rules.why_not(ip_address(where[0].partition("%")[0]), target)
            for _, where in found
        }
        allowed = [address for address in found if not whys[address[1]]]
        if not allowed:
            why = next(iter(whys.values()))
            raise Refused(403, "target_denied", f"the sidecar does not go there: {why}")
        return allowed

    async def _proxy_reached(self, proxy: UpstreamProxy) -> socket.socket:
        try:
            return await race(await self._lookups.find(proxy.host, proxy.port))
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
        protocol = factory()
        shaken: asyncio.Future[Exception | None] = loop.create_future()

        def tell(error: Exception | None) -> None:
            if not shaken.done():
                shaken.set_result(error)

        below, _ = await loop.create_connection(
            lambda: Secured(self._tls, protocol, tell, host), sock=connected
        )
        try:
            if error := await shaken:
                raise error
            return protocol
        except asyncio.CancelledError:
            below.abort()
            raise
        except OSError as error:
            self._tls.forget(host)  # should the session be what it stumbled over
            message = f"TLS with the upstream failed: {reason(error)}"
            raise Refused(502, "upstream_tls", message) from None
