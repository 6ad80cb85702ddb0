"""From the events of one exchange to the rows that record it. Pure: no database, no clock.

What can't be known stays None, and a neighbouring column says why. Nothing that an app or an
upstream sends may raise here: a body that is not what it claims to be is a note, not a failure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import orjson

from policies.endpoints import REALTIME, RESPONSES, RESPONSES_SOCKET, Endpoint, deployment
from policies.fingerprint import request_hash, system_prompt, task_id
from policies.identity import identify
from policies.spool import Event
from store import multipart, rate_limits
from store.cutting import Cut, Parts, cut, cut_answer
from store.media import File, Media
from store.money import fill_cost, fill_usage
from store.realtime import RealtimeReader, deltas
from store.recording import Recording
from store.redaction import Placeholders, Redaction
from store.sides import Side, side_of, value_of
from store.slices import Digests, conversation_of, digests_of
from store.sockets import note_losses, side_name, turn_stories
from store.steps import Steps, whole
from store.story import Story, Unreadable, columns, cuts, gather, is_event_stream
from store.streams import Assembled, assemble
from store.usage import Rule, Usage, tier
from store.values import Json, count_of, dumped, json_object, text_of

__all__ = ["COLUMNS", "Bodies", "Rows", "Unreadable", "build", "sequence", "uuid_text"]

COLUMNS: Final = (
    "id", "started_at", "endpoint", "method", "host", "path", "deployment", "model",
    "response_model", "status", "outcome", "stream", "complete", "truncated", "privacy",
    "served_by", "route", "task_id", "request_hash", "conversation", "tenant", "feature", "user",
    "session", "latency_ms", "ttft_ms", "input_tokens", "cached_tokens", "cache_write_tokens",
    "output_tokens", "reasoning_tokens", "audio_input_tokens", "audio_output_tokens", "usage",
    "usage_note", "estimated_input_tokens", "estimated_output_tokens", "estimate_method",
    "service_tier", "cost_usd", "cost_note", "finish_reason", "request_bytes", "response_bytes",
    "key_hash", "retry_count", "idempotency_key", "response_id", "previous_response_id",
    "upstream_request_id", "run_id", "seq", "error",
)  # fmt: skip
_EMPTY: Final = dict.fromkeys(COLUMNS)
_JSON, _LOOSE, _OURS = "json", "loose", "ours"  # of an answer's text; the last is made here
_SAID_BY_APPS: Final = ("user", "tenant", "feature", "session")
# What comes over the wire, and is no count, no time and no name of ours.
_SEEN_BEFORE: Final = (
    "path", "deployment", "model", "response_model", "cost_note", "usage", "service_tier",
    "finish_reason",
)  # fmt: skip
_NEW_EACH_TIME: Final = (
    "response_id", "previous_response_id", "idempotency_key", "upstream_request_id", "error",
)  # fmt: skip
_COUNT: Final = re.compile(r":[0-9]{1,8}(?=[,}])")  # a number of a usage, too short for a card's
_LINKS: Final = frozenset(("response_id", "previous_response_id"))  # one is found by the other


class Bodies(NamedTuple):
    """Texts; where there are parts, they say the same in pieces that others may share."""

    request: str | None = None
    request_parts: Parts | None = None
    request_digests: Digests | None = None
    response: str | None = None
    response_parts: Parts | None = None
    events: str | None = None
    request_note: str | None = None
    response_note: str | None = None


class Rows(NamedTuple):
    """`problem`: something of it could not be read; the rest was recorded all the same. `once`: its
    tokens and cost count only by this rule, see `counted_once`."""

    exchange: Json
    bodies: Bodies | None
    task: tuple[str, str, str | None, str | None, str] | None
    seq: int
    rate_limit: rate_limits.RateLimits | None = None
    files: tuple[File, ...] = ()
    problem: str | None = None
    once: Rule | None = None


def uuid_text(exchange: bytes) -> str:
    digits = exchange.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def sequence(opened: bytes) -> int:
    """`seq` of an OPENED payload; 0 when it can't be read."""
    try:
        return count_of(orjson.loads(opened).get("seq")) or 0
    except (ValueError, AttributeError):
        return 0


def build(
    run: str, exchange: bytes, events: list[Event], recording: Recording
) -> Steps[list[Rows]]:
    """The rows of an exchange that closed, or never will; behind them those of the turns that a
    socket carried. Raises `Unreadable`."""
    story = gather(events)
    yield
    maker = _maker(run, exchange, story, recording)
    yield
    turns = turn_stories(exchange, story) if maker.keeps_turns() else ()
    found = [(yield from maker.rows())]
    return found + build_turns(run, turns, recording)


def build_turns(run: str, turns: Iterable[tuple[bytes, Story]], recording: Recording) -> list[Rows]:
    """What was lost of them is the socket's problem, which is told once."""
    makers = (_maker(run, identity, turn, recording, RESPONSES) for identity, turn in turns)
    return [whole(maker.rows())._replace(problem=None) for maker in makers]


def _maker(
    run: str,
    exchange: bytes,
    story: Story,
    recording: Recording,
    endpoint: Endpoint | None = None,
) -> _Maker:
    path, method = story.target, story.method
    found, below = recording.endpoint(method, path, story.names_host)
    endpoint = endpoint or found
    row = _EMPTY | columns(story)
    row |= {"id": uuid_text(exchange), "run_id": run, "endpoint": endpoint.name, "method": method}
    row["path"] = path.partition("?")[0] if endpoint.handling == "tunnel" else path
    row["deployment"] = deployment(below)
    if not story.imported:  # nobody knows which API that was
        row["host"] = row["host"] or recording.host_of(path)
    return _Maker(recording, story, endpoint, row)


# `obfuscation` of a delta, which OpenAI adds at random.
_PADDING: Final = re.compile(r',"obfuscation":"[^"\\]*"|"obfuscation":"[^"\\]*",')


class _Maker:
    """Makes the rows of one exchange; fills `row` on the way."""

    def __init__(self, recording: Recording, story: Story, endpoint: Endpoint, row: Json) -> None:
        self._recording = recording
        self._story = story
        self.endpoint = endpoint
        self._row = row
        self._redaction = recording.redaction(row["privacy"])
        self._marks = self._redaction.begin()
        self._loose = partial(_loose, self._redaction, self._marks)  # no method: that makes a cycle
        self._media = Media(recording.key, self._loose)
        self._asked: Json | None = None  # the request, as it was sent
        self._answer: Json | None = None
        self._used: Usage | None = None

    def rows(self) -> Steps[Rows]:
        row, story, endpoint = self._row, self._story, self.endpoint
        keeps = endpoint.keeps_bodies and row["privacy"] != "metadata" and not story.switched
        cut_sides = cuts(story) if keeps else {}
        lines = self._lines() if self._keeps_session() else None
        row["truncated"] = int(bool(row["truncated"] or cut_sides or story.lost))
        row["stream"] = int(is_event_stream(story))
        row["complete"] = int(row["outcome"] == "ok" and not story.problems)
        bodies, task = None, None
        if keeps:
            bodies, task = yield from self._bodies(cut_sides)
        elif lines is not None:
            bodies = self._session(lines)
        else:
            row["usage_note"] = _why_no_body(endpoint, row, story)
        yield
        self._identify()
        fill_cost(row, self._recording.prices, self._used, story.opened["at"])
        problem = "; ".join(story.problems) or None
        row["error"] = row["error"] or problem
        yield
        self._redact_row()
        if task is not None:
            task = (*task[:2], row["model"], *task[3:])
        return Rows(
            row, bodies, task, row["seq"] or 0, rate_limits.read(story.got),
            tuple(self._media.files.values()) if self._recording.record.media else (), problem,
            None if self._used is None else self._used.once,
        )  # fmt: skip

    def _bodies(self, cut_sides: Json) -> Steps[tuple[Bodies, Any]]:
        row, story = self._row, self._story
        asked = side_of(story.request, story.sent, cut_sides.get("request"), row["outcome"])
        came = side_of(story.response, story.got, cut_sides.get("response"), row["outcome"])
        request_cut = self._request(asked)
        yield
        if self._asked is not None:
            self._fingerprint(self._asked)
        yield
        request = None if asked.text is None else self._clean(asked.text, request_cut is not None)
        yield
        is_whole = row["outcome"] == "ok" and not row["truncated"]
        if row["stream"] or (not story.head and value_of(self._asked, "stream") is True):
            row["stream"] = 1
            said, form = self._stream(came, is_whole), _JSON
        else:
            said, form = self._response(came)
        self._read_answer()
        yield
        response = said if said is None or form == _OURS else self._clean(said, form == _JSON)
        yield
        if request_cut is not None and request is not None and request is not asked.text:
            request_cut = cut(request)
        asked_parts = _shared(request_cut)
        came_parts = self._answer_parts(response, request_cut)
        digests = self._conversation(asked_parts)
        events = self._events(came, said, response) if row["stream"] else None
        return Bodies(
            request, asked_parts, digests, response, came_parts, events, asked.note, came.note
        ), self._task(request_cut)

    def _answer_parts(self, response: str | None, request: Cut | None) -> Parts | None:
        """A response repeats of its request; of a chat's answer the next turn repeats what was
        said, where there are turns."""
        if response is None:
            return None
        if self.endpoint.name.startswith("responses"):
            return _shared(cut(response))
        said = value_of(self._answer, "choices")
        first = said[0] if isinstance(said, list) and said else None
        content = value_of(first, "message", "content")
        talks = request is not None and request.talks and isinstance(content, str)
        return cut_answer(response, content) if talks else None

    # -- what a socket carried

    def keeps_turns(self) -> bool:
        kept = self._row["privacy"] != "metadata"
        return kept and self._story.switched and self.endpoint is RESPONSES_SOCKET

    def _keeps_session(self) -> bool:
        kept = self._recording.record.realtime != "off" and self._row["privacy"] != "metadata"
        return kept and self._story.switched and self.endpoint is REALTIME

    def _lines(self) -> list[bytes]:
        """Of a Realtime socket: its messages as lines of JSON."""
        keeps_audio = self._recording.record.realtime == "audio"
        reader = RealtimeReader(self._story.got.get("sec-websocket-extensions"), keeps_audio)
        lines = []
        for event in self._story.raw:
            lines += reader.feed(side_name(event), event.at, event.payload)
        note_losses(self._story, reader.notes())
        return lines

    def _session(self, lines: list[bytes]) -> Bodies:
        self._row["usage_note"] = "a session of several answers"
        said = "".join(deltas(lines))
        notes = {side: f"cut: {why}" for side, why in self._story.lost.items()}
        asked_note, note = notes.get("client"), notes.get("server")
        if self._plain(said) != said:  # cut over several messages, each of which looks harmless
            lines = [line for line in lines if not list(deltas([line]))]
            hidden = "its deltas are not kept: something in them is private"
            note = hidden if note is None else f"{note}; {hidden}"
        redact, marks = self._redaction.text, self._marks
        text = "".join(redact(line.decode(), marks) for line in lines)
        return Bodies(events=text or None, request_note=asked_note, response_note=note)

    # -- the request

    def _request(self, side: Side) -> Cut | None:
        if side.raw is not None and side.text is None:
            self._form(side)
        if side.text is None:
            return None
        said = cut(side.text)
        self._asked = said.json if said is not None else None
        return said

    def _form(self, side: Side) -> None:
        """A form as JSON: its fields, and what is known of its files."""
        assert side.raw is not None
        kind = self._story.sent.get("content-type", "")
        form = multipart.read(side.raw, kind)
        if form is None:
            return
        side.text = multipart.as_json(form, self._kept).decode()
        side.note = None

    def _fingerprint(self, asked: Json) -> None:
        row = self._row
        row["model"] = text_of(asked.get("model"))
        row["previous_response_id"] = text_of(asked.get("previous_response_id"))
        if self.endpoint.handling != "full":
            return
        try:
            row["task_id"] = task_id(self.endpoint.name, asked)
            row["request_hash"] = request_hash(asked)
        except (TypeError, ValueError):  # nested deeper than it can be written, lone surrogates
            row["task_id"] = None
            row["error"] = row["error"] or "fingerprint: the request can't be hashed"

    def _task(self, request: Cut | None) -> Any:
        """A row of `tasks`, or None. Its prompt is the redacted one."""
        row = self._row
        if row["task_id"] is None or request is None:
            return None
        prompt = _prompt(request.json)
        return (row["task_id"], self.endpoint.name, row["model"], prompt, row["started_at"])

    def _conversation(self, request: Parts | None) -> Digests | None:
        if request is None:
            return None
        digests = digests_of(request, self._recording.key)
        self._row["conversation"] = conversation_of(request, digests, self._recording.key)
        return digests

    # -- the answer

    def _stream(self, side: Side, whole: bool) -> str | None:
        row = self._row
        if side.raw is None:
            row["complete"] = 0
            return None
        assembled: Assembled = assemble(self.endpoint.name, side.raw, whole)
        row["complete"] = int(bool(row["complete"]) and assembled.finished)
        if assembled.error is not None:
            row["error"] = row["error"] or assembled.error
        self._answer = assembled.body
        if assembled.body is None:
            side.note = side.note or assembled.note
            return None
        return dumped(assembled.body)

    def _events(self, side: Side, said: str | None, kept: str | None) -> str | None:
        """As they came, without padding. What is secret may be cut over several events: only of an
        answer in which, as a whole, nothing was found are they kept."""
        if not self._recording.record.stream_events or side.text is None:
            return None
        if said is None or said != kept:
            side.note = side.note or "events: not kept, something in them is private, or may be"
            return None
        return self._plain(_PADDING.sub("", side.text))

    def _response(self, side: Side) -> tuple[str | None, str]:
        """Its text, and what that is."""
        if side.raw is not None and side.text is None:
            return self._binary(side), _OURS
        if side.text is None:
            if self._story.response:  # and what it says can't be read
                self._row["complete"] = 0
            return None, _LOOSE
        if side.note is None:
            self._answer = json_object(side.raw)
            if self._answer is None and self._claims_json() and not _is_json(side.text):
                self._row["complete"] = 0
                side.note = "not the JSON that its type says it is"
        return side.text, _LOOSE if self._answer is None else _JSON

    def _claims_json(self) -> bool:
        kind = self._story.got.get("content-type", "").partition(";")[0].strip().lower()
        return kind == "application/json" or kind.endswith("+json")

    def _binary(self, side: Side) -> str | None:
        """Audio and files, as what is known of them."""
        assert side.raw is not None
        kind = self._story.got.get("content-type", "").partition(";")[0] or None
        file = self._kept(side.raw, kind)
        return dumped({"content_type": kind, "bytes": len(side.raw), "file": file})

    def _kept(self, data: bytes, kind: str | None) -> str | None:
        """Where a file is kept; None: it is not."""
        return self._media.keep(data, kind) if self._recording.record.media else None

    def _read_answer(self) -> None:
        row, answer = self._row, self._answer
        row["response_model"] = text_of(value_of(answer, "model"))
        row["response_id"] = text_of(value_of(answer, "id"))
        row["service_tier"] = text_of(tier(answer))
        row["finish_reason"] = _finish_reason(answer)
        self._used = fill_usage(row, self.endpoint.name, answer, self._asked)

    # -- who, and what may be said of them

    def _identify(self) -> None:
        row, sources = self._row, self._recording.sources
        found = identify(self._story.sent, self._asked, row["key_hash"], sources)
        for name in _SAID_BY_APPS:
            value = getattr(found, name)
            row[name] = value if value is None else self._named(value)

    def _named(self, value: str) -> str:
        """Who is known by an address or a number goes by its hash instead."""
        if value == self._row["key_hash"]:
            return value
        clean = self._redaction.plain(value, self._marks)
        return value if clean == value else self._recording.hashed(value)

    def _clean(self, text: str, is_json: bool) -> str:
        if not is_json:
            return self._loose(text)
        if self.endpoint.name == "embeddings":  # vectors are base64, too, and no file of anyone's
            return self._redaction.text(text, self._marks)
        return self._media.without(text, lambda short: self._redaction.text(short, self._marks))

    def _redact_row(self) -> None:
        """What an app or an upstream says may name a person or hold a key, wherever it says it."""
        row = self._row
        again = "\n".join([row[name] or "" for name in _SEEN_BEFORE])
        new = "\n".join([row[name] for name in _NEW_EACH_TIME if row[name] is not None])
        suspects: list[str] = []
        if not _is_known(self._redaction, _COUNT.sub(":0", again)):
            suspects += _SEEN_BEFORE
        if self._plain(new) is not new:
            suspects += _NEW_EACH_TIME
        for name in suspects:
            value = row[name]
            clean = None if value is None else self._loose(value)
            if clean != value:
                row[name] = self._recording.hashed(value) if name in _LINKS else clean

    def _plain(self, text: str) -> str:
        return self._redaction.plain(text, self._marks)


def _loose(redaction: Redaction, marks: Placeholders, text: str) -> str:
    """Text that may be JSON, or begin as such: cut off, lines of it, lists. Its fields are looked
    at as far as they go, and what is outside of its strings as well."""
    clean = redaction.text(text, marks)
    return clean if _is_json(clean) else redaction.plain(clean, marks)


def _shared(found: Cut | None) -> Parts | None:
    return found.parts if found is not None and len(found.parts) > 1 else None


@lru_cache(maxsize=1024)
def _is_known(redaction: Redaction, text: str) -> bool:
    """Is it known to be clean? The same comes with every call of an app."""
    return redaction.plain(text, redaction.begin()) is text


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except ValueError:
        return False
    return True


def _why_no_body(endpoint: Endpoint, row: Json, story: Story) -> str:
    if story.switched:
        return "another protocol than HTTP"
    if not endpoint.keeps_bodies:
        return "no body is kept of this endpoint"
    return "no body is kept (privacy: metadata)"


def _prompt(body: Json) -> str | None:
    contents = system_prompt(body)
    if not contents:
        return None
    if all(isinstance(content, str) for content in contents):
        return "\n\n".join(contents)
    return dumped(contents)


def _finish_reason(answer: Json | None) -> str | None:
    """Of the first choice; of a response why it is incomplete, or its status."""
    choices = value_of(answer, "choices")
    if isinstance(choices, list) and choices:
        return text_of(value_of(choices[0], "finish_reason"))
    incomplete = text_of(value_of(answer, "incomplete_details", "reason"))
    return incomplete or text_of(value_of(answer, "status"))
