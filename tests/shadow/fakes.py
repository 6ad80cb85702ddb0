"""A record in memory, with the store's promises, that can go away."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

from policies.fingerprint import request_hash, task_id
from policies.words import Comparison, Feedback, Observation, Pair, RolloutRecord, Write
from tests.shadow.processes import labels


class FakeRecord:
    def __init__(self) -> None:
        self.pairs: list[Pair] = []
        self.observations: dict[tuple[str, str], Observation] = {}
        self.compared: dict[tuple[str, str], Comparison] = {}
        self.log: list[RolloutRecord] = []
        self.said: list[Feedback] = []
        self.away = False
        self._lock = threading.Lock()

    def unobserved(self, candidate: str, limit: int) -> list[Pair]:
        with self._lock:
            open_pairs = [
                pair
                for pair in reversed(self.pairs)
                if (pair.exchange_id, candidate) not in self.observations
            ]
            return open_pairs[:limit]

    def comparisons(
        self, candidate: str, task_id: str, since: float, limit: int
    ) -> list[Comparison]:
        with self._lock:
            found = [
                comparison
                for comparison in self.compared.values()
                if (comparison.candidate, comparison.task_id) == (candidate, task_id)
                and comparison.at >= since
            ]
            return sorted(found, key=lambda comparison: comparison.at)[-limit:]

    def rollouts(self) -> list[RolloutRecord]:
        with self._lock:
            return list({(r.task_id, r.candidate): r for r in self.log}.values())

    async def write(self, writes: Sequence[Write]) -> None:
        if self.away:
            raise ConnectionError("the recorder is away")
        with self._lock:
            for write in writes:
                self._keep(write)

    def _keep(self, write: Write) -> None:
        if isinstance(write, Observation):
            self.observations[write.exchange_id, write.candidate] = write
        elif isinstance(write, Comparison):
            self.compared[write.exchange_id, write.candidate] = write
        elif isinstance(write, Feedback):
            self.said.append(write)
        else:
            self.log.append(write)

    def add(self, count: int, wrong: bool = False) -> None:
        """Captured pairs of one task, each a distinct request; `wrong`: the upstream differs."""
        tickets = labels()
        for number in range(len(self.pairs), len(self.pairs) + count):
            ticket = tickets[number % len(tickets)]
            system, user = ticket["messages"]
            # A space more is a distinct request with the same answer.
            text = user["content"] + " " * (number // len(tickets))
            body: dict[str, object] = {
                "model": "m",
                "messages": [system, {**user, "content": text}],
            }
            control = "something_else" if wrong else ticket["reference"]
            self.append(f"exchange-{number}", body, control)

    def append(self, exchange_id: str, body: dict[str, object], control: str) -> None:
        pair = Pair(
            exchange_id, len(self.pairs), task_id("chat.completions", body), request_hash(body),
            time.time(), body, control,
        )  # fmt: skip
        with self._lock:
            self.pairs.append(pair)

    @property
    def phases(self) -> list[str]:
        return [record.phase for record in self.log]
