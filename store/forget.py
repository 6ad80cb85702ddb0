"""Forgetting: whose traffic goes, and everything that was kept of what they said.

Counts stay: a forgotten exchange is a row of times, sizes, tokens and costs, its `privacy` says
`forgotten`. It is done in small batches, each whole in itself, so that the spool is read meanwhile;
cut short, the same order takes it up again.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from store import spool_reader
from store.database import Connection, transaction
from store.desk import Desk, Json, Steps
from store.removal import (
    empty_journal,
    merge_index,
    remove_bodies,
    remove_files,
    remove_strays,
    write_anew,
)
from store.scrub import Tally, scrub, scrub_names, scrub_prompts
from store.scrub_open import scrub_open
from store.spool_reader import Position
from store.target import Forget, Target
from store.writes import OrderError

# In `progress`: rows are gone, remnants on the disk may not be. Its number says how far that is.
_PENDING: Final = "forget"
_BEGUN: Final = 1
_WRITTEN: Final = 2  # all but the journal, which somebody reads
_STAGE: Final = "SELECT number FROM progress WHERE name = ?"
_STILL_READ: Final = (
    "remnants are still in the journal: another program keeps reading the database; "
    "close it, and give the same command again"
)
_AT_ONCE: Final = 200
_WINDOW: Final = 20_000  # rows looked through in one step
_MOST_TRACES: Final = 6  # each costs a pass over all files
_LEAST_TRACE: Final = 8  # characters; shorter ones are found anywhere
_CHECKPOINT_TRIES: Final = 15  # of a second each


def is_pending(connection: Connection) -> bool:
    """Was a forgetting cut short, behind its first batch?"""
    return connection.execute(_STAGE, (_PENDING,)).fetchone() is not None


def forget(desk: Desk, order: Forget) -> Steps:
    """Returns counts by what was removed, and `traces`: words that may be in no file any more."""
    yield from _read_up(desk)
    target = Target.of(desk, order)
    if order.dry:
        total = yield from _count(desk.connection, target)
        return {"exchanges": total, "related": _related(desk.connection, target)}
    tally = Tally()
    last = 0
    # Twice: what has come in meanwhile goes, too.
    for _ in range(2):
        yield from _read_up(desk)
        tally.still_open += scrub_open(desk, target)
        last = yield from _forget_rows(desk, target, tally, last)
    with transaction(desk.connection):
        tally.prompts = scrub_prompts(desk.connection)
        scrub_names(desk.connection, target)
    yield from clean(desk)
    traces = _own_traces(desk.connection, tally.traces)
    counts = {name: getattr(tally, name) for name in Tally.__slots__ if name != "traces"}
    return {**counts, "traces": traces}


def _read_up(desk: Desk) -> Steps:
    """What lies in the spool can't be found."""
    while desk.read_up():
        yield {"doing": "reading the spool"}
    return {}


def clean(desk: Desk) -> Steps:
    """Nothing of what was deleted is left in index, pages, journal, files and spool."""
    with transaction(desk.connection):
        _mark(desk.connection, _BEGUN)
    yield from _write_anew(desk)
    for _ in range(_CHECKPOINT_TRIES):
        if _ended(desk.connection):
            return {}
        yield {"doing": "waiting for those who read the database"}
    raise OrderError(_STILL_READ)


def clean_on(desk: Desk) -> Steps:
    """What a `clean` that was cut short had not come to; the journal is tried once. Raises
    OrderError."""
    row = desk.connection.execute(_STAGE, (_PENDING,)).fetchone()
    if row is not None and row[0] < _WRITTEN:
        yield from _write_anew(desk)
    if row is not None and not _ended(desk.connection):
        raise OrderError(_STILL_READ)
    return {}


def _write_anew(desk: Desk) -> Steps:
    connection = desk.connection
    desk.indexing = False
    try:
        while merge_index(connection):
            yield {"doing": "merging the search index"}
    finally:
        desk.indexing = True
    remove_strays(connection, desk.home.files)
    _wipe_spool(desk)
    yield {"doing": "writing the database anew"}
    _rewrite(desk)
    with transaction(connection):
        _mark(connection, _WRITTEN)
    return {}


def _mark(connection: Connection, stage: int) -> None:
    connection.execute("INSERT OR REPLACE INTO progress VALUES (?, ?)", (_PENDING, stage))


def _ended(connection: Connection) -> bool:
    if not empty_journal(connection):
        return False
    with transaction(connection):
        connection.execute("DELETE FROM progress WHERE name = ?", (_PENDING,))
    return True


def _rewrite(desk: Desk) -> None:
    try:
        write_anew(desk.connection, desk.home.root)
    except OSError as error:
        raise OrderError(f"{error}; make room, and give the same command again") from None


def _last(connection: Connection) -> int:
    return int(connection.execute("SELECT coalesce(max(number), 0) FROM exchanges").fetchone()[0])


def _batches(connection: Connection, target: Target, low: int) -> Iterator[list[int]]:
    """Numbers in batches, empty ones among them: each look is short."""
    while low < (last := _last(connection)):
        high = min(low + _WINDOW, last)
        found = target.numbers(connection, low, high, _AT_ONCE)
        yield found
        low = found[-1] if len(found) == _AT_ONCE else high


def _count(connection: Connection, target: Target) -> Generator[Json, None, int]:
    total = 0
    for found in _batches(connection, target, 0):
        total += len(found)
        yield {"doing": "counting", "exchanges": total}
    return total


def _related(connection: Connection, target: Target) -> int:
    """Other turns of the one exchange's conversation: they repeat what was said in it."""
    sql = """SELECT count(*) FROM exchanges WHERE number != ?1 AND conversation =
             (SELECT conversation FROM exchanges WHERE number = ?1)"""
    return int(connection.execute(sql, (target.number,)).fetchone()[0])


# -- rows


def _forget_rows(desk: Desk, target: Target, tally: Tally, low: int) -> Generator[Json, None, int]:
    """Returns the number up to which all is forgotten."""
    last = _last(desk.connection)
    for numbers in _batches(desk.connection, target, low):
        if numbers:
            _forget_batch(desk, target, tally, numbers)
        yield {"doing": "forgetting", "exchanges": tally.exchanges}
    return last


def _forget_batch(desk: Desk, target: Target, tally: Tally, numbers: Sequence[int]) -> None:
    connection = desk.connection
    try:
        with transaction(connection):
            _mark(connection, _BEGUN)
            tally.bodies += _count_bodies(connection, numbers)
            _note_traces(connection, tally, numbers)
            files = remove_bodies(connection, desk.ingest.slices, numbers)
            scrub(desk, target, tally, numbers)
    except BaseException:
        desk.ingest.slices.forget()
        raise
    remove_files(desk.home.files, files)
    tally.files += len(files)
    tally.exchanges += len(numbers)


def _count_bodies(connection: Connection, numbers: Iterable[int]) -> int:
    sql = "SELECT count(*) FROM bodies WHERE number = ?"
    return sum(connection.execute(sql, (number,)).fetchone()[0] for number in numbers)


# -- what is left on the disk


def _wipe_spool(desk: Desk) -> None:
    """All that was read: an earlier attempt may have failed."""
    for run in spool_reader.runs(desk.home.spool):
        with suppress(OSError):
            spool_reader.wipe_read(run, Position(), desk.ingest.position(run.name))


def _note_traces(connection: Connection, tally: Tally, numbers: Iterable[int]) -> None:
    """Words that only these exchanges have: where one is found, more of them may be left."""
    for number in numbers:
        if len(tally.traces) >= _MOST_TRACES:
            return
        row = connection.execute(
            "SELECT response_id, upstream_request_id FROM exchanges WHERE number = ?", (number,)
        ).fetchone()
        tally.traces += [each for each in row if each is not None and len(each) >= _LEAST_TRACE]


def _own_traces(connection: Connection, traces: Sequence[str]) -> list[str]:
    """Without those that others may well say: a later turn names the answer that it follows."""
    kept = []
    for trace in dict.fromkeys(traces):
        others = connection.execute(
            "SELECT 1 FROM exchanges WHERE ? IN (response_id, previous_response_id, "
            "upstream_request_id) LIMIT 1",
            (trace,),
        )
        if others.fetchone() is None:
            kept.append(trace)
    return kept[:_MOST_TRACES]
