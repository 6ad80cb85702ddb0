"""The spool's records: what was written is read again, up to the first damage, and nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from policies.spool import BATCH, RECORD, Event, Kind, seal, unpack
from store.spool_reader import Position, read
from tests.fuzz.runs import examples

Batch = list[Event]
EVENTS = st.builds(
    Event,
    st.sampled_from(list(Kind)),
    st.binary(min_size=16, max_size=16),
    st.floats(allow_nan=False),
    st.one_of(st.binary(max_size=40), st.just(bytes(100)), st.just(b'{"seq":1}')),
)
BATCHES = st.lists(st.lists(EVENTS, min_size=1, max_size=3), max_size=5)


def packed(batch: Batch, unknown: int = 0) -> bytes:
    """`unknown`: so many records of a kind that this reader does not know come behind."""
    records = [
        RECORD.pack(len(event.payload), event.kind, event.exchange, event.at) + event.payload
        for event in batch
    ]
    records += [RECORD.pack(3, 200, bytes(16), 0.0) + b"new"] * unknown
    joined = b"".join(records)
    return seal(joined) + joined


def events(data: bytes, offset: int = 0) -> Batch:
    return [event for batch in unpack(data, offset) for event in batch.events]


def flat(batches: list[Batch]) -> Batch:
    return [event for batch in batches for event in batch]


@examples(200)
@given(BATCHES, st.integers(0, 2))
def test_round_trip(batches: list[Batch], unknown: int) -> None:
    wires = [packed(batch, unknown) for batch in batches]
    data = b"".join(wires)
    found = list(unpack(data))
    assert [batch.events for batch in found] == batches
    assert [batch.unknown for batch in found] == [unknown] * len(batches)
    assert [batch.end for batch in found] == [
        len(b"".join(wires[: n + 1])) for n in range(len(wires))
    ]
    if wires:
        assert events(data, len(wires[0])) == flat(batches[1:])


@examples(200)
@given(BATCHES, st.data())
def test_a_torn_end_costs_its_batch_and_no_more(batches: list[Batch], drawn: st.DataObject) -> None:
    wires = [packed(batch) for batch in batches]
    data = b"".join(wires)
    end = drawn.draw(st.integers(0, len(data)))
    whole = sum(len(b"".join(wires[: number + 1])) <= end for number in range(len(wires)))
    assert events(data[:end]) == flat(batches[:whole])
    found = events(data[:end] + bytes(drawn.draw(st.integers(0, 64))))
    assert found == flat(batches)[: len(found)]  # zeros may be what it has lost
    assert len(found) >= len(flat(batches[:whole]))


@examples(300)
@given(BATCHES.filter(bool), st.data())
def test_damage_is_never_read_as_something_else(batches: list[Batch], drawn: st.DataObject) -> None:
    """What comes before it is read; and never an event that nobody wrote."""
    wires = [packed(batch) for batch in batches]
    data = bytearray(b"".join(wires))
    at = drawn.draw(st.integers(0, len(data) - 1))
    data[at] ^= 1 << drawn.draw(st.integers(0, 7))
    whole = sum(len(b"".join(wires[: number + 1])) <= at for number in range(len(wires)))
    assert events(bytes(data)) == flat(batches[:whole])


@examples(300)
@given(st.binary(max_size=200), BATCHES)
def test_any_bytes_can_be_read(data: bytes, batches: list[Batch]) -> None:
    whole = b"".join(map(packed, batches))
    assert events(data) == []
    assert events(whole + data)[: len(flat(batches))] == flat(batches)
    for batch in unpack(data + whole):
        assert batch.end <= len(data + whole)


@examples(60)
@given(BATCHES, st.binary(max_size=60), st.integers(1, 200))
def test_a_segment_is_read_in_pieces_of_any_size(
    batches: list[Batch], rest: bytes, limit: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        data = b"".join(map(packed, batches))
        (run / "00000001.seg").write_bytes(data + rest)
        (run / "alive").touch()
        found, at = [], Position()
        for _ in range(len(batches) + 3):
            piece = read(run, at, limit)
            found += piece.events
            assert piece.position >= at
            at = piece.position
            if not piece.more:
                break
        assert not piece.more
        assert found == flat(batches)
        assert at.offset >= len(data) - BATCH.size * (not data)
