"""The byte parser of server-sent events: whatever the cuts, the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.sse import Parser, ServerEvent, events

TABLE = [
    (b"data: a\n\n", [b"a"]),
    (b"data:a\n\n", [b"a"]),
    (b"data:  a\n\n", [b" a"]),
    (b"data: a\r\n\r\n", [b"a"]),
    (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
    (b"data: a\r\n\rdata: b\n\r\n", [b"a", b"b"]),
    (b"data: a\ndata: b\n\n", [b"a\nb"]),
    (b"data\n\n", [b""]),
    (b": ping\n\n: ping\ndata: a\n\n", [b"a"]),
    (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
    (b"data: \xef\xbb\xbfa\n\n", [b"\xef\xbb\xbfa"]),
    (b"id: 1\nretry: 3\nother\ndata: a\n\n", [b"a"]),
    (b"event: x\n\ndata: a\n\n", [b"a"]),
    ("data: zażółć 🎭\n\n".encode(), ["zażółć 🎭".encode()]),
    (b"data: \xff\xfe\x00\n\ndata: b\n\n", [b"\xff\xfe\x00", b"b"]),
    (b"\n\n\n", []),
    (b"", []),
]


@pytest.mark.parametrize(("body", "expected"), TABLE)
def test_events_are_the_same_for_every_cut_in_two(body: bytes, expected: list[bytes]) -> None:
    for cut in range(len(body) + 1):
        parser = Parser()
        found = parser.feed(body[:cut]) + parser.feed(body[cut:]) + parser.end()
        assert [event.data for event in found] == expected


def test_the_name_belongs_to_its_event_only() -> None:
    found = events(b"event: error\ndata: 1\n\ndata: 2\n\n", True)
    assert found == [ServerEvent(b"1", b"error"), ServerEvent(b"2")]


def test_an_event_without_its_end_counts_only_after_a_clean_end() -> None:
    assert [event.data for event in events(b"data: a\n\ndata: [DONE]", True)] == [b"a", b"[DONE]"]
    assert [event.data for event in events(b"data: a\n\ndata: [DONE]", False)] == [b"a"]
    assert [event.data for event in events(b"data: a\n\ndata: b\n", False)] == [b"a"]


CRUMBS = st.sampled_from([b"\n", b"\r", b"\r\n", b"data", b":", b" ", b"x", b"event", b"\xf0\x9f"])
BODIES = st.lists(CRUMBS, max_size=30).map(b"".join)


@settings(max_examples=100, deadline=None)
@given(BODIES, st.lists(st.integers(0, 80), max_size=5))
def test_events_are_the_same_for_any_cuts(body: bytes, cuts: list[int]) -> None:
    parser = Parser()
    found = []
    places = [0, *sorted(min(cut, len(body)) for cut in cuts), len(body)]
    for start, end in pairwise(places):
        found += parser.feed(body[start:end])
    assert found + parser.end() == events(body, True)


def test_a_line_of_two_mebibytes_in_small_pieces() -> None:
    body = b"data: " + b"x" * (2 << 20) + b"\n\n"
    parser = Parser()
    found = []
    for start in range(0, len(body), 65536):
        found += parser.feed(body[start : start + 65536])
    assert [len(event.data) for event in found] == [2 << 20]
