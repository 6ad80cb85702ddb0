"""Responses over WebSocket: the turns of a socket, each an exchange of its own. Sans-IO, pure.

A client's `response.create` opens a turn; the server answers with the events that would have been
the data of server-sent ones; `response.completed`, `incomplete`, `failed` or an `error` ends it.
Turns of one lane (`stream_id`; most sockets have but the lane without a name) are answered in the
order in which they were asked, turns of several lanes side by side. Events that name a response
belong to that turn, others to the oldest of their lane.

A response that nobody asked for is a turn too: the one that follows `response.steer` has that
message as its request, one whose request was not captured has none (`b""`).

How a recorder uses it, so that a socket that lives for hours pins nothing:

1. Feed the raw bytes after the 101, each side's as they came, and record the turns that come back.
   Which turn it is, is (exchange, `index`): the same bytes give the same turns with the same
   indexes, so one that is met again after a restart is to be ignored, not inserted twice.
2. When it pleases (staged bytes over some size, say), ask for a `checkpoint()` between two feeds,
   and in one transaction store its `state` and drop the staged bytes of each side that come before
   `client` and `server`: both count from the first byte after the 101.
3. After a restart: `TurnReader(extensions, state)`, and feed what is staged.
4. At the end of the exchange: `end()`; what is still open comes out unfinished.

With a state there is no need to keep old bytes even under context takeover, where it holds up to
32 KiB of plain text a side. It holds the requests of turns still open, too: it is as private as
the bytes that it stands for. Without one (None), all bytes from the first are needed again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any, Final

import orjson

from store.deflate import Side
from store.frames import Message, Socket
from store.messages import said
from store.values import Json, json_object, text_of

TOO_MANY: Final = "too many turns are open"
_FINAL: Final = ("response.completed", "response.incomplete", "response.failed")
_MOST_OPEN: Final = 256
_MOST_OPEN_BYTES: Final = 64 << 20  # of their requests
_MOST_STEERS: Final = 16
_MOST_ENDED: Final = 64  # ids kept of turns that are over, whose late events are nobody's


@dataclass(frozen=True, slots=True)
class Turn:
    """`finished`: the server said that it was done. Times are seconds of CLOCK_MONOTONIC.

    `final` is the event that ended it as it was sent, an error too; of a turn that was given up
    there is none. `response` is what is in that of a finished one. `status`: what HTTP would have
    said, where an error told it.
    """

    index: int
    request: bytes
    response_id: str | None
    opened_at: float
    first_at: float | None
    closed_at: float
    response: Json | None = None
    final: bytes | None = None
    finished: bool = False
    error: str | None = None
    status: int | None = None


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """`client`, `server`: raw bytes of each side that are not needed any more, given `state`."""

    client: int
    server: int
    state: bytes


@dataclass(slots=True)
class _Open:
    index: int
    request: bytes
    opened_at: float
    lane: str | None
    first_at: float | None = None
    response_id: str | None = None


class TurnReader:
    """What is no JSON object, is no part of a turn."""

    def __init__(self, extensions: str | None, state: bytes | None = None) -> None:
        kept: Json = orjson.loads(state) if state is not None else {}
        self._socket = Socket(extensions, kept.get("socket"))
        self._next: int = kept.get("next", 0)
        self._at: float = kept.get("at", 0.0)
        self._open = [_reopened(one) for one in kept.get("open", ())]
        self._ended: deque[str] = deque(kept.get("ended", ()), _MOST_ENDED)
        self._steers = {key: text.encode() for key, text in kept.get("steers", {}).items()}
        self._done: list[Turn] = []

    def notes(self) -> dict[Side, str]:
        """Why a side could not be read to its end."""
        return self._socket.notes()

    def feed(self, side: Side, at: float, data: bytes) -> list[Turn]:
        """The turns that ended with these bytes."""
        self._at = at
        take = self._from_client if side == "client" else self._from_server
        for message in self._socket.side(side).feed(at, data):
            event = json_object(message.data)
            if event is not None:
                take(event, message)
        return self._given()

    def end(self, at: float | None = None) -> list[Turn]:
        """The socket is closed: the turns that nobody answered."""
        why = self._why_over() or "the connection ended first"
        self._give_up(len(self._open), why, at)
        return self._given()

    def checkpoint(self) -> Checkpoint:
        socket = self._socket
        state = {
            "socket": socket.state(),
            "next": self._next,
            "at": self._at,
            "open": [asdict(turn) | {"request": turn.request.decode()} for turn in self._open],
            "ended": list(self._ended),
            "steers": {key: text.decode() for key, text in self._steers.items()},
        }
        return Checkpoint(socket.client.read, socket.server.read, orjson.dumps(state))

    # -- events of the client

    def _from_client(self, event: Json, message: Message) -> None:
        kind = event.get("type")
        parent = text_of(event.get("previous_response_id"))
        if kind == "response.create":
            self._steers.pop(parent or "", None)  # goes in with this request
            self._begin(message.data, message.began_at, text_of(event.get("stream_id")))
        elif kind == "response.steer" and parent is not None:
            self._steers[parent] = message.data
            if len(self._steers) > _MOST_STEERS:
                del self._steers[next(iter(self._steers))]

    def _begin(self, request: bytes, at: float, lane: str | None) -> _Open:
        turn = _Open(self._next, request, at, lane)
        self._next += 1
        self._open.append(turn)
        size = sum(len(one.request) for one in self._open)
        while len(self._open) > _MOST_OPEN or (size > _MOST_OPEN_BYTES and len(self._open) > 1):
            size -= len(self._open[0].request)
            self._give_up(1, TOO_MANY)
        return turn

    # -- events of the server

    def _from_server(self, event: Json, message: Message) -> None:
        kind = event.get("type")
        if kind == "error" or (kind is None and event.get("error")):
            self._take_error(event, message)
            return
        if not isinstance(kind, str) or not kind.startswith("response."):
            return
        if kind.startswith("response.steer."):
            self._take_steer(kind, event)
            return
        turn = self._turn_of(kind, event, message)
        if turn is None:
            return
        if turn.first_at is None:
            turn.first_at = message.at
        if kind in _FINAL:
            self._finish(turn, event, message)

    def _turn_of(self, kind: str, event: Json, message: Message) -> _Open | None:
        lane = text_of(event.get("stream_id"))
        response = event.get("response")
        identity = text_of(response.get("id")) if isinstance(response, dict) else None
        if identity is None or not isinstance(response, dict):
            return self._oldest(lane)
        for turn in self._open:
            if turn.response_id == identity:
                return turn
        if identity in self._ended:
            return None
        found = self._begun(kind, response, lane, message)
        if found is not None:
            found.response_id = identity
        return found

    def _begun(self, kind: str, response: Json, lane: str | None, message: Message) -> _Open | None:
        """The turn of a response that is new: the next of its lane, or one nobody asked for."""
        steer = None
        tells = kind == "response.created" or kind in _FINAL
        if tells:
            steer = self._steers.pop(text_of(response.get("previous_response_id")) or "", None)
        waiting = self._oldest(lane, unnamed=True) if steer is None else None
        if waiting is None and tells:
            return self._begin(steer or b"", message.began_at, lane)
        return waiting

    def _oldest(self, lane: str | None, unnamed: bool = False) -> _Open | None:
        """The oldest open turn of a lane; `unnamed`: of which no response is known yet.

        What names no lane may be meant for one that does when that is the only one waiting.
        """
        for turn in self._open:
            if turn.lane == lane and not (unnamed and turn.response_id is not None):
                return turn
        only = self._open[0] if len(self._open) == 1 and lane is None else None
        return None if only is not None and unnamed and only.response_id is not None else only

    def _take_error(self, event: Json, message: Message) -> None:
        turn = self._oldest(text_of(event.get("stream_id")))
        if turn is None:  # about the socket, or one of several lanes, and it does not say which
            return
        if turn.first_at is None:
            turn.first_at = message.at
        status = event.get("status")
        status = status if isinstance(status, int) and 100 <= status <= 599 else None
        error = "stream: " + said(event)
        self._close(turn, message.at, error=error, final=message.data, status=status)

    def _take_steer(self, kind: str, event: Json) -> None:
        steer = event.get("steer")
        if kind == "response.steer.failed" and isinstance(steer, dict):
            self._steers.pop(text_of(steer.get("previous_response_id")) or "", None)

    # -- endings

    def _finish(self, turn: _Open, event: Json, message: Message) -> None:
        response = event.get("response")
        whole = response if isinstance(response, dict) else None
        self._close(turn, message.at, response=whole, final=message.data, finished=True)

    def _close(self, turn: _Open, at: float, error: str | None = None, **ending: Any) -> None:
        self._open.remove(turn)
        if turn.response_id is not None:
            self._ended.append(turn.response_id)
        if not turn.request:
            error = error or "its request was not captured"
        times = (turn.opened_at, turn.first_at, at)
        done = Turn(turn.index, turn.request, turn.response_id, *times, error=error, **ending)
        self._done.append(done)

    def _give_up(self, count: int, why: str, at: float | None = None) -> None:
        for turn in self._open[:count]:
            self._close(turn, self._at if at is None else at, error=why)

    def _why_over(self) -> str | None:
        """Why the server's side can bring no more, or None."""
        server = self._socket.server
        if server.note is not None:
            return f"the server's side could not be read on: {server.note}"
        closing = server.closing or self._socket.client.closing
        if closing is None:
            return None
        who = "server" if server.closing is not None else "client"
        words = f"{closing.code or 'no code'} {closing.reason}".strip()
        return f"the {who} closed the socket: {words}"

    def _given(self) -> list[Turn]:
        if self._open and self._socket.server.stopped:
            self._give_up(len(self._open), self._why_over() or "")
        done, self._done = self._done, []
        return done


def _reopened(kept: Json) -> _Open:
    return _Open(**(kept | {"request": kept["request"].encode()}))
