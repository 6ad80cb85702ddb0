"""Tapes: what exchanges leave behind, one for each, for the spool to write down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

import orjson

from policies.spool import Kind, Outcome
from proxy.heads import ResponseHead
from proxy.sketch import MOST_BYTES, Sketch

if TYPE_CHECKING:
    from proxy.capture import Spool

# Plain integers: reading a member of an enumeration costs more than packing it.
_REQUEST_BODY: Final = int(Kind.REQUEST_BODY)
_RESPONSE_BODY: Final = int(Kind.RESPONSE_BODY)
_RESPONSE_HEAD: Final = int(Kind.RESPONSE_HEAD)
_ROUTED: Final = int(Kind.ROUTED)
_CLOSED: Final = int(Kind.CLOSED)


class Tape(Protocol):
    """What one exchange leaves behind."""

    def routed(self, to: str, why: str) -> None: ...
    def keep_bodies(self, endless: bool = False) -> None: ...
    def request_body(self, data: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
    def counted(self, request_bytes: int, response_bytes: int) -> None:
        """Of bytes that nobody looks at."""

    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


class BlankTape:
    """Records nothing: capture is off."""

    def routed(self, to: str, why: str) -> None: ...
    def keep_bodies(self, endless: bool = False) -> None: ...
    def request_body(self, data: bytes) -> None: ...
    def response_body(self, data: bytes) -> None: ...
    def response_head(self, head: ResponseHead) -> None: ...
    def counted(self, request_bytes: int, response_bytes: int) -> None: ...
    def closed(self, outcome: Outcome, error: str | None = None) -> None: ...


BLANK: Final = BlankTape()


class ExchangeTape:
    """Of one exchange that is captured."""

    __slots__ = (
        "_exchange", "_spool", "bodies", "cut", "endless", "request_bytes", "response_bytes",
    )  # fmt: skip

    def __init__(self, spool_: Spool, exchange: bytes, bodies: bool) -> None:
        self._spool = spool_
        self._exchange = exchange
        self.bodies = bodies  # are they kept?
        self.request_bytes = 0  # seen
        self.response_bytes = 0
        self.cut: dict[str, str] | None = None
        self.endless = False

    def keep_bodies(self, endless: bool = False) -> None:
        """`endless`: many calls, one behind the other; what bounds a body does not bound them."""
        self.bodies, self.endless = True, endless

    def routed(self, to: str, why: str) -> None:
        self._spool.note(_ROUTED, self._exchange, (to, why))

    def request_body(self, data: bytes) -> None:
        size = self.request_bytes = self.request_bytes + len(data)
        whole = self.cut is None and size <= self._spool.body_limit  # as nearly always
        if self.bodies and (whole or self._keeps("request", size)):
            self._spool.piece(_REQUEST_BODY, self._exchange, data)

    def response_body(self, data: bytes) -> None:
        size = self.response_bytes = self.response_bytes + len(data)
        whole = self.cut is None and size <= self._spool.body_limit  # as nearly always
        if self.bodies and (whole or self._keeps("response", size)):
            self._spool.piece(_RESPONSE_BODY, self._exchange, data)

    def _keeps(self, side: str, size: int) -> bool:
        """Once cut, a body stays cut: one with a hole would be read as whole."""
        spool_ = self._spool
        if size <= spool_.body_limit or (self.endless and spool_.body_limit >= 0):
            return self.cut is None or side not in self.cut
        if self.cut is None:
            self.cut = {}
        if side not in self.cut:
            self.cut[side] = spool_.refuses_bodies or "limit"
            spool_.counters.bodies_cut += 1
        return False

    def response_head(self, head: ResponseHead) -> None:
        self._spool.note(_RESPONSE_HEAD, self._exchange, head)

    def counted(self, request_bytes: int, response_bytes: int) -> None:
        self.request_bytes, self.response_bytes = request_bytes, response_bytes

    def closed(self, outcome: Outcome, error: str | None = None) -> None:
        self._spool.note(_CLOSED, self._exchange, (self, outcome, error))

    def ending(self, outcome: Outcome, error: str | None) -> bytes:
        return b'{"outcome":"%b","error":%b,"request_bytes":%d,"response_bytes":%d,"cut":%b}' % (
            outcome.encode(),
            b"null" if error is None else orjson.dumps(error),
            self.request_bytes,
            self.response_bytes,
            orjson.dumps(self.cut) if self.cut else b"{}",
        )


class BareTape(ExchangeTape):
    """Of an exchange whose bodies may not be kept. `sketch`: of its request, None if it is none
    that has a task. `length`: of the request's body, as in RequestHead."""

    __slots__ = ("_length", "sketch")

    def __init__(self, spool_: Spool, exchange: bytes, sketched: bool, length: int) -> None:
        super().__init__(spool_, exchange, False)
        self._length = length
        self.sketch = Sketch() if sketched and length <= MOST_BYTES else None

    def keep_bodies(self, endless: bool = False) -> None:
        """Of no protocol."""

    def request_body(self, data: bytes) -> None:
        self.request_bytes += len(data)
        sketch = self.sketch
        if sketch is None:
            return
        if not self._spool.sketch(sketch, data):
            self.sketch = None
        elif self.request_bytes == self._length:
            self._spool.read_soon(sketch)

    def ending(self, outcome: Outcome, error: str | None) -> bytes:
        """In the writer's thread."""
        said = super().ending(outcome, error)
        hashes = self.sketch.read() if self.sketch is not None else None
        return said[:-1] + b"," + orjson.dumps(hashes)[1:] if hashes else said
