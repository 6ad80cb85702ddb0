"""The spool's record format: what the proxy writes and the recorder reads.

A segment is a run of batches; a batch is what one write brought, some milliseconds of events:

    length   u32  bytes of the records that follow; 0: nothing yet
    checksum u32  the low half of XXH3-64 over them, never 0; 0: read and wiped, to be skipped

and a record is one *event* of an exchange:

    length   u32  bytes of the payload
    kind     u8   one of `Kind`
    exchange 16 B the exchange's UUIDv7
    at       f64  seconds of CLOCK_MONOTONIC, the same clock in every process of a machine
    payload  `length` bytes

all little-endian. Payloads of OPENED, ROUTED, RESPONSE_HEAD and CLOSED are JSON objects, described
by the TypedDicts below; the body kinds hold raw bytes as they went over the wire (after removal of
chunked framing, before any decoding of Content-Encoding). After a response head of status 101 they
hold the raw bytes of the other protocol, by direction.

A record of a kind that the reader does not know is skipped, and counted.
A reader stops at the first batch that is short or fails its checksum: in the segment being written
that is the end for now, in a segment of a dead run it is a torn tail. The checksum is one for a
batch and not for a record because the batch is what a crash tears, and because the writer's thread
then computes it: the relay's loop only packs 29 bytes for an event.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, NotRequired, TypedDict

import xxhash

from policies.privacy import Mode

BATCH: Final = struct.Struct("<II")
RECORD: Final = struct.Struct("<IB16sd")
SEGMENT_SUFFIX: Final = ".seg"
WIPED: Final = 0  # as a checksum
WIPED_SUFFIX: Final = ".wiped"  # read, all zeros, to be written over
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
    SOCKET = 7  # never in a spool: what the recorder keeps of a socket instead of its first bytes


class Opened(TypedDict):
    """`seq` counts requests of this run from 1: a gap says how many left no record.

    Without a `mode` it is `full`; of the mode `off` there is no record at all.
    """

    seq: NotRequired[int]  # not where it is `imported`
    at: float  # seconds since the epoch
    method: str
    target: str  # path and query; query values outside an allow-list are hashed
    headers: list[tuple[str, str]]  # values outside an allow-list are hashed ("hash:…")
    key: str | None  # keyed hash over the credentials, None when there were none
    mode: NotRequired[Mode]
    host: NotRequired[str]  # whom a client of the forward proxy called
    imported: NotRequired[bool]  # out of a file: times of its events mean nothing


class Routed(TypedDict):
    """Written only when a divert was decided (`to` = candidate) or given up (`to` = upstream)."""

    to: str
    why: str


class ResponseHead(TypedDict):
    status: int
    headers: list[tuple[str, str]]


class Closed(TypedDict):
    """`cut` names the bodies of which not every byte was spooled, with the reason.

    In the mode `metadata` no body is, and `cut` says nothing of it; `task_id` and `request_hash`
    (see `fingerprint`) are then here, if the request was a chat in plain JSON of some size.
    """

    outcome: Outcome
    error: str | None
    request_bytes: int
    response_bytes: int
    cut: dict[str, str]  # "request" | "response" -> "limit" | "dropped" | "high_water" | "low_disk"
    task_id: NotRequired[str]
    request_hash: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Event:
    kind: Kind
    exchange: bytes
    at: float
    payload: bytes


def seal(records: bytes) -> bytes:
    """What goes before the records of a batch."""
    return BATCH.pack(len(records), _checksum(records))


def _checksum(records: bytes | memoryview) -> int:
    """7 KB take 0.2 µs, where CRC-32 takes 2 µs."""
    return xxhash.xxh3_64_intdigest(records) & 0xFFFFFFFF or 1


def pack(kind: int, exchange: bytes, at: float, payload: bytes) -> bytes:
    """A batch of one record."""
    record = RECORD.pack(len(payload), kind, exchange, at) + payload
    return seal(record) + record


@dataclass(frozen=True, slots=True)
class Batch:
    """`unknown`: records of a kind we don't know. `end`: the offset that follows the batch."""

    events: list[Event]
    unknown: int
    end: int


def unpack(data: bytes, offset: int = 0) -> Iterator[Batch]:
    """Whole, sound batches of `data` from `offset` on."""
    size = len(data)
    while offset + BATCH.size <= size:
        length, checksum = BATCH.unpack_from(data, offset)
        start = offset + BATCH.size
        offset = start + length
        if offset > size or length == 0:
            return
        if checksum == WIPED:
            yield Batch([], 0, offset)
            continue
        if _checksum(memoryview(data)[start:offset]) != checksum:
            return
        yield _records(data, start, offset)


def _records(data: bytes, start: int, end: int) -> Batch:
    events = []
    unknown = 0
    while start < end:
        length, kind, exchange, at = RECORD.unpack_from(data, start)
        start += RECORD.size
        try:
            events.append(Event(Kind(kind), exchange, at, data[start : start + length]))
        except ValueError:
            unknown += 1
        start += length
    return Batch(events, unknown, end)
