"""Evidence in, rollouts on: the director's memory of every (task, candidate).

The record comes first: a new state is committed before anyone acts on it. The one exception is a
share that shrinks while the recorder is away: taking back needs no permission.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from policies.evidence import NOTHING, Figures, Judgement, Sample, judge
from policies.policy import Rollout
from policies.rollout import (
    CandidateChanged,
    Event,
    Judged,
    Log,
    State,
    advance,
    begin,
    plain,
    restore,
)
from policies.words import Comparison, RolloutRecord, Write
from shadow.planner import Key
from shadow.record import Record

_log = logging.getLogger(__name__)

_MOST: Final = 20_000  # newest comparisons of a rollout that count, and are held in memory
_COMMIT_PATIENCE: Final = 10.0
_RETRY: Final = 0.5


async def commit(
    record: Record, writes: Sequence[Write], failed: Callable[[], None] | None = None
) -> None:
    """Hand `writes` to the recorder, however long it is away. `failed`: called at each failure."""
    while True:
        try:
            async with asyncio.timeout(_COMMIT_PATIENCE):
                return await record.write(writes)
        except (ConnectionError, TimeoutError) as error:
            _log.warning("the recorder is away, trying again: %s", error or type(error).__name__)
        if failed is not None:
            failed()
        await asyncio.sleep(_RETRY)


@dataclass(slots=True)
class Case:
    """One rollout: its state, the evidence that counts, and what was last said of it."""

    state: State
    why: str
    samples: list[Sample] = field(default_factory=list)
    judgement: Judgement | None = None  # of `samples`; None when they changed since

    def learn(self, samples: Iterable[Sample]) -> None:
        self.samples.extend(s for s in samples if s.at >= self.state.evidence_since)
        del self.samples[:-_MOST]
        self.judgement = None

    def judged(self, rules: Rollout) -> Judgement:
        if self.judgement is None:
            self.judgement = judge(self.samples, rules)
        return self.judgement

    @property
    def fresh(self) -> int:
        return len(self.samples) - bisect_left(self.samples, self.state.since, key=_at)

    @property
    def figures(self) -> Figures:
        return self.judgement.figures if self.judgement else NOTHING

    def move(self, state: State, why: str) -> None:
        if state.evidence_since > self.state.evidence_since:
            self.samples.clear()
            self.judgement = None
        self.state, self.why = state, why


def _at(sample: Sample) -> float:
    return sample.at


def sample_of(comparison: Comparison) -> Sample:
    return Sample(comparison.request_hash, comparison.verdict == "matched", comparison.at)


class Judge:
    """All cases. `publish` is called whenever the share of some task's traffic changed."""

    def __init__(
        self,
        rules: Rollout,
        record: Record,
        publish: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._rules, self._record, self._publish, self._clock = rules, record, publish, clock
        self._turn = asyncio.Lock()  # one event at a time, from the decision to the commit
        self.cases: dict[Key, Case] = {}

    @property
    def states(self) -> dict[Key, State]:
        return {key: case.state for key, case in self.cases.items()}

    async def restore(self, candidates: Iterable[str]) -> None:
        """Take up every rollout of `candidates` where the record left it."""
        known = set(candidates)
        for record in await asyncio.to_thread(self._record.rollouts):
            if record.candidate in known:
                await self._take_up(record)

    async def _take_up(self, record: RolloutRecord) -> None:
        try:
            state = restore(record.state)
        except ValueError as error:
            # Not understood is not proven: from the beginning, at 0 %.
            _log.error("rollout of task %s starts again: %s", record.task_id, error)
            return
        case = Case(state, record.why)
        comparisons = await asyncio.to_thread(
            self._record.comparisons,
            record.candidate, record.task_id, state.evidence_since, _MOST,
        )  # fmt: skip
        case.learn(sample_of(c) for c in comparisons if c.verdict != "ignored")
        self.cases[record.task_id, record.candidate] = case

    async def open(self, key: Key, sha256: str) -> None:
        """Begin a rollout where there is none yet."""
        async with self._turn:
            if key in self.cases:
                return
            state = begin(self._clock(), sha256)
            why = "first exchange of this task seen"
            await commit(self._record, [_record(key, state, state.since, why)])
            self.cases[key] = Case(state, why)

    async def learn(self, comparisons: Sequence[Comparison]) -> None:
        """Count comparisons that are committed, and judge the rollouts they touch."""
        touched: dict[Key, list[Sample]] = {}
        for comparison in comparisons:
            if comparison.verdict != "ignored":
                key = (comparison.task_id, comparison.candidate)
                touched.setdefault(key, []).append(sample_of(comparison))
        for key, samples in touched.items():
            self.cases[key].learn(samples)
            await self.look(key)

    async def look(self, key: Key) -> None:
        """Judge a rollout on what is known now."""
        async with self._turn:
            case = self.cases[key]
            judgement = case.judged(self._rules)
            await self._apply(key, Judged(self._clock(), judgement, case.fresh))

    async def candidate_is(self, candidate: str, sha256: str) -> None:
        """The file that `candidate` serves: evidence about another file proves nothing of it."""
        for key in [key for key in self.cases if key[1] == candidate]:
            async with self._turn:
                if self.cases[key].state.model_sha256 != sha256:
                    await self._apply(key, CandidateChanged(self._clock(), sha256))

    async def _apply(self, key: Key, event: Event) -> None:
        before = self.cases[key].state
        state, commands = advance(before, event, self._rules)
        why = " ".join(command.why for command in commands if isinstance(command, Log))
        if not why:
            return
        move = partial(self._move, key, state, why)
        # Down at once: should the record keep the old state, its evidence says the same again.
        hurry = move if state.percent < before.percent else None
        await commit(self._record, [_record(key, state, event.at, why)], hurry)
        _log.info("task %s, %s: %s", *key, why)
        move()

    def _move(self, key: Key, state: State, why: str) -> None:
        case = self.cases[key]
        moved = case.state.percent != state.percent
        case.move(state, why)
        if moved:
            self._publish()


def _record(key: Key, state: State, at: float, why: str) -> RolloutRecord:
    return RolloutRecord(key[0], key[1], state.phase, state.percent, plain(state), at, why)
