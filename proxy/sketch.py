"""What remains of a request whose body is not kept: the hashes that say which task it is of.

The loop gathers the body and no more; the writer's thread reads it.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from policies import fingerprint
from policies.endpoints import CHAT

MOST_BYTES: Final = 256 * 1024  # of a request's body; of a larger one nothing is said


class Sketch:
    """Of one request. `size`: bytes that wait in it until they are handed over."""

    __slots__ = ("_pieces", "_said", "size")

    def __init__(self) -> None:
        self.size = 0
        self._pieces: list[bytes] = []
        self._said: dict[str, str] = {}

    def add(self, data: bytes) -> None:
        self._pieces.append(data)
        self.size += len(data)

    def hand_over(self) -> int:
        """To who reads it: bytes that the gatherer holds no more."""
        size, self.size = self.size, 0
        return size

    def read(self) -> dict[str, str]:
        """The hashes, by name; none of what is no whole chat. The body goes at the first call.

        Not on the loop: for the largest body it takes milliseconds.
        """
        pieces, self._pieces = self._pieces, []
        if pieces:
            self._said = _hashes(b"".join(pieces))
        return self._said


def _hashes(body: bytes) -> dict[str, str]:
    try:
        asked: Any = orjson.loads(body)
        if not isinstance(asked, dict):
            return {}
        return {
            "task_id": fingerprint.task_id(CHAT.name, asked),
            "request_hash": fingerprint.request_hash(asked),
        }
    except Exception:  # nested too deep, say: whatever an app sends, its ending is written
        return {}
