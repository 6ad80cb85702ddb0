"""Raw cases, each tried in every way that the relay reads.

A head that was seen before is recognised without the parser. One that differs from it in a byte
must be judged as if nothing had ever been seen: so each case is tried cold, warm (on a connection
that has just carried the good one several times) and behind (in the same write as a good one).
"""

from __future__ import annotations

import itertools
import queue
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.hazards.harness import Sidecar
from tests.hazards.peers import CANARY, Call, Message, Upstream, post

REQUEST_WAYS = ("cold", "warm", "behind")
REPLY_WAYS = ("cold", "warm")
SEEN = 4  # times: one more than a reply's head needs to be known
REPLIES = re.compile(rb"HTTP/1\.1 \d\d\d ")
GOOD = post("/v1/x", b"hello")

_fresh = itertools.count()


def tried(names: Any, *more: Any, ways: tuple[str, ...] = REQUEST_WAYS) -> pytest.MarkDecorator:
    """Parametrize `way` and `name`."""
    return pytest.mark.parametrize(
        ("way", "name"), [(way, name) for name in itertools.chain(names, *more) for way in ways]
    )


def method_of(request: bytes) -> str:
    return request.partition(b" ")[0].decode("latin-1")


@dataclass
class Heard:
    """All that came back for one request until the connection ended, and what the upstream saw of
    it: nothing, if all is well."""

    data: bytes
    calls: list[Call]

    @property
    def statuses(self) -> list[int]:
        return [int(start.split(b" ")[1]) for start in REPLIES.findall(self.data)]


def send_in_way(sidecar: Sidecar, upstream: Upstream, way: str, good: bytes, case: bytes) -> Heard:
    """`good` is answered as often as the way wants; then `case`, until the end. A way of another
    name sends the case alone, as it is."""
    if way == "cold":  # a request line that no other test has made known
        case = case.replace(b"/v1/x", b"/v1/x%d" % next(_fresh), 1)
    client = sidecar.connect()
    before = SEEN if way in ("warm", "behind") else 0
    for _ in range(before):
        client.send(good)
        assert client.reply(method_of(good)).status == 200
    if way == "behind":
        client.send(good + case)
        assert client.reply(method_of(good)).status == 200
    else:
        client.send(case)
    data = client.rest()
    client.close()
    for _ in range(before + (way == "behind")):
        upstream.next_call()
    return Heard(data, list(calls_so_far(upstream)))


def calls_so_far(upstream: Upstream, seconds: float = 0.01) -> Iterator[Call]:
    while True:
        try:
            yield upstream.calls.get(timeout=seconds)
        except queue.Empty:
            return


def refused(
    sidecar: Sidecar,
    upstream: Upstream,
    case: bytes,
    *statuses: int,
    way: str = "cold",
    good: bytes = GOOD,
) -> Heard:
    """Answered once, with one of these, in our shape, and closed; the upstream sees no request."""
    heard = send_in_way(sidecar, upstream, way, good, case)
    assert len(heard.statuses) == 1, heard.data
    assert heard.statuses[0] in statuses, heard.data
    assert heard.calls == []
    head, _, body = heard.data.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close" in head
    assert b"\r\nContent-Length: %d" % len(body) in head  # nothing behind it
    assert b"understudy_error" in body
    assert CANARY.encode() not in heard.data
    return heard


@dataclass
class InTurn:
    """An upstream that answers call after call with the next of these; the last one again when
    they are used up. `dropped` hears whether the sidecar ended the connection after the last."""

    said: list[bytes | Callable[[Call], None]]
    closes: bool = False
    watches: bool = False
    dropped: queue.Queue[bool] = field(default_factory=queue.Queue)
    count: int = 0

    def __call__(self, call: Call) -> None:
        call.read_body()
        number = min(self.count, len(self.said) - 1)
        self.count += 1
        said = self.said[number]
        if callable(said):
            said(call)
        else:
            call.send(said)
        if number == len(self.said) - 1:
            if self.closes:
                call.socket.close()
            elif self.watches:
                self.dropped.put(call.wait_ended())


def answered(
    sidecar: Sidecar,
    upstream: Upstream,
    way: str,
    good: bytes,
    case: bytes | Callable[[Call], None],
    request: bytes = GOOD,
    *,
    closes: bool = False,
    drops: bool = False,
) -> Message:
    """The client's reply when the upstream says `case` on a connection that has said `good`
    before. `closes`: the upstream ends it after that; `drops`: the sidecar must. Then the next
    request must get its own answer."""
    client = sidecar.connect()
    before = [good] * SEEN if way == "warm" else []
    turn = InTurn([*before, case], closes, drops)
    method = method_of(request)
    with upstream.playing(turn):
        for _ in before:
            client.send(post("/v1/x"))
            assert client.reply().whole
        client.send(request)
        reply = client.reply(method)
        if drops:
            assert turn.dropped.get(timeout=5), "the upstream's connection was kept"
    own = b"own answer %d" % next(_fresh)
    with upstream.playing(
        InTurn([b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(own), own)])
    ):
        if reply.all(b"connection") == [b"close"] or not reply.whole:
            assert client.rest() == b""
            client.close()
            client = sidecar.connect()
        client.send(post("/v1/x"))
        assert client.reply().body == own
    client.close()
    return reply
