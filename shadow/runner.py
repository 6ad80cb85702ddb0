"""One candidate's turn: take captured pairs, let it answer them, compare, write, judge.

Work is chosen, not queued: each round takes the newest pairs that the candidate has not answered.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from policies import eligibility
from policies.compare import compare
from policies.policy import Candidate, Shadow
from policies.words import Comparison, Observation, Pair, Write
from shadow.judge import Judge, commit
from shadow.observe import Answered, Failed, Observer, Outcome, Status
from shadow.planner import Reachable
from shadow.record import Record

_TAKEN: Final = 32  # pairs in one round
_FLUSH: Final = 0.5  # seconds after which finished runs are written, however few
_IDLE: Final = 0.5
_BUSY: Final = 0.1
_AWAY: Final = 0.5
_PROBE_AFTER: Final = 3.0
_SILENCE: Final = 6.0  # after which a process that says nothing gets no traffic
_MOST_CRASHES: Final = 3  # with the same request: it is the request


class Runner:
    """What is known of one candidate's process, and its two loops: watching it, and its work."""

    def __init__(
        self,
        candidate: Candidate,
        policy: Shadow,
        observer: Observer,
        record: Record,
        judge: Judge,
        clock: Callable[[], float],
    ) -> None:
        self.candidate, self._policy, self._observer = candidate, policy, observer
        self._record, self._judge, self._clock = record, judge, clock
        self.status: Status | None = None
        self._heard = self._ran = self._probed = 0.0  # CLOCK_MONOTONIC
        self._crashes: Counter[str] = Counter()
        self._writes: list[Write] = []
        self._flushed = 0.0

    @property
    def reachable(self) -> Reachable | None:
        silent = time.monotonic() - self._heard > _SILENCE
        if self.status is None or self.status.state != "ready" or silent:
            return None
        return Reachable(self.status.context, self._probed, self.status.sha256)

    async def watch(self) -> None:
        """Ask the process how it is. A silent one keeps its last status until `_SILENCE`."""
        status = await self._observer.status()
        if status is None:
            return
        self._heard, self.status = time.monotonic(), status
        if status.state == "ready":
            await self._judge.candidate_is(self.candidate.name, status.sha256)

    async def work(self) -> float:
        """One round. Returns how long to wait for the next."""
        if self.reachable is None:
            return _AWAY
        pairs = await asyncio.to_thread(self._record.unobserved, self.candidate.name, _TAKEN)
        # Newest first decides what is taken; in the order of time is what evidence wants.
        for pair in sorted(pairs, key=lambda pair: pair.started_at):
            wait = await self._take(pair)
            if wait:
                await self._flush()
                return wait
        await self._flush()
        if time.monotonic() - self._ran > _PROBE_AFTER:
            await self._probe()
        return 0.0 if pairs else _IDLE

    async def _take(self, pair: Pair) -> float:
        """Run one pair. Not 0: it could not be run now, and how long to wait."""
        known = self.reachable
        if known is None:
            return _AWAY
        await self._judge.open((pair.task_id, self.candidate.name), known.model_sha256)
        skipped = self._skipped(pair, known.context)
        outcome = skipped or await self._observer.observe(pair.request, self._policy.deadline)
        if skipped is None:
            self._ran = time.monotonic()
        wait = self._settle(pair, outcome, known.model_sha256)
        if time.monotonic() - self._flushed > _FLUSH:
            await self._flush()
        return wait

    def _settle(self, pair: Pair, outcome: Outcome, sha256: str) -> float:
        if isinstance(outcome, Answered):
            return self._answered(pair, outcome, sha256)
        if outcome.later and not self._hopeless(pair, outcome):
            return _AWAY if outcome.away else _BUSY
        self._writes.append(self._observation(pair, outcome, sha256))
        if _counts(outcome):
            self._writes.append(self._comparison(pair, outcome))
        return 0.0

    def _answered(self, pair: Pair, outcome: Answered, sha256: str) -> float:
        if self.status is None or not outcome.model_sha256 == sha256 == self.status.sha256:
            self.status = None  # restarted with another file: first hear about it
            return _AWAY
        self._probed = time.monotonic()
        self._crashes.pop(pair.exchange_id, None)
        self._writes.append(self._observation(pair, outcome, sha256))
        self._writes.append(self._comparison(pair, outcome))
        return 0.0

    def _hopeless(self, pair: Pair, outcome: Failed) -> bool:
        """A request that takes the process down each time is not tried for ever."""
        if outcome.away:
            self.status = None  # until it is heard again
        if outcome.crashed:
            self._crashes[pair.exchange_id] += 1
        return self._crashes[pair.exchange_id] >= _MOST_CRASHES

    def _skipped(self, pair: Pair, context: int) -> Failed | None:
        if share(pair.exchange_id) >= self._policy.sample:
            return Failed("skipped:unsampled", later=False)
        obstacle = eligibility.obstacle(pair.request, context)
        return Failed(f"skipped:{obstacle}", later=False) if obstacle else None

    async def _probe(self) -> None:
        self._ran = time.monotonic()
        outcome = await self._observer.probe(self._policy.deadline)
        if isinstance(outcome, Answered):
            self._probed = time.monotonic()

    async def _flush(self) -> None:
        writes, self._writes = self._writes, []
        self._flushed = time.monotonic()
        if writes:
            await commit(self._record, writes)
            await self._judge.learn([w for w in writes if isinstance(w, Comparison)])

    def _observation(self, pair: Pair, outcome: Outcome, sha256: str) -> Observation:
        answer = outcome if isinstance(outcome, Answered) else None
        return Observation(
            exchange_id=pair.exchange_id,
            candidate=self.candidate.name,
            model_sha256=sha256,
            at=self._clock(),
            answer=answer.text if answer else None,
            finish_reason=answer.finish_reason if answer else None,
            prompt_tokens=answer.prompt_tokens if answer else None,
            completion_tokens=answer.completion_tokens if answer else None,
            latency_ms=outcome.latency_ms,
            margin=answer.margin if answer else None,
            error=outcome.error if isinstance(outcome, Failed) else None,
        )

    def _comparison(self, pair: Pair, outcome: Outcome) -> Comparison:
        verdict, score, why = compare(pair.control, _said(outcome))
        if isinstance(outcome, Failed) and verdict == "mismatched":
            why = outcome.error
        return Comparison(
            exchange_id=pair.exchange_id,
            candidate=self.candidate.name,
            task_id=pair.task_id,
            request_hash=pair.request_hash,
            at=self._clock(),
            verdict=verdict,
            score=score,
            why=why,
        )


def _counts(outcome: Failed) -> bool:
    """Did it fail at a request that it would have been given? Then the gate must hear of it."""
    tried = outcome.crashed or not outcome.later
    return tried and not outcome.error.startswith("skipped:")


def _said(outcome: Outcome) -> str:
    """No answer is worth what an empty one is."""
    return outcome.text if isinstance(outcome, Answered) else ""


def share(exchange_id: str) -> float:
    """Where an exchange lies in 0..100, the same at every look."""
    digest = hashlib.blake2b(exchange_id.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 * 100
