"""What the director needs of the record. Implemented by the store, handed in by the wiring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from policies.words import Comparison, Pair, RolloutRecord, Write


class Record(Protocol):
    """Reads open their own short read-only transaction and may block for milliseconds: call them
    in a thread. They return nothing while there is no database yet."""

    def unobserved(self, candidate: str, limit: int) -> list[Pair]:
        """Newest first: whole, ok pairs of chat completions that the upstream answered, with no
        observation by `candidate` yet, at most 7 days old."""

    def comparisons(
        self, candidate: str, task_id: str, since: float, limit: int
    ) -> list[Comparison]:
        """Oldest first, the newest `limit` of those made at or after `since` (epoch seconds)."""

    def rollouts(self) -> list[RolloutRecord]:
        """The latest state of every (task, candidate); `why` is the last log line's."""

    async def write(self, writes: Sequence[Write]) -> None:
        """Hand writes to the recorder and wait for its commit: all of them or none. Writing the
        same observation or comparison twice is harmless. Raises ConnectionError while the recorder
        is away."""
