"""The pool: what is kept and for how long, and how the trouble of connecting is told."""

from __future__ import annotations

import asyncio
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest
import uvloop

from policies.listeners import Listeners
from policies.policy import Connections, Timeouts, build
from policies.setting import PolicyError
from policies.way_out import WayOut
from proxy.dial import Dialer
from proxy.heads import Refused, ResponseHead
from proxy.origin import Origin
from proxy.pool import Pool
from proxy.upstream import UpstreamConnection
from proxy.writes import Writes
from tests.proxy.far_ends import LAST_REPLY, REPLY, Authority, TlsServer

P = TypeVar("P", bound=asyncio.BaseProtocol)


class Failing(Dialer):
    """Nothing can be reached: `error`, or silence."""

    def __init__(self, error: Exception | None) -> None:
        super().__init__(WayOut(), Listeners())
        self.error = error

    async def open(self, origin: Origin, factory: Callable[[], P]) -> P:
        if self.error is not None:
            raise self.error
        await asyncio.get_running_loop().create_future()
        raise AssertionError


def pool_of(
    dialer: Dialer | None = None,
    timeouts: Timeouts | None = None,
    limits: Connections | None = None,
) -> Pool:
    return Pool(
        Writes(asyncio.get_running_loop()),
        dialer or Dialer(WayOut(), Listeners()),
        timeouts or Timeouts(),
        limits or Connections(),
    )


@asynccontextmanager
async def origins(count: int) -> AsyncIterator[list[Origin]]:
    """Servers that take connections and say nothing."""

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    servers = [await asyncio.start_server(hold, "127.0.0.1", 0) for _ in range(count)]
    yield [Origin("127.0.0.1", server.sockets[0].getsockname()[1]) for server in servers]
    for server in servers:
        server.close()
        await server.wait_closed()


async def released(pool: Pool, origin: Origin, count: int) -> list[UpstreamConnection]:
    made = [await pool.connect(origin) for _ in range(count)]
    for connection in made:
        pool.release(connection)
    return made


def taken(pool: Pool, origin: Origin) -> list[UpstreamConnection]:
    found = []
    while (connection := pool.take(origin)) is not None:
        found.append(connection)
    return found


def is_open(connection: UpstreamConnection) -> bool:
    return not connection.transport.is_closing()


# -- what is kept


def test_the_newest_is_taken_first() -> None:
    async def main() -> None:
        pool = pool_of()
        async with origins(1) as [origin]:
            made = await released(pool, origin, 3)
            assert not any(connection.reused for connection in made)
            assert taken(pool, origin) == made[::-1]
            assert all(connection.reused for connection in made)
            for connection in made:
                connection.abandon()

    uvloop.run(main())


def test_of_too_many_for_one_upstream_the_oldest_go() -> None:
    async def main() -> None:
        pool = pool_of(limits=Connections(idle_per_upstream=2))
        async with origins(1) as [origin]:
            made = await released(pool, origin, 5)
            assert [is_open(connection) for connection in made] == [False] * 3 + [True] * 2
            await asyncio.sleep(0.01)  # connections that are lost are not lost twice
            assert taken(pool, origin) == [made[4], made[3]]
            made[4].abandon()
            made[3].abandon()

    uvloop.run(main())


def test_of_too_many_in_all_the_oldest_go_whosever_they_are() -> None:
    async def main() -> None:
        pool = pool_of(limits=Connections(idle=3))
        async with origins(2) as [one, two]:
            first = await released(pool, one, 2)
            second = await released(pool, two, 2)
            assert [is_open(connection) for connection in first + second] == [False] + [True] * 3
            third = await released(pool, one, 4)
            assert [is_open(c) for c in first + second + third] == [False] * 5 + [True] * 3
            pool.close()

    uvloop.run(main())


def test_none_is_kept_where_none_may_be() -> None:
    async def main() -> None:
        pool = pool_of(limits=Connections(idle=0))
        async with origins(1) as [origin]:
            made = await released(pool, origin, 1)
            assert not is_open(made[0])
            assert pool.take(origin) is None

    uvloop.run(main())


def test_what_has_been_idle_too_long_is_closed() -> None:
    async def main() -> None:
        pool = pool_of(timeouts=Timeouts(upstream_keepalive=5))
        async with origins(1) as [origin]:
            made = await released(pool, origin, 2)
            made[0].idle_since -= 6
            pool.expire(time.monotonic())
            assert [is_open(connection) for connection in made] == [False, True]
            pool.expire(time.monotonic() + 6)
            assert not is_open(made[1])
            assert pool.take(origin) is None

    uvloop.run(main())


def test_a_connection_that_the_peer_ended_is_not_taken() -> None:
    async def main() -> None:
        pool = pool_of()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            origin = Origin("127.0.0.1", listener.getsockname()[1])
            [made] = await released(pool, origin, 1)
            peer, _ = listener.accept()
            peer.close()
            assert pool.take(origin) is None
            assert not is_open(made)

    uvloop.run(main())


# -- trouble


@pytest.mark.parametrize(
    ("error", "status", "code", "message"),
    [
        (OSError(errno.ECONNREFUSED, "Connection refused"), 502, "upstream_unreachable", "refused"),
        (
            socket.gaierror(-2, "Name or service not known"),
            502,
            "upstream_unreachable",
            "not known",
        ),
        (TimeoutError(errno.ETIMEDOUT, "timed out"), 504, "upstream_connect_timeout", "in time"),
        (UnicodeError("label too long"), 502, "upstream_unreachable", "label too long"),
        (Refused(508, "loop", "ourselves"), 508, "loop", "ourselves"),
        (None, 504, "upstream_connect_timeout", "in time"),
    ],
)
def test_trouble_becomes_one_answer(
    error: Exception | None, status: int, code: str, message: str
) -> None:
    async def main() -> None:
        pool = pool_of(Failing(error), Timeouts(upstream_connect=0.05))
        with pytest.raises(Refused) as refused:
            await pool.connect(Origin("api.test", 443, tls=True))
        assert (refused.value.status, refused.value.code) == (status, code)
        assert message in refused.value.message

    uvloop.run(main())


def test_a_refusal_is_told_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    async def main() -> None:
        pool = pool_of()
        took = []
        for _ in range(5):
            began = time.monotonic()
            with pytest.raises(Refused, match="can't be reached: Connection refused"):
                await pool.connect(Origin("127.0.0.1", port))
            took.append(time.monotonic() - began)
        assert min(took) < 0.1

    uvloop.run(main())


# -- TLS sessions


class Reader:
    """Who waits for the end of one reply."""

    def __init__(self) -> None:
        self.ended = asyncio.get_running_loop().create_future()

    def response_begun(self, head: ResponseHead) -> None: ...
    def response_body(self, pieces: list[bytes], framed: bytes = b"") -> None: ...
    def read_done(self) -> None: ...
    def upload_full(self, full: bool) -> None: ...

    def response_ended(self) -> None:
        self.ended.set_result(None)

    def response_lost(self, error: Refused) -> None:
        self.ended.set_exception(error)


@pytest.mark.parametrize("reply", [REPLY, LAST_REPLY])
def test_new_connections_resume_the_session_of_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: bytes
) -> None:
    """Also where the server keeps no connection: there it is worth most."""
    authority = Authority.make(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    server = TlsServer(authority.context("DNS:localhost"))
    server.reply = reply

    async def main() -> None:
        pool = pool_of()
        origin = Origin("localhost", server.port, tls=True)
        for _ in range(3):
            connection, reader = await pool.connect(origin), Reader()
            connection.begin(reader, b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            async with asyncio.timeout(5):
                await reader.ended
            await asyncio.sleep(0)  # what is left of the read is done
            assert (pool.take(origin) is connection) == (reply == REPLY)
            connection.abandon()

    uvloop.run(main())
    server.close()
    assert [handshake.resumed for handshake in server.seen.handshakes] == [False, True, True]


@pytest.mark.parametrize("setting", ["idle", "idle_per_upstream"])
def test_limits_are_whole_numbers(setting: str) -> None:
    with pytest.raises(PolicyError, match=f"connections.{setting}"):
        build({"connections": {setting: -1}})
