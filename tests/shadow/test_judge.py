"""The judge and the record: commit first, except that taking back waits for nobody."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from policies.policy import Rollout
from policies.rollout import plain
from policies.words import Comparison, RolloutRecord
from shadow.judge import Judge
from tests.shadow.fakes import FakeRecord

RULES = Rollout(threshold=0.85, minimum_pairs=40, step_time=0, steps=(10.0, 100.0))
KEY = ("task", "tiny")


def compared(count: int, matched: bool, first: int = 0) -> list[Comparison]:
    verdict, score = ("matched", 1.0) if matched else ("mismatched", 0.0)
    return [
        Comparison(f"x{n}", "tiny", "task", f"r{n}", time.time(), verdict, score, "")  # type: ignore[arg-type]
        for n in range(first, first + count)
    ]


class Bench:
    def __init__(self) -> None:
        self.record = FakeRecord()
        self.shares: list[float] = []
        self.judge = self.made()

    def made(self) -> Judge:
        return Judge(RULES, self.record, self.publish, time.time)

    def publish(self) -> None:
        self.shares.append(self.judge.cases[KEY].state.percent)

    async def serving(self) -> None:
        """To the first step."""
        await self.judge.open(KEY, "sha")
        await self.judge.learn(compared(1, True))
        await self.judge.learn(compared(60, True, 1))
        assert self.shares == [10]


def bench(play: Callable[[Bench], Awaitable[None]]) -> None:
    async def run() -> None:
        await play(Bench())

    asyncio.run(run())


async def while_away(it: Bench, work: Awaitable[None]) -> list[float]:
    """The shares published while the recorder is away and `work` waits for it."""
    it.record.away = True
    before = len(it.shares)
    task = asyncio.ensure_future(work)  # noqa: TID251 (kept and awaited below)
    await asyncio.sleep(0.05)
    assert not task.done()
    during = it.shares[before:]
    it.record.away = False
    await task
    return during


def test_a_step_up_is_committed_before_it_is_published() -> None:
    async def play(it: Bench) -> None:
        await it.serving()
        assert await while_away(it, it.judge.learn(compared(5, True, 100))) == []
        assert it.shares == [10, 100] and it.record.phases[-1] == "live"

    bench(play)


def test_taking_back_does_not_wait_for_the_recorder() -> None:
    async def play(it: Bench) -> None:
        await it.serving()
        assert await while_away(it, it.judge.learn(compared(40, False, 100))) == [0]
        assert it.shares == [10, 0] and it.record.phases[-1] == "demoted"

    bench(play)


def test_ignored_comparisons_are_no_evidence() -> None:
    async def play(it: Bench) -> None:
        await it.judge.open(KEY, "sha")
        ignored = [replace(c, verdict="ignored", score=None) for c in compared(50, True)]
        await it.judge.learn(ignored)
        assert it.record.phases == ["collecting"]

    bench(play)


def test_a_state_that_is_not_understood_starts_again_at_nothing() -> None:
    async def play(it: Bench) -> None:
        await it.serving()
        state = {**plain(it.judge.cases[KEY].state), "phase": "unheard of"}
        it.record.log.append(RolloutRecord(*KEY, "canary", 10, state, 0.0, ""))
        again = it.made()
        await again.restore(["tiny"])
        assert not again.cases

    bench(play)


def test_rollouts_of_candidates_that_left_the_policy_stay_in_the_record() -> None:
    async def play(it: Bench) -> None:
        await it.serving()
        again = it.made()
        await again.restore(["another"])
        assert not again.cases

    bench(play)
