"""Ids of exchanges."""

from __future__ import annotations

import os
import struct
import time
from typing import Final


class Ids:
    """UUIDv7 (RFC 9562 section 5.7): milliseconds, a counter, random bits drawn once per run."""

    _pack: Final = struct.Struct(">QQ").pack

    def __init__(self) -> None:
        # Variant 0b10 and 34 random bits of this run.
        self._base = 0b10 << 62 | int.from_bytes(os.urandom(8), "big") >> 30
        self._count = 0

    def next(self) -> bytes:
        count = self._count = self._count + 1 & 0xFFFFFFFFFF
        # The counter: 12 bits behind the version (7), 28 behind the variant.
        high = time.time_ns() // 1_000_000 << 16 | 0x7000 | count >> 28
        return self._pack(high, self._base | (count & 0xFFFFFFF) << 34)
