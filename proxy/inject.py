"""Usage that an app did not ask for: the request that asks for it, and the stream without it.

Sans-IO. With `stream_options.include_usage` a stream ends in one chunk more, whose `choices` are
empty and which states the usage, and all other chunks carry `"usage":null` (OpenAI's reference of
chat completions, `stream_options`). Here requests are changed by the fewest bytes that ask for it,
and streams back to the bytes that would have come without. JSON that is odd in any way, with a name
twice or escaped, is left as it is.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

import orjson

from proxy.heads import CHUNKED, ResponseHead, without_length

MOST_EVENT: Final = 64 * 1024  # bytes of an event that is held until its end; a longer one passes
_MOST_BRACKETS: Final = 10_000  # in one value: past some 10 ms of counting it is left as it is
_USAGE: Final = b'"usage"'
_ASKING: Final = b'"include_usage":true'

# -- JSON

_WS: Final = rb"[ \t\r\n]*+"
_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_OPEN: Final = re.compile(_WS + rb"\{" + _WS)
_KEY: Final = re.compile(_WS + rb'"([^"\\]*+)"' + _WS + rb":" + _WS)
_PLAIN: Final = re.compile(_STRING + rb'|[^\s,:"{}\[\]]++', re.DOTALL)
_BRACKET: Final = re.compile(rb'(?:[^"{}\[\]]++|' + _STRING + rb")*+([{}\[\]])", re.DOTALL)
_NEXT: Final = re.compile(_WS + rb"([,}])")
# The last member of an object but for some that are plain: no name can be nested there.
_LATE_NULL: Final = re.compile(
    rb"," + _WS + rb'"usage"' + _WS + rb":" + _WS + rb"null(?=(?:" + _WS + rb"," + _WS
    + rb'"[^"\\]*+"' + _WS + rb":" + _WS + rb'(?:"[^"\\]*+"|[a-z0-9.+-]++))*+' + _WS + rb"\}"
    + _WS + rb"\Z)"
)  # fmt: skip


class Member(NamedTuple):
    """Of an object: places of its name's quote, of its value, and of that one's end."""

    start: int
    value: int
    end: int


class Members(NamedTuple):
    """`close`: the place of the object's closing brace."""

    by_name: dict[bytes, Member]
    close: int


def members(text: bytes, at: int = 0) -> Members | None:
    """Those of the object at `at`; None: it is none, or has a name that is escaped or there twice.

    Brackets are counted, strings skipped; whether it is JSON throughout is not judged.
    """
    opened = _OPEN.match(text, at)
    if opened is None:
        return None
    at = opened.end()
    found: dict[bytes, Member] = {}
    if text[at : at + 1] == b"}":
        return Members(found, at)
    while (key := _KEY.match(text, at)) is not None:
        end = _end_of_value(text, key.end())
        after = _NEXT.match(text, end) if end else None
        if after is None or key[1] in found:
            return None
        found[key[1]] = Member(key.start(1) - 1, key.end(), end)
        at = after.end()
        if after[1] == b"}":
            return Members(found, at - 1)
    return None


def _end_of_value(text: bytes, at: int) -> int:
    """0: there is no value, or one of too many parts."""
    plain = _PLAIN.match(text, at)
    if plain is not None:
        return plain.end()
    depth = 0
    for _ in range(_MOST_BRACKETS):
        bracket = _BRACKET.match(text, at)
        if bracket is None:
            return 0
        at = bracket.end()
        depth += 1 if bracket[1] in b"{[" else -1
        if depth <= 0:
            return at if depth == 0 else 0
    return 0


# -- the request


def with_usage(body: bytes) -> bytes | None:
    """The request asking for usage; None: it asks already, streams nothing, or is odd."""
    if b'"stream"' not in body:
        return None
    try:
        asked = orjson.loads(body)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(asked, dict) or asked.get("stream") is not True:
        return None
    options = asked.get("stream_options")
    top = members(body)
    if top is None or b"stream" not in top.by_name:
        return None
    at = top.by_name.get(b"stream_options")
    if at is None:
        return _replaced(body, top.close, top.close, b',"stream_options":{%b}' % _ASKING)
    if options is None:
        return _replaced(body, at.value, at.end, b"{%b}" % _ASKING)
    return _with_option(body, at, options) if isinstance(options, dict) else None


def _with_option(body: bytes, at: Member, options: dict[str, object]) -> bytes | None:
    inner = members(body, at.value)
    if inner is None or options.get("include_usage") not in (None, False):
        return None
    known = inner.by_name.get(b"include_usage")
    if known is not None:
        # 0 equals False, and is none: such a request is odd, and gets its own answer.
        literal = body[known.value : known.end] in (b"null", b"false")
        return _replaced(body, known.value, known.end, b"true") if literal else None
    comma = b"," if inner.by_name else b""
    return _replaced(body, inner.close, inner.close, comma + _ASKING)


def _replaced(text: bytes, start: int, end: int, new: bytes) -> bytes:
    return b"%b%b%b" % (text[:start], new, text[end:])


# -- the reply


def can_strip(head: ResponseHead) -> bool:
    """Is it a stream of events that can be read as it comes?"""
    if head.status != 200:
        return False
    pairs = [(name.lower(), value.strip().lower()) for name, value in head.pairs()]
    kinds = [value.partition(b";")[0].strip() for name, value in pairs if name == b"content-type"]
    encoded = [value for name, value in pairs if name == b"content-encoding"]
    return kinds == [b"text/event-stream"] and encoded in ([], [b""], [b"identity"])


def head_of_stripped(head: ResponseHead) -> ResponseHead:
    """The head to send with the stripped stream, which may be shorter."""
    return head if head.length < 0 else without_length(head, CHUNKED)


_EOL: Final = rb"(?:\r\n|\n|\r(?!\n))"
_EVENT_END: Final = re.compile(_EOL + _EOL)
# Empty lines and comments in front of an event: they wait for nothing.
_IDLE: Final = re.compile(rb"(?:(?::[^\r\n]*+)?" + _EOL + rb")*+")
_LINE: Final = re.compile(rb"([^\r\n]*+)(\r\n|\n|\r|\Z)")
# One byte order mark may stand at the very start.
_DATA: Final = re.compile(rb"(?:\xef\xbb\xbf)?data: ?([^\r\n]*)")
_LONGEST_END: Final = len(b"\r\n\r\n")


class Stripper:
    """Feed it the stream as it comes; it gives what goes on. Only the event that is yet to end is
    `held`, and of one that is longer than MOST_EVENT nothing but its newest line end."""

    def __init__(self) -> None:
        self.held = b""
        self._searched = 0  # bytes of them that end no event
        self._passes = False  # the event in the making is too long
        self._half = b""  # "keep" or "drop" the LF that may follow a CR at the very end of a piece

    def feed(self, data: bytes) -> bytes:
        """After an exception `held` is as it was before: it, and `data`, have not been given."""
        if self._half and data:
            half, self._half = self._half, b""
            if data.startswith(b"\n"):
                rest = self.feed(data[1:])
                return b"\n" + rest if half == b"keep" else rest
        text = self.held + data
        given: list[bytes] = []
        at, start = 0, max(0, self._searched - _LONGEST_END)
        passes = self._passes
        half = b""
        while at < len(text):
            if not passes and (idle := _IDLE.match(text, at)) and idle.end() > at:
                given.append(idle[0])
                at, half = idle.end(), b"keep"
                continue
            end = _EVENT_END.search(text, max(at, start))
            if end is None:
                break
            event = text[at : end.end()]
            whole = passes or end.start() - at > MOST_EVENT
            kept = event if whole else stripped(event)
            given.append(kept)
            at, passes = end.end(), False
            half = b"keep" if kept.endswith(b"\r") else b"drop"
        rest = text[at:]
        if passes or len(rest) > MOST_EVENT + _LONGEST_END:
            passes = True
            held = rest[len(rest.rstrip(b"\r\n")) :]
            given.append(rest[: len(rest) - len(held)])
            rest = held
        self._half = half if at == len(text) and text.endswith(b"\r") else b""
        self.held, self._searched, self._passes = rest, len(rest), passes
        return b"".join(given)

    def end(self) -> bytes:
        """Nothing more comes: what is held goes on as if it were whole. Exceptions as above."""
        rest = self.held if self._passes else stripped(self.held)
        self.held = b""
        return rest


def stripped(event: bytes) -> bytes:
    """An event without the usage that was asked for: less of it, or nothing but its comments."""
    if _USAGE not in event:
        return event
    lines = [line for line in _LINE.finditer(event) if line[0]]
    data = [found for line in lines if (found := _DATA.match(event, *line.span(1)))]
    if _states_usage(b"\n".join(found[1] for found in data)):
        return b"".join(line[0] for line in lines if line[0].startswith(b":"))
    if len(data) != 1:
        return event
    return _replaced(event, *data[0].span(1), without_null(data[0][1]))


def _states_usage(data: bytes) -> bool:
    """Is it the chunk that there is for the usage alone?"""
    if _LATE_NULL.search(data):
        return False  # nearly every chunk: no need to read it
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError:
        return False
    if not isinstance(chunk, dict) or "error" in chunk:
        return False
    return chunk.get("choices") == [] and isinstance(chunk.get("usage"), dict)


def without_null(chunk: bytes) -> bytes:
    """The JSON object as it is written without its own member `"usage":null`."""
    if chunk.count(_USAGE) == 1 and (late := _LATE_NULL.search(chunk)) is not None:
        return _replaced(chunk, late.start(), late.end(), b"")
    found = members(chunk)
    usage = found.by_name.get(b"usage") if found is not None else None
    if usage is None or chunk[usage.value : usage.end] != b"null":
        return chunk
    before = chunk[: usage.start].rstrip()
    if before.endswith(b","):
        return _replaced(chunk, len(before) - 1, usage.end, b"")
    after = _NEXT.match(chunk, usage.end)
    assert after is not None
    if after[1] == b"}":
        return _replaced(chunk, usage.start, usage.end, b"")
    rest = chunk[after.end() :]
    return chunk[: usage.start] + rest.lstrip()
