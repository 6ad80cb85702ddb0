"""The events of a piece, put in order: by exchange, and with the crumbs of a body in one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from policies.spool import Event, Kind

BODY_KINDS: Final = (Kind.REQUEST_BODY, Kind.RESPONSE_BODY)
CONTENT_KINDS: Final = (*BODY_KINDS, Kind.SOCKET)  # all that holds what was said


def grouped(events: Iterable[Event]) -> list[list[Event]]:
    """By exchange. An ending ends its group: a file to import may hold a record twice."""
    groups: list[list[Event]] = []
    current: dict[bytes, list[Event]] = {}
    for event in events:
        group = current.get(event.exchange)
        if group is None:
            group = current[event.exchange] = []
            groups.append(group)
        group.append(event)
        if event.kind is Kind.CLOSED:
            del current[event.exchange]
    return groups


def merged(events: list[Event]) -> list[Event]:
    """The same events, with bodies that follow each other joined: a stream comes in crumbs."""
    joined: list[Event] = []
    pieces: list[bytes] = []
    for event in events:
        if pieces and event.kind is joined[-1].kind:
            pieces.append(event.payload)
            continue
        _join_last(joined, pieces)
        joined.append(event)
        pieces = [event.payload] if event.kind in BODY_KINDS else []
    _join_last(joined, pieces)
    return joined


def _join_last(merged: list[Event], pieces: list[bytes]) -> None:
    if len(pieces) > 1:
        last = merged[-1]
        merged[-1] = Event(last.kind, last.exchange, last.at, b"".join(pieces))
