"""Retention: what is older than the policy wants, and what is more than it wants.

Bodies go before rows: counts and costs are small, and outlive the texts.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from policies.record import Record
from store.database import Connection, iso, transaction
from store.desk import Desk, Json, Steps
from store.removal import (
    candidates,
    empty_journal,
    free_pages,
    ids_of,
    merge_index,
    remove_bodies,
    remove_files,
    remove_rows,
    remove_strays,
    shrink,
)
from store.writes import OrderError

_AT_ONCE: Final = 200
_WINDOW: Final = 2000  # of the index over times, in one look
_EVERY_SECONDS: Final = 10.0
_AGAIN_SECONDS: Final = 3600.0  # then from the oldest on: an import may have brought old ones
_SHRUNK_PAGES: Final = 1000  # in one step: some 10 ms
_SPARE_PAGES: Final = 2000  # are left to be filled again
_FILLED_SHARE: Final = 0.9  # of most_bytes, after what was too much is gone
_UNMERGED_SHARE: Final = 0.05  # of all bodies
_NEVER: Final = "9999"

_OLDEST: Final = """
    SELECT started_at, number, EXISTS (SELECT 1 FROM bodies AS b WHERE b.number = e.number)
    FROM exchanges AS e
    WHERE started_at >= ?1 AND (started_at > ?1 OR number > ?2) AND started_at < ?3
    ORDER BY started_at, number LIMIT ?4"""
# The newest row stays, however old: numbers are not to come again.
_OLD_ROWS: Final = """
    SELECT number FROM exchanges
    WHERE started_at < ? AND number < (SELECT max(number) FROM exchanges)
    ORDER BY started_at LIMIT ?"""
_ROWS_BEFORE: Final = "SELECT count(*) FROM exchanges WHERE started_at < ?"
_BODIES_BEFORE: Final = """
    SELECT count(*), coalesce(sum(coalesce(request_bytes, 0) + coalesce(response_bytes, 0)), 0)
    FROM exchanges AS e JOIN bodies AS b ON b.number = e.number WHERE started_at < ?"""
_USED: Final = """
    SELECT (page_count - freelist_count) * page_size + (SELECT coalesce(sum(bytes), 0) FROM files)
    FROM pragma_page_count, pragma_freelist_count, pragma_page_size"""

_TASK: Final = """
    SELECT t.id FROM exchanges AS e JOIN tasks AS t ON t.id = e.task_id
    WHERE e.number = ? AND t.system_prompt IS NOT NULL"""
# The newest first: they are the ones that have a body.
_KEEPS_BODY: Final = """
    SELECT 1 FROM exchanges AS e
    WHERE task_id = ? AND EXISTS (SELECT 1 FROM bodies AS b WHERE b.number = e.number)
    ORDER BY started_at DESC LIMIT 1"""
_ANSWERS: Final = "UPDATE observations SET answer = NULL WHERE candidate = ? AND exchange_id = ?"
_CORRECTIONS: Final = "UPDATE feedback SET correction = NULL WHERE exchange_id = ?"


@dataclass(frozen=True, slots=True)
class Retain:
    """Do it now, or say what would go. `keep_*` in seconds, as in the policy."""

    dry: bool = False


def is_set(record: Record) -> bool:
    return any(
        each is not None for each in (record.keep_bodies, record.keep_rows, record.most_bytes)
    )


def used_bytes(connection: Connection) -> int:
    """Of the database, without its free pages, and of all files."""
    return int(connection.execute(_USED).fetchone()[0])


def retain(desk: Desk, order: Retain) -> Steps:
    """Returns what went, or would: `bodies`, `rows`, and the bytes that are used after it."""
    record = desk.recording.record
    if not is_set(record):
        raise OrderError(
            "record: nothing is set; put keep_bodies, keep_rows or most_bytes below 'record:' in "
            "the policy"
        )
    at = time.time()
    if order.dry:
        return outlook(desk.connection, record, at)
    retention = Retention(record)
    try:
        while retention.work(desk, at):
            yield {"doing": "removing", "bodies": retention.bodies, "rows": retention.rows}
    finally:  # who asked may leave in the middle
        desk.indexing = True
    return {
        "bodies": retention.bodies,
        "rows": retention.rows,
        "used_bytes": used_bytes(desk.connection),
    }


def outlook(connection: Connection, record: Record, at: float) -> Json:
    """`body_bytes`: as they came over the wire. `over_bytes`: more than `most_bytes` allows, once
    the old is gone, and `over_bodies`, about how many bodies that takes."""
    rows = bodies = size = 0
    if record.keep_rows is not None:
        before = iso(max(0.0, at - record.keep_rows))
        rows = connection.execute(_ROWS_BEFORE, (before,)).fetchone()[0]
    ages = [age for age in (record.keep_bodies, record.keep_rows) if age is not None]
    if ages:
        before = iso(max(0.0, at - min(ages)))
        bodies, size = connection.execute(_BODIES_BEFORE, (before,)).fetchone()
    used = used_bytes(connection)
    over = over_bodies = 0
    if record.most_bytes is not None:
        (all_bodies,) = connection.execute("SELECT count(*) FROM bodies").fetchone()
        each = used / max(1, all_bodies)
        over = max(0, int(used - bodies * each) - record.most_bytes)
        over_bodies = min(all_bodies - bodies, -int(-over // max(1.0, each)))
    return {
        "bodies": bodies,
        "body_bytes": size,
        "rows": rows,
        "used_bytes": used,
        "over_bytes": over,
        "over_bodies": over_bodies,
    }


class Retention:
    """Its place in the record, in memory: what it has looked at, it need not look at again."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._place = ("", 0)  # started_at, number: no body is kept of what lies before
        self._looked = self._began = -_AGAIN_SECONDS
        self._excess = 0  # bodies that are still to go, of those that are too many
        self._exhausted = False  # none is left to go
        self._unmerged = 0  # bodies that are gone, but for their words in the search index
        self._merging = False
        self.bodies = self.rows = 0
        self._settled = 0  # of these, when all was last done

    def step(self, desk: Desk, at: float, monotonic: float) -> bool:
        """A batch, if it is time for one. Is there more to do at once?"""
        if not is_set(self._record) or monotonic - self._looked < _EVERY_SECONDS:
            return False
        if monotonic - self._began > _AGAIN_SECONDS:
            self._place, self._began = ("", 0), monotonic
        more = self.work(desk, at)
        if not more:
            self._looked = monotonic
        return more

    def work(self, desk: Desk, at: float) -> bool:
        """A short step at once. `at`: seconds since the epoch. Is there more?"""
        connection = desk.connection
        if self._merging:
            self._merge(desk)
            return True
        before = self.bodies + self.rows
        more = self._old(desk, at) or self._too_many(desk)
        self._unmerged += self.bodies + self.rows - before
        if more:
            return True
        if self._unmerged > _UNMERGED_SHARE * _about_bodies(connection) or (
            self._unmerged and self._over(connection) > 1
        ):
            self._merging = True
            return True
        if _shrink(connection):
            return True
        return self._settle(desk)

    def _settle(self, desk: Desk) -> bool:
        """All has been done, unless it still takes too much room."""
        over, bodies = self._over(desk.connection), _about_bodies(desk.connection)
        if over > 1 and bodies and not self._exhausted:
            # A little more than needed: the index gives room back only when it is written anew.
            self._excess = min(bodies, 1 + int(bodies * (1 - _FILLED_SHARE / over)))
            return True
        self._exhausted = False
        if self.bodies + self.rows > self._settled:
            self._settled = self.bodies + self.rows
            remove_strays(desk.connection, desk.home.files)
            empty_journal(desk.connection)
        return False

    def _merge(self, desk: Desk) -> None:
        """Of what is gone, the index still has the words. It does not grow meanwhile: a merge that
        is given more has no end."""
        desk.indexing = False
        if not merge_index(desk.connection):
            self._merging, self._unmerged = False, 0
            desk.indexing = True

    def _over(self, connection: Connection) -> float:
        """How many times what is allowed is in use?"""
        most = self._record.most_bytes
        return 0.0 if most is None else used_bytes(connection) / most

    def _old(self, desk: Desk, at: float) -> bool:
        record, connection = self._record, desk.connection
        if record.keep_rows is not None:
            before = iso(max(0.0, at - record.keep_rows))
            numbers = [row[0] for row in connection.execute(_OLD_ROWS, (before, _AT_ONCE))]
            if numbers:
                _delete(desk, numbers, rows=True)
                self.rows += len(numbers)
                return True
            _delete_incidents(connection, before)
        if record.keep_bodies is None:
            return False
        return self._bodies(desk, iso(max(0.0, at - record.keep_bodies)), _AT_ONCE)

    def _too_many(self, desk: Desk) -> bool:
        if not self._excess:
            return False
        before = self.bodies
        more = self._bodies(desk, _NEVER, min(_AT_ONCE, self._excess))
        self._excess = self._excess - (self.bodies - before) if more else 0
        self._exhausted = not more
        return more

    def _bodies(self, desk: Desk, before: str, most: int) -> bool:
        """The oldest; is there more to look at?"""
        found = desk.connection.execute(_OLDEST, (*self._place, before, _WINDOW)).fetchall()
        numbers: list[int] = []
        place = self._place
        for started_at, number, kept in found:
            if kept and len(numbers) == most:
                break
            place = (started_at, number)
            if kept:
                numbers.append(number)
        if numbers:
            _delete(desk, numbers, rows=False)
            self.bodies += len(numbers)
        self._place = place
        return bool(numbers) or len(found) == _WINDOW


def _about_bodies(connection: Connection) -> int:
    """They are numbered in order; to count them takes a look at each."""
    first = "SELECT min(number) FROM bodies"
    last = "SELECT max(number) FROM bodies"
    sql = f"SELECT coalesce(({last}) - ({first}) + 1, 0)"
    return int(connection.execute(sql).fetchone()[0])


def _delete(desk: Desk, numbers: Sequence[int], rows: bool) -> None:
    connection, slices = desk.connection, desk.ingest.slices
    try:
        with transaction(connection):
            tasks = _tasks_of(connection, numbers)
            if rows:
                files = remove_rows(connection, slices, numbers)
            else:
                files = remove_bodies(connection, slices, numbers)
                _remove_answers(connection, numbers)
            _remove_prompts(connection, tasks)
    except BaseException:
        slices.forget()
        raise
    remove_files(desk.home.files, files)


def _tasks_of(connection: Connection, numbers: Sequence[int]) -> set[str]:
    found = (connection.execute(_TASK, (number,)).fetchone() for number in numbers)
    return {row[0] for row in found if row is not None and row[0] is not None}


def _remove_answers(connection: Connection, numbers: Sequence[int]) -> None:
    """What was answered in place of a body, or should have been, goes when the body does."""
    ids = [(identity,) for identity in ids_of(connection, numbers)]
    connection.executemany(_CORRECTIONS, ids)
    for candidate in candidates(connection, "observations"):
        connection.executemany(_ANSWERS, [(candidate, identity) for (identity,) in ids])


def _remove_prompts(connection: Connection, tasks: Iterable[str]) -> None:
    """A system prompt is a part of bodies: it goes with the last of them."""
    for task in tasks:
        if connection.execute(_KEEPS_BODY, (task,)).fetchone() is None:
            connection.execute("UPDATE tasks SET system_prompt = NULL WHERE id = ?", (task,))


def _delete_incidents(connection: Connection, before: str) -> None:
    with transaction(connection):
        connection.execute("DELETE FROM incidents WHERE at < ?", (before,))


def _shrink(connection: Connection) -> bool:
    if free_pages(connection) <= _SPARE_PAGES:
        return False
    shrink(connection, _SHRUNK_PAGES)
    return True
