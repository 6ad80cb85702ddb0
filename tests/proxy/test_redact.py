"""What is written down of a head: valid JSON whatever the bytes, and nothing secret in it."""

from __future__ import annotations

import orjson
import pytest

from proxy.heads import RequestHeads, response_of
from proxy.redact import Redactor
from proxy.routes import Route

SECRET = b"sk-canary-91ab"
KEY = bytes(32)


def shown(*pairs: tuple[bytes, bytes]) -> list[list[str]]:
    names = tuple(name for name, _ in pairs)
    values = [value for _, value in pairs]
    head = RequestHeads(Route.to("http://h")).read(
        b"GET", b"/", "1.1", (b"Host", *names), [b"app", *values]
    )
    said = b"{" + Redactor(KEY).request(head, None)
    assert SECRET not in said
    found: list[list[str]] = orjson.loads(said)["headers"]
    return found


@pytest.mark.parametrize(
    "name",
    [b"Authorization", b"api-key", b"Cookie", b"Proxy-Authorization", b"X-Whatever", b"Set-Cookie",
     b"Sec-WebSocket-Protocol", b"Referer", b"X-Forwarded-For", b"OpenAI-Organization"],
)  # fmt: skip
def test_values_of_names_that_are_not_listed_are_hashed(name: bytes) -> None:
    found = dict(shown((name, b"Bearer " + SECRET)))
    assert found[name.decode()].startswith("hash:")
    assert len(found[name.decode()]) == len("hash:") + 24


def test_listed_values_are_shown_first_and_as_they_are() -> None:
    found = shown((b"X-A", SECRET), (b"User-Agent", b"app/1"), (b"x-stainless-lang", b"py"))
    assert found[:3] == [["Host", "app"], ["User-Agent", "app/1"], ["x-stainless-lang", "py"]]
    assert found[3][0] == "X-A"


def test_any_bytes_become_valid_json() -> None:
    odd = b'a"b\\c\te\xe9\xff%s%%'
    found = dict(shown((b"User-Agent", odd), (b"X-%s", odd), (b"X-'`|~", odd)))
    assert found["User-Agent"] == odd.decode("latin-1")
    assert found["X-%s"].startswith("hash:")


def test_hashes_tell_values_apart_and_depend_on_the_key() -> None:
    one, other = Redactor(KEY), Redactor(b"\1" * 32)
    assert one.digest(b"a") == one.digest(b"a") != one.digest(b"b")
    assert one.digest(b"a") != other.digest(b"a")


def test_one_hash_over_all_credentials() -> None:
    redactor = Redactor(KEY)
    hashes = [redactor.key_hash(c) for c in ((b"k",), (b"k", b"p"), (b"k", b"q"), (b"kp",))]
    assert len(set(hashes)) == 4
    assert redactor.key_hash(()) is None
    assert redactor.key_hash((b"k",)) == hashes[0]


@pytest.mark.parametrize(
    ("target", "kept"),
    [
        (b"/v1/models", "/v1/models"),
        (b"/v1/files?limit=5&after=file-1", "/v1/files?limit=5&after=file-1"),
        (b"/v1/x?", "/v1/x?hash:"),
        (b'/v1/%e9\xe9"\\', '/v1/%e9\xe9"\\'),
    ],
)
def test_targets(target: bytes, kept: str) -> None:
    assert str(orjson.loads(Redactor(KEY).target(target))).startswith(kept)


@pytest.mark.parametrize(
    "query", [b"api-key=%b", b"%b", b"limit=1&key=%b&x", b"=%b", b"a=1=%b", b"Key=%b?%b"]
)
def test_query_values_that_are_not_listed_are_hashed(query: bytes) -> None:
    redactor = Redactor(KEY)
    said = redactor.target(b"/v1/x?" + query.replace(b"%b", SECRET))
    assert SECRET not in said
    assert b"hash:" in said
    assert said == redactor.target(b"/v1/x?" + query.replace(b"%b", SECRET))  # from the cache


def test_reply_headers_are_redacted_too() -> None:
    head = response_of(200, b"OK", [(b"Set-Cookie", SECRET), (b"x-request-id", b"req_1")], 0)
    said = Redactor(KEY).response(head)
    assert SECRET not in said
    assert ["x-request-id", "req_1"] in orjson.loads(said)


def test_caches_are_bounded() -> None:
    redactor = Redactor(KEY)
    for number in range(20_000):
        redactor.target(b"/v1/files/%d" % number)
        redactor.key_hash((b"%d" % number,))
    assert len(redactor._targets) <= 8192
    assert len(redactor._hashes) <= 8192
