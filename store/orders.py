"""What a command has the recorder do, as the one that writes: typed, over its socket and without.

A line {"order": {...}} is answered with lines {"progress": {...}} and a last one, {"ok": true,
"result": {...}} or {"ok": false, "error": "..."}. Where no sidecar runs, a command that holds the
home folder's lock carries its order out itself, the same way.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import orjson

from policies.words import UnknownExchange
from store.desk import Desk, Json, Steps
from store.forget import forget
from store.retention import Retain, retain
from store.target import Forget
from store.writes import OrderError, raise_refusal

Order = Forget | Retain
Report = Callable[[Json], None]

_TYPES: Final[dict[str, type[Order]]] = {"forget": Forget, "retain": Retain}
_NAMES: Final = {type_: name for name, type_ in _TYPES.items()}
_BY: Final = ("tenant", "user", "id")
_SILENCE_SECONDS: Final = 3600.0  # a large database is written anew in one step


def dump(order: Order) -> bytes:
    return orjson.dumps({"order": {"type": _NAMES[type(order)], **asdict(order)}}) + b"\n"


def load(line: bytes) -> Order | None:
    """None: a line of something else. Raises ValueError for an order that is none."""
    said = orjson.loads(line)
    if not isinstance(said, dict) or "order" not in said:
        return None
    found = said["order"]
    type_ = _TYPES.get(str(found.get("type"))) if isinstance(found, dict) else None
    if type_ is None:
        raise ValueError(f"an order's type must be one of {', '.join(_TYPES)}")
    try:
        order = type_(**{name: value for name, value in found.items() if name != "type"})
    except TypeError as error:
        raise ValueError(str(error)) from None
    if isinstance(order, Forget) and not (order.by in _BY and isinstance(order.value, str)):
        raise ValueError(f"by and value must be one of {', '.join(_BY)}, and a text")
    return order


def perform(desk: Desk, order: Order) -> Steps:
    """Raises OrderError, and what the database raises."""
    if isinstance(order, Forget):
        try:
            return (yield from forget(desk, order))
        except UnknownExchange as error:
            raise OrderError(str(error)) from None
    return (yield from retain(desk, order))


def finish(steps: Steps, report: Report) -> Json:
    """All steps in a row."""
    while True:
        try:
            report(next(steps))
        except StopIteration as done:
            result: Json = done.value
            return result


def ask(recorder: Path, line: bytes, report: Report) -> Json:
    """Send a line to the running recorder, wait for its result. Raises OrderError, and what a
    refused write raises."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as connection:
        connection.settimeout(_SILENCE_SECONDS)
        try:
            connection.connect(str(recorder))
            connection.sendall(line)
            said = _last_line(connection, report)
        except (OSError, orjson.JSONDecodeError) as error:
            raise OrderError(f"the recorder is away ({error}); give the command again") from None
    return _result(said)


def _last_line(connection: socket.socket, report: Report) -> Json:
    with connection.makefile("rb") as answers:
        for answer in answers:
            said: Json = orjson.loads(answer)
            if "progress" not in said:
                return said
            report(said["progress"])
    raise ConnectionError("it ended in the middle")


def _result(said: Json) -> Json:
    if said.get("ok"):
        return dict(said.get("result") or {})
    raise_refusal(said)
    raise OrderError(f"{said.get('error')}")
