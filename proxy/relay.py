"""What all connections of one proxy process share: origin, pool, spool, plan, bounds, counts."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from policies.endpoints import Endpoint, classify
from policies.policy import Timeouts
from proxy.answers import json_answer
from proxy.capture import BLANK, Spool, Tape
from proxy.divert import Diverter
from proxy.heads import Refused, RequestHead, RequestHeads, ResponseHead
from proxy.known import KnownRequests
from proxy.origin import Origin
from proxy.pool import Pool
from proxy.redact import Redactor

if TYPE_CHECKING:
    from proxy.client import ClientConnection

RESERVED: Final = b"/_understudy/"
_HEALTH: Final = b"/_understudy/health"
_MOST_ENDPOINTS: Final = 1024


@dataclass(frozen=True, slots=True)
class Traits:
    """What follows from a request's head. `about`: its record; `ours`: a path below RESERVED."""

    endpoint: Endpoint
    key: str | None
    about: bytes
    ours: bool


@dataclass(slots=True)
class Relay:
    """`spool` is None when capture is off. `tasks` keeps what runs, by name, until it is done."""

    origin: Origin
    pool: Pool
    timeouts: Timeouts
    redactor: Redactor
    diverter: Diverter
    heads: RequestHeads
    known: KnownRequests = field(default_factory=KnownRequests)
    spool: Spool | None = None
    draining: bool = False
    clients: set[ClientConnection] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    requests: int = 0
    refused: int = 0
    diverted: int = 0
    fallbacks: int = 0
    _endpoints: dict[tuple[bytes, bytes], Endpoint] = field(default_factory=dict)

    def open_tape(self, traits: Traits) -> tuple[bytes, Tape]:
        if self.spool is None:
            return os.urandom(16), BLANK
        return self.spool.open(traits.about, traits.endpoint.keeps_bodies)

    def traits(self, head: RequestHead) -> Traits:
        if head.traits is None:
            key = self.redactor.key_hash(head.credentials)
            head.traits = Traits(
                endpoint=self._endpoint(head),
                key=key,
                about=b"" if self.spool is None else self.redactor.request(head, key),
                ours=head.path.startswith(RESERVED),
            )
        return head.traits

    def _endpoint(self, head: RequestHead) -> Endpoint:
        asked = (head.method, head.path)
        found = self._endpoints.get(asked)
        if found is None:
            found = classify(head.method.decode("latin-1"), head.path.decode("latin-1"))
            if len(self._endpoints) >= _MOST_ENDPOINTS:
                self._endpoints.clear()
            self._endpoints[asked] = found
        return found

    def note_trailers(self, count: int) -> None:
        self.pool.trailers_dropped += count

    def spawn(self, coroutine: Any, name: str) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        task: asyncio.Task[None] = loop.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def own_answer(self, head: RequestHead) -> tuple[ResponseHead, bytes]:
        """Paths below /_understudy/ are ours; liveness depends on nothing but this process."""
        if head.path != _HEALTH:
            raise Refused(404, "not_found", "only /_understudy/health is here")
        return json_answer(200, self.health())

    def health(self) -> dict[str, Any]:
        counters = self.spool.counters if self.spool else None
        return {
            "status": "draining" if self.draining else "ok",
            "pid": os.getpid(),
            "requests": self.requests,
            "refused": self.refused,
            "diverted": self.diverted,
            "fallbacks": self.fallbacks,
            "undecided": self.diverter.undecided,
            "clients": len(self.clients),
            "killed": self.diverter.watch.killed,
            "diverting": self.diverter.watch.diverts,
            "breakers": self.diverter.breakers(),
            "trailers_dropped": self.pool.trailers_dropped,
            "capture": None
            if counters is None
            else {
                "exchanges": counters.exchanges,
                "bodies_cut": counters.bodies_cut,
                "records_dropped": counters.records_dropped,
                "last_error": counters.last_error,
            },
        }

    def tick(self) -> None:
        """Every 250 ms: files, idle connections, and whoever has run out of time."""
        self.diverter.poll()
        now = time.monotonic()
        self.pool.expire(now)
        for client in list(self.clients):
            client.check(now)
