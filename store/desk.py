"""What an order works with: the writing connection and what knows its state, in its one thread."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from policies.home import Home
from store.database import Connection
from store.ingest import Ingest
from store.recording import Recording

Json = dict[str, Any]
# An order is carried out in short steps, each a transaction of its own: what is yielded says how
# far it is, and between two steps the spool is read. It returns what came of it.
Steps = Generator[Json, None, Json]


@dataclass(slots=True)
class Desk:
    """`read_up`: record the next piece of the spool; is there more? `indexing`: may the search
    index grow meanwhile?"""

    connection: Connection
    ingest: Ingest
    recording: Recording
    home: Home
    read_up: Callable[[], bool]
    indexing: bool = True
