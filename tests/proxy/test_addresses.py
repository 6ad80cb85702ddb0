"""From a name to a connected socket: shared look-ups, and the race among addresses (RFC 8305)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from proxy.addresses import Address, Lookups, connect, interleaved, race
from tests.proxy.far_ends import unused

V4, V6 = socket.AF_INET, socket.AF_INET6


@contextlib.contextmanager
def black_hole() -> Iterator[Address]:
    """An address that answers nothing: its queue of connections is full."""
    with socket.socket() as listener, contextlib.ExitStack() as fillers:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = fillers.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield int(V4), listener.getsockname()


def test_an_address_that_says_nothing_is_overtaken() -> None:
    async def main() -> None:
        with black_hole() as hole, socket.create_server(("127.0.0.1", 0)) as listener:
            good = (int(V4), listener.getsockname())
            async with asyncio.timeout(10):
                won = await race([hole, good])
            assert won.getpeername() == good[1]
            won.close()

    uvloop.run(main())


class Attempts:
    """Plays the network: which addresses connect, refuse, or say nothing for ever."""

    def __init__(self, **fates: str) -> None:
        self.fates = fates
        self.begun: list[str] = []
        self.made: list[socket.socket] = []
        self.called_off: list[str] = []

    async def __call__(self, address: Address) -> socket.socket:
        name = address[1][0]
        self.begun.append(name)
        if self.fates[name] == "refuses":
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused")
        if self.fates[name] == "silent":
            try:
                await asyncio.get_running_loop().create_future()
            finally:
                self.called_off.append(name)
        self.made.append(socket.socket())
        return self.made[-1]


def at(*names: str) -> list[Address]:
    return [(V4, (name,)) for name in names]


def test_families_take_turns() -> None:
    six, four = [(int(V6), (f"s{i}",)) for i in range(3)], [(int(V4), (f"f{i}",)) for i in range(1)]
    names = [address[1][0] for address in interleaved([*six, *four])]
    assert names == ["s0", "f0", "s1", "s2"]
    assert [a[1][0] for a in interleaved([*four, *six])] == ["f0", "s0", "s1", "s2"]
    assert interleaved([]) == []


def test_a_black_hole_delays_no_longer_than_its_turn() -> None:
    async def main() -> None:
        attempts = Attempts(hole="silent", good="connects", never="connects")
        loop = asyncio.get_running_loop()
        began = loop.time()
        won = await race(at("hole", "good", "never"), attempts, 0.05)
        took = loop.time() - began
        won.close()
        assert attempts.begun == ["hole", "good"]
        assert attempts.called_off == ["hole"]
        assert 0.045 < took < 5

    uvloop.run(main())


def test_a_refusal_begins_the_next_at_once() -> None:
    async def main() -> None:
        attempts = Attempts(a="refuses", b="refuses", good="connects")
        (await asyncio.wait_for(race(at("a", "b", "good"), attempts, 600), 5)).close()
        assert attempts.begun == ["a", "b", "good"]

    uvloop.run(main())


def test_when_none_accepts_the_last_failure_is_told() -> None:
    async def main() -> None:
        with pytest.raises(ConnectionRefusedError):
            await race(at("a", "b"), Attempts(a="refuses", b="refuses"), 0.01)
        with pytest.raises(OSError, match="no address"):
            await race([], Attempts())

    uvloop.run(main())


def test_of_two_that_connect_the_later_is_closed() -> None:
    async def both(address: Address) -> socket.socket:
        await gate.wait()
        return await attempts(address)

    async def main() -> None:
        asyncio.get_running_loop().call_later(0.05, gate.set)
        won = await race(at("a", "b"), both, 0.01)
        open_now = [made for made in attempts.made if made.fileno() >= 0]
        assert open_now == [won]
        won.close()

    gate, attempts = asyncio.Event(), Attempts(a="connects", b="connects")
    uvloop.run(main())


def test_a_race_that_is_called_off_leaves_nothing_behind() -> None:
    async def main() -> None:
        attempts = Attempts(a="silent", b="silent")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await race(at("a", "b"), attempts, 0.01)
        assert sorted(attempts.called_off) == ["a", "b"]

    uvloop.run(main())


def test_look_ups_in_flight_are_shared_and_never_kept() -> None:
    asked: list[str] = []

    async def slow(host: str, port: int) -> list[Address]:
        asked.append(host)
        await asyncio.sleep(0.02)
        return at(f"{host}-{len(asked)}")

    async def main() -> None:
        lookups = Lookups(slow)
        found = await asyncio.gather(*(lookups.find("a", 1) for _ in range(100)))
        assert asked == ["a"]
        assert all(addresses == at("a-1") for addresses in found)
        assert await lookups.find("a", 1) == at("a-2")  # a change is seen

    uvloop.run(main())


def test_who_gives_up_waiting_takes_the_look_up_from_nobody() -> None:
    async def slow(host: str, port: int) -> list[Address]:
        await asyncio.sleep(0.05)
        return at(host)

    async def main() -> None:
        lookups = Lookups(slow)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await lookups.find("a", 1)
        assert await lookups.find("a", 1) == at("a")

    uvloop.run(main())


def test_the_systems_resolver_is_asked() -> None:
    async def main() -> None:
        found = await Lookups().find("127.0.0.1", 8080)
        assert found == [(V4, ("127.0.0.1", 8080))]

    uvloop.run(main())


def test_a_socket_that_does_not_connect_is_closed() -> None:
    async def main() -> None:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(20):
            with pytest.raises(ConnectionRefusedError):
                await connect(unused())
        assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1

    uvloop.run(main())
