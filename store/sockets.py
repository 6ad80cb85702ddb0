"""What a WebSocket carried, as exchanges of their own: the turns of Responses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

import orjson

from policies.endpoints import RESPONSES_SOCKET
from policies.spool import Event, Kind
from store.deflate import Side
from store.recording import Recording
from store.story import Story, counted, gather, told_cuts
from store.turns import TOO_MANY, Turn, TurnReader
from store.values import dumped, text_of

_EXTENSIONS: Final = "sec-websocket-extensions"
_SWITCHED: Final = b'"status":101'
_STATUS_WITHIN: Final = 64
_TIME_BYTES: Final = 6  # a UUIDv7's own, so that turns lie beside their socket
_JSON: Final = {"content-type": "application/json"}
_SIDES: Final[dict[Side, str]] = {"client": "request", "server": "response"}
_LIMITS: Final = ("x-ratelimit-", "retry-after")  # were told when the socket opened, and hold then


def side_name(event: Event) -> Side:
    return "client" if event.kind is Kind.REQUEST_BODY else "server"


def turn_stories(exchange: bytes, story: Story) -> Iterator[tuple[bytes, Story]]:
    """An id and a story for each turn of a socket that is closed. What was lost of it is noted in
    its own story at once."""
    reader = _reader(story)
    turns = _fed(reader, story)
    turns += reader.end(story.closed_at)
    note_losses(story, reader.notes())
    ending = text_of((story.closed or {}).get("outcome")) or "proxy_died"
    return ((_identity(exchange, turn.index), _story(story, turn, ending)) for turn in turns)


def note_losses(story: Story, notes: dict[Side, str]) -> None:
    """That not all of a socket is in the record, and why. `notes`: of a side that could not be
    read to its end."""
    missing = _missing(story)
    for side in _SIDES:
        reasons = [found[side] for found in (missing, notes) if side in found]
        if reasons:
            story.lost[side] = why = "; ".join(reasons)
            story.problems.append(f"lost: a part of the {side}'s side: {why}")


def _missing(story: Story) -> dict[Side, str]:
    """Why bytes of a side were not captured: the proxy says so, or it counted more of them."""
    told, found = told_cuts(story), dict[Side, str]()
    kept = {side: story.socket.get(side, 0) for side in _SIDES}
    for event in story.raw:
        kept[side_name(event)] += len(event.payload)
    for side, name in _SIDES.items():
        sent = counted(story, name)
        if name in told:
            found[side] = text_of(told[name]) or "not captured"
        elif sent is not None and kept[side] < sent:
            found[side] = f"{kept[side]} of {sent} bytes were captured"
    return found


@dataclass(frozen=True, slots=True)
class Shortened:
    """`turns` that are over; `events` stand for all that came so far, without theirs."""

    turns: list[tuple[bytes, Story]]
    events: list[Event]


def is_switch(head: bytes) -> bool:
    """Does another protocol begin with this head of a response?"""
    return _SWITCHED in head[:_STATUS_WITHIN]


def shortened(exchange: bytes, events: list[Event], recording: Recording) -> Shortened | None:
    """Of a socket that is still open; None for one that carries no turns. A socket may live for
    hours: what its turns were made of need not be kept until it ends."""
    story = gather(events)
    endpoint, _ = recording.endpoint(story.method, story.target, story.names_host)
    if not story.switched or endpoint is not RESPONSES_SOCKET:
        return None
    reader = _reader(story)
    over = _fed(reader, story)
    note_losses(story, reader.notes())  # for the turns: the socket's own row tells them at its end
    turns = [(_identity(exchange, turn.index), _story(story, turn, "ok")) for turn in over]
    point = reader.checkpoint()
    read = {"client": story.socket.get("client", 0), "server": story.socket.get("server", 0)}
    rest = _behind(story.raw, {"client": point.client - read["client"],
                               "server": point.server - read["server"]})  # fmt: skip
    kept = {"client": point.client, "server": point.server, "state": point.state.decode()}
    raw = set(map(id, story.raw))
    heads = [e for e in events if id(e) not in raw and e.kind is not Kind.SOCKET]
    mark = Event(Kind.SOCKET, exchange, events[-1].at, orjson.dumps(kept))
    return Shortened(turns, [*heads, mark, *rest])


def _behind(raw: list[Event], sizes: dict[Side, int]) -> list[Event]:
    """Without the first bytes of each side."""
    kept = []
    for event in raw:
        side = side_name(event)
        dropped = min(sizes[side], len(event.payload))
        sizes[side] -= dropped
        if dropped < len(event.payload):
            rest = event.payload[dropped:]
            kept.append(Event(event.kind, event.exchange, event.at, rest))
    return kept


def _reader(story: Story) -> TurnReader:
    state = text_of(story.socket.get("state"))
    return TurnReader(story.got.get(_EXTENSIONS), None if state is None else state.encode())


def _fed(reader: TurnReader, story: Story) -> list[Turn]:
    turns = []
    for event in story.raw:
        turns += reader.feed(side_name(event), event.at, event.payload)
    return turns


def _identity(exchange: bytes, index: int) -> bytes:
    """The same for the same turn: a UUIDv8 (RFC 9562 section 5.8) behind the socket's time."""
    made = bytearray(exchange[:_TIME_BYTES])
    made += blake2b(exchange + index.to_bytes(8), digest_size=16 - _TIME_BYTES).digest()
    made[6] = made[6] & 0x0F | 0x80
    made[8] = made[8] & 0x3F | 0x80
    return bytes(made)


def _story(socket: Story, turn: Turn, ending: str) -> Story:
    """As if it had been a call over HTTP. Among the proxy's requests it has no number. `ending`:
    the socket's outcome, as far as is known."""
    opened = socket.opened | {
        "seq": None,
        "at": socket.opened["at"] + turn.opened_at - socket.opened_at,
    }
    cut = _cut(turn, socket.lost)
    problems = [f"lost: a part of the {side}" for side in cut]
    error = problems[-1] if "response" in cut else turn.error
    closed = {"outcome": _outcome(turn, ending, cut), "error": error, "cut": cut}
    response = None if turn.response is None else dumped(turn.response)
    got = {
        name: value
        for name, value in socket.got.items()
        if name != _EXTENSIONS and not name.startswith(_LIMITS)
    }
    return Story(
        opened,
        turn.opened_at,
        socket.sent,
        got | _JSON,
        head={} if turn.first_at is None else {"status": turn.status or 200},
        closed=closed,
        closed_at=turn.closed_at,
        first_body_at=turn.first_at,
        request=[turn.request] if turn.request else [],
        response=[] if response is None else [response.encode()],
        problems=problems,
    )


def _cut(turn: Turn, lost: dict[Side, str]) -> dict[str, str]:
    """Why the record, not the turn, is not whole, by side: as of a body that was cut."""
    cut = {}
    if not turn.request and "client" in lost:
        cut["request"] = lost["client"]
    if turn.error == TOO_MANY:
        cut["response"] = TOO_MANY
    elif turn.final is None and "server" in lost:
        cut["response"] = lost["server"]
    return cut


def _outcome(turn: Turn, ending: str, cut: dict[str, str]) -> str:
    if turn.finished or turn.status is not None:
        return "ok"
    blames = ending == "ok" and "response" not in cut
    return "upstream_truncated" if blames else ending
