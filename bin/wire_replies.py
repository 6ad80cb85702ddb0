"""What the deterministic upstream answers: the same bytes each time, at the same pace."""

from __future__ import annotations

import functools
import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import brotli  # type: ignore[import-untyped]
import zstandard

from bin.wire_frames import accept
from bin.wire_read import Headers, Message

_DATE: Final = b"Tue, 15 Nov 1994 08:12:31 GMT"
_PAUSE: Final = 0.08  # between events: longer than the delay that counts as held back
_JSON: Final = (b"Content-Type", b"application/json")


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of the wire, written in one go, `pause` seconds after the piece before."""

    data: bytes
    pause: float = 0.0


@dataclass(frozen=True, slots=True)
class Reply:
    """`closes`: the connection ends behind it. `upgrades`: it goes on as a WebSocket echo."""

    pieces: tuple[Piece, ...]
    closes: bool = False
    upgrades: bool = False

    def head_only(self) -> Reply:
        """The answer to HEAD."""
        head, end, _ = self.pieces[0].data.partition(b"\r\n\r\n")
        return Reply((Piece(head + end),), self.closes)


def _head(status: bytes, *headers: tuple[bytes, bytes]) -> bytes:
    lines = [b"HTTP/1.1 " + status, *(b"%b: %b" % pair for pair in headers)]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def _sized(body: bytes, *headers: tuple[bytes, bytes], status: bytes = b"200 OK") -> Reply:
    length = (b"Content-Length", b"%d" % len(body))
    return Reply((Piece(_head(status, (b"Date", _DATE), *headers, length) + body),))


def _chunk(data: bytes, extension: bytes = b"") -> bytes:
    return b"%x%b\r\n%b\r\n" % (len(data), extension, data)


def _paced(*events: bytes, headers: Headers = (), pause: float = _PAUSE) -> Reply:
    """A head at once, then each event in a chunk of its own."""
    head = _head(b"200 OK", (b"Content-Type", b"text/event-stream; charset=utf-8"), *headers,
                 (b"Transfer-Encoding", b"chunked"), (b"X-Request-ID", b"req_wire_1"))  # fmt: skip
    pieces = [Piece(_chunk(event), pause) for event in events]
    return Reply((Piece(head), *pieces, Piece(b"0\r\n\r\n")))


def _event(delta: dict[str, object], finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    chunk = {"id": "chatcmpl-wire", "object": "chat.completion.chunk", "created": 784887151,
             "model": "gpt-4o-mini", "choices": [choice]}  # fmt: skip
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


_DONE: Final = b"data: [DONE]\n\n"
_TOOL_CALL: Final = {
    "id": "call_wire",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Z\\u00fcrich"}'},
}


def _completion(message: dict[str, object], finish: str = "stop") -> bytes:
    # Spaces, escapes and the order of keys are not what a JSON library would write.
    return (
        b'{ "id":"chatcmpl-wire",  "object" : "chat.completion","created":784887151,\n'
        b'"choices": [{"index":0,"finish_reason":"%b","message":%b}],"usage":'
        b'{"prompt_tokens":9,"completion_tokens":1,"total_tokens":10} , "big": 1.0e+2}\n'
    ) % (finish.encode(), json.dumps(message).encode())


_CHAT: Final = _completion({"role": "assistant", "content": "Gr\u00fcezi \U0001f600 \x00"})
_CALLS: Final = _completion({"role": "assistant", "tool_calls": [_TOOL_CALL]}, "tool_calls")


def _echo(request: Message) -> Reply:
    """The request's own body; without one, its request line as JSON."""
    said = {"method": request.method.decode("latin-1"), "target": request.target.decode("latin-1")}
    kind = request.all(b"content-type") or [b"application/json"]
    return _sized(request.body or json.dumps(said).encode(), (b"Content-Type", kind[0]))


def _sse(request: Message) -> Reply:
    words = ("One", " event", " at", " a", " time")
    return _paced(*(_event({"content": word}) for word in words), _event({}, "stop"), _DONE)


def _sse_tools(request: Message) -> Reply:
    calls = [{"index": 0, "id": "call_wire", "function": {"name": "weather", "arguments": ""}}]
    parts = [{"index": 0, "function": {"arguments": part}} for part in ('{"ci', 'ty":', ' "Z"}')]
    events = [_event({"tool_calls": calls}), *(_event({"tool_calls": [part]}) for part in parts)]
    return _paced(*events, _event({}, "tool_calls"), _DONE)


def _sse_odd(request: Message) -> Reply:
    """Borders within events, CRLF and CR, comments, several data lines, bytes that are no text."""
    stream = (
        b": comment\r\n\r\nevent: odd\r\ndata: one\r\ndata: two\r\nid: 7\r\nretry: 1\r\n\r\n"
        b"data:no space\r\rdata: \xff\xfe\x00 \xed\xa0\x80\n\ndata\n\n\n\n:\n\ndata: Z\xc3"
        b"\xbcrich\n\n"
    )
    return _paced(*(stream[at : at + 7] for at in range(0, len(stream), 7)), pause=0.004)


def _coded(name: bytes, code: Callable[[bytes], bytes]) -> Callable[[Message], Reply]:
    """Shared by all calls: compressed once."""
    body = functools.cache(lambda: code(_CHAT * 40))
    return lambda request: _sized(body(), _JSON, (b"Content-Encoding", name), (b"Vary", b"Accept"))


def _gzip_stream(request: Message) -> Reply:
    whole = gzip.compress(b"".join(_event({"content": "x"}) for _ in range(4)) + _DONE, mtime=0)
    third = len(whole) // 3
    pieces = (whole[:third], whole[third : 2 * third], whole[2 * third :])
    return _paced(*pieces, headers=((b"Content-Encoding", b"gzip"),))


def _odd_headers(request: Message) -> Reply:
    return _sized(
        _CHAT, (b"content-TYPE", b"application/json"), (b"Set-Cookie", b"a=1; Path=/; HttpOnly"),
        (b"X-Empty", b""), (b"set-cookie", b"b=2; Expires=Wed, 21 Oct 2015 07:28:00 GMT"),
        (b"x-REPEAT", b"1"), (b"X-Repeat", b"2"), (b"x-repeat", b"1"), (b"Set-Cookie", b"a=1"),
        (b"X-Obs-Text", b"caf\xe9 \xff\x80 Z\xc3\xbcrich"), (b"X-Quoted", b'"a\\"b", c  d\te'),
        (b"X-!#$%&'*+.^_`|~", b"every mark of a token"), (b"ETag", b'W/"a%b%%c"'),
        (b"Link", b"</a>; rel=preload"), (b"link", b"</b>"), (b"X-Long", b"y" * 8000),
    )  # fmt: skip


def _error(status: bytes, *headers: tuple[bytes, bytes]) -> Callable[[Message], Reply]:
    error = {"message": "as told", "type": "wire", "param": None, "code": None}
    body = json.dumps({"error": error}, indent=2).encode() + b"\n"
    return lambda request: _sized(body, _JSON, *headers, status=status)


_LIMITS: Final = (
    (b"Retry-After", b"1"), (b"retry-after-ms", b"1250"), (b"x-should-retry", b"false"),
    (b"x-ratelimit-limit-requests", b"60"), (b"x-ratelimit-remaining-requests", b"0"),
    (b"x-ratelimit-reset-requests", b"1s"), (b"x-ratelimit-remaining-tokens", b"149984"),
)  # fmt: skip


def _bodiless(status: bytes, *headers: tuple[bytes, bytes]) -> Callable[[Message], Reply]:
    return lambda request: Reply((Piece(_head(status, (b"Date", _DATE), *headers)),))


def _trailers(request: Message) -> Reply:
    head = _head(b"200 OK", _JSON, (b"Trailer", b"X-Sum"), (b"Transfer-Encoding", b"chunked"))
    end = b"0\r\nX-Sum: 1234\r\nx-second: 5\r\n\r\n"
    return Reply((Piece(head + _chunk(_CHAT[:40]) + _chunk(_CHAT[40:]) + end),))


def _extensions(request: Message) -> Reply:
    head = _head(b"200 OK", _JSON, (b"Transfer-Encoding", b"chunked"))
    chunks = _chunk(_CHAT[:9], b";a=b") + _chunk(_CHAT[9:], b';c="d;e"')
    return Reply((Piece(head + chunks + b"0;last\r\n\r\n"),))


def _hints(request: Message) -> Reply:
    hints = _head(b"103 Early Hints", (b"Link", b"</style.css>; rel=preload"))
    final = _sized(_CHAT, _JSON)
    return Reply((Piece(hints), Piece(final.pieces[0].data, 0.01)))


def _until_close(request: Message) -> Reply:
    head = _head(b"200 OK", _JSON)
    return Reply((Piece(head), Piece(_CHAT[:50], _PAUSE), Piece(_CHAT[50:], _PAUSE)), closes=True)


def _closing(request: Message) -> Reply:
    hop = ((b"Connection", b"close, X-Hop"), (b"X-Hop", b"for the next one only"))
    keep = (b"Keep-Alive", b"timeout=5")
    return Reply(_sized(_CHAT, _JSON, *hop, keep).pieces, closes=True)


def _large(request: Message) -> Reply:
    return _sized(bytes(range(256)) * 4096, (b"Content-Type", b"application/octet-stream"))


def _large_chunked(request: Message) -> Reply:
    head = _head(b"200 OK", _JSON, (b"Transfer-Encoding", b"chunked"))
    block = bytes(range(256)) * 64
    return Reply((Piece(head + _chunk(block) * 64 + b"0\r\n\r\n"),))


def _websocket(request: Message) -> Reply:
    key = (request.all(b"sec-websocket-key") or [b""])[0]
    return Reply(
        (Piece(_head(b"101 Switching Protocols", (b"Upgrade", b"websocket"),
                     (b"Connection", b"Upgrade"), (b"Sec-WebSocket-Accept", accept(key)),
                     (b"sec-websocket-PROTOCOL", b"realtime"))),),
        upgrades=True,
    )  # fmt: skip


def _phrase(code: int) -> bytes:
    return b"%d %b" % (code, HTTPStatus(code).phrase.encode())


REPLIES: Final[dict[str, Callable[[Message], Reply]]] = {
    "echo": _echo,
    "chat": lambda request: _sized(_CHAT, _JSON, (b"openai-processing-ms", b"12")),
    "tools": lambda request: _sized(_CALLS, _JSON),
    "sse": _sse,
    "sse-tools": _sse_tools,
    "sse-odd": _sse_odd,
    "sse-gzip": _gzip_stream,
    "gzip": _coded(b"gzip", lambda body: gzip.compress(body, mtime=0)),
    "br": _coded(b"br", brotli.compress),
    "zstd": _coded(b"zstd", lambda body: zstandard.ZstdCompressor().compress(body)),
    "unknown-coding": _coded(b"x-made-up", lambda body: body[::-1]),
    "bad-gzip": _coded(b"gzip", lambda body: gzip.compress(body, mtime=0)[:-30] + b"\0" * 9),
    "odd-headers": _odd_headers,
    "400": _error(_phrase(400)),
    "401": _error(_phrase(401), (b"WWW-Authenticate", b'Bearer realm="a", Basic realm="b"')),
    "403": _error(b"403"),
    "404": _error(b"404 "),
    "429": _error(_phrase(429), *_LIMITS),
    "500": _error(b"500 Internal  Server \xe9rror"),
    "503": _error(_phrase(503), (b"Retry-After", b"Wed, 21 Oct 2015 07:28:00 GMT")),
    "529": _error(b"529 Site is overloaded"),
    "204": _bodiless(b"204 No Content", (b"X-Kept", b"yes")),
    "302": _error(_phrase(302), (b"Location", b"//elsewhere.example/a b")),
    "304": _bodiless(b"304 Not Modified", (b"ETag", b'"a"'), (b"Content-Length", b"311")),
    "empty": lambda request: _sized(b""),
    "trailers": _trailers,
    "chunk-extensions": _extensions,
    "early-hints": _hints,
    "until-close": _until_close,
    "closing": _closing,
    "large": _large,
    "large-chunked": _large_chunked,
    "websocket": _websocket,
    "no-websocket": _error(
        _phrase(426), (b"Upgrade", b"websocket"), (b"Connection", b"Upgrade"), (b"X-Said", b"no")
    ),
}
