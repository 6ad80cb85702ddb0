"""From the events of one exchange to the rows that record it. Pure: no database, no clock.

What can't be known stays None, and a neighbouring column says why. Nothing that an app or an
upstream sends may raise here: a body that is not what it claims to be is a note, not a failure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from policies.endpoints import CHAT, Endpoint, classify
from policies.fingerprint import request_hash, system_prompt, task_id
from policies.plan import SERVED_BY_HEADER
from policies.spool import Event, Kind
from store.database import iso
from store.decode import ENDS_EARLY, decode
from store.streams import Assembled, assemble

Json = dict[str, Any]

_MOST_INTEGER: Final = 2**63 - 1
_OUR_ERROR: Final = "x-understudy-error"
_UTF8_LONGEST: Final = 4


class Unreadable(ValueError):
    """An exchange whose opening can't be read: nothing to make a row of."""


@dataclass(frozen=True, slots=True)
class Rows:
    """`problem`: something of it could not be read; the rest was recorded all the same."""

    exchange: Json
    bodies: tuple[str, str | None, str | None, str | None, str | None, str | None] | None
    task: tuple[str, str, str | None, str | None, str] | None
    seq: int
    problem: str | None = None


@dataclass(slots=True)
class _Story:
    """The events of an exchange, gathered."""

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
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Side:
    """One body as it is recorded: text, or the reason why not; parsed where it is JSON."""

    text: str | None = None
    note: str | None = None
    json: Json | None = None
    raw: bytes | None = None


def uuid_text(exchange: bytes) -> str:
    digits = exchange.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def sequence(opened: bytes) -> int:
    """`seq` of an OPENED payload; 0 when it can't be read."""
    try:
        return _count(orjson.loads(opened).get("seq")) or 0
    except (ValueError, AttributeError):
        return 0


def build(run: str, exchange: bytes, events: list[Event]) -> Rows:
    """The rows of an exchange that closed, or never will. Raises `Unreadable`."""
    story = _gather(events)
    identity = uuid_text(exchange)
    path = _text(story.opened.get("target")) or ""
    method = _text(story.opened.get("method")) or ""
    plain_path = path.partition("?")[0]
    endpoint = classify(method, plain_path)
    row = _head_columns(story)
    row |= {"id": identity, "run_id": run, "endpoint": endpoint.name, "method": method}
    row["path"] = plain_path if endpoint.handling == "tunnel" else path
    bodies, task = _fill_bodies(row, story, endpoint)
    problem = "; ".join(story.problems) or None
    row["error"] = row["error"] or problem
    return Rows(row, bodies, task, row["seq"] or 0, problem)


# -- events


def _gather(events: list[Event]) -> _Story:
    opening = next((event for event in events if event.kind is Kind.OPENED), None)
    opened = _object(opening.payload) if opening is not None else None
    sent = _headers(opened) if opened is not None else None
    if opening is None or opened is None or sent is None or not _is_time(opened.get("at")):
        raise Unreadable("an exchange whose opening can't be read")
    story = _Story(opened, opening.at, sent)
    for event in events:
        _TAKE[event.kind](story, event)
    return story


def _take_opened(story: _Story, event: Event) -> None:
    pass


def _take_routed(story: _Story, event: Event) -> None:
    story.route = event.payload


def _take_request(story: _Story, event: Event) -> None:
    story.request.append(event.payload)


def _take_head(story: _Story, event: Event) -> None:
    head = _object(event.payload)
    got = _headers(head) if head is not None else None
    if head is None or got is None:
        story.problems.append("unreadable: response head")
    else:
        story.head, story.got = head, got


def _take_response(story: _Story, event: Event) -> None:
    if story.first_body_at is None:
        story.first_body_at = event.at
    story.response.append(event.payload)


def _take_closed(story: _Story, event: Event) -> None:
    story.closed = _object(event.payload)
    story.closed_at = event.at
    if story.closed is None:
        story.problems.append("unreadable: ending")


_TAKE: Final = {
    Kind.OPENED: _take_opened,
    Kind.ROUTED: _take_routed,
    Kind.REQUEST_BODY: _take_request,
    Kind.RESPONSE_HEAD: _take_head,
    Kind.RESPONSE_BODY: _take_response,
    Kind.CLOSED: _take_closed,
}


# -- columns that need no body


def _head_columns(story: _Story) -> Json:
    closed = story.closed or {}
    opened = story.opened
    cut = closed.get("cut")
    return {
        "started_at": iso(opened["at"]),
        "seq": _count(opened.get("seq")),
        "key_hash": _text(opened.get("key")),
        "retry_count": _digits(story.sent.get("x-stainless-retry-count")),
        "upstream_request_id": story.got.get("x-request-id"),
        "status": _count(story.head.get("status")),
        "outcome": _text(closed.get("outcome")) or "proxy_died",
        "truncated": int(bool(cut)),
        "latency_ms": _milliseconds(story.opened_at, story.closed_at),
        "ttft_ms": _milliseconds(story.opened_at, story.first_body_at),
        "request_bytes": _count(closed.get("request_bytes")),
        "response_bytes": _count(closed.get("response_bytes")),
        "model": None,
        "response_model": None,
        "task_id": None,
        "request_hash": None,
        "prompt_tokens": None,
        "completion_tokens": None,
        "usage": None,
        "usage_note": None,
        "finish_reason": None,
        **_served(story, closed),
    }


def _served(story: _Story, closed: Json) -> Json:
    route = _object(story.route) if story.route is not None else None
    error = _text(closed.get("error"))
    answered = "status" in story.head and _OUR_ERROR not in story.got
    # The event may be lost: the head that the app saw is a second witness of a candidate.
    to = (route and _text(route.get("to"))) or story.got.get(SERVED_BY_HEADER)
    if not answered and error is None:
        error = "the proxy died first" if not closed else f"no answer: {closed.get('outcome')}"
    return {
        "served_by": (to or "upstream") if answered else None,
        "route": _valid_text(story.route) if route is not None else None,
        "error": error,
    }


# -- bodies


def _fill_bodies(row: Json, story: _Story, endpoint: Endpoint) -> tuple[Any, Any]:
    """Add what the bodies say to `row`; rows of `bodies` and `tasks`, or None."""
    streamed = _is_event_stream(story)
    cut = _cuts(story) if endpoint.keeps_bodies else {}
    row["truncated"] = int(bool(row["truncated"] or cut))
    whole = row["outcome"] == "ok" and not row["truncated"]
    row["stream"] = int(streamed)
    row["complete"] = int(row["outcome"] == "ok" and not story.problems)
    if not endpoint.keeps_bodies:
        row["usage_note"] = "no body is kept of this endpoint"
        return None, None
    request = _side(story.request, story.sent, cut.get("request"), row["outcome"])
    response = _side(story.response, story.got, cut.get("response"), row["outcome"])
    assembled = None
    task = _read_request(row, request, endpoint)
    if streamed or (not story.head and row["stream"]):
        assembled = _read_stream(row, response, endpoint, whole)
    elif response.text is not None and response.note is None:
        response.json = _object(response.raw)
    _read_answer(row, assembled.body if assembled else response.json)
    assembled_text = _dumped(assembled.body) if assembled and assembled.body else None
    bodies = (
        row["id"], request.text, response.text, assembled_text, request.note, response.note
    )  # fmt: skip
    return bodies, task


def _cuts(story: _Story) -> Json:
    """Why a body is not whole, by side: the proxy cut it, or the spool lost a part of it.

    A batch that could not be written leaves a hole, and nothing but the ending's count tells.
    """
    closed = story.closed or {}
    said = closed.get("cut")
    cut = dict(said) if isinstance(said, dict) else {}
    for side, pieces in (("request", story.request), ("response", story.response)):
        sent = _count(closed.get(f"{side}_bytes"))
        kept = sum(map(len, pieces))
        if side not in cut and sent is not None and kept != sent:
            cut[side] = f"{kept} of {sent} bytes were captured"
            story.problems.append(f"lost: a part of the {side}")
    return cut


def _side(pieces: list[bytes], headers: dict[str, str], cut: object, outcome: str) -> _Side:
    """A body as text. Of one that was cut, by us or by a broken exchange, what had arrived."""
    body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
    partial = bool(cut) or outcome != "ok"
    side = _Side(note=f"cut: {cut}" if cut else None)
    if not body:
        return side
    encoding = headers.get("content-encoding")
    if encoding:
        decoded = decode(body, encoding)
        if decoded.data is None or (
            decoded.error and not (partial and decoded.error == ENDS_EARLY)
        ):
            return _Side(note=decoded.error)
        body = decoded.data
    side.raw = body
    side.text = _utf8(body, partial)
    if side.text is None:
        side.note = "not UTF-8"
    return side


def _utf8(body: bytes, partial: bool) -> str | None:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        # A cut may go through the middle of a character: that one is left out.
        if partial and len(body) - error.start < _UTF8_LONGEST and error.reason.startswith("unexp"):
            return body[: error.start].decode()
        return None


def _read_request(row: Json, request: _Side, endpoint: Endpoint) -> Any:
    """What the request asks for; a row of `tasks`, or None."""
    body = _object(request.raw) if request.note is None and request.text is not None else None
    if body is None:
        return None
    row["model"] = _text(body.get("model"))
    if body.get("stream") is True and row["status"] is None:
        row["stream"] = 1
    if endpoint is not CHAT:
        return None
    try:
        row["task_id"] = task_id(endpoint.name, body)
        row["request_hash"] = request_hash(body)
    except (TypeError, ValueError):  # nested deeper than it can be written
        row["task_id"] = None
        row["error"] = row["error"] or "fingerprint: the request can't be hashed"
        return None
    prompt = _prompt(body)
    return (row["task_id"], endpoint.name, row["model"], prompt, row["started_at"])


def _prompt(body: Json) -> str | None:
    contents = system_prompt(body)
    if not contents:
        return None
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    return _dumped(contents)


def _read_stream(row: Json, response: _Side, endpoint: Endpoint, whole: bool) -> Assembled:
    if response.raw is None:
        row["complete"] = 0
        return Assembled(None, False)
    assembled = assemble(endpoint.name, response.raw, whole)
    row["complete"] = int(bool(row["complete"]) and assembled.finished)
    row["error"] = row["error"] or assembled.error
    if assembled.body is None and response.note is None:
        response.note = assembled.note
    return assembled


def _read_answer(row: Json, answer: Json | None) -> None:
    """Model, usage and finish reason of an answer."""
    answer = answer or {}
    row["response_model"] = _text(answer.get("model"))
    usage = answer.get("usage")
    if isinstance(usage, dict):
        row["usage"] = _dumped(usage)
        row["prompt_tokens"] = _count(usage.get("prompt_tokens", usage.get("input_tokens")))
        row["completion_tokens"] = _count(
            usage.get("completion_tokens", usage.get("output_tokens"))
        )
    if row["usage"] is None:
        row["usage_note"] = "the answer states no usage" if answer else "there is no whole answer"
    choices = answer.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        row["finish_reason"] = _text(choices[0].get("finish_reason"))


def _is_event_stream(story: _Story) -> bool:
    kind = story.got.get("content-type")
    if kind is not None:
        return kind.lower().startswith("text/event-stream")
    return bool(story.response) and story.response[0].startswith((b"data:", b"event:"))


# -- small readers of untrusted values


def _object(data: bytes | None) -> Json | None:
    """A JSON object, or None for anything else."""
    if not data:
        return None
    try:
        value = orjson.loads(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _headers(head: Json) -> dict[str, str] | None:
    """By lower-case name; of one that is repeated, the first. None when they can't be read."""
    try:
        found = {name.lower(): value for name, value in reversed(head["headers"])}
        "".join(found.values())
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return found


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _count(value: object) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_INTEGER
    return value if fits else None  # type: ignore[return-value]


def _digits(value: str | None) -> int | None:
    return (
        int(value) if value and value.isascii() and value.isdecimal() and len(value) < 10 else None
    )


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and 0 <= value < 1e11


def _milliseconds(start: float, end: float | None) -> float | None:
    return None if end is None else round((end - start) * 1000, 3)


def _valid_text(data: bytes | None) -> str | None:
    return None if data is None else _utf8(data, False)


def _dumped(value: Any) -> str | None:
    try:
        return orjson.dumps(value).decode()
    except (TypeError, ValueError):
        return None
