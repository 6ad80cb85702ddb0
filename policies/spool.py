"""The spool's record format: what the proxy writes and the recorder reads.

A segment is a run of records; a record is one *event* of an exchange:

    length   u32  bytes of the payload
    checksum u32  XXH3 of everything after this field, see `_checksum`
    kind     u8   one of `Kind`
    exchange 16 B the exchange's UUIDv7
    at       f64  seconds of CLOCK_MONOTONIC, the same clock in every process of a machine
    payload  `length` bytes

all little-endian. Payloads of OPENED, ROUTED, RESPONSE_HEAD and CLOSED are JSON objects, described
by the TypedDicts below; the body kinds hold raw bytes as they went over the wire (after removal of
chunked framing, before any decoding of Content-Encoding).

A record of a kind that the reader does not know makes `unpack` raise ValueError: skip it.
A reader stops at the first record that is short or fails its checksum: in the segment being written
that is the end for now, in a segment of a dead run it is a torn tail.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, TypedDict

import xxhash

HEADER: Final = struct.Struct("<IIB16sd")
_UNCHECKED: Final = struct.Struct("<II")
_CHECKED: Final = struct.Struct("<B16sd")
_CHECKED_AT: Final = 8  # kind, exchange and time follow length and checksum
SEGMENT_SUFFIX: Final = ".seg"
ALIVE_FILE: Final = "alive"  # flocked by the writing proxy; free = that run is over

Outcome = Literal[
    "ok",
    "client_abort",
    "upstream_reset",
    "upstream_truncated",
    "upstream_unreachable",
    "timeout",
    "proxy_died",
    "refused",
]


class Kind(IntEnum):
    OPENED = 1
    ROUTED = 2
    REQUEST_BODY = 3
    RESPONSE_HEAD = 4
    RESPONSE_BODY = 5
    CLOSED = 6


class Opened(TypedDict):
    """`seq` counts requests of this run from 1: a gap says how many left no record."""

    seq: int
    at: float  # seconds since the epoch
    method: str
    target: str  # path and query; query values outside an allow-list are hashed
    headers: list[tuple[str, str]]  # values outside an allow-list are hashed ("hash:…")
    key: str | None  # keyed hash over the credentials, None when there were none


class Routed(TypedDict):
    """Written only when a divert was decided (`to` = candidate) or given up (`to` = upstream)."""

    to: str
    why: str


class ResponseHead(TypedDict):
    status: int
    headers: list[tuple[str, str]]


class Closed(TypedDict):
    """`cut` names the bodies of which not every byte was spooled, with the reason."""

    outcome: Outcome
    error: str | None
    request_bytes: int
    response_bytes: int
    cut: dict[str, str]  # "request" | "response" -> "limit" | "dropped" | "high_water"


@dataclass(frozen=True, slots=True)
class Event:
    kind: Kind
    exchange: bytes
    at: float
    payload: bytes


def header(kind: int, exchange: bytes, at: float, payload: bytes) -> bytes:
    """What goes before the payload. The hot path of capture."""
    checked = _CHECKED.pack(kind, exchange, at)
    return _UNCHECKED.pack(len(payload), _checksum(checked, payload)) + checked


def _checksum(checked: bytes, payload: bytes | memoryview) -> int:
    """The low 32 bits of XXH3-64 over the payload, seeded with that over kind, exchange and time.

    7 KB take 0.2 µs, where CRC-32 takes 2 µs: a tenth of what capture costs in all.
    """
    return xxhash.xxh3_64_intdigest(payload, xxhash.xxh3_64_intdigest(checked)) & 0xFFFFFFFF


def pack(kind: int, exchange: bytes, at: float, payload: bytes) -> bytes:
    """One whole record."""
    return header(kind, exchange, at, payload) + payload


def unpack(data: bytes, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Whole, sound records of `data` from `offset` on, each with the offset that follows it."""
    size = len(data)
    while offset + HEADER.size <= size:
        length, checksum, kind, exchange, at = HEADER.unpack_from(data, offset)
        start = offset + HEADER.size
        end = start + length
        if end > size:
            return
        payload = data[start:end]
        if _checksum(data[offset + _CHECKED_AT : start], payload) != checksum:
            return
        yield Event(Kind(kind), exchange, at, payload), end
        offset = end
