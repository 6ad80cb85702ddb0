"""The door: who comes in is served, and who comes when all places are taken is told so.

Told with the answer to its first request, not before it: a connection that is closed with bytes
unread is reset, and the client may never see why.
"""

from __future__ import annotations

import asyncio
from typing import Final, cast

from proxy.answers import error_answer
from proxy.client import ClientConnection
from proxy.heads import Refused
from proxy.relay import RESERVED, Relay

_STAY: Final = 1.0  # seconds for the first request, the answer and the client's own end


class Door(asyncio.Protocol):
    """A new connection. Counted as a client only when a `ClientConnection` has taken it over."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay
        self._transport = cast(asyncio.Transport, None)
        self._refused: Refused | None = None
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._refused = self._relay.obstacle(new_connection=True)
        if self._refused is None:
            client = ClientConnection(self._relay)
            transport.set_protocol(client)
            client.connection_made(transport)
            return
        self._relay.told.add(self)
        if len(self._relay.told) > self._relay.limits.told:
            self._answer(b"")
            self._transport.close()
        else:
            loop = asyncio.get_running_loop()
            self._end = loop.call_later(_STAY, self._transport.abort)

    def data_received(self, data: bytes) -> None:
        if self._refused is not None:
            self._answer(data)
            self._transport.write_eof()  # and what else comes is read, and dropped

    def connection_lost(self, error: Exception | None) -> None:
        self._relay.told.discard(self)
        if self._end is not None:
            self._end.cancel()

    def _answer(self, data: bytes) -> None:
        """Once. Liveness must not depend on load: what is ours is answered all the same."""
        refused, self._refused = self._refused, None
        assert refused is not None
        known = self._relay.forward.access.trusts(self._transport.get_extra_info("peername"))
        try:
            target = _own_target(data, refused)
            head, body = self._relay.own_page(target, None if known else refused)
        except Refused as error:
            self._relay.refused += 1
            self._relay.overloaded += 1
            head, body = error_answer(error)
        said = head.wire(http11=True, keep_alive=False)
        self._transport.write(said if data.startswith(b"HEAD ") else said + body)


def _own_target(data: bytes, refused: Refused) -> bytes:
    """The target that is asked for, if it is one of ours. Else raises what is to be said."""
    method, _, rest = data.partition(b" ")
    target = rest.partition(b" ")[0]
    if method not in (b"GET", b"HEAD") or not target.startswith(RESERVED):
        raise refused
    return target
