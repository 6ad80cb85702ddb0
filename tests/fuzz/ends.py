"""What stands at the far ends of a relay: a client and upstreams that read strictly.

They read with h11: another reader than the relay's, made by others.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import h11

from tests.fuzz.messages import Pairs
from tests.fuzz.pipes import Network, Pipe


@dataclass
class Seen:
    """A message as the far end has read it. `whole`: up to its end, which was told clearly."""

    start: tuple[bytes, ...] = ()
    headers: Pairs = ()
    body: bytes = b""
    whole: bool = False

    def all(self, name: bytes) -> list[bytes]:
        return [value for key, value in self.headers if key.lower() == name]


@dataclass
class Sending:
    """What an upstream says to a request, piece by piece; then it may close, or reset.

    `faulty`: what it says may be no reply, or more than one. `switches`: from now on it speaks
    another protocol.
    """

    pieces: deque[bytes]
    closes: bool = False
    resets: bool = False
    faulty: bool = False
    switches: bool = False


@dataclass
class UpstreamEnd:
    """The far end of one upstream connection. A request gets its answer when it has ended."""

    pipe: Pipe
    answer: Callable[[Seen], Sending]
    requests: list[Seen] = field(default_factory=list)
    raw: bytes | None = None  # of the other protocol
    _reader: h11.Connection = field(default_factory=lambda: h11.Connection(h11.SERVER))
    _read: int = 0
    _sending: Sending | None = None

    def move(self) -> bool:
        """Read what is new, send a piece of what is due. Has anything been done?"""
        new = bytes(self.pipe.written[self._read :])
        self._read += len(new)
        if new:
            self._hear(new)
        if self._sending is None or self.pipe.is_closing():
            return bool(new)
        if self._sending.pieces:
            self.pipe.deliver(self._sending.pieces.popleft())
        else:
            self._end(self._sending)
            self._sending = None
        return True

    def _end(self, sending: Sending) -> None:
        if sending.resets:
            self.pipe.reset()
        elif sending.closes:
            self.pipe.deliver(None)

    def _hear(self, data: bytes) -> None:
        if self.raw is not None:
            self.raw += data
            return
        if self._sending is not None and self._sending.pieces:
            # A reply that was whole before all of it was sent: what is left must not be the next.
            assert self._sending.faulty, "a request before its reply"
            self._sending = Sending(deque(), closes=True)
            return
        self._reader.receive_data(data)
        while isinstance(event := self._reader.next_event(), h11.Event):
            if isinstance(event, h11.Request):
                start = (event.method, event.target, event.http_version)
                self.requests.append(Seen(start, tuple(event.headers.raw_items())))
            elif isinstance(event, h11.Data):
                self.requests[-1].body += event.data
            elif isinstance(event, h11.EndOfMessage):
                self._ended()
                return

    def _ended(self) -> None:
        assert self._reader.trailing_data == (b"", False), "bytes behind a request"
        self.requests[-1].whole = True
        self._sending = self.answer(self.requests[-1])
        self.raw = b"" if self._sending.switches else None
        self._reader = h11.Connection(h11.SERVER)


@dataclass
class Upstreams:
    """All far ends of a network."""

    network: Network
    answer: Callable[[Seen], Sending]
    ends: list[UpstreamEnd] = field(default_factory=list)

    def move(self) -> bool:
        for pipe in self.network.opened[len(self.ends) :]:
            self.ends.append(UpstreamEnd(pipe, self.answer))
        return any([end.move() for end in self.ends])

    @property
    def requests(self) -> list[Seen]:
        """In the order of their connections."""
        return [request for end in self.ends for request in end.requests]


def read_all(data: bytes, methods: list[bytes], ended: bool) -> list[Seen]:
    """The replies to requests of these methods; interim ones left out. `ended`: and no more comes.

    Raises h11.RemoteProtocolError for anything that is no reply, or that nobody asked for.
    """
    found = []
    for method in methods:
        if not data:
            break
        seen, data = _read_one(data, method, ended)
        found.append(seen)
        if not seen.whole:
            break
    if data and found and found[-1].whole:
        raise h11.RemoteProtocolError(f"bytes behind the last reply: {data[:80]!r}")
    return found


def _read_one(data: bytes, method: bytes, ended: bool) -> tuple[Seen, bytes]:
    reader, seen = h11.Connection(h11.CLIENT), Seen()
    reader.send(h11.Request(method=method, target="/", headers=[("Host", "a")]))
    reader.send(h11.EndOfMessage())
    for event in _events(reader, data, ended):
        if isinstance(event, h11.Response):
            seen.start = (b"%d" % event.status_code, event.reason, event.http_version)
            seen.headers = tuple(event.headers.raw_items())
        elif isinstance(event, h11.Data):
            seen.body += event.data
        elif isinstance(event, h11.EndOfMessage):
            seen.whole = True
            return seen, reader.trailing_data[0]
    return seen, data


def _events(reader: h11.Connection, data: bytes, ended: bool) -> Iterator[h11.Event]:
    reader.receive_data(data)
    while isinstance(event := reader.next_event(), h11.Event):
        yield event
    if ended:
        reader.receive_data(b"")
        with contextlib.suppress(h11.RemoteProtocolError):  # cut short, and seen to be so
            while isinstance(event := reader.next_event(), h11.Data | h11.EndOfMessage):
                yield event
