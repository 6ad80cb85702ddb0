"""The byte parser of server-sent events: whatever the cuts, the same events."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.sse import Events, Parser, ServerEvent, read
from tests.store.surface import FIXTURES, Fixture

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


def in_two(body: bytes, cut: int) -> list[ServerEvent]:
    parser = Parser()
    return parser.feed(body[:cut]) + parser.feed(body[cut:]) + parser.end()


def eventful(body: bytes) -> bytes:
    """The same stream as a chatty server would send it: comments, ids, data over two lines."""
    return b"\xef\xbb\xbf: welcome\n\n" + body.replace(
        b"\n\n", b"\n: ping\nid: 7\nretry: 5\n\n: ping\n\n"
    ).replace(b'"id":', b'\ndata: "id":')


STREAMS = [one for one in FIXTURES if one.streamed and len(one.response) < 3500]
ENDS = {"lf": b"\n", "crlf": b"\r\n", "cr": b"\r"}


@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
@pytest.mark.parametrize("fixture", STREAMS, ids=lambda fixture: fixture.name)
def test_recorded_streams_are_the_same_for_every_cut_in_two(fixture: Fixture, end: bytes) -> None:
    plain = fixture.response.replace(b"\r\n", b"\n")
    messages = [event.data for event in in_two(plain, 0)]
    assert len(messages) > 1
    for body in (plain, eventful(plain)):
        cut_up = body.replace(b"\n", end)
        whole = in_two(cut_up, 0)
        assert [event.data.replace(b"\n", b"") for event in whole] == messages
        for cut in range(1, len(cut_up) + 1):
            assert in_two(cut_up, cut) == whole


@pytest.mark.parametrize("fixture", STREAMS, ids=lambda fixture: fixture.name)
def test_a_body_at_once_has_the_events_of_the_parser(fixture: Fixture) -> None:
    for body in (fixture.response, eventful(fixture.response)):
        for end in ENDS.values():
            turned = body.replace(b"\r\n", b"\n").replace(b"\n", end)
            for cut in (len(turned), len(turned) - 1, len(turned) - 3, len(turned) // 2):
                for whole in (True, False):
                    assert read(turned[:cut], whole) == by_parser(turned[:cut], whole)


def by_parser(body: bytes, whole: bool) -> Events:
    parser = Parser()
    found = parser.feed(body) + (parser.end() if whole else [])
    names = {place: event.name for place, event in enumerate(found) if event.name}
    return Events([event.data for event in found], names)


def test_the_name_belongs_to_its_event_only() -> None:
    found = read(b"event: error\ndata: 1\n\ndata: 2\n\n", True)
    assert found == Events([b"1", b"2"], {0: b"error"})


def test_an_event_without_its_end_counts_only_after_a_clean_end() -> None:
    assert read(b"data: a\n\ndata: [DONE]", True).data == [b"a", b"[DONE]"]
    assert read(b"data: a\n\ndata: [DONE]", False).data == [b"a"]
    assert read(b"data: a\n\ndata: b\n", False).data == [b"a"]


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
    assert found + parser.end() == in_two(body, 0)
    assert read(body, True) == by_parser(body, True)
    assert read(body, False) == by_parser(body, False)


def test_a_line_of_two_mebibytes_in_small_pieces() -> None:
    body = b"data: " + b"x" * (2 << 20) + b"\n\n"
    parser = Parser()
    found = []
    for start in range(0, len(body), 65536):
        found += parser.feed(body[start : start + 65536])
    assert [len(event.data) for event in found] == [2 << 20]
