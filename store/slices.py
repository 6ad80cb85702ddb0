"""Pieces of bodies, each stored once, and the chains that they form.

A *slice* is a piece of text, found again by a hash with the install's key. A *prefix* is a slice
behind another prefix: where a chat's turns share their history, they share the prefixes, and a chat
of twenty turns is one tree, but for the first of them. A body names the last prefix of each of its
chains (`parts`).

Of what is no talk yet, a piece that comes for the first time stays where it is: most of what single
turns say nobody says again, and a slice takes more room and more time.

`uses` of a prefix counts the bodies that end a chain with it and the prefixes behind it. At zero it
goes, and its slice with the last prefix that has it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from functools import lru_cache
from typing import Any, Final

import orjson

from store.cutting import Chain, Parts
from store.database import Connection

Digests = list[list[bytes]]  # by chain, by piece

_HASH_BYTES: Final = 16
_MOST_KNOWN: Final = 20_000
_ROOT: Final = 0  # before the first prefix of a chain

_FIND_SLICE: Final = "SELECT id FROM slices WHERE hash = ?"
_FIND_PREFIX: Final = "SELECT id FROM prefixes WHERE slice = ? AND parent = ?"
_ADD_SLICE: Final = "INSERT INTO slices (hash, text) VALUES (?, ?)"
_ADD_PREFIX: Final = "INSERT INTO prefixes (parent, slice) VALUES (?, ?)"
_COUNT: Final = "UPDATE prefixes SET uses = uses + ? WHERE id = ?"
_RELEASE: Final = "UPDATE prefixes SET uses = uses - 1 WHERE id = ? RETURNING uses, parent, slice"
_FORGET_SLICE: Final = """
    DELETE FROM slices WHERE id = ?1 AND NOT EXISTS (SELECT 1 FROM prefixes WHERE slice = ?1)"""


def digests_of(parts: Parts, key: bytes) -> Digests:
    return [
        [digest(piece.encode(), key) for piece in part.pieces]
        for part in parts
        if isinstance(part, Chain)
    ]


def conversation_of(parts: Parts, digests: Digests, key: bytes) -> str | None:
    """A name for the conversation, the same for all its turns: of what comes up to the first
    message of a user. None where there is no such message."""
    chains = (part for part in parts if isinstance(part, Chain))
    name = None
    for chain, found in zip(chains, digests, strict=True):
        if chain.user is not None:
            name = digest(b"".join(found[: chain.user + 1]), key).hex()[:16]
    return name


def digest(data: bytes, key: bytes) -> bytes:
    """With SHA-256, which processors have built in; of a half of it nothing longer can be made."""
    made = _keyed(key).copy()
    made.update(data)
    return made.digest()[:_HASH_BYTES]


@lru_cache(maxsize=8)
def _keyed(key: bytes) -> hashlib._Hash:
    return hashlib.sha256(key)


class Slices:
    """The writing connection's side. What it knows holds for the open transaction: after a
    rollback, `forget`; before a commit, `settle`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[int, bytes], int] = {}
        self._seen: dict[bytes, None] = {}  # left where they were
        self._uses: Counter[int] = Counter()

    def forget(self) -> None:
        self._known.clear()
        self._seen.clear()
        self._uses.clear()

    def settle(self) -> None:
        """Write the counts that have gathered."""
        if self._uses:
            counted = [(count, prefix) for prefix, count in self._uses.items()]
            self._connection.executemany(_COUNT, counted)
            self._uses.clear()
        _shrink(self._known)
        _shrink(self._seen)

    def keep(self, parts: Parts, digests: Digests) -> str | None:
        """As JSON: texts, and numbers of prefixes. None: nothing of it is shared."""
        named: list[str | int] = []
        chains = iter(digests)
        for part in parts:
            if isinstance(part, str):
                named.append(part)
                continue
            last, new = self._chain(part, next(chains))
            if last != _ROOT:
                self._uses[last] += 1
                named.append(last)
            if rest := "".join(part.pieces[new:]):  # as one: each part takes a reader a step
                named.append(rest)
        return orjson.dumps(named).decode() if any(type(one) is int for one in named) else None

    def _chain(self, chain: Chain, digests: list[bytes]) -> tuple[int, int]:
        """The prefix that ends with its last piece, or the last one that is worth it, and the
        number of pieces that are in it."""
        parent, known, seen = _ROOT, self._known, self._seen
        for number, (piece, digest) in enumerate(zip(chain.pieces, digests, strict=True)):
            found = known.get((parent, digest))
            if found is None:
                if not (chain.grows or digest in seen):
                    seen.update(dict.fromkeys(digests[number:]))
                    return parent, number
                found = known[parent, digest] = self._prefix(parent, digest, piece)
            parent = found
        return parent, len(digests)

    def _prefix(self, parent: int, digest: bytes, piece: str) -> int:
        execute = self._connection.execute
        row = execute(_FIND_SLICE, (digest,)).fetchone()
        if row is None:
            slice_ = execute(_ADD_SLICE, (digest, piece)).lastrowid
        else:
            slice_ = row[0]
            row = execute(_FIND_PREFIX, (slice_, parent)).fetchone()
        if row is not None:
            return int(row[0])
        if parent != _ROOT:
            self._uses[parent] += 1
        return int(execute(_ADD_PREFIX, (parent, slice_)).lastrowid or 0)

    def release(self, parts: str | None) -> None:
        """A body is gone: what nobody else uses goes with it. Only when all is settled."""
        for part in orjson.loads(parts) if parts else ():
            if isinstance(part, int):
                self._release(part)
        self._known.clear()

    def _release(self, prefix: int) -> None:
        execute = self._connection.execute
        while prefix != _ROOT:
            row: Any = execute(_RELEASE, (prefix,)).fetchone()
            if row is None or row[0] > 0:
                return
            execute("DELETE FROM prefixes WHERE id = ?", (prefix,))
            execute(_FORGET_SLICE, (row[2],))
            prefix = row[1]


def _shrink(remembered: dict[Any, Any]) -> None:
    """By its older half, where it holds too much."""
    if len(remembered) > _MOST_KNOWN:
        for key in list(remembered)[: _MOST_KNOWN // 2]:
            del remembered[key]
