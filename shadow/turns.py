"""One generation at a time: whose turn it is, and the thread that does the work.

Shadow runs never wait and never stand in the way: a request that is being diverted aborts one and
takes its place within milliseconds. Diverted requests queue behind each other.

But for one: where diverted requests leave the model no time, no shadow run would ever end, and
without its evidence a model that has gone bad would keep its share for ever. So a shadow run that
follows several that were crowded out, for seconds, takes a turn like everyone else's.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from shadow.engine import Piece
from shadow.wire import PREEMPTED, Refusal

# Of a caller's patience; the rest is for the first tokens.
_WAITS: Final = 0.5
_CROWDED_OUT: Final = 3  # shadow runs, and
_CROWDED_SECONDS: Final = 5.0  # since the last one that ended: then the next one keeps its turn

Work = Callable[[threading.Event], Iterator[Piece]]
_Item = Piece | Exception | None  # None: the work has ended


class Job:
    """One generation. Its flag may be set from any thread; its pieces arrive in the loop."""

    def __init__(self, shadow: bool, firm: bool) -> None:
        self.shadow = shadow
        self.firm = firm  # not to be preempted
        self.flag = threading.Event()
        self.preempted = False
        self._arrived: asyncio.Queue[_Item] = asyncio.Queue()

    def abort(self) -> None:
        self.flag.set()

    def preempt(self) -> None:
        self.preempted = True
        self.abort()

    def arrive(self, item: _Item) -> None:
        self._arrived.put_nowait(item)

    async def next(self) -> Piece | None:
        """The next piece, None at the end. Raises what the work raised, and Refusal if aborted."""
        item = await self._arrived.get()
        if isinstance(item, Exception):
            raise item
        if item is not None and item.finish is not None:
            # The model is free before the answer leaves: a next request finds it so.
            await self._arrived.get()
            return item
        if item is None and self.preempted:
            raise Refusal(PREEMPTED, "a diverted request needed the model")
        if item is None and self.flag.is_set():
            raise Refusal("busy", "the model process is stopping")
        return item


class Turns:
    """Hands out the model. Lives in one event loop."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = asyncio.Lock()
        self._running: Job | None = None
        self._stopping = False
        self._crowded = 0
        self._shadowed = time.monotonic()

    @property
    def busy(self) -> bool:
        return self._lock.locked()

    async def start(self, shadow: bool, patience: float, work: Work) -> Job:
        """Start `work` when its turn has come. Raises Refusal when that takes too long."""
        firm = not shadow or self._starved()
        if not firm and self.busy:
            self._crowded += 1
            raise Refusal("busy", "the model is at work")
        await self._wait(patience)
        if self._stopping:
            self._lock.release()
            raise Refusal("busy", "the model process is stopping")
        job = self._running = Job(shadow, firm)
        self._worker.run(job, work, self._finished)
        return job

    def _starved(self) -> bool:
        late = time.monotonic() - self._shadowed > _CROWDED_SECONDS
        return late and self._crowded >= _CROWDED_OUT

    async def _wait(self, patience: float) -> None:
        if self._running is not None and not self._running.firm:
            self._crowded += 1
            self._running.preempt()
        try:
            async with asyncio.timeout(patience * _WAITS):
                await self._lock.acquire()
        except TimeoutError:
            raise Refusal("busy", "another request is being answered") from None

    def _finished(self) -> None:
        # Only now is the thread free, whatever became of the request.
        job, self._running = self._running, None
        if job is not None and job.shadow and not job.flag.is_set():
            self._crowded, self._shadowed = 0, time.monotonic()
        self._lock.release()

    def stop(self) -> None:
        self._stopping = True
        if self._running is not None:
            self._running.abort()


class Worker:
    """The one thread that may touch the model."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._calls: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # A daemon: a library that hangs must not keep the process from ending.
        threading.Thread(target=self._serve, name="model", daemon=True).start()

    def _serve(self) -> None:
        while True:
            self._calls.get()()

    def call(self, function: Callable[[], None]) -> None:
        self._calls.put(function)

    def tell(self, function: Callable[..., None], *values: object) -> None:
        """From the thread to the loop."""
        try:
            self._loop.call_soon_threadsafe(function, *values)
        except RuntimeError:
            pass  # the loop has ended, and with it whoever wanted to know

    def run(self, job: Job, work: Work, finished: Callable[[], None]) -> None:
        self.call(lambda: self._run(job, work, finished))

    def _run(self, job: Job, work: Work, finished: Callable[[], None]) -> None:
        end: Exception | None = None
        try:
            for piece in work(job.flag):
                self.tell(job.arrive, piece)
        except Exception as error:  # carried to the request that it belongs to
            end = error
        self.tell(finished)
        self.tell(job.arrive, end)
