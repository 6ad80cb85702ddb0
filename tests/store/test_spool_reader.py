"""Segments, positions, torn ends, and when a run is over."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import time
from pathlib import Path

from policies.spool import BATCH, RECORD, Kind, pack
from store.spool_reader import Piece, Position, delete_run, is_over, let_go, read, runs, wipe_read
from tests.store.making import Run, exchange_id, home

ONE = exchange_id(1)
SIZE = BATCH.size + RECORD.size + 1


def record(letter: bytes, kind: int = Kind.REQUEST_BODY) -> bytes:
    return pack(kind, ONE, 1.0, letter)


def letters(piece: Piece) -> bytes:
    return b"".join(event.payload for event in piece.events)


def test_reads_on_from_where_it_stopped(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    assert read(run.folder, Position()) == Piece([], Position())
    run.write(record(b"a"), record(b"b"), record(b"c")[:-1])
    first = read(run.folder, Position())
    assert (letters(first), first.position, first.more) == (b"ab", Position(1, 2 * SIZE), False)
    run.write(record(b"c")[-1:])
    assert letters(read(run.folder, first.position)) == b"c"


def test_goes_on_to_the_next_segment_only_when_there_is_one(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"a"))
    assert read(run.folder, Position()).position == Position(1, SIZE)
    run.next_segment()
    run.write(record(b"b"))
    first = read(run.folder, Position(1, SIZE))
    assert (first.events, first.position, first.more) == ([], Position(2), True)
    second = read(run.folder, first.position)
    assert (letters(second), second.finished) == (b"b", False)
    wipe_read(run.folder, Position(1, SIZE), second.position)
    assert sorted(os.listdir(run.folder)) == ["00000001.wiped", "00000002.seg", "alive"]


def test_what_was_read_is_wiped_and_skipped_by_a_reader_that_begins_anew(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"a"), record(b"b"))
    first = read(run.folder, Position())
    wipe_read(run.folder, Position(), first.position)
    left = run.segment.read_bytes()
    assert left[8:] == bytes(2 * SIZE - 8)
    run.write(record(b"c"))
    assert letters(read(run.folder, first.position)) == b"c"
    assert letters(read(run.folder, Position())) == b"c"


def test_a_segment_that_is_handed_back_is_all_zeros_and_written_over(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"a"), record(b"b"), record(b"c"))
    old = run.segment
    run.next_segment()
    wipe_read(run.folder, Position(1, 3 * SIZE), Position(2))
    wiped = old.with_suffix(".wiped")
    assert wiped.read_bytes() == bytes(3 * SIZE)
    again = run.folder / "00000003.seg"
    wiped.rename(again)
    with again.open("r+b") as file:
        file.write(record(b"d"))
    run.die()
    piece = read(run.folder, Position(3))
    assert (letters(piece), piece.torn, piece.finished) == (b"d", 0, True)
    with again.open("r+b") as file:
        file.seek(SIZE)
        file.write(record(b"e")[:-1])
    piece = read(run.folder, Position(3))
    assert (letters(piece), piece.torn) == (b"d", 2 * SIZE)


def test_only_a_few_segments_are_kept_to_be_written_over(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    for _ in range(67):
        run.write(record(b"a"))
        run.next_segment()
    run.write(record(b"b"))
    wipe_read(run.folder, Position(67, SIZE), Position(68))
    assert len(list(run.folder.glob("*.wiped"))) == 64
    assert [path.name for path in run.folder.glob("*.seg")] == ["00000068.seg"]
    let_go(run.folder, time.time())
    assert len(list(run.folder.glob("*.wiped"))) == 64
    let_go(run.folder, time.time() + 121)
    assert len(list(run.folder.glob("*.wiped"))) == 4


def test_a_run_is_over_when_its_lock_is_free(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"a"))
    assert not is_over(run.folder)
    run.die()
    assert is_over(run.folder)
    piece = read(run.folder, Position())
    assert (letters(piece), piece.finished, piece.torn) == (b"a", True, 0)
    assert read(run.folder, piece.position).finished
    delete_run(run.folder)
    assert runs(home(tmp_path).spool) == []


def test_the_lock_of_another_process_counts(tmp_path: Path) -> None:
    run = Run(home(tmp_path), alive=False)
    program = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); "
        "print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, run.folder / "alive"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        assert not is_over(run.folder)
        process.kill()
        process.wait()
    assert is_over(run.folder)


def test_a_run_that_is_just_being_made_is_not_over(tmp_path: Path) -> None:
    folder = home(tmp_path).spool / "new"
    folder.mkdir(parents=True)
    assert not is_over(folder)
    (folder / "alive").touch()
    assert not is_over(folder)


def test_a_torn_tail_is_cut_and_counted(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"a"), record(b"b")[:-3])
    assert not read(run.folder, Position()).torn  # may still grow
    run.die()
    piece = read(run.folder, Position())
    assert (letters(piece), piece.torn, piece.finished) == (b"a", SIZE - 3, True)
    assert read(run.folder, piece.position).torn == 0


def test_damage_inside_a_segment_costs_the_rest_of_it(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    broken = bytearray(record(b"b"))
    broken[-1] ^= 1
    run.write(record(b"a"), bytes(broken), record(b"c"))
    run.next_segment()
    run.write(record(b"d"))
    first = read(run.folder, Position())
    assert (letters(first), first.torn, first.position) == (b"a", 2 * SIZE, Position(2))
    assert letters(read(run.folder, first.position)) == b"d"


def test_an_absurd_length_is_damage(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"a"), struct.pack("<I", 0xFFFFFFFF) + bytes(60))
    run.die()
    assert read(run.folder, Position()).torn == 64


def test_a_segment_that_was_cut_behind_us_is_no_loss(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"a"), record(b"b"))
    after = read(run.folder, Position()).position
    os.truncate(run.segment, SIZE)
    run.next_segment()
    run.write(record(b"c"))
    piece = read(run.folder, after)
    assert (piece.position, piece.torn) == (Position(2), 0)


def test_a_kind_that_is_not_known_is_skipped(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    run.write(record(b"x", 99), record(b"a"), record(b"y", 0), record(b"b"))
    piece = read(run.folder, Position())
    assert (letters(piece), piece.unreadable) == (b"ab", 2)


def test_pieces_are_bounded_but_grow_for_a_long_batch(tmp_path: Path) -> None:
    run = Run(home(tmp_path))
    sent = [bytes([65 + at]) * size for at, size in enumerate((10, 5000, 3, 700, 1))]
    run.write(*(pack(Kind.REQUEST_BODY, ONE, 1.0, data) for data in sent))
    position, found = Position(), []
    while (piece := read(run.folder, position, limit=100)).events:
        found += [event.payload for event in piece.events]
        assert piece.more == (len(found) < len(sent))
        position = piece.position
    assert found == sent


def test_an_empty_spool(tmp_path: Path) -> None:
    assert runs(tmp_path / "none") == []
