"""A blind tunnel: bytes and half-closes both ways, never decrypted, never stored."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, cast

from policies.forward import Target
from policies.spool import Outcome
from proxy.answers import error_answer
from proxy.heads import Refused
from proxy.origin import Origin

if TYPE_CHECKING:
    from proxy.relay import Relay


class _End(asyncio.Protocol):
    """One of its two connections; what comes in goes to the other."""

    def __init__(self, tunnel: BlindTunnel) -> None:
        self.tunnel = tunnel
        self.transport = cast(asyncio.Transport, None)
        self.other = cast(_End, None)
        self.ended = False  # it sends no more
        self.full_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self.tunnel.count(self, len(data))
        self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other.ended:
            return False
        if not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return True

    def connection_lost(self, error: Exception | None) -> None:
        self.tunnel.lost(self, error)

    def pause_writing(self) -> None:
        self.full_since = time.monotonic()
        self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self.full_since = None
        self.other.transport.resume_reading()


class BlindTunnel(asyncio.Protocol):
    """Between a client and whom it asked for. While that is dialled, nothing of it is read."""

    def __init__(self, relay: Relay, target: Target) -> None:
        self._relay = relay
        self._target = target
        self._client = _End(self)
        self._server = _End(self)
        self._client.other, self._server.other = self._server, self._client
        self._sent = self._received = 0
        self._still = (0, 0.0)  # bytes of both directions, and since when they are so many
        self._connecting: asyncio.Task[None] | None = None
        self._done = False
        self._tape = relay.tunnel_tape(str(target).encode())

    def begin(self, transport: asyncio.Transport, early: bytes, answer: bytes = b"") -> None:
        """`answer`: to the client, once it is connected; else it has had one."""
        self._relay.clients.add(self)
        self._client.transport = transport
        transport.set_protocol(self)
        transport.pause_reading()
        self._connecting = self._relay.spawn(
            self._connect(early, answer), f"tunnel to {self._target}"
        )

    async def _connect(self, early: bytes, answer: bytes) -> None:
        # `tls` chooses the way out, the one for https; none is spoken here.
        origin = Origin(self._target.host, self._target.port, tls=True, guarded=True)
        client = self._client.transport
        try:
            connected = await self._relay.pool.reach(origin)
        except Refused as refused:
            self._refuse(refused, bool(answer))
            return
        finally:
            self._connecting = None
        if self._done:
            connected.close()
            return
        _keep_alive(client)
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self._server, sock=connected)
        if client.is_closing():
            self.abort()
            return
        client.set_protocol(self._client)
        if answer:
            client.write(answer)
        if early:
            self._client.data_received(early)
        client.resume_reading()

    def _refuse(self, refused: Refused, unanswered: bool) -> None:
        self._relay.refused += 1
        if unanswered:
            head, body = error_answer(refused)
            self._client.transport.write(head.wire(http11=True, keep_alive=False) + body)
        self._client.transport.close()
        self._close("upstream_unreachable", refused.message)

    def count(self, end: _End, size: int) -> None:
        if end is self._client:
            self._sent += size
        else:
            self._received += size

    def lost(self, end: _End, error: Exception | None) -> None:
        """One connection is gone: what it sent last still goes out."""
        other = end.other.transport
        if other is not None and not other.is_closing():
            if error is None:
                other.close()
            else:
                other.abort()
        if error is None:
            self._close("ok", None)
        elif end is self._client:
            self._close("client_abort", "the client's connection was reset")
        else:
            self._close("upstream_reset", "the connection was reset")

    def _close(self, outcome: Outcome, why: str | None) -> None:
        if self._done:
            return
        self._done = True
        self._relay.clients.discard(self)
        self._tape.counted(self._sent, self._received)
        self._tape.closed(outcome, why)

    # -- the client's protocol, until there is somebody to talk to

    def connection_lost(self, error: Exception | None) -> None:
        if self._connecting is not None:
            self._connecting.cancel()
        self._close("client_abort", "the client left before it was connected")

    # -- as one of the relay's clients

    def check(self, now: float) -> None:
        """Neither end may stand still for ever with bytes that wait for it."""
        for end in (self._client, self._server):
            since = end.full_since
            if since is not None and now - since > self._relay.timeouts.upstream_idle:
                end.transport.abort()
        if self._client.ended or self._server.ended:
            self._check_half(now)

    def _check_half(self, now: float) -> None:
        """One side says no more; the other may talk on, but not keep silent for ever."""
        moved = self._sent + self._received
        if self._still[0] != moved or not self._still[1]:
            self._still = (moved, now)
        elif now - self._still[1] > self._relay.timeouts.client_body:
            for end in (self._client, self._server):
                end.transport.close()

    def drain(self) -> None:
        """It ends when its ends do, or with the time to drain."""

    def abort(self) -> None:
        for end in (self._client, self._server):
            if end.transport is not None:
                end.transport.abort()
        if self._connecting is not None:
            self._connecting.cancel()
        self._close("refused", "the sidecar stopped")


def _keep_alive(transport: asyncio.Transport) -> None:
    """A tunnel may be silent for hours; only the system sees that the peer is dead."""
    found = transport.get_extra_info("socket")
    if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
        found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
