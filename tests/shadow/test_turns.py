"""Whose turn it is at the model: diverted requests first, and shadow runs not never."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from shadow.engine import Piece
from shadow.turns import Turns, Work, Worker
from shadow.wire import Refusal


def busy_for(seconds: float) -> Work:
    def work(flag: threading.Event) -> Iterator[Piece]:
        flag.wait(seconds)
        return iter(())

    return work


async def shadow_run(turns: Turns, seconds: float) -> bool:
    """Did it run to its end?"""
    try:
        job = await turns.start(True, 2.0, busy_for(seconds))
        await job.next()
    except Refusal:
        return False
    return not job.flag.is_set()


async def divert_without_pause(turns: Turns, until: float) -> int:
    refused = 0
    while time.monotonic() < until:
        try:
            job = await turns.start(False, 2.0, busy_for(0.02))
            await job.next()
        except Refusal:
            refused += 1
    return refused


def test_a_saturated_model_still_finishes_a_shadow_run_now_and_then() -> None:
    async def main() -> int:
        turns = Turns(Worker())
        until = time.monotonic() + 8.0
        diverted = asyncio.gather(*(divert_without_pause(turns, until) for _ in range(2)))
        finished = 0
        while time.monotonic() < until:
            finished += await shadow_run(turns, 0.05)
            await asyncio.sleep(0.02)
        assert sum(await diverted) == 0, "a short shadow run costs no diverted request its turn"
        return finished

    assert 1 <= asyncio.run(main()) <= 5


def test_a_diverted_request_takes_the_place_of_a_shadow_run() -> None:
    async def main() -> float:
        turns = Turns(Worker())
        running = asyncio.gather(shadow_run(turns, 30.0))
        await asyncio.sleep(0.1)
        started = time.monotonic()
        job = await turns.start(False, 2.0, busy_for(0.0))
        await job.next()
        assert list(await running) == [False]
        return time.monotonic() - started

    assert asyncio.run(main()) < 1.0


def test_a_shadow_run_does_not_wait() -> None:
    async def main() -> None:
        turns = Turns(Worker())
        job = await turns.start(False, 2.0, busy_for(0.5))
        with pytest.raises(Refusal):
            await turns.start(True, 2.0, busy_for(0.0))
        await job.next()

    asyncio.run(main())
