"""Whose traffic an order means, and how the record may name them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from policies.identity import LONGEST
from store.database import Connection
from store.desk import Desk, Json
from store.feedback import find
from store.writes import OrderError

_LEAST_NAME: Final = 3  # characters; a shorter one is a part of any word


@dataclass(frozen=True, slots=True)
class Forget:
    """Whose: all of a tenant's, all of a user's, or one exchange. `dry`: only count them."""

    by: Literal["tenant", "user", "id"]
    value: str
    dry: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """`names`: as the record may hold the name, in clear and hashed; `number`: of one exchange."""

    by: str
    names: tuple[str, ...]
    number: int | None
    identity: str | None

    @classmethod
    def of(cls, desk: Desk, order: Forget) -> Target:
        value = order.value.strip()[:LONGEST]
        if not value:
            raise OrderError(f"--{order.by}: {order.value!r}: is empty")
        if order.by == "id":
            number, identity = find(desk.connection, value)
            return cls("id", (), number, identity)
        return cls(order.by, (value, desk.recording.hashed(value)), None, None)

    def numbers(self, connection: Connection, low: int, high: int, most: int) -> list[int]:
        """Of the next exchanges in a window, the oldest first. A forgotten one has no name."""
        if self.number is not None:
            return [self.number] if low < self.number <= high else []
        found = connection.execute(
            f"SELECT number FROM exchanges WHERE number > ? AND number <= ? AND +{self.by} "
            "IN (?, ?) ORDER BY number LIMIT ?",
            (low, high, *self.names, most),
        )
        return [row[0] for row in found]

    def meets(self, row: Json) -> bool:
        return row["id"] == self.identity if self.by == "id" else row[self.by] in self.names

    def said_in(self, text: str) -> bool:
        """Is it the name, or does it hold it as a word of its own?"""
        return text in self.names or any(
            len(name) >= _LEAST_NAME
            and re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", text, re.IGNORECASE)
            for name in self.names
        )
