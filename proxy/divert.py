"""The divert: which requests a candidate answers, and one such answer in the making.

Until a byte has gone to the client, any failure or refusal sends the request upstream and the app
sees one clean answer. After the first byte nothing is ever spliced: a failure then breaks the
stream visibly, as the upstream's would.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import orjson

from policies import fingerprint, plan
from policies.breaker import Breaker
from policies.eligibility import obstacle
from policies.endpoints import CHAT
from policies.plan import PlannedCandidate, PlannedTask
from proxy.heads import Refused, RequestHead, ResponseHead, response_of
from proxy.origin import Origin
from proxy.pool import Pool
from proxy.upstream import UpstreamConnection
from proxy.watch import Watch

MOST_BODY: Final = 256 * 1024
_PROOF_SECONDS: Final = 3600.0
_MOST_PROOFS: Final = 10_000
_MOST_ANSWER: Final = 4 << 20  # a local answer that is not streamed is held until it is whole


@dataclass(slots=True)
class Stage:
    """A candidate as the proxy sees it. `waiting` of the `in_flight` have no head yet."""

    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """A request that a candidate shall answer."""

    name: str
    candidate: PlannedCandidate
    task: PlannedTask
    stage: Stage
    streams: bool
    header: bool


class Diverter:
    def __init__(self, watch: Watch, pool: Pool) -> None:
        self.watch = watch
        self.pool = pool
        self.undecided = 0
        self._draw = random.SystemRandom()
        self._proofs: dict[str, float] = {}
        self._stages: dict[str, Stage] = {}

    def breakers(self) -> dict[str, str]:
        return {
            name: "open" if stage.breaker.opened_at else "closed"
            for name, stage in self._stages.items()
        }

    def poll(self) -> None:
        """Take in the plan of this moment: probes that succeeded close breakers."""
        self.watch.poll()
        for name, candidate in self.watch.plan.candidates.items():
            self._stage(name).breaker.probed(candidate.probed)

    def wants(self, head: RequestHead, length: int, endpoint: str) -> bool:
        """Is it worth holding this body back until it is whole?"""
        return (
            self.watch.diverts
            and endpoint == CHAT.name
            and length <= MOST_BODY
            and head.is_plain_json
        )

    def choose(
        self, head: RequestHead, key: str | None, exchange: bytes, body: bytes
    ) -> Choice | str:
        """The candidate that answers, or why the upstream does."""
        try:
            return self._choose(head, key, exchange, body)
        except Exception as error:
            # Whatever an app sends, and whatever a plan holds: when in doubt, relay.
            self.undecided += 1
            return f"undecidable: {type(error).__name__}"

    def _choose(
        self, head: RequestHead, key: str | None, exchange: bytes, body: bytes
    ) -> Choice | str:
        current = self.watch.plan
        try:
            asked = orjson.loads(body)
        except orjson.JSONDecodeError:
            return "not_json"
        if not isinstance(asked, dict):
            return "not_json"
        task = current.tasks.get(fingerprint.task_id(CHAT.name, asked))
        if task is None or task.candidate not in current.candidates:
            return "no_plan"
        candidate = current.candidates[task.candidate]
        why = obstacle(asked, candidate.context) or self._decide(
            task, candidate, head, key, _sticky(head, asked, exchange)
        )
        if why is not None:
            return why
        stage = self._stage(task.candidate)
        return Choice(
            task.candidate,
            candidate,
            task,
            stage,
            bool(asked.get("stream")),
            current.served_by_header,
        )

    def _decide(
        self,
        task: PlannedTask,
        candidate: PlannedCandidate,
        head: RequestHead,
        key: str | None,
        sticky: str,
    ) -> str | None:
        stage = self._stage(task.candidate)
        facts = plan.Facts(
            key_proven=self.proven(key),
            sdk_retry=head.retry_count not in (b"", b"0"),
            sticky=sticky,
            draw=self._draw.random() * 100,
            slot_free=stage.in_flight < candidate.in_flight,
            breaker_closed=stage.breaker.admits(stage.waiting),
        )
        return plan.decide(task, facts)

    # -- keys: a local answer must never hide a bad or revoked key, nor serve a stranger

    def proven(self, key: str | None) -> bool:
        at = self._proofs.get(key) if key is not None else None
        return at is not None and time.monotonic() - at < _PROOF_SECONDS

    def note_answer(self, key: str | None, endpoint: str, status: int) -> None:
        """The upstream answered a call with this key: a 2xx proves it, 401 and 403 disprove it."""
        if key is None:
            return
        if status in (401, 403):
            self._proofs.pop(key, None)
        elif 200 <= status < 300 and endpoint == CHAT.name:
            self._proofs.pop(key, None)  # the newest last, so that the oldest is the first to go
            if len(self._proofs) >= _MOST_PROOFS:
                del self._proofs[next(iter(self._proofs))]
            self._proofs[key] = time.monotonic()

    def _stage(self, name: str) -> Stage:
        return self._stages.setdefault(name, Stage())


def _sticky(head: RequestHead, asked: dict[str, Any], exchange: bytes) -> str:
    """What keeps a conversation with one server: session, else its root, else nothing at all."""
    if head.session:
        return head.session.decode("latin-1")
    if asked.get("messages"):
        return fingerprint.conversation_root(asked)
    return exchange.hex()


class Caller(Protocol):
    """The exchange that wants the answer."""

    def local_begun(self, head: ResponseHead) -> None: ...
    def response_body(self, pieces: list[bytes], framed: bytes = b"") -> None: ...
    def response_ended(self) -> None: ...
    def read_done(self) -> None: ...
    def local_failed(self, why: str) -> None: ...
    def local_broke(self, why: str) -> None: ...


class LocalCall:
    """One diverted request at the model process. Tells its caller exactly one ending."""

    def __init__(self, choice: Choice, pool: Pool, caller: Caller, request_id: str) -> None:
        self.choice = choice
        self._pool = pool
        self._caller: Caller | None = caller
        self._request_id = request_id
        self._connection: UpstreamConnection | None = None
        self._started = time.monotonic()
        self._head: ResponseHead | None = None
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._begun = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, body: bytes) -> None:
        """Take a connection and send the request; all else comes through callbacks."""
        stage, task = self.choice.stage, self.choice.task
        stage.in_flight += 1
        stage.waiting += 1
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(task.patience, self._timed_out, "patience")
        origin = Origin(path=self.choice.candidate.socket)
        try:
            connection = self._pool.take(origin) or await self._pool.connect(origin)
        except Refused as refused:
            self._fail(_local(refused))
            return
        if self._caller is None:
            connection.abandon()
            return
        self._connection = connection
        connection.begin(self, b"POST", _local_request(task, body))

    def leave(self) -> None:
        """The client is gone."""
        if self._caller is None:
            return
        if not self._begun and time.monotonic() - self._started > self.choice.task.patience / 2:
            # Clients less patient than we are must not keep a sick model in service.
            self.choice.stage.breaker.record(True, time.monotonic())
        self._end()
        self._abandon()

    def pause(self, paused: bool) -> None:
        if self._connection is None:
            return
        self._connection.pause(paused)
        if self._begun and paused and self._timer is not None:
            self._timer.cancel()  # it is the client now that takes its time
        elif self._begun:
            self._wait(self.choice.task.deadline, "stall")

    # -- Receiver

    def response_begun(self, head: ResponseHead) -> None:
        self._head = head
        if head.status != 200:
            return
        self._heard()
        if self.choice.streams:
            self._begin()
            self._wait(self.choice.task.deadline, "stall")
        else:
            self._wait(self.choice.task.deadline - (time.monotonic() - self._started), "deadline")

    def response_body(self, pieces: list[bytes], framed: bytes = b"") -> None:
        if self._begun and self._caller is not None:
            self._wait(self.choice.task.deadline, "stall")
            self._caller.response_body(pieces, framed)
            return
        self._held += pieces
        self._held_bytes += sum(map(len, pieces))
        if self._held_bytes > _MOST_ANSWER:
            self._fail("too_large")
            self._abandon()

    def response_ended(self) -> None:
        caller = self._caller
        if caller is None or self._head is None:
            return
        if self._head.status != 200 or self._is_refusal():
            self._refused(b"".join(self._held))
            return
        if not self._begun:
            self._begin()
            if self._held:
                caller.response_body(self._held)
        self.choice.stage.breaker.record(False, time.monotonic())
        self._end()
        caller.response_ended()
        caller.read_done()

    def _is_refusal(self) -> bool:
        """A model that began to answer may have come to doubt it."""
        return not self._begun and b"".join(self._held).startswith(b'{"error"')

    def response_lost(self, error: Refused) -> None:
        self._fail(_local(error))

    def read_done(self) -> None:
        if self._begun and self._caller is not None:
            self._caller.read_done()

    def upload_full(self, full: bool) -> None:
        """At most 256 KiB are sent: nothing to hold back."""

    # -- endings

    def _begin(self) -> None:
        head = self._head
        assert head is not None and self._caller is not None
        self._begun = True
        headers = [(n, v) for n, v in head.pairs() if n.lower() in _LOCAL_HEADERS]
        headers.append((b"x-request-id", self._request_id.encode()))
        if self.choice.header:
            headers.append((plan.SERVED_BY_HEADER.encode(), self.choice.name.encode()))
        length = head.length
        if not self.choice.streams:
            length = self._held_bytes  # held until it was whole: its size is known
            headers = [(n, v) for n, v in headers if n.lower() != b"content-length"]
            headers.append((b"Content-Length", b"%d" % length))
        self._caller.local_begun(response_of(200, b"OK", headers, length))

    def _heard(self) -> None:
        self.choice.stage.waiting -= 1
        self._waiting_ended = True

    def _refused(self, body: bytes) -> None:
        code = _error_code(body)
        if code in plan.REFUSALS:
            self._fall_back(code)
        else:
            self._fail(code)

    def _timed_out(self, why: str) -> None:
        self._fail(why)
        self._abandon()

    def _fail(self, why: str) -> None:
        """A failure of the candidate: counted, and the request goes upstream if it still can."""
        if self._caller is None:
            return
        self.choice.stage.breaker.record(True, time.monotonic())
        if not self._begun:
            self._fall_back(why)
            return
        caller = self._caller
        self._end()
        caller.local_broke(why)

    def _fall_back(self, why: str) -> None:
        caller = self._caller
        self._end()
        if caller is not None:
            caller.local_failed(why)

    def _end(self) -> None:
        if self._caller is None:
            return
        self._caller = None
        self.choice.stage.in_flight -= 1
        if not self._waiting_ended:
            self.choice.stage.waiting -= 1
        if self._timer is not None:
            self._timer.cancel()

    def _abandon(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abandon()

    def _wait(self, seconds: float, why: str) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(max(seconds, 0.0), self._timed_out, why)

    _waiting_ended = False


_LOCAL_HEADERS: Final = frozenset((b"content-type", b"content-length", b"cache-control"))


def _local_request(task: PlannedTask, body: bytes) -> bytes:
    return (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: understudy\r\n"
        b"Content-Type: application/json\r\n"
        b"%b: %.3f\r\n%b: %.3f\r\nContent-Length: %d\r\n\r\n%b"
    ) % (
        plan.CONFIDENCE_HEADER.encode(),
        task.confidence_floor,
        plan.PATIENCE_HEADER.encode(),
        task.patience,
        len(body),
        body,
    )


def _local(error: Refused) -> str:
    """Why a call failed, in words that don't blame the upstream."""
    return error.code.replace("upstream", "local")


def _error_code(body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return "bad_answer"
