"""The events of one exchange, gathered: what was asked, what came back, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from policies.plan import SERVED_BY_HEADER
from policies.spool import Event, Kind
from store.database import iso
from store.deflate import Side
from store.values import (
    Json,
    count_of,
    digits_of,
    headers_of,
    is_time,
    json_object,
    milliseconds,
    text_of,
    utf8,
)

_OUR_ERROR: Final = "x-understudy-error"


class Unreadable(ValueError):
    """An exchange whose opening can't be read: nothing to make a row of."""


@dataclass(slots=True)
class Story:
    opened: Json
    opened_at: float
    sent: dict[str, str]  # headers of the request
    got: dict[str, str] = field(default_factory=dict)  # headers of the response
    route: bytes | None = None
    head: Json = field(default_factory=dict)
    closed: Json | None = None
    closed_at: float | None = None
    first_body_at: float | None = None
    request: list[bytes] = field(default_factory=list)
    response: list[bytes] = field(default_factory=list)
    raw: list[Event] = field(default_factory=list)  # of another protocol, both directions
    socket: Json = field(default_factory=dict)  # instead of its first bytes, see store.sockets
    lost: dict[Side, str] = field(default_factory=dict)  # of another protocol: why not all is there
    problems: list[str] = field(default_factory=list)

    @property
    def imported(self) -> bool:
        """Is it out of a file? Then nobody measured it."""
        return self.opened.get("imported") is True

    @property
    def method(self) -> str:
        return text_of(self.opened.get("method")) or ""

    @property
    def target(self) -> str:
        return text_of(self.opened.get("target")) or ""

    @property
    def names_host(self) -> bool:
        """Did the client itself say whose path it is?"""
        return self.imported or "host" in self.opened

    @property
    def switched(self) -> bool:
        """Is it another protocol since the head of the response?"""
        return self.head.get("status") == 101


def gather(events: list[Event]) -> Story:
    """Raises Unreadable."""
    opening = next((event for event in events if event.kind is Kind.OPENED), None)
    opened = json_object(opening.payload) if opening is not None else None
    sent = headers_of(opened) if opened is not None else None
    if opening is None or opened is None or sent is None or not is_time(opened.get("at")):
        raise Unreadable("an exchange whose opening can't be read")
    story = Story(opened, opening.at, sent)
    for event in events:
        _TAKE[event.kind](story, event)
    return story


def _take_opened(story: Story, event: Event) -> None:
    pass


def _take_routed(story: Story, event: Event) -> None:
    story.route = event.payload


def _take_request(story: Story, event: Event) -> None:
    if story.switched:
        story.raw.append(event)
    else:
        story.request.append(event.payload)


def _take_head(story: Story, event: Event) -> None:
    head = json_object(event.payload)
    got = headers_of(head) if head is not None else None
    if head is None or got is None:
        story.problems.append("unreadable: response head")
    else:
        story.head, story.got = head, got


def _take_response(story: Story, event: Event) -> None:
    if story.first_body_at is None:
        story.first_body_at = event.at
    if story.switched:
        story.raw.append(event)
    else:
        story.response.append(event.payload)


def _take_closed(story: Story, event: Event) -> None:
    story.closed = json_object(event.payload)
    story.closed_at = event.at
    if story.closed is None:
        story.problems.append("unreadable: ending")


def _take_socket(story: Story, event: Event) -> None:
    story.socket = json_object(event.payload) or {}


_TAKE: Final[dict[Kind, Callable[[Story, Event], None]]] = {
    Kind.OPENED: _take_opened,
    Kind.ROUTED: _take_routed,
    Kind.REQUEST_BODY: _take_request,
    Kind.RESPONSE_HEAD: _take_head,
    Kind.RESPONSE_BODY: _take_response,
    Kind.CLOSED: _take_closed,
    Kind.SOCKET: _take_socket,
}


def columns(story: Story) -> Json:
    """Of `exchanges`: what needs no body."""
    closed, opened = story.closed or {}, story.opened
    ended_at, answered_at = story.closed_at, story.first_body_at
    if story.imported:
        ended_at = answered_at = None
    return {
        "started_at": iso(opened["at"]),
        "seq": count_of(opened.get("seq")),
        "host": text_of(opened.get("host")),
        "privacy": text_of(opened.get("mode")) or "full",
        "key_hash": text_of(opened.get("key")),
        "retry_count": digits_of(story.sent.get("x-stainless-retry-count")),
        "idempotency_key": story.sent.get("idempotency-key"),
        "upstream_request_id": story.got.get("x-request-id"),
        "status": count_of(story.head.get("status")),
        "outcome": text_of(closed.get("outcome")) or "proxy_died",
        "truncated": int(bool(closed.get("cut"))),
        "latency_ms": milliseconds(story.opened_at, ended_at),
        "ttft_ms": milliseconds(story.opened_at, answered_at),
        "request_bytes": count_of(closed.get("request_bytes")),
        "response_bytes": count_of(closed.get("response_bytes")),
        "task_id": text_of(closed.get("task_id")),
        "request_hash": text_of(closed.get("request_hash")),
        **_served(story, closed),
    }


def _served(story: Story, closed: Json) -> Json:
    route = json_object(story.route) if story.route is not None else None
    error = text_of(closed.get("error"))
    answered = "status" in story.head and _OUR_ERROR not in story.got
    # The event may be lost: the head that the app saw is a second witness of a candidate.
    to = (route and text_of(route.get("to"))) or story.got.get(SERVED_BY_HEADER)
    if not answered and error is None:
        error = "the proxy died first" if not closed else f"no answer: {closed.get('outcome')}"
    return {
        "served_by": (to or "upstream") if answered else None,
        "route": utf8(story.route, False) if route is not None and story.route else None,
        "error": error,
    }


def cuts(story: Story) -> Json:
    """Why a body is not whole, by side: the proxy cut it, or the spool lost a part of it.

    A batch that could not be written leaves a hole, and nothing but the ending's count tells.
    """
    cut = told_cuts(story)
    for side, pieces in (("request", story.request), ("response", story.response)):
        sent = counted(story, side)
        kept = sum(map(len, pieces))
        if side not in cut and sent is not None and kept != sent:
            cut[side] = f"{kept} of {sent} bytes were captured"
            story.problems.append(f"lost: a part of the {side}")
    return cut


def told_cuts(story: Story) -> Json:
    """What the proxy says it did not spool, and why, by side."""
    said = (story.closed or {}).get("cut")
    return dict(said) if isinstance(said, dict) else {}


def counted(story: Story, side: str) -> int | None:
    """Bytes of a side that passed through the proxy."""
    return count_of((story.closed or {}).get(f"{side}_bytes"))


def is_event_stream(story: Story) -> bool:
    kind = story.got.get("content-type")
    if kind is not None:
        return kind.lower().startswith("text/event-stream")
    return bool(story.response) and story.response[0].startswith((b"data:", b"event:"))
