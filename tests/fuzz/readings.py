"""What the readers make of bytes, as values to compare: with known heads or not, cut or not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from policies.forward import Target
from proxy.heads import UNTIL_CLOSE, Refused, RequestHead, RequestHeads, ResponseHead
from proxy.known import KnownReplies, KnownRequests
from proxy.redact import Redactor
from proxy.reply_reader import ReplyReader
from proxy.request_reader import Request, RequestReader
from proxy.routes import Route

ROUTE: Final = Route.to("http://api.openai.com/base")
REDACTOR: Final = Redactor(bytes(32))
_SPACED: Final = re.compile(rb"[A-Z] {2,}\S+ +HTTP/|[A-Z] \S+ {2,}HTTP/")


class NoRequests(KnownRequests):
    """Everything is the parser's."""

    def find(self, data: bytes) -> None:
        return None

    def learn(self, data: bytes, head: RequestHead) -> None:
        return None


class NoReplies(KnownReplies):
    """Everything is the parser's."""

    def find(self, data: bytes) -> None:
        return None

    def learn(self, data: bytes, head: ResponseHead, keeps_alive: bool) -> None:
        return None


@dataclass
class Shared:
    """A `Reading` for request readers."""

    known: KnownRequests
    trailers: int = 0
    _heads: RequestHeads = field(default_factory=lambda: RequestHeads(ROUTE))

    def asked(self, target: bytes) -> bytes:
        return target

    def heads(self, target: bytes) -> RequestHeads:
        if not target.startswith((b"/", b"*")):
            raise Refused(405, "forward_off", "this is no forward proxy")
        return self._heads

    def connect(self, target: bytes) -> Target:
        raise Refused(405, "forward_off", "this is no forward proxy")

    def note_trailers(self, count: int) -> None:
        self.trailers += count


# -- requests


@dataclass(frozen=True)
class ReadRequest:
    """A request as the relay would act on it. `wire`: its head for the upstream; None: not read.

    `about`: its record; `early`: what waits for the reply to an offer to upgrade.
    """

    wire: bytes | None
    about: bytes | None
    traits: tuple[object, ...]
    length: int
    body: bytes
    ended: bool
    keep_alive: bool
    refused: tuple[int, str] | None
    early: bytes | None


@dataclass(frozen=True)
class RequestsRead:
    requests: tuple[ReadRequest, ...]
    trailers: int

    @property
    def refused(self) -> bool:
        return bool(self.requests) and self.requests[-1].refused is not None


def read_requests(
    known: KnownRequests, pieces: Iterable[bytes], refuses_offers: bool = False
) -> RequestsRead:
    """`refuses_offers`: to upgrade; HTTP then goes on with what came early."""
    shared = Shared(known)
    reader = RequestReader(shared)
    for piece in pieces:
        reader.feed(piece)
        while refuses_offers and reader.incoming is not None and reader.incoming.early is not None:
            reader.feed(reader.take_early())
        if reader.requests and reader.requests[-1].refused is not None:
            break
    found = [_request(request) for request in reader.requests]
    last = next((at for at, one in enumerate(found) if one.ended and not one.keep_alive), None)
    if last is None:
        return RequestsRead(tuple(found), shared.trailers)
    return RequestsRead(tuple(found[: last + 1]), 0)  # the client's connection ends with it


def _request(request: Request) -> ReadRequest:
    head, refused = request.head, request.refused
    return ReadRequest(
        wire=None if head is None else head.wire(request.length),
        about=None if head is None else REDACTOR.request(head, None),
        traits=() if head is None else _traits(head),
        length=request.length,
        body=b"".join(request.pieces),
        ended=request.ended,
        keep_alive=request.keep_alive,
        refused=None if refused is None else (refused.status, refused.code),
        early=request.early,
    )


def _traits(head: RequestHead) -> tuple[object, ...]:
    """All else that the relay asks a head for."""
    return (
        head.method, head.target, head.path, head.http11, head.content_type, head.retry_count,
        head.content_encoding, head.session, head.expects_continue, head.credentials, head.upgrade,
    )  # fmt: skip


def is_vague(data: bytes) -> bool:
    """Is there a request line with more than single spaces, and another line behind it?

    It is refused, unless the line as it should be comes later in the same read: the parser does
    not tell where a line begins. Only the one who sends such a thing is cheated.
    """
    return data.count(b"HTTP/") > 1 and _SPACED.search(data) is not None


def taught(messages: Iterable[bytes]) -> KnownRequests:
    """With the heads known that a connection each has brought."""
    known = KnownRequests()
    for message in messages:
        read_requests(known, [message])
    return known


# -- replies


@dataclass(frozen=True)
class Call:
    """`pieces`: what the upstream sends from this call on, until the next one is made."""

    method: bytes
    pieces: Sequence[bytes]
    offered: bytes = b""


@dataclass(frozen=True)
class ReadReply:
    """A reply as the relay would act on it. `wires`: its head for clients of both versions.

    `reusable`: may the connection serve another call? Not after bytes that no call asked for.
    """

    wires: tuple[bytes, ...]
    pairs: tuple[tuple[bytes, bytes], ...]
    about: bytes | None
    length: int
    body: bytes
    ended: bool
    raw: bool
    trailers: int
    error: str | None
    reusable: bool


def read_replies(known: KnownReplies, calls: Iterable[Call]) -> list[ReadReply]:
    """The replies on one connection, up to the last that it can serve."""
    reader = ReplyReader(known)
    found: list[ReadReply] = []
    for call in calls:
        reader.begin(call.method, call.offered)
        reply = _read_reply(reader, call)
        found.append(reply)
        if not reply.reusable:
            break
        reader.reset()
    return found


def taught_replies(calls: Iterable[Call], times: int = 3) -> KnownReplies:
    """With the heads known that have come `times` times."""
    known = KnownReplies()
    for call in calls:
        for _ in range(times):
            read_replies(known, [call])
    return known


def _read_reply(reader: ReplyReader, call: Call) -> ReadReply:
    error: Refused | None = None
    left = list(call.pieces)
    while left and error is None and not reader.ended:
        try:
            reader.feed(left.pop(0))
        except Refused as refused:
            error = refused
    head = reader.head
    at_end = reader.ended or reader.raw or reader.length == UNTIL_CLOSE
    return ReadReply(
        wires=() if head is None else _wires(head),
        pairs=() if head is None else tuple(head.pairs()),
        about=None if head is None else REDACTOR.response(head),
        length=reader.length,
        body=b"".join(reader.pieces),
        ended=(at_end and error is None) or reader.ended,
        raw=reader.raw,
        trailers=reader.trailers,
        error=None if error is None or reader.ended else error.code,
        reusable=reader.ended and error is None and not left and reader.reusable,
    )


def _wires(head: ResponseHead) -> tuple[bytes, ...]:
    return tuple(head.wire(http11, keep) for http11 in (True, False) for keep in (True, False))


def agree(found: list[ReadReply], measure: list[ReadReply]) -> None:
    """Alike but for one thing: a connection may be given up that could have served another call."""
    for one, other in zip(found, measure, strict=False):
        gave_up = one is found[-1] and not one.reusable
        assert one == (replace(other, reusable=False) if gave_up else other)
    assert len(found) == len(measure) or not found[-1].reusable
