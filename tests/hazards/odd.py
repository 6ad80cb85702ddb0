"""What no table has a place for: calls of odd bodies, and a run of odd records for the spool."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import orjson

from policies.home import Home
from policies.spool import BATCH, Kind, pack
from tests.hazards.peers import CANARY, chunked, sized
from tests.store.making import Exchange, Run, chat_answer, chat_request, exchange_id

ODD_RUNS: Final = "0-odd-"
OddCall = tuple[Callable[[int], bytes], bytes]

_LONG: Final = "7" * 70
_DEEP: Final = b'{"messages":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
_SURROGATES: Final = rb'"\ud800 lone \udfff\u0000"'
_PLAIN: Final = orjson.dumps(chat_request())
_ANSWER: Final = orjson.dumps(chat_answer())

_ODD_REQUESTS: Final[tuple[bytes, ...]] = (
    b'{"model":%b,"user":%b,"metadata":{"a":%b},"messages":[{"role":"user","content":%b}]}'
    % ((_SURROGATES,) * 4),
    b'{"model":"gpt\\u0000-4o","user":"a\\u0000b","messages":[{"role":"us\\u0000er"}]}',
    b'{"model":"a","model":"b","messages":[],"messages":[{"role":"user","content":"twice"}]}',
    b'{"model":%b,"seed":%b,"messages":[{"content":%b}]}' % ((_LONG.encode(),) * 3),
    b'{"model":1e999,"messages":-1e999,"n":NaN,"user":Infinity}',
    b"\xff\xfe\x00not utf-8 at all\xc3\x28",
    b'{"messages":[{"role":"user","content":"\xed\xa0\x80 \xff"}]}',
    _DEEP,
    b"[" * 200_000,
    b"null", b"[]", b'"text"', b"{", b"", b"\x00" * 50,
    b'{"messages":{"role":"user"},"tools":"none","stream":"yes","model":["gpt"]}',
    b'{"messages":[null,1,"x",[],{"role":null,"content":[null,{"type":7}]}],"model":"m"}',
)  # fmt: skip

_ODD_ANSWERS: Final[tuple[bytes, ...]] = (
    b'{"id":%b,"model":%b,"service_tier":%b,"choices":[{"message":{"content":%b},'
    b'"finish_reason":%b}]}' % ((_SURROGATES,) * 5),
    b'{"usage":{"prompt_tokens":%b,"completion_tokens":-1,"prompt_tokens_details":'
    b'{"cached_tokens":%b}},"choices":[]}' % ((_LONG.encode(),) * 2),
    b'{"usage":{"prompt_tokens":9223372036854775807,"completion_tokens":9223372036854775808}}',
    b'{"usage":[1],"choices":{"0":1},"id":7,"model":{"a":1},"service_tier":[]}',
    b'{"choices":[null],"usage":{"prompt_tokens":1e400,"completion_tokens":NaN}}',
    b"[" * 200_000 + b"]" * 200_000,
    b"\xff\x00\xfe", b"", b"null", b'"\\ud800"',
)  # fmt: skip

_ODD_STREAMS: Final[tuple[bytes, ...]] = (
    b'data: {"choices":[{"index":%b,"delta":{"content":"a"}}]}\n\n' % _LONG.encode(),
    b'data: {"choices":[{"index":1000000000,"delta":{"tool_calls":[{"index":999999999}]}}]}\n\n',
    b'data: {"choices":[{"index":-5,"delta":{"content":%b}}]}\n\ndata: [DONE]\n\n' % _SURROGATES,
    b'data: {"choices":[{"index":0,"delta":{"tool_calls":[{"index":"x","function":7}]}}]}\n\n',
    b"data: " + b"[" * 100_000 + b"\n\n",
    b"event: \xff\xfe\ndata: \x00\x01\r\rdata\ndata:\n\n\n" * 20,
    b'data: {"type":"response.completed","response":null}\n\ndata: [DONE]\n\n',
)

_JSON: Final = b"Content-Type: application/json\r\n"
_BOMB: Final = gzip.compress(bytes(16 << 20)) * 64  # a gibibyte
_ODD_HEADS: Final = (
    b"x-ratelimit-remaining-tokens: %b\r\nx-ratelimit-reset-tokens: %bh\r\nretry-after: %b\r\n"
    b"x-request-id: \xff\xfe\r\nopenai-processing-ms: nan\r\n" % ((_LONG.encode(),) * 3)
)

_ODD_RECORDS: Final = {
    Kind.OPENED: b'{"seq":%b,"at":1.7e9,"method":7,"target":["/v1/chat/completions"],"key":{},'
    b'"headers":[["a","b"]],"host":7,"mode":"none"}' % _LONG.encode(),
    Kind.ROUTED: b'{"to":7,"why":[]}',
    Kind.REQUEST_BODY: _DEEP,
    Kind.RESPONSE_HEAD: b'{"status":%b,"headers":[["x","\\ud800"]]}' % _LONG.encode(),
    Kind.RESPONSE_BODY: _DEEP,
    Kind.CLOSED: b'{"outcome":7,"error":{},"request_bytes":%b,"response_bytes":-1e999,"cut":[]}'
    % _LONG.encode(),
}


def odd_calls() -> Iterator[OddCall]:
    """A request, given its number, and the answer that it gets, to the byte."""
    plain = sized(_ANSWER, headers=_JSON)
    for body in _ODD_REQUESTS:
        yield _request(body), plain
    for body in _ODD_ANSWERS:
        yield _request(_PLAIN), sized(body, headers=_JSON)
    for stream in _ODD_STREAMS:
        for target in ("/v1/chat/completions", "/v1/responses"):
            kind = b"Content-Type: text/event-stream\r\n"
            yield _request(_PLAIN, target), sized(stream, headers=kind)
    yield _request(_PLAIN), sized(_BOMB, headers=_JSON + b"Content-Encoding: gzip\r\n")
    yield _request(_PLAIN), sized(b"no gzip", headers=_JSON + b"Content-Encoding: gzip\r\n")
    yield _request(_PLAIN), sized(_ANSWER, headers=_JSON + _ODD_HEADS)
    heads = f"x-stainless-retry-count: {_LONG}\r\nOpenAI-Project: \xff\r\nIdempotency-Key: \xfe\r\n"
    yield _request(_PLAIN, heads=heads), plain


def _request(
    body: bytes, target: str = "/v1/chat/completions", heads: str = ""
) -> Callable[[int], bytes]:
    def made(number: int) -> bytes:
        head = (
            f"POST {target}?before={number} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n"
            f"Authorization: Bearer {CANARY}-key\r\nContent-Type: application/json\r\n{heads}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode("latin-1") + body

    return made


def odd_run(root: Path) -> int:
    """Two runs that are over, with records that were never a proxy's; how many runs."""
    at = Home(root, root)
    run = Run(at, f"{ODD_RUNS}records")
    for number, payload in enumerate([b"", b"{", b"[]", b"\xff", b'{"at": 1e300}', b"[" * 100_000]):
        one = exchange_id(500 + number)
        run.write(*(pack(kind, one, 1.0, payload) for kind in (*Kind, 99)))
    for number, at_ in enumerate([float("nan"), float("inf"), -1e308], 600):
        run.write(pack(Kind.OPENED, exchange_id(number), at_, b'{"seq":1,"at":1,"headers":[]}'))
    odd = Exchange(number=700)
    for kind, said in _ODD_RECORDS.items():
        run.write(odd.record(kind, said))
    run.write(Exchange(number=701, request_headers=[1, 2]).records())  # type: ignore[list-item]
    run.write(Exchange(number=702).records())
    run.die()
    claims = Run(at, f"{ODD_RUNS}claims")
    claims.write(Exchange(number=800).records(), BATCH.pack(1 << 30, 12345), chunked(b"x" * 1000))
    claims.die()
    return 2
