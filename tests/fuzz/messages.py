"""Random requests and replies, as they are meant and as they go over the wire; and damage."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from hypothesis import strategies as st

Pairs = tuple[tuple[bytes, bytes], ...]
CHUNKED: Final = "chunked"
SIZED: Final = "sized"
NONE: Final = "none"  # a request without a body, a reply that ends with its connection


@dataclass(frozen=True)
class Message:
    """`framing`: CHUNKED, SIZED or NONE. `chunks`: sizes to cut a chunked body by, over and over.

    `extras`: what only the wire has: an interim reply or empty lines `before`, a chunk's
    `extension`, `trailers` lines.
    """

    line: bytes
    headers: Pairs
    body: bytes = b""
    framing: str = NONE
    chunks: tuple[int, ...] = (7,)
    before: bytes = b""
    extension: bytes = b""
    trailers: bytes = b""
    last_chunk: bytes = b"0"

    @property
    def head(self) -> bytes:
        lines = b"".join(b"%b: %b\r\n" % pair for pair in (*self.headers, *self._framing()))
        return b"%b\r\n%b\r\n" % (self.line, lines)

    @property
    def wire(self) -> bytes:
        body = self._chunked() if self.framing == CHUNKED else self.body
        return self.before + self.head + body

    def _framing(self) -> Pairs:
        if self.framing == CHUNKED:
            return ((b"Transfer-Encoding", b"chunked"),)
        if self.framing == SIZED:
            return ((b"Content-Length", b"%d" % len(self.body)),)
        return ()

    def _chunked(self) -> bytes:
        pieces, at, number = [], 0, 0
        while at < len(self.body):
            size = self.chunks[number % len(self.chunks)]
            piece = self.body[at : at + size]
            pieces.append(b"%x%b\r\n%b\r\n" % (len(piece), self.extension, piece))
            at, number = at + size, number + 1
        return b"".join(pieces) + self.last_chunk + b"\r\n" + self.trailers + b"\r\n"


@dataclass(frozen=True)
class Asked(Message):
    """A request."""

    method: bytes = b"GET"
    target: bytes = b"/"

    @property
    def like(self) -> bytes:
        """On the wire: the same with another length, if it has any."""
        return replace(self, body=b"another").wire if self.framing == SIZED else self.wire


@dataclass(frozen=True)
class Answer(Message):
    """A reply to a request of this method. `bodiless`: whatever its headers say."""

    method: bytes = b"GET"
    status: int = 200
    closes: bool = False  # its connection ends with it

    @property
    def bodiless(self) -> bool:
        return self.method == b"HEAD" or self.status in (204, 304)

    @property
    def wire(self) -> bytes:
        return self.before + self.head if self.bodiless else super().wire


# -- parts of heads

_TEXTS: Final = st.one_of(
    st.sampled_from(
        (b"1", b"2", b"3", b"", b"a b\tc", b"caf\xe9 \xff", b"%b %% %d {0}", b'"q\\"', b"y" * 300)
    ),
    st.binary(min_size=1, max_size=9).map(lambda raw: bytes(33 + byte % 94 for byte in raw)),
)
_NAMES: Final = (
    b"Authorization", b"X-A", b"x-a", b"X-Empty", b"Cookie", b"X-%s%%", b"X-!#$&'*+.^_`|~",
    b"User-Agent", b"Content-Type", b"Content-Encoding", b"x-stainless-retry-count",
    b"X-Session-Id", b"Api-Key", b"Forwarded",
)  # fmt: skip
# Heeded or dropped on the way: together, and with values, that a peer may well send.
_HOPS: Final[st.SearchStrategy[Pairs]] = st.sampled_from((
    (), (), ((b"Connection", b"keep-alive"),), ((b"Connection", b"Keep-Alive"),),
    ((b"Connection", b"close"),), ((b"connection", b"X-A"),), ((b"Connection", b""),),
    ((b"Connection", b"keep-alive, X-A"),), ((b"Proxy-Connection", b"keep-alive"),),
    ((b"Proxy-Connection", b"close"),), ((b"Keep-Alive", b"timeout=5"),), ((b"TE", b"trailers"),),
    ((b"Trailer", b"X-Sum"), (b"Proxy-Authorization", b"Basic eA=="), (b"Proxy-Status", b"a")),
    ((b"Connection", b"keep-alive"), (b"Connection", b"close")), ((b"Upgrade", b"h2c"),),
    ((b"Upgrade", b"h2c"), (b"Connection", b"Upgrade, HTTP2-Settings"), (b"HTTP2-Settings", b"A")),
    ((b"Upgrade", b"h2c"), (b"Connection", b"upgrade")), ((b"Expect", b"100-continue"),),
    ((b"Upgrade", b"websocket"), (b"Connection", b"Upgrade")),
))  # fmt: skip
_PLAIN: Final = st.tuples(st.sampled_from(_NAMES), _TEXTS)
_REPLY_PLAIN: Final = st.tuples(
    st.sampled_from((b"Server", b"Set-Cookie", b"x-request-id", b"Date", b"Content-Type", b"X-%")),
    _TEXTS,
)
_REPLY_HOPS: Final[st.SearchStrategy[Pairs]] = st.sampled_from((
    (), (), (), ((b"Connection", b"keep-alive"),), ((b"Connection", b"close"),),
    ((b"Connection", b"X-%"),), ((b"Keep-Alive", b"timeout=5"), (b"Connection", b"keep-alive")),
    ((b"Proxy-Authenticate", b"Basic"),), ((b"Connection", b"content-length"),),
    ((b"Proxy-Connection", b"close"),), ((b"Connection", b"keep-alive"), (b"Connection", b"close")),
))  # fmt: skip
_BODIES: Final = st.one_of(
    st.sampled_from((b"", b"ab", b'{"model":"m"}', b"GET / HTTP/1.1\r\nHost: b\r\n\r\n",
                     b"0\r\n\r\n", b"\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")),
    st.integers(0, 70).map(lambda size: (b"0123456789abcdef\r\n" * 4)[:size]),
    st.binary(max_size=40),
)  # fmt: skip
_CHUNKS: Final = st.sampled_from(((7,), (1,), (1, 16), (300,), (2, 3, 5), (17, 16), (32,)))
_EXTENSIONS: Final = st.sampled_from((b"", b"", b"", b"", b";a=b", b';a="b;c"'))
_TRAILERS: Final = st.sampled_from(
    (b"", b"", b"", b"", b"X-Sum: 1\r\n", b"Authorization: no\r\nA: b\r\n")
)
_LAST: Final = st.sampled_from((b"0", b"0", b"0", b"0", b"00000000", b"000000000000"))
_IN_CHUNKS: Final[st.SearchStrategy[dict[str, Any]]] = st.fixed_dictionaries(
    {"chunks": _CHUNKS, "extension": _EXTENSIONS, "trailers": _TRAILERS, "last_chunk": _LAST}
)


@st.composite
def requests(draw: st.DrawFn, hops: bool = True, versions: bool = True) -> Asked:
    """Few request lines and few names: known heads must be met again, and nearly met."""
    method, framing = draw(st.sampled_from((
        (b"GET", NONE), (b"POST", SIZED), (b"POST", CHUNKED), (b"HEAD", NONE), (b"POST", NONE),
        (b"DELETE", SIZED), (b"POST", SIZED), (b"GET", NONE), (b"POST", SIZED),
    )))  # fmt: skip
    target = draw(st.sampled_from((b"/v1/chat/completions", b"/v1/x?a=%2e&b", b"/", b"//a;b")))
    version = draw(st.sampled_from((*(b"1.1",) * 7, b"1.0"))) if versions else b"1.1"
    if version == b"1.0" and framing == CHUNKED:
        framing = SIZED
    hop = draw(_HOPS) if hops else ()
    headers = [(b"Host", b"app"), *draw(st.lists(_PLAIN, max_size=4)), *hop]
    return Asked(
        line=b"%b %b HTTP/%b" % (method, target, version),
        headers=tuple(draw(st.permutations(headers))),
        body=b"" if framing == NONE else draw(_BODIES),
        framing=framing,
        method=method,
        target=target,
        **draw(_IN_CHUNKS),
    )


_LINES: Final = st.sampled_from(
    (*((200, b"200 OK"),) * 7, (200, b"200 "), (200, b"200"), (404, b"404 Not  Found"),
     (500, b"500 caf\xe9"), (429, b"429 Too Many Requests"), (204, b"204 No Content"),
     (304, b"304 Not Modified"), (299, b"299 x"))
)  # fmt: skip
_BEFORE: Final = st.sampled_from(
    (*(b"",) * 8, b"\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
     b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")
)  # fmt: skip


@st.composite
def replies(draw: st.DrawFn, method: bytes = b"GET") -> Answer:
    """Most are such as can become known."""
    status, line = draw(_LINES)
    version = draw(st.sampled_from((*(b"1.1",) * 7, b"1.0")))
    framing = draw(st.sampled_from((SIZED, SIZED, CHUNKED, CHUNKED, CHUNKED, NONE)))
    if version == b"1.0" and framing == CHUNKED:
        framing = NONE
    some = (*draw(st.lists(_REPLY_PLAIN, max_size=4)), *draw(_REPLY_HOPS))
    return Answer(
        line=b"HTTP/%b %b" % (version, line),
        headers=some,
        body=draw(_BODIES),
        framing=framing,
        before=draw(_BEFORE),
        method=method,
        status=status,
        closes=framing == NONE and status not in (204, 304) and method != b"HEAD",
        **draw(_IN_CHUNKS),
    )


# -- what happens to them on the way

NASTY: Final = (
    b"\r\n", b"\r", b"\n", b"\r\n\r\n", b" ", b"\t", b":", b"\0", b"\x7f", b"\xff", b"0", b"-1",
    b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip\r\n",
    b"Host: b\r\n", b"Connection: close\r\n", b"Upgrade: websocket\r\nConnection: upgrade\r\n",
    b"HTTP/1.1", b"GET / HTTP/1.1\r\nHost: b\r\n\r\n", b"0\r\n\r\n", b";", b"\r\n folded",
    b"Expect: 100-continue\r\n", b"fffffffff\r\n", b"Proxy-Connection: close\r\n", b"#", b"%",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"CONNECT b:1 HTTP/1.1\r\nHost: b\r\n\r\n",
)  # fmt: skip


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """One to three mutations: bytes put in, left out, doubled, replaced, or two places joined."""
    for _ in range(draw(st.integers(1, 3))):
        at = draw(_places(data))
        to = min(len(data), at + draw(st.sampled_from((1, 1, 1, 2, 4, 9, 40))))
        kind = draw(st.sampled_from(("put", "put", "drop", "double", "replace", "join", "case")))
        if kind == "put":
            data = data[:at] + draw(st.sampled_from(NASTY)) + data[at:]
        elif kind == "drop":
            data = data[:at] + data[to:]
        elif kind == "double":
            data = data[:to] + data[at:]
        elif kind == "replace":
            data = data[:at] + bytes([draw(st.integers(0, 255))]) + data[at + 1 :]
        elif kind == "join":
            data = data[:at] + data[draw(_places(data)) :]
        else:
            data = data[:at] + data[at:to].swapcase() + data[to:]
    return data


@st.composite
def _places(draw: st.DrawFn, data: bytes) -> int:
    """Half of them at a line's end, where the grammar turns."""
    at = draw(st.integers(0, len(data)))
    if draw(st.booleans()):
        end = data.find(b"\r\n", at)
        at = end + draw(st.sampled_from((0, 2))) if end >= 0 else at
    return at


@st.composite
def cuts(draw: st.DrawFn, data: bytes) -> Sequence[int]:
    """Where some reads would part `data`; see `cut`. Every other time its first head is whole."""
    head = data.find(b"\r\n\r\n") + 4
    start = head if draw(st.booleans()) else 0
    step = draw(st.sampled_from((0, 0, 0, 0, 1, 2, 17)))
    if step:
        return range(max(step, start), len(data), step)
    return sorted(draw(st.lists(st.integers(min(start, len(data)), len(data)), max_size=5)))


def cut_anyhow(drawn: st.DataObject, data: bytes) -> list[bytes]:
    return cut(data, drawn.draw(cuts(data)))


def cut(data: bytes, places: Sequence[int]) -> list[bytes]:
    ends = [*places, len(data)]
    pieces = [data[start:end] for start, end in zip([0, *places], ends, strict=True)]
    return [piece for piece in pieces if piece]
