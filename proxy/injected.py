"""An exchange that asks for the usage of its stream, and keeps that from the client.

The record has the request as the app sent it, and the response as the upstream did. Whatever goes
wrong on the way, the bytes pass as they are. What a candidate answers is not touched: it is given
the request as it came.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from proxy.divert import MOST_BODY
from proxy.exchange import Exchange
from proxy.heads import RequestHead, ResponseHead, unencoded
from proxy.inject import Stripper, can_strip, head_of_stripped, with_usage

if TYPE_CHECKING:
    from policies.spool import Outcome
    from proxy.client import ClientConnection
    from proxy.relay import Relay

_REFUSALS: Final = (400, 422)


class InjectedExchange(Exchange):
    __slots__ = ("_asks", "_may_divert", "_stripper")

    def __init__(
        self, client: ClientConnection, relay: Relay, head: RequestHead, length: int
    ) -> None:
        super().__init__(client, relay, head, length)
        self._may_divert = self._waits_for_body
        self._waits_for_body = length <= MOST_BODY
        self._asks = False  # for usage, unknown to the app
        self._stripper: Stripper | None = None

    # -- to the upstream

    def _divert(self) -> bool:
        return self._may_divert and super()._divert()

    def _go_upstream(self) -> None:
        whole = self.request_ended and self._held_bytes <= MOST_BODY
        if whole and self._head.route.origin not in self.relay.usage_refused:
            self._ask()
        super()._go_upstream()

    def _ask(self) -> None:
        try:
            body = with_usage(b"".join(self._held))
            head = unencoded(self._head)
        except Exception:  # whatever an app sends, it is relayed
            self.relay.inject_failed += 1
            return
        if body is None:
            return
        self._head, self._held = head, [body]
        self._held_bytes = len(body)
        if self._length >= 0:
            self._length = len(body)
        self._asks = True

    # -- from the upstream

    def _reply(self, head: ResponseHead) -> None:
        if not self._asks:
            super()._reply(head)
            return
        self._replied = True
        self._tape.response_head(head)
        self.client.reply(self, self._shown(head))

    def _shown(self, head: ResponseHead) -> ResponseHead:
        try:
            strips = can_strip(head)
            shown = head_of_stripped(head) if strips else head
        except Exception:
            self.relay.inject_failed += 1
            self._asks = False
            return head
        self._stripper = Stripper() if strips else None
        self._asks = strips or head.status in _REFUSALS
        return shown

    def response_body(self, pieces: list[bytes], framed: bytes = b"") -> None:
        if not self._asks:
            super().response_body(pieces, framed)
            return
        for piece in pieces:
            self._tape.response_body(piece)
        data = b"".join(pieces)
        if self._stripper is None:
            self._note_refusal(data)
            self.client.reply_body(pieces, framed)
        elif shown := self._stripped(self._stripper, data):
            self.client.reply_body([shown], b"")

    def _note_refusal(self, data: bytes) -> None:
        """An upstream that does not know the option is not asked again: older ones, and Azure's
        older API versions, refuse what they don't know."""
        if b"stream_options" in data or b"include_usage" in data:
            self.relay.refuses_usage(self._head.route.origin)

    def _stripped(self, stripper: Stripper, data: bytes) -> bytes:
        try:
            return stripper.feed(data)
        except Exception:
            self.relay.inject_failed += 1
            self._stripper, self._asks = None, False
            return stripper.held + data

    def _give_rest(self) -> None:
        """The stream is over, in whatever way: what was held of it goes on."""
        stripper, self._stripper = self._stripper, None
        if stripper is None or self.done:
            return
        try:
            rest = stripper.end()
        except Exception:
            self.relay.inject_failed += 1
            rest = stripper.held
        if rest:
            self.client.reply_body([rest], b"")

    def response_ended(self) -> None:
        self._give_rest()
        super().response_ended()

    def _break(self, outcome: Outcome, why: str) -> None:
        self._give_rest()
        super()._break(outcome, why)
