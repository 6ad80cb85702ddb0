"""The requests that `understudy verify-wire` ships with."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any, Final

from bin.wire_frames import BINARY, PING, TEXT, Frame
from bin.wire_read import Headers
from bin.wire_request import Options, Request

_HOST: Final = (b"Host", b"{host}")
_LENGTH: Final = (b"Content-Length", b"{length}")
_CHUNKED: Final = (b"Transfer-Encoding", b"chunked")
_JSON: Final = (b"Content-Type", b"application/json")
_CHAT: Final = b"/v1/chat/completions"

# As OpenAI's Python SDK sends them, with a key that opens nothing.
_SDK: Final[Headers] = (
    _HOST,
    (b"Accept-Encoding", b"gzip, deflate, br, zstd"),
    (b"Connection", b"keep-alive"),
    (b"Accept", b"application/json"),
    _JSON,
    (b"User-Agent", b"OpenAI/Python 1.60.0"),
    (b"X-Stainless-Lang", b"python"),
    (b"x-stainless-retry-count", b"0"),
    (b"Authorization", b"Bearer sk-wire-no-key"),
    (b"OpenAI-Project", b"proj_wire"),
)
_QUESTION: Final = (
    b'{"model":"gpt-4o-mini" , "messages":[{"role":"user","content":"Gr\\u00fcezi '
    b'\xf0\x9f\x98\x80"}],\n\t"temperature":1.0,"n":1e0}'
)


def _asks(name: str, reply: str, body: bytes = _QUESTION, **options: Any) -> Request:
    return Request(
        name, b"POST", _CHAT, (*_SDK, _LENGTH), body, Options(reply=reply, **options)
    )  # fmt: skip


def _gets(name: str, target: bytes, reply: str = "echo", **options: Any) -> Request:
    headers = (_HOST, (b"Accept", b"*/*"), (b"Authorization", b"Bearer sk-wire-no-key"))
    return Request(name, b"GET", target, headers, options=Options(reply=reply, **options))


def _puts(
    name: str, body: bytes, *headers: tuple[bytes, bytes], method: bytes = b"POST", **options: Any
) -> Request:
    return Request(name, method, b"/v1/files", (_HOST, *headers), body, Options(**options))


def _streams(name: str, reply: str) -> Request:
    return _asks(name, reply, _QUESTION[:-1] + b',"stream":true}')


_CHATS: Final = (
    _asks("chat", "chat"),
    _streams("stream", "sse"),
    _streams("stream of tool calls", "sse-tools"),
    _streams("stream with odd line ends and bytes", "sse-odd"),
    _streams("stream, gzip", "sse-gzip"),
    _asks("tool calls", "tools", json.dumps({
        "model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {}}}],
    }, indent=3).encode()),
    _asks("body that is no JSON", "chat", b'{"model": \xff\xfe\x00 "\r\n\r\n'),
    replace(_asks("gzip request", "chat", gzip.compress(_QUESTION, mtime=0)),
            headers=(*_SDK, _LENGTH, (b"content-encoding", b"gzip"))),
)  # fmt: skip
_CODED: Final = tuple(
    _asks(f"reply coding: {name}", name)
    for name in ("gzip", "br", "zstd", "unknown-coding", "bad-gzip")
)
_HEADERS: Final = (
    _gets("odd reply headers", b"/v1/odd", "odd-headers"),
    Request("odd request headers", b"GET", b"/v1/odd", (
        (b"x-before-host", b"1"), (b"hOST", b"{host}"), (b"X-Empty", b""),
        (b"x-REPEAT", b"1"), (b"X-Repeat", b"2"), (b"x-repeat", b"1"), (b"Cookie", b"a=1"),
        (b"X-Obs-Text", b"caf\xe9 \xff\x80 Z\xc3\xbcrich"), (b"cookie", b"b=2; c=\"d\""),
        (b"X-Quoted", b'"a\\"b", c  d\te'), (b"X-!#$%&'*+.^_`|~", b"every mark of a token"),
        (b"ACCEPT", b"text/html;q=0.5, */*"), (b"X-Percent", b"%b %% %s {0}"),
        (b"X-Long", b"y" * 8000), (b"Authorization", b"Bearer sk-wire-no-key"), (b"X-Last", b"z"),
    )),
    Request("many headers", b"GET", b"/v1/many", (
        _HOST, *((b"X-%d" % number, b"%d" % number) for number in range(150)),
    )),
    Request("hop-by-hop headers", b"GET", b"/v1/hop", (
        _HOST, (b"Connection", b"keep-alive, X-Hop"), (b"X-Hop", b"for the next one only"),
        (b"Keep-Alive", b"timeout=5"), (b"TE", b"trailers"), (b"Proxy-Connection", b"keep-alive"),
        (b"Proxy-Authorization", b"Basic bm8ga2V5"), (b"X-End-To-End", b"kept"),
    )),
    Request("another name in Host", b"GET", b"/v1/models", ((b"Host", b"api.example"),)),
    Request("Host comes last", b"GET", b"/v1/models", ((b"X-First", b"1"), _HOST)),
    Request("offer of h2c", b"GET", b"/v1/models", (
        _HOST, (b"Connection", b"Upgrade, HTTP2-Settings"), (b"Upgrade", b"h2c"),
        (b"HTTP2-Settings", b"AAMAAABkAARAAAAAAAIAAAAA"),
    )),
    Request("HTTP/1.0", b"GET", b"/v1/old", options=Options(reply="chat", version="1.0")),
    Request("HTTP/1.0 without Host", b"GET", b"/v1/old", ((b"Accept", b"*/*"),),
            options=Options(version="1.0")),
)  # fmt: skip

_FORM: Final = (
    b'--wire\r\nContent-Disposition: form-data; name="a\\"b"; filename="\xc3\xbc.bin"\r\n'
    b"Content-Type: application/octet-stream\r\n\r\n" + bytes(range(256)) * 24 + b"\r\n--wire\r\n"
    b'content-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--wire--\r\nbehind it'
)
_IS_FORM: Final = (b"Content-Type", b"multipart/form-data; boundary=wire")
_UPLOADS: Final = (
    _puts("multipart", _FORM, _IS_FORM, _LENGTH),
    _puts("multipart, chunked", _FORM, _IS_FORM, _CHUNKED, piece=1000),
    _puts("upload in steps", _FORM, _IS_FORM, _LENGTH, piece=2500, pause=0.08),
    _puts("chunked upload in steps", _FORM, _CHUNKED, _IS_FORM, piece=2500, pause=0.08),
    _puts("Expect: 100-continue", _FORM, _IS_FORM, (b"Expect", b"100-continue"), _LENGTH),
    _puts("Expect, chunked", _FORM, (b"expect", b"100-Continue"), _CHUNKED, piece=2048),
    _puts("chunk extensions and trailers", _FORM, (b"Trailer", b"X-Sum"), _CHUNKED, piece=999,
          chunk_extension=';a=b;c="d"', trailers=((b"X-Sum", b"1"), (b"Authorization", b"no"))),
    _puts("one-byte chunks", _FORM[:300], _CHUNKED, piece=1),
    _puts("no body, chunked", b"", _CHUNKED),
    _puts("no body, Content-Length 0", b"", (b"Content-length", b"0")),
    _puts("GET with a body", b'{"a":1}', _JSON, _LENGTH, method=b"GET"),
    _puts("1 MiB up", b"0123456789abcdef", _LENGTH, repeat=65536),
    _puts("1 MiB up, chunked", b"0123456789abcdef", _CHUNKED, repeat=65536, piece=50_000),
    _gets("1 MiB down", b"/v1/files/1/content", "large"),
    _gets("1 MiB down, chunked", b"/v1/files/1/content", "large-chunked"),
)  # fmt: skip

_STATUSES: Final = (
    *(_asks(f"status {status}", status)
      for status in ("400", "401", "403", "404", "429", "500", "503", "529")),
    *(_gets(f"status {status}", b"/v1/models", status) for status in ("204", "302", "304")),
    _gets("empty reply", b"/v1/models", "empty"),
)  # fmt: skip
_FRAMED: Final = (
    _gets("reply with trailers", b"/v1/framed", "trailers"),
    _gets("reply with chunk extensions", b"/v1/framed", "chunk-extensions"),
    _gets("103 before the reply", b"/v1/framed", "early-hints"),
    _gets("reply until close", b"/v1/framed", "until-close"),
    _gets("reply with Connection: close", b"/v1/framed", "closing"),
    replace(_gets("HEAD", b"/v1/models", "chat"), method=b"HEAD"),
    replace(_gets("HEAD of a chunked reply", b"/v1/models", "sse"), method=b"HEAD"),
    replace(_gets("HEAD of a 304", b"/v1/models", "304"), method=b"HEAD"),
)
_TARGETS: Final = tuple(
    _gets(f"target {target.decode('latin-1')}", target)
    for target in (
        b"//a", b"//a//b/", b"/a/../b", b"/a/./b/..", b"/%2e%2e/b", b"/a%2Fb%2f", b"/a;b=c;d",
        b"/a?", b"/?", b"/a?b=c&&d==e?f", b"/a?q=http://b/c", b"/[]{}|^`\"<>", b"/a\\..\\b",
        b"/%00%0d%0a", b"/~!$&'()*+,;=:@-._", b"/%zz%", b"/_understudy", b"/v1/x?api-key=1&y=%C3",
        b"/" + b"long/" * 1500,
    )
)  # fmt: skip
_METHODS: Final = (
    *(_puts(f"method {method.decode()}", b'{"a":1}', _JSON, _LENGTH, method=method)
      for method in (b"POST", b"PUT", b"PATCH", b"DELETE", b"QUERY", b"REPORT", b"PROPFIND")),
    *(replace(_gets(f"method {method.decode()}, no body", b"/v1/x"), method=method)
      for method in (b"OPTIONS", b"TRACE", b"DELETE", b"MKCOL", b"M-SEARCH", b"PURGE")),
    replace(_gets("OPTIONS *", b"*"), method=b"OPTIONS"),
    replace(_gets("method get", b"/v1/x", refused=400), method=b"get"),
    _gets("target with a fragment", b"/a#b", refused=400),
)  # fmt: skip
_REUSED: Final = (
    _gets("kept connection 1", b"/v1/kept/1"),
    replace(_asks("kept connection 2", "chat"), options=Options("chat", "kept")),
    replace(_gets("kept connection 3, HEAD", b"/v1/kept/3"), method=b"HEAD",
            options=Options("chat", "kept")),
    _gets("kept connection 4, 204", b"/v1/kept/4", "204", connection="kept"),
    _gets("kept connection 5, trailers", b"/v1/kept/5", "trailers", connection="kept"),
    _gets("kept connection 6", b"/v1/kept/6", connection="kept"),
    _gets("pipelined 1", b"/v1/pipelined/1"),
    _gets("pipelined 2", b"/v1/pipelined/2", connection="pipelined"),
    _asks("pipelined POST", "gzip"),
    _gets("pipelined behind POST", b"/v1/pipelined/3", connection="pipelined"),
    _puts("pipelined, chunked", b"0123456789", _CHUNKED, piece=3),
    _gets("pipelined behind chunks", b"/v1/pipelined/4", "sse-tools", connection="pipelined"),
    _gets("pipelined behind a stream", b"/v1/pipelined/5", connection="pipelined"),
)  # fmt: skip

_UPGRADE: Final[Headers] = (
    _HOST,
    (b"Upgrade", b"websocket"),
    (b"Connection", b"Upgrade"),
    (b"Sec-WebSocket-Key", b"d2lyZS12ZXJpZmljYXRpb24="),
    (b"sec-websocket-version", b"13"),
    (b"Sec-WebSocket-Protocol", b"realtime, openai-insecure-api-key.sk-wire-no-key"),
)
_FRAMES: Final = (
    Frame(TEXT, '{"type":"session.update","a":"Zürich"}'.encode()),
    Frame(PING, b"are you there"),
    Frame(BINARY, bytes(range(256)) * 40),
    Frame(TEXT, b""),
    Frame(BINARY, bytes(range(256)) * 600),
)
WEBSOCKETS: Final = (
    Request("WebSocket", b"GET", b"/v1/realtime?model=gpt-realtime", _UPGRADE,
            options=Options("websocket", frames=_FRAMES)),
    Request("WebSocket refused with 426", b"GET", b"/v1/responses", _UPGRADE,
            options=Options("no-websocket")),
)  # fmt: skip

SHIPPED: Final = (
    *_CHATS, *_CODED, *_HEADERS, *_UPLOADS, *_STATUSES, *_FRAMED, *_TARGETS, *_METHODS, *_REUSED,
    *WEBSOCKETS,
)  # fmt: skip

# For an upstream that is not ours. What only asks comes first; what a model has to answer is sent
# with --spend alone.
_REAL: Final[Headers] = (
    _HOST,
    (b"Accept", b"application/json"),
    (b"User-Agent", b"understudy-verify-wire"),
    (b"Authorization", b"Bearer {key}"),
)
_TINY: Final = {
    "model": "gpt-4o-mini",
    "messages": [{"role": "user", "content": "Answer with the one word: ok"}],
    "max_tokens": 5,
    "temperature": 0,
}


def _real(name: str, body: object) -> Request:
    text = json.dumps(body).encode()
    return Request(name, b"POST", _CHAT, (*_REAL, _JSON, _LENGTH), text)


CHEAP: Final = (
    Request("models", b"GET", b"/v1/models", _REAL),
    Request("no such model", b"GET", b"/v1/models/understudy-verify-wire", _REAL),
    replace(_real("invalid chat", {"messages": "none"}), options=Options(spend=False)),
    _real("chat", _TINY),
    _real("stream", _TINY | {"stream": True}),
)
