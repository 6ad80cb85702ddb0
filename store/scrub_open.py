"""Forgotten exchanges that are not over yet: they go on without a name, and are kept as under
`metadata`, their counts and no text."""

from __future__ import annotations

from typing import Final

from policies.spool import Event, Kind
from store.database import Connection, transaction
from store.desk import Desk
from store.rows import build
from store.steps import whole
from store.target import Target
from store.values import dumped, headers_of, json_object

# Of a head, these say how to read its body, and nothing of anyone.
_PLAIN_HEADERS: Final = ("content-type", "content-encoding")
_STAGED: Final = "SELECT kind, at, payload FROM staged WHERE exchange = ? ORDER BY number"


def scrub_open(desk: Desk, target: Target) -> int:
    """How many there were."""
    connection = desk.connection
    found = connection.execute("SELECT DISTINCT exchange, run FROM staged").fetchall()
    changed = 0
    with transaction(connection):
        for exchange, run in found:
            events = [
                Event(Kind(kind), bytes(exchange), at, bytes(payload))
                for kind, at, payload in connection.execute(_STAGED, (exchange,))
            ]
            if _is_meant(desk, target, run, bytes(exchange), events):
                _strip_open(connection, bytes(exchange), run, events)
                changed += 1
    if changed:
        desk.ingest.reload()
    return changed


def _is_meant(desk: Desk, target: Target, run: str, exchange: bytes, events: list[Event]) -> bool:
    try:
        found = whole(build(run, exchange, events, desk.recording))
    except Exception:  # it can't be read: nor will it be, when it ends
        return False
    return any(target.meets(rows.exchange) for rows in found)


def _strip_open(connection: Connection, exchange: bytes, run: str, events: list[Event]) -> None:
    connection.execute("DELETE FROM staged WHERE exchange = ?", (exchange,))
    for event in events:
        payload = _stripped(event)
        if payload is not None:
            connection.execute(
                "INSERT INTO staged (run, exchange, kind, at, payload) VALUES (?, ?, ?, ?, ?)",
                (run, exchange, int(event.kind), event.at, payload),
            )


def _stripped(event: Event) -> bytes | None:
    if event.kind not in (Kind.OPENED, Kind.RESPONSE_HEAD):
        return None
    said = json_object(event.payload)
    if said is None:  # damaged: it says nothing that could be kept
        return None
    headers = headers_of(said) or {}
    said["headers"] = [[name, headers[name]] for name in _PLAIN_HEADERS if name in headers]
    if event.kind is Kind.OPENED:
        target = str(said.get("target", "")).partition("?")[0]
        said |= {"mode": "metadata", "key": None, "target": target}
    text = dumped(said)
    return None if text is None else text.encode(errors="replace")
