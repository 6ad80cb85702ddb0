"""The sidecar's record after a run, as its account needs it: read only, beside the recorder."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from store.database import is_ready, reading
from tests.bench.account import TOKEN_CHARACTERS, Counted, Recorded
from tests.bench.machine import cpu_seconds
from tests.bench.rigs import Rig

_POLL_SECONDS: Final = 0.25
_STILL_SECONDS: Final = 4.0  # no row for so long, and an idle recorder: nothing more will come
_IDLE: Final = 0.1  # of a core
_ATTEMPTS: Final = 500
_ROWS: Final = f"""
    SELECT substr(json_extract(p.request, '$.messages[1].content'), 1, {TOKEN_CHARACTERS}),
           e.outcome = 'ok' AND e.complete = 1 AND e.truncated = 0
               AND p.request IS NOT NULL AND p.response IS NOT NULL,
           e.truncated
    FROM exchanges AS e LEFT JOIN pairs AS p ON p.id = e.id"""


def database(rig: Rig) -> Path:
    assert rig.home is not None
    return rig.home / "understudy.db"


def _one(path: Path, query: str) -> tuple[Any, ...]:
    with reading(path) as connection:
        return tuple(connection.execute(query).fetchone())


def recorded(rig: Rig) -> int:
    """Exchanges in the record, by the recorder's own count."""
    path = database(rig)
    if not is_ready(path):
        return 0
    return int(_one(path, "SELECT coalesce(sum(recorded), 0) FROM runs")[0])


def level(rig: Rig, sent: int, longest: float) -> float:
    """Wait until the recorder has nothing left to do: seconds until its last row.

    Raises when that takes longer than `longest`.
    """
    began = changed = time.monotonic()
    cpu, count = cpu_seconds(rig.others), recorded(rig)
    while count < sent:
        time.sleep(_POLL_SECONDS)
        now, found, used = time.monotonic(), recorded(rig), cpu_seconds(rig.others)
        if found != count or used - cpu > _IDLE * (now - changed):
            changed, count, cpu = now, found, used
        elif now - changed > _STILL_SECONDS:
            break
        if now - began > longest:
            raise RuntimeError(f"the recorder has {found} of {sent} after {longest:g} s")
    return changed - began


def rows(rig: Rig) -> Iterator[Recorded]:
    with reading(database(rig)) as connection:
        for token, whole, cut in connection.execute(_ROWS):
            yield Recorded(token, bool(whole), bool(cut))


def counted(rig: Rig) -> Counted:
    """What the proxies say of themselves, and the recorder's sums over all runs."""
    captures = [health["capture"] for health in healths(rig)]
    path = database(rig)
    highest, rows_made = _one(
        path, "SELECT coalesce(sum(highest_seq), 0), coalesce(sum(recorded), 0) FROM runs"
    )
    (still_open,) = _one(path, "SELECT count(DISTINCT exchange) FROM staged")
    return Counted(
        exchanges=sum(capture["exchanges"] for capture in captures),
        bodies_cut=sum(capture["bodies_cut"] for capture in captures),
        records_dropped=sum(capture["records_dropped"] for capture in captures),
        highest_seq=highest,
        recorded=rows_made,
        open=still_open,
    )


def healths(rig: Rig) -> list[dict[str, Any]]:
    """Of every proxy process: which one answers a connection is chance."""
    found: dict[int, dict[str, Any]] = {}
    for _ in range(_ATTEMPTS):
        connection = http.client.HTTPConnection("127.0.0.1", rig.port, timeout=5)
        connection.request("GET", "/_understudy/health")
        health = json.loads(connection.getresponse().read())
        connection.close()
        found[health["pid"]] = health
        if found.keys() >= set(rig.pids):
            return list(found.values())
    raise RuntimeError(f"only {sorted(found)} of the proxies {rig.pids} answered for their health")


def bytes_kept(rig: Rig) -> tuple[int, int]:
    """Of the database on disk, and of the bodies as they went over the wire."""
    path = database(rig)
    (raw,) = _one(path, "SELECT coalesce(sum(request_bytes + response_bytes), 0) FROM exchanges")
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*")), raw
