"""The least that an interception can cost: CONNECT, TLS on both sides, a pool of upstreams.

python -m tests.bench.bare_interception KIND PORT UPSTREAM NAME ROOT CERTIFICATE KEY

UPSTREAM is an address and port; who answers there is verified to be NAME, by ROOT. CERTIFICATE and
KEY are shown to clients. KIND is `uvloop` (its own TLS transports) or `bio` (an SSLObject between
two memory BIOs, driven by the protocol of a plain transport). Nothing is captured, checked, limited
or timed.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from collections.abc import Callable, Coroutine
from typing import Final, Protocol, cast

import httptools
import uvloop

_ESTABLISHED: Final = b"HTTP/1.1 200 OK\r\n\r\n"
_RECORD: Final = 16384


class Wire(Protocol):
    def send(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class End(Protocol):
    """What reads the plain text of one connection. `opened` comes first, `lost` last."""

    def opened(self, wire: Wire) -> None: ...

    def received(self, data: bytes) -> None: ...

    def lost(self) -> None: ...


class Client:
    """Takes whole or partial requests, one after the other, and leads each to an upstream."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._parser = httptools.HttpRequestParser(self)
        self._upstream: Upstream | None = None
        self._early = b""

    def opened(self, wire: Wire) -> None:
        self.wire = wire

    def received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        upstream = self._upstream
        if upstream is None:
            upstream = self._upstream = self._pool.take(self)
        if upstream is None:
            self._early += data
        else:
            upstream.wire.send(data)

    def reached(self, upstream: Upstream) -> None:
        self._upstream = upstream
        upstream.wire.send(self._early)
        self._early = b""

    def answered(self) -> None:
        self._upstream = None

    def lost(self) -> None:
        if self._upstream is not None:
            self._upstream.wire.close()


class Upstream:
    """A connection to the upstream, free or with the client that it answers."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self.client: Client | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._whole = False

    def opened(self, wire: Wire) -> None:
        self.wire = wire
        self._pool.add(self)

    def received(self, data: bytes) -> None:
        self._parser.feed_data(data)
        assert self.client is not None
        self.client.wire.send(data)
        if self._whole:
            self._whole = False
            self.client.answered()
            self.client = None
            self._pool.add(self)

    def on_message_complete(self) -> None:
        self._whole = True

    def lost(self) -> None:
        self._pool.remove(self)
        if self.client is not None:
            self.client.wire.close()


class Pool:
    """The one that was free last goes first."""

    def __init__(self, dial: Callable[[Upstream], None]) -> None:
        self._dial = dial
        self._free: list[Upstream] = []
        self._waiting: list[Client] = []

    def take(self, client: Client) -> Upstream | None:
        """None: it will be `reached` later."""
        if self._free:
            upstream = self._free.pop()
            upstream.client = client
            return upstream
        self._waiting.append(client)
        self._dial(Upstream(self))
        return None

    def add(self, upstream: Upstream) -> None:
        if self._waiting:
            upstream.client = self._waiting.pop(0)
            upstream.client.reached(upstream)
        else:
            self._free.append(upstream)

    def remove(self, upstream: Upstream) -> None:
        if upstream in self._free:
            self._free.remove(upstream)


class Plain(asyncio.Protocol):
    """Of a transport that gives and takes plain text: uvloop has TLS inside it."""

    def __init__(self, end: End) -> None:
        self._end = end

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.send = self._transport.write
        self.close = self._transport.abort
        self.data_received = self._end.received  # type: ignore[method-assign]
        self._end.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._end.lost()


class Bio(asyncio.Protocol):
    """TLS between a plain transport and the end, as one filter without tasks or futures."""

    def __init__(self, end: End, context: ssl.SSLContext, name: str | None) -> None:
        self._end = end
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=name is None, server_hostname=name
        )
        self._open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.close = self._transport.abort
        if self._tls.server_hostname is not None:
            self._shake_hands()

    def data_received(self, data: bytes) -> None:
        incoming, tls = self._incoming, self._tls
        incoming.write(data)
        if not self._open:
            self._shake_hands()
        while self._open and (size := incoming.pending or tls.pending()):
            try:
                plain = tls.read(size)
            except ssl.SSLWantReadError:  # a ticket, or a part of a record
                break
            if not plain:
                self._transport.abort()
                return
            self._end.received(plain)

    def send(self, data: bytes) -> None:
        if self._tls.write(data) < len(data):  # a write makes one record
            rest = memoryview(data)[_RECORD:]
            while rest:
                rest = rest[self._tls.write(rest) :]
        self._transport.write(self._outgoing.read())

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
            self._open = True
        except ssl.SSLWantReadError:
            pass
        if self._outgoing.pending:
            self._transport.write(self._outgoing.read())
        if self._open:
            self._end.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        if self._open:
            self._end.lost()


class Door(asyncio.Protocol):
    """Takes CONNECT, and hands the transport on."""

    def __init__(self, tunnelled: Callable[[asyncio.Transport], None]) -> None:
        self._tunnelled = tunnelled
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._head += data
        if not self._head.endswith(b"\r\n\r\n"):
            return
        if not self._head.startswith(b"CONNECT "):
            self._transport.abort()
            return
        self._transport.write(_ESTABLISHED)
        self._tunnelled(self._transport)


class Relay:
    def __init__(self, upstream: str, name: str, root: str, certificate: str, key: str) -> None:
        self._host, _, port = upstream.rpartition(":")
        self._port, self._name = int(port), name
        self._outer = ssl.create_default_context(cafile=root)
        self._outer.set_alpn_protocols(["http/1.1"])
        self._inner = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._inner.load_cert_chain(certificate, key)
        self._inner.set_alpn_protocols(["http/1.1"])
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()

    async def serve(self, port: int, kind: str) -> None:
        dial, tunnelled = {
            "uvloop": (self._dial_uvloop, self._uvloop),
            "bio": (self._dial_bio, self._bio),
        }[kind]
        self._pool = Pool(lambda upstream: self._start(dial(upstream)))
        server = await self._loop.create_server(
            lambda: Door(tunnelled), "127.0.0.1", port, backlog=1024
        )
        await server.serve_forever()

    def _uvloop(self, transport: asyncio.Transport) -> None:
        self._start(self._upgrade(transport))

    async def _upgrade(self, transport: asyncio.Transport) -> None:
        plain = Plain(Client(self._pool))
        secured = await self._loop.start_tls(transport, plain, self._inner, server_side=True)
        assert secured is not None
        plain.connection_made(secured)

    def _bio(self, transport: asyncio.Transport) -> None:
        filtered = Bio(Client(self._pool), self._inner, None)
        transport.set_protocol(filtered)
        filtered.connection_made(transport)

    async def _dial_uvloop(self, upstream: Upstream) -> None:
        await self._loop.create_connection(
            lambda: Plain(upstream), self._host, self._port,
            ssl=self._outer, server_hostname=self._name,
        )  # fmt: skip

    async def _dial_bio(self, upstream: Upstream) -> None:
        await self._loop.create_connection(
            lambda: Bio(upstream, self._outer, self._name), self._host, self._port
        )

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def serve(kind: str, port: int, *of: str) -> None:
    await Relay(*of).serve(port, kind)


if __name__ == "__main__":
    _kind, _port, *_of = sys.argv[1:]
    uvloop.run(serve(_kind, int(_port), *_of))
