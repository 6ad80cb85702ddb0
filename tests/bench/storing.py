"""The sections that ask what the recorder costs, how large the record is, and whether it stays so.

In this process, without a proxy: batches as a busy spool gives them go straight into a database.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from bin.child import collect_rarely
from policies.policy import build
from policies.privacy import RECOGNISERS
from store import queries, schema, search
from store.canned import CANNED
from store.database import Connection, reading
from store.hits import find, quoted
from store.ingest import Ingest
from store.overview import overview
from store.recording import Recording
from store.spool_reader import Piece, Position
from tests.bench.exchanges import Made, Maker
from tests.bench.figures import Row, single
from tests.bench.sections import Bench

_KEY: Final = bytes(32)
_BATCH: Final = 500
_SINGLES: Final = 12_000
_CHATS: Final = 10_000  # calls
_WITHOUT_MODEL: Final = [name for name in RECOGNISERS if name != "person"]
_LAST: Final = 10_000
_QUERY_ROUNDS: Final = 3


@dataclass
class Store:
    """A database and what writes to it. `seconds` of CPU, for `calls` of `raw` bytes."""

    folder: Path
    policy: dict[str, Any]
    calls: int = 0
    raw: int = 0
    seconds: float = 0.0
    indexed: int = 0

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.database = self.folder / "understudy.db"
        self.connection: Connection = schema.prepare(self.database)
        recording = Recording.of(build(self.policy), _KEY)
        self.ingest = Ingest(self.connection, recording, self.folder / "files")

    def take(self, made: list[Made]) -> float:
        """CPU seconds for these."""
        events = [event for one in made for event in one.events]
        piece = Piece(events, Position(1, self.calls + 1))
        began = time.process_time()
        self.ingest.apply("run", 1.0, piece)
        used = time.process_time() - began
        self.calls += len(made)
        self.raw += sum(one.raw for one in made)
        self.seconds += used
        return used

    def size(self) -> int:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self.database.stat().st_size

    def index(self) -> float:
        """CPU seconds for the search index."""
        began = time.process_time()
        while search.fill(self.connection):
            pass
        self.indexed = self.calls
        return time.process_time() - began

    def close(self) -> None:
        self.connection.close()


def _batches(made: Iterator[Made], calls: int) -> Iterator[list[Made]]:
    for start in range(0, calls, _BATCH):
        yield list(itertools.islice(made, min(_BATCH, calls - start)))


def store(bench: Bench) -> list[Row]:
    """CPU of the recorder and size of the record."""
    collect_rarely()  # as in its process
    everything = {"privacy": {"mode": "redacted", "recognisers": _WITHOUT_MODEL}}
    return [
        *_recorded(bench, "single turns", {}, Maker().single(), _SINGLES),
        *_recorded(
            bench, "single turns, all recognisers", everything, Maker("redacted").single(), _SINGLES
        ),
        *_recorded(bench, "chats of 20 turns", {}, Maker().chat(), _CHATS),
    ]


def _recorded(
    bench: Bench, what: str, policy: dict[str, Any], made: Iterator[Made], calls: int
) -> list[Row]:
    bench.progress(f"{what}: {calls:,} calls")
    made_up = Store(bench.folder / what.replace(" ", "-").replace(",", ""), policy)
    batches = _batches(made, calls)
    made_up.take(next(batches))  # what is loaded at the first use is not of a pair
    made_up.seconds, warm = 0.0, made_up.calls
    for batch in batches:
        made_up.take(batch)
    per = made_up.seconds / (made_up.calls - warm)
    share = made_up.size() / made_up.raw
    indexed = made_up.index() / made_up.calls
    made_up.close()
    label = f"store: {what}"
    return [
        single(label, "pairs a CPU-second", "recorder", 1 / per),
        single(label, "CPU µs a pair", "recorder", per * 1e6),
        single(label, "size of the raw JSON %", "database", share * 100, "without search"),
        single(label, "indexing µs a pair", "search", indexed * 1e6),
    ]


# -- growth


def growth(bench: Bench) -> list[Row]:
    """Ten times as much, twice: what ingestion and the shipped questions take."""
    collect_rarely()  # as in its process
    found: list[Row] = []
    grown = Store(bench.folder / "growth", {})
    made = Maker().chat(4)
    grown.take(next(_batches(made, _BATCH)))  # what is loaded at the first use is not of a pair
    total = int(bench.growth)
    for level in (total // 100, total // 10, total):
        bench.progress(f"growth: up to {level:,} exchanges")
        last = _grow(grown, made, level)
        what = f"growth: {level:,}"
        before = grown.indexed
        indexing = grown.index() / (grown.indexed - before)
        found.append(single(what, "CPU µs a pair", "recorder", last * 1e6))
        found.append(single(what, "indexing µs a pair", "search", indexing * 1e6))
        found.append(single(what, "MB", "database", grown.size() / 1e6, "with search"))
        found += [
            single(what, "ms", name, milliseconds)
            for name, milliseconds in _questions(grown.database)
        ]
    grown.close()
    return found


def _grow(grown: Store, made: Iterator[Made], level: int) -> float:
    """CPU seconds a pair, of the last ten thousand: fewer would miss what checkpoints take."""
    used, calls = 0.0, 0
    for batch in _batches(made, level - grown.calls):
        seconds = grown.take(batch)
        if grown.calls > level - _LAST:
            used, calls = used + seconds, calls + len(batch)
    return used / calls


def _questions(database: Path) -> Iterator[tuple[str, float]]:
    asked: dict[str, Callable[[], object]] = {
        "counts": lambda: queries.counts(database),
        "newest": lambda: queries.newest(database),
        "tasks": lambda: queries.tasks(database),
        "runs": lambda: queries.runs(database),
        "incidents": lambda: queries.incidents(database),
        "rollouts": lambda: queries.rollouts(database),
    }
    for name, ask in asked.items():
        yield name, _milliseconds(ask)
    for name, ask in shipped(database):
        yield name, _milliseconds(ask)


def shipped(database: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    """The canned questions, over all days, and what `status` and `search` ask."""
    said = {"days": "100000", "task": "", "words": "late", "conversation": _chat(database)}
    for one in CANNED:
        yield f"canned: {one.name}", lambda sql=one.sql: _run(database, sql, said)  # type: ignore[misc]
    yield "overview", lambda: overview(database, "2000-01-01")
    yield "search, every call", lambda: find(database, quoted("late"), 10)
    yield "search, none", lambda: find(database, quoted("unheard"), 10)


def _chat(database: Path) -> str:
    sql = "SELECT conversation FROM exchanges WHERE conversation IS NOT NULL LIMIT 1"
    return next((str(row[0]) for row in _run(database, sql, {})), "")


def _run(database: Path, sql: str, said: dict[str, str]) -> list[Any]:
    with reading(database) as connection:
        return connection.execute(sql, said).fetchall()


def _milliseconds(ask: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(_QUERY_ROUNDS):
        began = time.perf_counter()
        ask()
        best = min(best, time.perf_counter() - began)
    return best * 1000
