"""The director: everything that thinks. It watches candidates, judges evidence, writes the plan.

Each loop is a task of its own, kept and named: a candidate that hangs stops neither the heartbeat
of the plan, nor the other candidates, nor the steps that only wait for time to pass.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from policies.settings import Settings
from shadow import planner
from shadow.admin import Admin
from shadow.judge import Judge
from shadow.observe import Observer
from shadow.planner import Reachable
from shadow.record import Record
from shadow.runner import Runner

_log = logging.getLogger(__name__)

_HEARTBEAT: Final = 2.0
_TICK: Final = 1.0
_WATCH: Final = 0.5
_AFTER_A_FAULT: Final = 1.0


async def run(settings: Settings, record: Record) -> None:
    """Direct until SIGTERM or cancellation."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    director = Director(settings, record)
    try:
        director.start()
        await stop.wait()
    finally:
        await director.close()


class Director:
    def __init__(
        self, settings: Settings, record: Record, clock: Callable[[], float] = time.time
    ) -> None:
        self.settings, self.policy, self._clock = settings, settings.parsed_policy(), clock
        self.judge = Judge(self.policy.rollout, record, self._publish, clock)
        self._observers = [
            Observer(settings.home.model_socket(candidate.name))
            for candidate in self.policy.candidates
        ]
        self.runners = [
            Runner(candidate, self.policy.shadow, observer, record, self.judge, clock)
            for candidate, observer in zip(self.policy.candidates, self._observers, strict=True)
        ]
        self._admin = Admin(settings, record, self.judge, self.runners)
        self._changed = asyncio.Event()  # the plan should be written now
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def reachable(self) -> dict[str, Reachable]:
        known = ((runner.candidate.name, runner.reachable) for runner in self.runners)
        return {name: reachable for name, reachable in known if reachable is not None}

    def start(self) -> None:
        self._keep("admin", _until_done("admin", self._admin.serve))
        self._keep("rollouts", self._direct())

    def _keep(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(work, name=name))

    async def _direct(self) -> None:
        """First what the record knows: without it a plan would divert nothing that was earned."""
        names = [candidate.name for candidate in self.policy.candidates]
        await _until_done("restore", lambda: self.judge.restore(names))
        self._admin.ready = True
        self._keep("heartbeat", _forever("heartbeat", self._beat))
        self._keep("steps", _forever("steps", self._tick))
        for runner in self.runners:
            name = runner.candidate.name
            self._keep(f"watch {name}", _forever(f"watch {name}", _every(_WATCH, runner.watch)))
            self._keep(f"shadow {name}", _forever(f"shadow {name}", _paced(runner.work)))

    def _publish(self) -> None:
        self._changed.set()

    async def _beat(self) -> None:
        """Write the plan when it changed, and every two seconds, which renews it."""
        self._changed.clear()
        plan = planner.build(
            self.policy, self.settings.home, self.judge.states, self.reachable, self._clock()
        )
        await asyncio.to_thread(planner.write, self.settings.home.plan, plan)
        try:
            async with asyncio.timeout(_HEARTBEAT):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _tick(self) -> None:
        """Steps that were only waiting for time. A candidate that is away takes none."""
        here = self.reachable
        for key in [key for key in self.judge.cases if key[1] in here]:
            await self.judge.look(key)
        await asyncio.sleep(_TICK)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for observer in self._observers:
            await observer.close()


async def _forever(name: str, step: Callable[[], Awaitable[None]]) -> None:
    while True:
        await _until_done(name, step)


async def _until_done(name: str, step: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            return await step()
        except Exception:  # a fault in one loop must not end it, nor touch another
            _log.exception("%s failed, trying again", name)
            await asyncio.sleep(_AFTER_A_FAULT)


def _every(seconds: float, step: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    async def paced() -> None:
        await step()
        await asyncio.sleep(seconds)

    return paced


def _paced(work: Callable[[], Awaitable[float]]) -> Callable[[], Awaitable[None]]:
    async def paced() -> None:
        await asyncio.sleep(await work())

    return paced
