"""Asking for usage by the fewest bytes, and the stream back to what would have come without."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from policies.policy import Policy, build
from policies.setting import PolicyError
from proxy.heads import CHUNKED, RequestHeads, response_of, unencoded
from proxy.inject import (
    MOST_EVENT,
    Stripper,
    can_strip,
    head_of_stripped,
    members,
    with_usage,
    without_null,
)
from proxy.routes import Route
from tests.fuzz.runs import examples

ASKING = b'"stream_options":{"include_usage":true}'

# -- the request

EDITED = {
    "compact": (b'{"model":"m","stream":true}', b'{"model":"m","stream":true,' + ASKING + b"}"),
    "spaced": (b'{ "stream" : true }\n', b'{ "stream" : true ,' + ASKING + b"}\n"),
    "null": (b'{"stream_options":null,"stream":true}', b"{" + ASKING + b',"stream":true}'),
    "empty": (b'{"stream_options":{},"stream":true}', b"{" + ASKING + b',"stream":true}'),
    "blank": (
        b'{"stream_options": { },"stream":true}',
        b'{"stream_options": { "include_usage":true},"stream":true}',
    ),
    "false": (
        b'{"stream":true,"stream_options":{"include_usage": false}}',
        b'{"stream":true,"stream_options":{"include_usage": true}}',
    ),
    "null inside": (
        b'{"stream":true,"stream_options":{"include_usage":null,"x":[{}]}}',
        b'{"stream":true,"stream_options":{"include_usage":true,"x":[{}]}}',
    ),
    "another option": (
        b'{"stream_options":{"include_obfuscation":false},"stream":true}',
        b'{"stream_options":{"include_obfuscation":false,"include_usage":true},"stream":true}',
    ),
    "the same names further in": (
        b'{"a":{"stream_options":{"include_usage":true},"b":["}\\"{",{}]},"stream":true}',
        b'{"a":{"stream_options":{"include_usage":true},"b":["}\\"{",{}]},"stream":true,%b}'
        % ASKING,
    ),
    "a big integer": (
        b'{"seed":123456789012345678901234567890,"stream":true}',
        b'{"seed":123456789012345678901234567890,"stream":true,%b}' % ASKING,
    ),
}


@pytest.mark.parametrize("name", EDITED)
def test_a_stream_is_asked_for_its_usage(name: str) -> None:
    body, asked = EDITED[name]
    assert with_usage(body) == asked
    orjson.loads(asked)


LEFT = {
    "asks already": b'{"stream":true,"stream_options":{"include_usage":true}}',
    "no stream": b'{"model":"m","messages":[{"content":"\\"stream\\":true"}]}',
    "stream off": b'{"stream":false}',
    "stream of another kind": b'{"stream":1}',
    "stream further in": b'{"metadata":{"stream":true}}',
    "options of another kind": b'{"stream":true,"stream_options":[]}',
    "option of another kind": b'{"stream":true,"stream_options":{"include_usage":"no"}}',
    "option is 0": b'{"stream":true,"stream_options":{"include_usage":0}}',
    "a name twice": b'{"stream":true,"stream":true}',
    "another name twice": b'{"model":"a","stream":true,"model":"b"}',
    "options twice": b'{"stream":true,"stream_options":{},"stream_options":{}}',
    "option twice": b'{"stream":true,"stream_options":{"include_usage":false,"include_usage":0}}',
    "escaped name": b'{"stream":true,"str\\u0065am_options":{}}',
    "only escaped": b'{"\\u0073tream":true,"x":"stream"}',
    "a list": b'[{"stream":true}]',
    "no JSON": b'{"stream":true',
    "two values": b'{"stream":true}{}',
    "invalid UTF-8": b'{"stream":true,"x":"\xff"}',
    "too many parts": b'{"stream":true,"x":[%b1]}' % (b"[]," * 5000),
    "nothing": b"",
}


@pytest.mark.parametrize("name", LEFT)
def test_what_asks_already_or_is_odd_is_left(name: str) -> None:
    assert with_usage(LEFT[name]) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from("a b usage stream stream_options".split()), inner)
    ),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("a model usage stream_options c".split()), JSON)
SEPARATORS = st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " : ")])


@examples(150)
@given(OBJECTS, SEPARATORS, st.booleans())
def test_members_of_any_object(value: dict[str, Any], by: tuple[str, str], escaped: bool) -> None:
    text = json.dumps(value, separators=by, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    found = members(text)
    assert found is not None
    assert text[found.close :] == b"}"
    parsed = {
        json.loads(b'"%b"' % name): json.loads(text[at.value : at.end])
        for name, at in found.by_name.items()
    }
    assert parsed == value


@examples(150)
@given(OBJECTS, SEPARATORS)
def test_a_request_says_what_it_said_and_asks(value: dict[str, Any], by: tuple[str, str]) -> None:
    asked = with_usage(json.dumps(value | {"stream": True}, separators=by).encode())
    options = value.get("stream_options") or {}
    wanted = isinstance(options, dict) and options.get("include_usage") in (None, False)
    if not wanted or value.get("stream_options") in ([], "", 0, False):
        assert asked is None or value.get("stream_options") is None
        return
    assert asked is not None
    more = {"stream": True, "stream_options": {**options, "include_usage": True}}
    assert json.loads(asked) == value | more


HEADERS = {
    "none": ([(b"Content-Length", b"7")], b"Content-Length: 8\r\nAccept-Encoding: identity\r\n"),
    "one": (
        [(b"accept-encoding", b"gzip, br"), (b"Content-Length", b"7"), (b"X-A", b"1")],
        b"accept-encoding: identity\r\nContent-Length: 8\r\nX-A: 1\r\n",
    ),
    "behind the length": (
        [(b"Content-Length", b"7"), (b"Accept-Encoding", b"zstd"), (b"X-Accept-Encoding", b"x")],
        b"Content-Length: 8\r\nAccept-Encoding: identity\r\nX-Accept-Encoding: x\r\n",
    ),
    "chunks": (
        [(b"Transfer-Encoding", b"chunked")],
        b"Transfer-Encoding: chunked\r\nAccept-Encoding: identity\r\n",
    ),
}


@pytest.mark.parametrize("name", HEADERS)
def test_an_answer_that_is_not_encoded_is_asked_for(name: str) -> None:
    pairs, sent = HEADERS[name]
    pairs = [(b"Host", b"app"), *pairs]
    names = tuple(name for name, _ in pairs)
    heads = RequestHeads(Route.to("http://h"))
    head = heads.read(b"POST", b"/v1/x", "1.1", names, [value for _, value in pairs])
    before = head.wire(7)
    assert unencoded(head).wire(8) == b"POST /v1/x HTTP/1.1\r\nHost: h\r\n" + sent + b"\r\n"
    assert head.wire(7) == before


# -- the reply

SSE = (b"Content-Type", b"text/event-stream; charset=utf-8")
REPLIES = {
    "a stream": (200, [SSE], True),
    "identity": (200, [SSE, (b"content-encoding", b"Identity")], True),
    "compressed all the same": (200, [SSE, (b"Content-Encoding", b"gzip")], False),
    "JSON": (200, [(b"Content-Type", b"application/json")], False),
    "no type": (200, [], False),
    "two types": (200, [SSE, SSE], False),
    "an error": (400, [SSE], False),
}


@pytest.mark.parametrize("name", REPLIES)
def test_what_can_be_stripped(name: str) -> None:
    status, pairs, can = REPLIES[name]
    assert can_strip(response_of(status, b"OK", list(pairs), CHUNKED)) is can


def test_a_stripped_reply_has_no_length_of_before() -> None:
    head = response_of(200, b"OK", [SSE, (b"content-length", b"9"), (b"X-A", b"1")], 9)
    sent = head_of_stripped(head).wire(http11=True, keep_alive=True)
    assert sent == (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nX-A: 1\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    chunked = response_of(200, b"OK", [SSE], CHUNKED)
    assert head_of_stripped(chunked) is chunked


NULLS = {
    b'{"a":1,"usage":null}': b'{"a":1}',
    b'{"a":1, "usage": null}': b'{"a":1}',
    b'{"a":1,"usage":null,"obfuscation":"xY3"}': b'{"a":1,"obfuscation":"xY3"}',
    b'{"a":1,"usage":null,"b":{"c":[]}}': b'{"a":1,"b":{"c":[]}}',
    b'{"usage":null,"a":1}': b'{"a":1}',
    b'{ "usage": null, "a": 1 }': b'{ "a": 1 }',
    b'{"usage":null}': b"{}",
    b'{"x":{"usage":null},"usage":null}': b'{"x":{"usage":null}}',
    b'{"x":"usage","usage":null}': b'{"x":"usage"}',
    b'{"x":"\xff\\ud800","usage":null}': b'{"x":"\xff\\ud800"}',
    b'{"x":"a,\\"usage\\":null}","usage":null}': b'{"x":"a,\\"usage\\":null}"}',
}
UNTOUCHED = (
    b'{"x":{"a":1,"usage":null}}',
    b'{"x":[{"a":1,"usage":null}]}',
    b'[{"a":1,"usage":null}]',
    b'{"usage":"null"}',
    b'{"a":"usage","b":null}',
    b'{"a":1,"usage":{"total_tokens":1}}',
    b'{"a":"x,\\"usage\\":null}"}',
    b'{"usage":null,"usage":null}',
    b'{"usage":null',
)


@pytest.mark.parametrize("chunk", NULLS)
def test_null_is_taken_out(chunk: bytes) -> None:
    assert without_null(chunk) == NULLS[chunk]


@pytest.mark.parametrize("chunk", UNTOUCHED)
def test_other_nulls_stay(chunk: bytes) -> None:
    assert without_null(chunk) == chunk


TELLS = b'{"id":"c","choices":[],"usage":{"prompt_tokens":3,"total_tokens":5}}'
STAY = (
    b'data: {"choices":[{"delta":{}}],"usage":{"total_tokens":5}}\n\n',
    b'data: {"choices":[],"usage":{"total_tokens":5},"error":{"message":"x"}}\n\n',
    b'data: {"choices":[],"usage":{"total_tokens":5}\n\n',
    b'data: {"object":"x","usage":{"total_tokens":5}}\n\n',
    b'event: "usage"\ndata: 1\n\n',
    b': {"choices":[],"usage":{}}\n\n',
    b'data: {"a":1,\ndata: "usage":null}\n\n',
)
GO = {
    b"data: %b\n\n" % TELLS: b"",
    b"data:%b\r\n\r\n" % TELLS: b"",
    b"\xef\xbb\xbfdata: %b\r\r" % TELLS: b"",
    b": c\ndata: %b\n\n" % TELLS: b": c\n",
    b"event: x\nid: 7\ndata: %b\n: d\n\n" % TELLS: b": d\n",
    b'data: {"choices":[],\ndata: "usage":{}}\n\n': b"",
    b'id: 1\ndata: {"a":1,"usage":null}\nretry: 5\n\n': b'id: 1\ndata: {"a":1}\nretry: 5\n\n',
    b': {"a":1,"usage":null}\ndata: {"a":1,"usage":null}\n\n': (
        b': {"a":1,"usage":null}\ndata: {"a":1}\n\n'
    ),
}


@pytest.mark.parametrize("event", STAY)
def test_events_that_stay(event: bytes) -> None:
    assert Stripper().feed(event) == event


@pytest.mark.parametrize("event", GO)
def test_events_that_go(event: bytes) -> None:
    assert Stripper().feed(event) == GO[event]


@dataclass(frozen=True)
class Part:
    """Of a stream: without the usage, and as it comes when it is asked for."""

    plain: bytes
    asked: bytes


TEXTS = st.text(max_size=8) | st.sampled_from(
    ["usage", '"usage":null', ',"usage":null}', "\r\n\r\n", "data: ", "\ud800", "é\u2028"]
)
EOLS = st.sampled_from([b"\n", b"\r\n", b"\r"])


@st.composite
def chunks(draw: st.DrawFn) -> Part:
    by, escaped = draw(SEPARATORS.filter(lambda by: "\n" not in by[0])), draw(st.booleans())
    delta: dict[str, Any] = {"content": draw(TEXTS)}
    if draw(st.booleans()):
        delta["usage"] = None
    value: dict[str, Any] = {"id": "c1", "choices": [{"index": 0, "delta": delta}]}
    if draw(st.booleans()):
        value["obfuscation"] = draw(TEXTS)
    if draw(st.integers(0, 5)) == 0:
        value["choices"] = []  # as Azure's first one
    if draw(st.integers(0, 5)) == 0:
        value["usage"] = {"total_tokens": 3}
        value["choices"] = [{}]
        asked = value
    else:
        pairs = list(value.items())
        pairs.insert(draw(st.integers(0, len(pairs))), ("usage", None))
        asked = dict(pairs)

    def written(what: dict[str, Any]) -> bytes:
        text = json.dumps(what, separators=by, ensure_ascii=escaped)
        return text.encode("utf-8", "surrogatepass")

    return event(draw, written(value), written(asked))


def event(draw: st.DrawFn, plain: bytes, asked: bytes) -> Part:
    eol = draw(EOLS)
    front = draw(st.sampled_from([b"", b"id: 1", b": c", b"event: message", b'"usage"']))
    front = front + eol if front else b""
    field = draw(st.sampled_from([b"data: ", b"data:"]))
    return Part(front + field + plain + eol * 2, front + field + asked + eol * 2)


@st.composite
def others(draw: st.DrawFn) -> Part:
    """Comments, keep-alives, empty lines, the end, and what is no JSON."""
    eol = draw(EOLS)
    text = draw(
        st.sampled_from(
            [b": ping", b": ping" + eol, b":", b"", b"data: [DONE]" + eol, b"data: \xff" + eol,
             b'data: {"usage":' + eol, b"retry: 10" + eol]
        )
    )  # fmt: skip
    return Part(text + eol, text + eol)


@st.composite
def usages(draw: st.DrawFn) -> Part:
    eol = draw(EOLS)
    return Part(b"", b"data: " + TELLS + eol * 2)


@st.composite
def streams(draw: st.DrawFn) -> list[Part]:
    parts = draw(st.lists(chunks() | others() | usages(), min_size=1, max_size=8))
    # What ends in CR and what begins with LF would be one line end: so no stream is written.
    for one, other in pairwise(parts):
        if one.asked.endswith(b"\r") and other.asked.startswith(b"\n"):
            return [Part(b"data: [DONE]\n\n", b"data: [DONE]\n\n")]
    return parts


@examples(400)
@given(streams(), st.lists(st.integers(0, 2000), max_size=12))
def test_what_goes_on_is_the_stream_that_was_not_asked(parts: list[Part], at: list[int]) -> None:
    asked = b"".join(part.asked for part in parts)
    cuts = sorted({0, len(asked), *(place % (len(asked) + 1) for place in at)})
    stripper = Stripper()
    got = b"".join(stripper.feed(asked[a:b]) for a, b in pairwise(cuts))
    assert got + stripper.end() == b"".join(part.plain for part in parts)


@examples(100)
@given(streams())
def test_byte_by_byte_no_whole_event_waits(parts: list[Part]) -> None:
    stripper = Stripper()
    got, plain = b"", b""
    for part in parts:
        for byte in part.asked:
            got += stripper.feed(bytes([byte]))
        plain += part.plain
        assert got == plain
        assert stripper.held == b""


def test_a_line_end_that_is_cut_goes_the_way_of_its_event() -> None:
    for front, left in ((b"", b""), (b": c\r\n", b": c\r\n"), (b"id: 1\r\n", b"")):
        stripper = Stripper()
        assert stripper.feed(front + b"data: " + TELLS + b"\r\n\r") == left
        assert stripper.feed(b"\ndata: [DONE]\r\n\r") == b"data: [DONE]\r\n\r"
        assert stripper.feed(b"\n") == b"\n"


def test_the_end_of_a_stream_that_breaks_goes_on() -> None:
    stripper = Stripper()
    whole = b'data: {"a":1}\n\n'
    assert stripper.feed(whole + b'data: {"choices":[],"usage":{"tot') == whole
    assert stripper.end() == b'data: {"choices":[],"usage":{"tot'
    assert stripper.feed(b"data: " + TELLS) == b""
    assert stripper.end() == b""


@pytest.mark.parametrize("size", [1000, 50_000, MOST_EVENT + 100])
def test_an_event_that_is_too_long_passes_as_it_is(size: int) -> None:
    body = b'data: {"x":"%b","usage":null}\n\n' % (b"x" * (2 << 20))
    after = b'data: {"a":1,"usage":null}\n\n'
    stripper = Stripper()
    given, most = [], 0
    for at in range(0, len(body + after), size):
        given.append(stripper.feed((body + after)[at : at + size]))
        most = max(most, len(stripper.held))
    assert b"".join(given) == body + b'data: {"a":1}\n\n'
    assert most <= MOST_EVENT + 4
    assert Stripper().feed(body + after) == b"".join(given)


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_the_end_of_a_long_event_is_found_wherever_it_is_cut(end: bytes) -> None:
    body = b"data: " + b"x" * (MOST_EVENT + 10)
    after = b'data: {"a":1,"usage":null}\n\n'
    for cut in range(len(end) + 1):
        stripper = Stripper()
        given = stripper.feed(body) + stripper.feed(end[:cut]) + stripper.feed(end[cut:])
        assert given == body + end
        assert stripper.feed(after) == b'data: {"a":1}\n\n'


# -- the policy


def test_it_is_off_unless_the_policy_says_otherwise() -> None:
    assert not Policy().capture.inject_usage
    assert build({"capture": {"inject_usage": True}}).capture.inject_usage
    with pytest.raises(PolicyError, match="inject_usage"):
        build({"capture": {"inject_usage": "yes"}})
