"""One exchange: a request on its way to the upstream or a candidate, and what comes back.

Back-pressure runs both ways: a client that does not read pauses the upstream, an upstream that does
not read pauses the client. What is held is bounded: a body waiting for its connection (64 KiB and
the client is paused), a body that may be diverted (256 KiB), a local answer (4 MiB).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final
from uuid import UUID

from policies.endpoints import RESPONSES_SOCKET
from policies.spool import Outcome
from proxy.answers import error_answer
from proxy.divert import MOST_BODY, Choice, LocalCall
from proxy.heads import CHUNKED, Refused, RequestHead, ResponseHead, chunk
from proxy.relay import Relay
from proxy.upstream import UpstreamConnection

if TYPE_CHECKING:
    from proxy.client import ClientConnection

_MOST_HELD: Final = 64 * 1024
_MOST_RESENT: Final = 64 * 1024
_IDEMPOTENT: Final = frozenset((b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"TRACE"))
_OUTCOMES: Final[dict[str, Outcome]] = {
    "upstream_reset": "upstream_reset",
    "upstream_truncated": "upstream_truncated",
    "bad_upstream_reply": "upstream_truncated",
    "upstream_unreachable": "upstream_unreachable",
    "upstream_tls": "upstream_unreachable",
    "upstream_proxy": "upstream_unreachable",
    "loop": "upstream_unreachable",
    "upstream_connect_timeout": "timeout",
    "upstream_idle_timeout": "timeout",
}


class Exchange:
    __slots__ = (
        "_body_sent", "_connecting", "_head", "_held", "_held_bytes", "_length", "_local",
        "_replied", "_resend", "_stuck_since", "_tape", "_traits", "_upstream", "_waits_for_body",
        "client", "done", "id", "relay", "request_ended", "switched", "waiting_since",
    )  # fmt: skip

    def __init__(
        self, client: ClientConnection, relay: Relay, head: RequestHead, length: int
    ) -> None:
        self.client = client
        self.relay = relay
        self._head = head
        self._length = length
        self._traits = traits = relay.traits(head)
        self.id, self._tape = relay.open_tape(traits, length)
        relay.in_flight += 1
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._resend: list[bytes] | None = [] if head.method in _IDEMPOTENT else None
        self._upstream: UpstreamConnection | None = None
        self._local: LocalCall | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._waits_for_body = traits.at_home and relay.diverter.wants(
            head, length, traits.endpoint.name
        )
        self._replied = False
        self._body_sent = False
        self._stuck_since: float | None = None  # the upstream takes no more of the body
        self.request_ended = False
        self.switched = False  # another protocol is spoken: bytes go both ways as they come
        self.done = False
        self.waiting_since = time.monotonic()

    # -- from the client

    def body(self, data: bytes) -> None:
        self._tape.request_body(data)
        self._held.append(data)
        self._held_bytes += len(data)

    def advance(self) -> None:
        """After each read of the client: send on what there is."""
        if self.done or self._connecting is not None or self._local is not None:
            return
        if self._waits_for_body:
            if not self.request_ended and self._held_bytes <= MOST_BODY:
                return
            self._waits_for_body = False
            if self.request_ended and self._divert():
                return
        if self._upstream is None:
            self._go_upstream()
        else:
            self._send_body()

    def holds_too_much(self) -> bool:
        """Should the client pause? Not while a small body that may be diverted is coming in."""
        if self._waits_for_body or self.request_ended:
            return False  # all that is coming is here: read on, to see the client leave
        return self._held_bytes > _MOST_HELD

    def client_gone(self, error: Exception | None = None) -> None:
        """Client gone means upstream gone, also before the first byte. `error`: it was reset."""
        if self.done:
            return
        if self.switched and error is None and self._upstream is not None:
            self._upstream.finish()  # a clean end, which the other protocol may know
            self._upstream = None
            self._close("ok", None)
            return
        self._stop()
        self._close("client_abort", "the client closed the connection")

    def stop(self, why: str) -> None:
        """We end it, whatever it has come to."""
        if not self.done:
            self._stop()
            self._close("refused", why)

    def raw(self, data: bytes) -> None:
        """Bytes of the other protocol, from the client."""
        self._tape.request_body(data)
        if self._upstream is not None:
            self._upstream.send(data)

    def client_full(self, full: bool) -> None:
        if self._upstream is not None:
            self._upstream.pause(full)
        if self._local is not None:
            self._local.pause(full)

    def check(self, now: float) -> None:
        """Has the upstream been silent too long? Once the whole request is with it, or while it
        takes no more of it: a client that leaves then is not seen, for nothing is read."""
        upstream = self._upstream
        if self.done or upstream is None:
            return
        waits = self.request_ended and not self.switched
        since = self.waiting_since if waits else self._stuck_since
        if since is None or (waits and self.client.write_full):
            return  # it is the client that takes its time
        if now - max(upstream.last_read, since) > self.relay.timeouts.upstream_idle:
            self.response_lost(
                Refused(504, "upstream_idle_timeout", "the upstream sent nothing for too long")
            )
            upstream.abandon()

    # -- to the upstream

    def _go_upstream(self) -> None:
        connection = self.relay.pool.take(self._head.route.origin)
        if connection is None:
            name = f"connect {self.id.hex()}"
            self._connecting = self.relay.spawn(self._connect(), name)
        else:
            self.relay.upstream_reused += 1
            self._begin(connection)

    async def _connect(self) -> None:
        try:
            connection = await self.relay.pool.connect(self._head.route.origin)
        except Refused as refused:
            self._connecting = None
            self.response_lost(refused)
            return
        self._connecting = None
        self.relay.upstream_opened += 1
        if self.done:
            connection.abandon()
            return
        self._begin(connection)
        self.client.update_reading()

    def _begin(self, connection: UpstreamConnection) -> None:
        self._upstream = connection
        head = self._head
        data = head.wire(self._length) + self._take_body()
        connection.begin(self, head.method, data, head.upgrade)
        connection.pause(self.client.write_full)

    def _send_body(self) -> None:
        data = self._take_body()
        if data and self._upstream is not None:
            self._upstream.send(data)

    def _take_body(self) -> bytes:
        """What is held, framed for the upstream."""
        held, self._held = self._held, []
        self._held_bytes = 0
        if self._resend is not None:
            self._resend += held
            if sum(map(len, self._resend)) > _MOST_RESENT:
                self._resend = None
        if self._length != CHUNKED:
            return held[0] if len(held) == 1 else b"".join(held)
        framed = chunk(held) if held else b""
        if self._body_sent or not self.request_ended:
            return framed
        self._body_sent = True
        return framed + b"0\r\n\r\n"

    # -- to a candidate

    def _divert(self) -> bool:
        body = b"".join(self._held)
        choice = self.relay.diverter.choose(self._head, self._traits.key, self.id, body)
        if not isinstance(choice, Choice):
            self._tape.routed("upstream", choice)
            return False
        self._tape.routed(choice.name, f"{choice.task.phase} {choice.task.percent:g} %")
        self.relay.diverted += 1
        request_id = f"understudy-{UUID(bytes=self.id)}"
        self._local = LocalCall(choice, self.relay.pool, self, request_id)
        self.relay.spawn(self._local.run(body), f"divert {self.id.hex()}")
        return True

    def local_begun(self, head: ResponseHead) -> None:
        self._reply(head)

    def local_failed(self, why: str) -> None:
        """No byte has gone out: the upstream answers, and the app sees one clean answer."""
        self._local = None
        if self.done:
            return
        self.relay.fallbacks += 1
        self._tape.routed("upstream", why)
        self.waiting_since = time.monotonic()
        self._go_upstream()
        self.client.update_reading()

    def local_broke(self, why: str) -> None:
        self._local = None
        self._break("upstream_reset", f"the candidate failed in mid-answer: {why}")

    # -- Receiver: from the upstream

    def response_begun(self, head: ResponseHead) -> None:
        traits = self._traits
        if traits.at_home:
            self.relay.diverter.note_answer(traits.key, traits.endpoint.name, head.status)
        if head.status == 101:
            self._switch(head)
        else:
            self._reply(head)

    def _switch(self, head: ResponseHead) -> None:
        self._replied = self.switched = True
        if self._traits.endpoint.handling != "tunnel":
            # Of a GET like any other nothing would be kept.
            self._tape.keep_bodies(endless=self._traits.endpoint is RESPONSES_SOCKET)
        self._tape.response_head(head)
        self.client.switch(head)

    def _reply(self, head: ResponseHead) -> None:
        self._replied = True
        self._resend = None
        self._tape.response_head(head)
        self.client.reply(self, head)

    def response_body(self, pieces: list[bytes], framed: bytes = b"") -> None:
        for piece in pieces:
            self._tape.response_body(piece)
        self.client.reply_body(pieces, framed)

    def response_ended(self) -> None:
        if self.done:
            return
        if self.switched:
            self._upstream = None
            self._close("ok", None)
            self.client.hang_up()
            return
        upload_cut = not self.request_ended
        if upload_cut and self._upstream is not None:
            # An early reply: the rest of the upload has no reader any more (RFC 9112 9.5).
            self._upstream.abandon()
        self._upstream = self._local = None
        self._close("ok", "replied before the request had ended" if upload_cut else None)
        self.client.reply_ended(self)

    def read_done(self) -> None:
        self.relay.pool.writes.add(self.client)

    def response_lost(self, error: Refused) -> None:
        if self.done:
            return
        upstream, self._upstream = self._upstream, None
        if upstream is not None and upstream.reused and self._may_resend(error):
            self._held, self._resend = self._resend or [], None
            self._body_sent = False
            self._stuck_since = None
            self.client.pause_for_upstream(False)
            self._connecting = self.relay.spawn(self._connect(), f"again {self.id.hex()}")
            return
        outcome = _OUTCOMES.get(error.code, "upstream_reset")
        if self._replied:
            self._break(outcome, error.message)
            return
        self._close(outcome, error.message)
        self.client.refuse(self, error)

    def upload_full(self, full: bool) -> None:
        self._stuck_since = time.monotonic() if full else None
        self.client.pause_for_upstream(full)

    # -- endings

    def _may_resend(self, error: Refused) -> bool:
        """RFC 9110 section 9.2.2: once more only what is idempotent, and only if nothing came."""
        ended = error.code in ("upstream_reset", "upstream_truncated")
        return ended and self._resend is not None and self.request_ended and not self._replied

    def refuse(self, error: Refused) -> tuple[ResponseHead, bytes] | None:
        """Our own error for this exchange; None: a reply has begun, and is broken off."""
        self.relay.refused += 1
        self._stop()
        if self._replied:
            self._break("refused", error.message)
            return None
        self._close("refused", error.message)
        return error_answer(error)

    def _break(self, outcome: Outcome, why: str) -> None:
        """A broken reply must look broken: no clean end, nothing of ours added."""
        self._close(outcome, why)
        self.client.break_off(self)

    def _stop(self) -> None:
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abandon()
        if self._local is not None:
            self._local.leave()
            self._local = None
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None  # it holds us, and its traceback both

    def _close(self, outcome: Outcome, why: str | None) -> None:
        self.done = True
        self.relay.in_flight -= 1
        if outcome == "client_abort":
            self.relay.client_aborts += 1
        self._held = []
        self._held_bytes = 0
        self._tape.closed(outcome, why)
