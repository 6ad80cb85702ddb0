"""The quick way through a chat stream leads where the slow one does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.chat_runs import chat
from store.messages import Messages
from store.sse import Events, read
from store.streams import Assembled, assemble, assemble_events
from tests.store.making import delta, stream_of


def call(index: int, **fields: Any) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, **fields}])


def same_however_read(body: bytes) -> Assembled:
    """The runs of like chunks are a quicker way to what each chunk for itself says."""
    found = assemble("chat.completions", body, True)
    # A space behind a brace means nothing to JSON, and never the same to a template.
    events = read(body, True)
    alone = [
        b"{" + b" " * (1 + at % 7 + at) + data[1:] if data.startswith(b"{") else data
        for at, data in enumerate(events.data)
    ]
    assert assemble_events("chat.completions", Events(alone, events.names)) == found
    return found


LINE = (
    b'data: {"id":"c1","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}],'
    b'"usage":null,"obfuscation":"%b"}\n\n'
)
SUFFIX = b'"},"finish_reason":null}],'
ODD_TEXTS = [
    b"a", b" b", b"", b"\\n", b'\\"', b"\\\\", b"\\", b'"', b',"', b'","', b'",', b"\x00", b"\xff",
    b"\xf0\x9f", b"\x90\xa2", "ż🐢".encode(), b"\\ud83d", b"\\ud83d\\ude00", b'"}', b"}", b"{",
    SUFFIX, SUFFIX + b'"usage":null,"obfuscation":"x"}',
]  # fmt: skip
ODD_PADDINGS = [b"", b"x", b"ab9", b"-", b"\\n", b'"', b'"}', b'","usage":{"n":1},"x":"']
TEXTS = st.lists(st.tuples(st.sampled_from(ODD_TEXTS), st.sampled_from(ODD_PADDINGS)), max_size=12)


@pytest.mark.parametrize("first", ODD_TEXTS)
def test_no_pair_of_odd_texts_passes_for_two_good_ones(first: bytes) -> None:
    good = LINE % (b"a", b"p") * 2
    for second in ODD_TEXTS:
        for padding in ODD_PADDINGS:
            same_however_read(good + LINE % (first, padding) + LINE % (second, b"") + good)


@settings(max_examples=100, deadline=None)
@given(TEXTS)
def test_runs_of_like_chunks_say_what_each_says(texts: list[tuple[bytes, bytes]]) -> None:
    first = [(b"a", b"p"), (b"b", b"q")]
    body = b"".join(LINE % pair for pair in first + texts + first)
    found = same_however_read(body)
    assert found.body is not None
    content = found.body["choices"][0]["message"]["content"]
    assert content.startswith("ab") and content.endswith("ab")


@pytest.mark.parametrize("escaped", [False, True])
@pytest.mark.parametrize("pad", [False, True])
def test_long_streams_of_every_kind_of_text(escaped: bool, pad: bool) -> None:
    def lines(chunks: list[dict[str, Any]]) -> bytes:
        padded = [
            chunk | ({"obfuscation": "x" * (at % 9)} if pad else {})
            for at, chunk in enumerate(chunks)
        ]
        return b"".join(
            f"data: {json.dumps(chunk, ensure_ascii=escaped)}\n\n".encode() for chunk in padded
        )

    words = ["Żółw", ' "w"\n', "🐢", "\\", " a,", '","', "{}", ""] * 50
    said = [delta(content=word) for word in words]
    thought = [delta(reasoning=word) for word in words]
    begun = call(0, id="a", type="function", function={"name": "f", "arguments": ""})
    called = [call(0, function={"arguments": word}) for word in words]
    found = same_however_read(lines([*thought, *said, begun, *called, delta(finish="stop")]))
    assert found.body is not None and found.finished
    result = found.body["choices"][0]["message"]
    text = "".join(words)
    assert (result["reasoning"], result["content"]) == (text, text)
    assert result["tool_calls"][0]["function"] == {"name": "f", "arguments": text}


def test_a_run_ends_where_anything_else_is_said() -> None:
    tiers = [delta(content="a") | {"service_tier": tier} for tier in ("x", "x", "y", "y", "x")]
    found = same_however_read(stream_of(*tiers))
    assert found.body is not None and found.body["service_tier"] == "x"
    mixed = [delta(at % 3, content=str(at)) for at in range(60)]
    counted = [delta(content="a") | {"usage": {"completion_tokens": at}} for at in range(5)]
    found = same_however_read(stream_of(*mixed, *counted))
    assert found.body is not None and found.body["usage"] == {"completion_tokens": 4}
    assert found.body["choices"][2]["message"]["content"] == "".join(map(str, range(2, 60, 3)))


def test_log_probabilities_are_no_mere_text() -> None:
    said = delta(content="a")
    said["choices"][0]["logprobs"] = {"content": [{"token": "a"}]}
    found = same_however_read(stream_of(*[said] * 5))
    assert found.body is not None and len(found.body["choices"][0]["logprobs"]["content"]) == 5


def test_a_text_that_only_looks_like_the_delta() -> None:
    notes = [{"note": {"delta": {"content": word}}} | delta(content="a") for word in "bcdef"]
    found = same_however_read(stream_of(*notes))
    assert found.body is not None
    assert found.body["choices"][0]["message"]["content"] == "aaaaa"
    assert found.body["note"] == {"delta": {"content": "f"}}


class Counting(Messages):
    """How many events are parsed each for itself."""

    parsed = 0

    def at(self, place: int) -> dict[str, Any] | None:
        self.parsed += 1
        return super().at(place)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("more", [{}, {"obfuscation": "x1"}])
def test_of_a_long_run_few_events_are_parsed(end: bytes, more: dict[str, Any]) -> None:
    begun = call(0, id="a", function={"name": "f", "arguments": ""})
    said = [delta(role="assistant", content="")] + [delta(content="a ")] * 300
    called = [call(0, function={"arguments": '"'})] * 300
    chunks = [chunk | more for chunk in (*said, begun, *called, delta(finish="stop"))]
    messages = Counting(read(stream_of(*chunks).replace(b"\n", end), True))
    found = chat(messages)
    assert found == same_however_read(stream_of(*chunks))
    assert len(messages.data) > 600 and messages.parsed < 12
