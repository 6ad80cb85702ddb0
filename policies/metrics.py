"""What a proxy worker counts: the names, where the values lie in its slot, and how they are shown.

A slot is a file `metrics-<worker>` in the runtime folder. It holds two copies, written in turn, so
that one is whole even if the worker is killed in the middle of a write. A copy is

    checksum   u32  CRC-32 of everything after this field, begun with the names in `TABLE`
    generation u64  the newer copy has the higher one
    at         f64  seconds of CLOCK_MONOTONIC when it was written; 0 when the worker has stopped
    values     i64  one for each metric of `TABLE`

all little-endian. A worker that starts again counts on from what it finds: sums never go down.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

PREFIX: Final = "metrics-"
CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_UP_SECONDS: Final = 2.0  # a slot is written four times a second

Kind = Literal["counter", "gauge"]
# Of a gauge: one value for each worker, or one that they all see alike.
Scope = Literal["workers", "sidecar"]


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    help: str
    scope: Scope = "workers"

    @property
    def shown_name(self) -> str:
        return f"understudy_{self.name}" + ("_total" if self.kind == "counter" else "")


TABLE: Final = (
    Metric("requests", "counter", "Requests whose head was read."),
    Metric("refused", "counter", "Requests and connections answered by an error of the sidecar."),
    Metric("overloaded", "counter", "Of the refused, those at a bound of the policy's limits."),
    Metric("diverted", "counter", "Requests given to a candidate."),
    Metric("fallbacks", "counter", "Diverted requests that went upstream after all."),
    Metric("undecided", "counter", "Requests relayed because the decision to divert failed."),
    Metric("client_aborts", "counter", "Exchanges whose client left before the answer's end."),
    Metric("upstream_opened", "counter", "Calls that opened a connection to an upstream."),
    Metric("upstream_reused", "counter", "Calls on a connection that was already open."),
    Metric("intercepted", "counter", "Connections to intercepted hosts."),
    Metric("tunnelled", "counter", "Connections to other hosts, passed unseen."),
    Metric("tls_refused", "counter", "TLS handshakes that clients of intercepted hosts broke off."),
    Metric("trailers_dropped", "counter", "Trailer fields that were not passed on."),
    Metric("inject_failed", "counter", "Faults in asking for usage or taking it out of streams."),
    Metric("exchanges", "counter", "Exchanges given to the spool."),
    Metric("not_recorded", "counter", "Exchanges of which nothing may be kept."),
    Metric("bodies_cut", "counter", "Bodies not recorded whole."),
    Metric("records_dropped", "counter", "Heads and endings that could not be recorded."),
    Metric("write_errors", "counter", "Batches that the spool's disk did not take."),
    Metric("clients", "gauge", "Open client connections."),
    Metric("in_flight", "gauge", "Requests without a whole answer yet."),
    Metric("breakers_open", "gauge", "Candidates that this worker has stopped asking."),
    Metric("resident_memory_bytes", "gauge", "Memory that the worker holds."),
    Metric("open_fds", "gauge", "Open file descriptors."),
    Metric("spool_bytes", "gauge", "Bytes of the spool on disk.", "sidecar"),
    Metric(
        "wal_bytes", "gauge", "Bytes of the database's journal; long reads swell it.", "sidecar"
    ),
)
_UP: Final = Metric("worker_up", "gauge", "1 while the worker's loop turns.")
COUNTERS: Final = tuple(metric.name for metric in TABLE if metric.kind == "counter")
_LAYOUT: Final = zlib.crc32(" ".join(metric.name for metric in TABLE).encode())
_CHECKSUM: Final = struct.Struct("<I")
_FIELDS: Final = struct.Struct(f"<Qd{len(TABLE)}q")
COPY_BYTES: Final = _CHECKSUM.size + _FIELDS.size


@dataclass(frozen=True, slots=True)
class Copy:
    """One writing of a slot. `values` are those of `TABLE`, by name."""

    generation: int
    at: float
    values: Mapping[str, int]

    @property
    def offset(self) -> int:
        """Where in the slot it is written."""
        return self.generation % 2 * COPY_BYTES


@dataclass(frozen=True, slots=True)
class Sample:
    """What a worker's slot says. One that is not `up` counts still, but its gauges are history."""

    worker: int
    up: bool
    values: Mapping[str, int]


def pack(copy: Copy) -> bytes:
    values = (copy.values.get(metric.name, 0) for metric in TABLE)
    fields = _FIELDS.pack(copy.generation, copy.at, *values)
    return _CHECKSUM.pack(zlib.crc32(fields, _LAYOUT)) + fields


def newest(slot: bytes) -> Copy | None:
    """The newer whole copy; None when there is none, or another version of ours wrote it."""
    found = [_copy(slot[at : at + COPY_BYTES]) for at in (0, COPY_BYTES)]
    return max((one for one in found if one), key=lambda one: one.generation, default=None)


def _copy(data: bytes) -> Copy | None:
    if len(data) < COPY_BYTES:
        return None
    fields = data[_CHECKSUM.size :]
    if zlib.crc32(fields, _LAYOUT) != _CHECKSUM.unpack_from(data)[0]:
        return None
    generation, at, *values = _FIELDS.unpack(fields)
    names = (metric.name for metric in TABLE)
    return Copy(generation, at, dict(zip(names, values, strict=True)))


def samples(slots: Mapping[str, bytes], now: float) -> list[Sample]:
    """What the slots say, by their file names, at this CLOCK_MONOTONIC time; by worker."""
    found = []
    for name, slot in slots.items():
        worker, copy = name.removeprefix(PREFIX), newest(slot)
        if copy is not None and worker.isdecimal():
            up = 0 <= now - copy.at < _UP_SECONDS
            found.append(Sample(int(worker), up, copy.values))
    return sorted(found, key=lambda sample: sample.worker)


def total(found: Sequence[Sample], name: str) -> int:
    return sum(sample.values[name] for sample in found)


def render(found: Sequence[Sample]) -> bytes:
    """Prometheus' text format 0.0.4: counters as sums over all workers, gauges for each."""
    lines = []
    for metric in (_UP, *TABLE):
        lines.append(f"# HELP {metric.shown_name} {metric.help}")
        lines.append(f"# TYPE {metric.shown_name} {metric.kind}")
        lines += _values(metric, found)
    return ("\n".join(lines) + "\n").encode()


def _values(metric: Metric, found: Sequence[Sample]) -> Iterator[str]:
    up = [sample for sample in found if sample.up]
    if metric.kind == "counter":
        yield f"{metric.shown_name} {total(found, metric.name)}"
    elif metric.scope == "sidecar":
        yield f"{metric.shown_name} {max((s.values[metric.name] for s in up), default=0)}"
    else:
        shown = found if metric is _UP else up
        for one in shown:
            value = int(one.up) if metric is _UP else one.values[metric.name]
            yield f'{metric.shown_name}{{worker="{one.worker}"}} {value}'
