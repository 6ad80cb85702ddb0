"""A secret in any place of any head is written down nowhere but under a name that is listed."""

from __future__ import annotations

import orjson
from hypothesis import given
from hypothesis import strategies as st

from proxy.heads import RequestHeads, ResponseHead, read_response
from proxy.known import KnownReplies
from proxy.redact import Redactor
from proxy.reply_reader import ReplyReader
from tests.fuzz.readings import ROUTE
from tests.fuzz.runs import examples

SECRET = b"sk-canary-77c1"
# Said once more, so that a name that is added there must be thought about here too.
LISTED = frozenset(
    b"""accept accept-encoding accept-language age allow cache-control connection content-encoding
    content-length content-type date expect host idempotency-key location openai-beta
    openai-processing-ms openai-version prefer retry-after retry-after-ms server traceparent
    transfer-encoding user-agent vary via x-request-id x-session-id x-should-retry""".split()
)
LISTED_PREFIXES = (b"x-stainless-", b"x-ratelimit-", b"x-understudy-")
LISTED_QUERY = frozenset(
    b"api-version after before limit order include beta stream model purpose".split()
)
TOKEN = st.text("abcxyzABC-_.%!#$&'*+^`|~019", min_size=1, max_size=12).map(str.encode)
NAMES = st.one_of(
    TOKEN,
    st.sampled_from(sorted(LISTED)),
    st.sampled_from((b"Authorization", b"api-key", b"Cookie", b"X-Stainless-A", b"x-ratelimit-b",
                     b"Proxy-Authorization", b"Sec-WebSocket-Protocol", b"Location2", b"hos",
                     b"X-Understudy-Task", b"x-understudy")),
)  # fmt: skip
AROUND = st.one_of(
    st.just(b""), st.binary(max_size=6).map(lambda raw: bytes(33 + b % 90 for b in raw))
)
VALUES = st.one_of(
    AROUND, st.tuples(AROUND, st.just(SECRET), AROUND).map(b"".join), st.just(b'"\\\xe9\xff\t%s')
)
HEADERS = st.lists(st.tuples(NAMES, VALUES), max_size=6)


def is_listed(name: bytes) -> bool:
    lower = name.lower()
    return lower in LISTED or lower.startswith(LISTED_PREFIXES)


def check(said: bytes, headers: list[tuple[bytes, bytes]], whole: bytes) -> None:
    found: list[list[str]] = orjson.loads(said)
    may_show = any(is_listed(name) and SECRET in value for name, value in headers)
    assert may_show or SECRET not in whole
    for name, value in found:
        assert is_listed(name.encode("latin-1")) or value.startswith("hash:")
    named = sorted(
        name.decode("latin-1") for name, _ in headers if name.lower() != b"content-length"
    )
    assert sorted(name for name, _ in found) == named


@examples(200)
@given(HEADERS)
def test_request_headers(headers: list[tuple[bytes, bytes]]) -> None:
    framing = (
        b"host",
        b"connection",
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"upgrade",
    )
    pairs = [(b"Host", b"app"), *(pair for pair in headers if pair[0].lower() not in framing)]
    redactor, heads = Redactor(bytes(32)), RequestHeads(ROUTE)
    names, values = tuple(name for name, _ in pairs), [value for _, value in pairs]
    for _ in range(2):  # the second time from what it remembers
        head = heads.read(b"GET", b"/v1/x", "1.1", names, values)
        said = b"{" + redactor.request(head, redactor.key_hash(head.credentials))
        check(orjson.dumps(orjson.loads(said)["headers"]), pairs, said)


@examples(200)
@given(HEADERS)
def test_reply_headers(headers: list[tuple[bytes, bytes]]) -> None:
    framing = (b"connection", b"content-length", b"transfer-encoding", b"upgrade")
    pairs = [pair for pair in headers if pair[0].lower() not in framing]
    pairs.append((b"Content-Length", b"0"))
    names, values = tuple(name for name, _ in pairs), [value for _, value in pairs]
    redactor = Redactor(bytes(32))
    head = read_response(200, b"OK", "1.1", names, values, b"GET")
    check(redactor.response(head), pairs, redactor.response(head))
    known = known_as(pairs)
    assert redactor.response(known) == redactor.response(head)


def known_as(pairs: list[tuple[bytes, bytes]]) -> ResponseHead:
    """The same head, from the values' places in a pattern if it can be known."""
    data = b"HTTP/1.1 200 OK\r\n%b\r\n" % b"".join(b"%b: %b\r\n" % pair for pair in pairs)
    known = KnownReplies()
    for _ in range(4):
        reader = ReplyReader(known)
        reader.begin(b"GET", b"")
        reader.feed(data)
    assert reader.head is not None
    return reader.head


QUERY = st.lists(
    st.tuples(
        st.one_of(TOKEN, st.sampled_from(sorted(LISTED_QUERY)), st.just(b"")),
        st.sampled_from((b"=", b"", b"==", b"=a=")),
        st.sampled_from((b"", b"1", SECRET, b"%73k-" + SECRET, SECRET + b"?", b"a;b=" + SECRET)),
    ),
    max_size=5,
)


@examples(200)
@given(QUERY, st.sampled_from((b"&", b"&&", b"&;")))
def test_queries(query: list[tuple[bytes, bytes, bytes]], between: bytes) -> None:
    target = b"/v1/x?" + between.join(b"".join(part) for part in query)
    redactor = Redactor(bytes(32))
    said = redactor.target(target)
    assert said == redactor.target(target)
    shown = [part for part in target.partition(b"?")[2].split(b"&") if SECRET in part]
    if not any(part.partition(b"=")[0].lower() in LISTED_QUERY for part in shown):
        assert SECRET not in said
