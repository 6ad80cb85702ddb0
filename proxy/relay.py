"""What all connections of one proxy process share: origin, pool, spool, plan, bounds, counts."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

from policies import metrics
from policies.endpoints import CHAT, OTHER, Endpoint, classify
from policies.policy import Timeouts
from policies.privacy import Mode
from proxy.answers import json_answer
from proxy.capture import Spool
from proxy.divert import Diverter
from proxy.heads import Refused, RequestHead, RequestHeads, ResponseHead, response_of
from proxy.ids import Ids
from proxy.known import KnownRequests
from proxy.limits import Limits, give_back
from proxy.metrics import Meter, read_samples
from proxy.modes import Modes
from proxy.origin import Origin
from proxy.pool import Pool
from proxy.redact import Redactor
from proxy.routes import Route, Routes
from proxy.tapes import BLANK, Tape

if TYPE_CHECKING:
    from policies.forward import Target
    from proxy.door import Door
    from proxy.forward import Forwarding

RESERVED: Final = b"/_understudy/"
_HEALTH: Final = b"/_understudy/health"
_METRICS: Final = b"/_understudy/metrics"
_TELL_WHEN_ASKED: Final = frozenset((CHAT.name, "completions"))
_MOST_ENDPOINTS: Final = 1024
_MOST_ORIGINS: Final = 1024
_GIVE_BACK_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True)
class Traits:
    """What follows from a request's head. `about`: its record; `ours`: a path below RESERVED.

    `at_home`: it goes to the default upstream. What was learnt of that one, tasks and keys alike,
    says nothing of another host, which may be anybody's. `sketched`: its body, though not kept, is
    read for the task. `injects`: its stream is asked for its usage, if the app did not ask.
    """

    endpoint: Endpoint
    key: str | None
    about: bytes
    ours: bool
    recorded: bool
    at_home: bool
    mode: Mode
    keeps_bodies: bool
    sketched: bool
    injects: bool


def _has_task(endpoint: Endpoint, head: RequestHead) -> bool:
    return endpoint.name == CHAT.name and head.is_plain_json and not head.upgrade


def _may_tell_usage(endpoint: Endpoint, head: RequestHead) -> bool:
    """May its stream state the usage, if it is asked to?"""
    return endpoint.name in _TELL_WHEN_ASKED and head.is_plain_json and not head.upgrade


class Guest(Protocol):
    """A client's connection, whatever it has become."""

    def check(self, now: float) -> None: ...
    def drain(self) -> None: ...
    def abort(self) -> None: ...


@dataclass(slots=True)
class Relay:
    """`spool` is None when capture is off. `tasks` keeps what runs, by name, until it is done.

    `told`: connections above the bound, each until it has been told so.
    """

    pool: Pool
    timeouts: Timeouts
    redactor: Redactor
    diverter: Diverter
    meter: Meter
    routes: Routes
    limits: Limits
    forward: Forwarding
    modes: Modes = field(default_factory=Modes)
    known: KnownRequests = field(default_factory=KnownRequests)
    ids: Ids = field(default_factory=Ids)
    spool: Spool | None = None
    inject_usage: bool = False
    worker: int = 1
    draining: bool = False
    clients: set[Guest] = field(default_factory=set)
    told: set[Door] = field(default_factory=set)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    requests: int = 0
    refused: int = 0
    overloaded: int = 0
    diverted: int = 0
    fallbacks: int = 0
    in_flight: int = 0
    client_aborts: int = 0
    upstream_opened: int = 0
    upstream_reused: int = 0
    inject_failed: int = 0
    usage_refused: set[Origin] = field(default_factory=set)
    _gave_back: float = 0.0
    _heads: dict[Route, RequestHeads] = field(default_factory=dict)
    _endpoints: dict[tuple[bytes, bytes], Endpoint] = field(default_factory=dict)

    def open_tape(self, traits: Traits, length: int) -> tuple[bytes, Tape]:
        """`length`: of the request's body, as in RequestHead."""
        spool = self.spool
        if spool is None or not traits.recorded:
            return self.ids.next(), BLANK
        if traits.mode == "off":
            spool.counters.not_recorded += 1
            return self.ids.next(), BLANK
        if traits.mode == "metadata":
            return spool.open_bare(traits.about, traits.sketched, length)
        return spool.open(traits.about, traits.keeps_bodies)

    def tunnel_tape(self, target: bytes) -> Tape:
        """Of a tunnel it is known how long it was and how many bytes went which way."""
        if self.spool is None:
            return BLANK
        if self.modes.usual == "off":
            self.spool.counters.not_recorded += 1
            return BLANK
        about = b'"method":"CONNECT","target":"%b","headers":[],"key":null}' % target
        return self.spool.open(about, False)[1]

    def traits(self, head: RequestHead) -> Traits:
        if head.traits is None:
            key = self.redactor.key_hash(head.credentials)
            mode = self.modes.of(head, key)
            kept = self.spool is not None and head.route.recorded and mode != "off"
            endpoint = self._endpoint(head) if head.route.recorded else OTHER
            head.traits = Traits(
                endpoint=endpoint,
                key=key,
                about=self.redactor.request(head, key, mode) if kept else b"",
                ours=head.path.startswith(RESERVED) and not head.route.forwarded,
                recorded=head.route.recorded,
                at_home=head.route.origin[:3] == self.routes.default.origin[:3],
                mode=mode,
                keeps_bodies=endpoint.keeps_bodies,
                sketched=mode == "metadata" and _has_task(endpoint, head),
                injects=self.inject_usage
                and kept
                and mode != "metadata"
                and _may_tell_usage(endpoint, head),
            )
        return head.traits

    def _endpoint(self, head: RequestHead) -> Endpoint:
        asked = (head.method, head.path)
        found = self._endpoints.get(asked)
        if found is None:
            method = head.method.decode("latin-1")
            found = classify(method, head.path.decode("latin-1"))
            if found is OTHER:  # /vllm/v1/..., where /vllm is but the way to an upstream
                found = classify(method, head.below.decode("latin-1"))
            if len(self._endpoints) >= _MOST_ENDPOINTS:
                self._endpoints.clear()
            self._endpoints[asked] = found
        return found

    def heads(self, target: bytes) -> RequestHeads:
        """Reads the request for this target on its way to the upstream it belongs to."""
        if not target.startswith((b"/", b"*")):
            return self.forward.heads(target, self.modes.readable)
        route = self.routes.only or self.routes.find(target)
        heads = self._heads.get(route)
        if heads is None:
            heads = self._heads[route] = RequestHeads(route, self.modes.readable)
        return heads

    def asked(self, target: bytes) -> bytes:
        """The target that is meant: the sidecar's own name in front of it says nothing."""
        return self.forward.origin_form(target)

    def connect(self, target: bytes) -> Target:
        return self.forward.connect(target)

    def note_trailers(self, count: int) -> None:
        self.pool.trailers_dropped += count

    def refuses_usage(self, origin: Origin) -> None:
        """It does not know the option that asks for the usage of streams."""
        if len(self.usage_refused) < _MOST_ORIGINS:
            self.usage_refused.add(origin)

    def spawn(self, coroutine: Any, name: str) -> asyncio.Task[None]:
        loop = asyncio.get_running_loop()
        task: asyncio.Task[None] = loop.create_task(coroutine, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    @staticmethod
    def _check(client: Guest, now: float) -> None:
        try:
            client.check(now)
        except Exception as error:  # the others, and the meter, have their turn all the same
            print(f"understudy: a client's check failed: {error!r}", file=sys.stderr, flush=True)
            client.abort()

    def overload(self) -> Refused | None:
        """Why one more request is not taken now; counted."""
        refused = self.obstacle(new_connection=False)
        if refused is not None:
            self.overloaded += 1
        return refused

    def obstacle(self, new_connection: bool) -> Refused | None:
        if new_connection:
            return self.limits.obstacle(len(self.clients), 0, 0)
        return self.limits.obstacle(-1, self.in_flight, self.meter.resident)

    def own_page(
        self, target: bytes, stranger: Refused | None = None
    ) -> tuple[ResponseHead, bytes]:
        """Paths below /_understudy/ are ours; liveness depends on nothing but this process.

        Health asked with ?nonce=... proves who answers: only who holds the home's install key can
        give this `proof`. A `stranger`, whom the sidecar does not serve, hears that it lives.
        """
        path, _, query = target.partition(b"?")
        if path == _HEALTH:
            health = {"status": self._status()} if stranger else self.health()
            if query.startswith(b"nonce="):
                health["proof"] = self.redactor.proof(query.removeprefix(b"nonce="))
            return json_answer(200, health)
        if stranger is not None:
            raise stranger
        if path == _METRICS:
            return self._metrics()
        raise Refused(
            404, "not_found", "here are only /_understudy/health and /_understudy/metrics"
        )

    def _metrics(self) -> tuple[ResponseHead, bytes]:
        """Of all workers, whichever is asked."""
        self.meter.tick(self)
        body = metrics.render(read_samples(self.meter.run_dir))
        content_type = (b"Content-Type", metrics.CONTENT_TYPE.encode())
        length = (b"Content-Length", b"%d" % len(body))
        return response_of(200, b"OK", [content_type, length], len(body)), body

    def _status(self) -> str:
        return "draining" if self.draining else "ok"

    def health(self) -> dict[str, Any]:
        counters = self.spool.counters if self.spool else None
        return {
            "status": self._status(),
            "pid": os.getpid(),
            "worker": self.worker,
            "requests": self.requests,
            "refused": self.refused,
            "overloaded": self.overloaded,
            "diverted": self.diverted,
            "fallbacks": self.fallbacks,
            "undecided": self.diverter.undecided,
            "inject_failed": self.inject_failed,
            "clients": len(self.clients),
            "killed": self.diverter.watch.killed,
            "diverting": self.diverter.watch.diverts,
            "breakers": self.diverter.breakers(),
            "trailers_dropped": self.pool.trailers_dropped,
            "forward": self.forward.health(),
            "capture": None
            if counters is None
            else {
                "exchanges": counters.exchanges,
                "not_recorded": counters.not_recorded,
                "bodies_cut": counters.bodies_cut,
                "records_dropped": counters.records_dropped,
                "write_errors": counters.write_errors,
                "last_error": counters.last_error,
            },
        }

    def tick(self) -> None:
        """Every 250 ms: files, idle connections, whoever has run out of time, and the counters."""
        self.diverter.poll()
        self.forward.tick()
        now = time.monotonic()
        self.pool.expire(now)
        for client in list(self.clients):
            self._check(client, now)
        self.meter.tick(self)
        if self.limits.heavy(self.meter.resident) and now - self._gave_back > _GIVE_BACK_SECONDS:
            self._gave_back = now
            give_back()
