"""What of a head may be written down: values of listed headers; a keyed hash for all others.

A hash still tells two keys apart, and is of no use without the install's own key.
"""

from __future__ import annotations

import hashlib
from typing import Final, TypeVar

from proxy.heads import Headers

_LISTED: Final = frozenset(
    b"""accept accept-encoding accept-language age allow cache-control connection content-encoding
    content-length content-type date expect host idempotency-key location openai-beta
    openai-processing-ms openai-version prefer retry-after retry-after-ms server traceparent
    transfer-encoding user-agent vary via x-request-id x-session-id x-should-retry
    x-understudy-error x-understudy-served-by""".split()
)
_LISTED_PREFIXES: Final = (b"x-stainless-", b"x-ratelimit-")
_LISTED_QUERY: Final = frozenset(
    b"api-version after before limit order include beta stream model purpose".split()
)
_MOST_CACHED: Final = 8192
_V = TypeVar("_V")


class Redactor:
    """Bounded caches: the same names and values come with every request of an app."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._hashes: dict[bytes, str] = {}
        self._names: dict[bytes, tuple[str, bool]] = {}

    def digest(self, value: bytes) -> str:
        found = self._hashes.get(value)
        if found is None:
            found = hashlib.blake2b(value, key=self._key, digest_size=12).hexdigest()
            _remember(self._hashes, value, found)
        return found

    def key_hash(self, credentials: tuple[bytes, ...]) -> str | None:
        """One hash over all credentials: the same key under another project is another caller."""
        return self.digest(b"\0".join(credentials)) if credentials else None

    def headers(self, headers: Headers) -> list[tuple[str, str]]:
        kept = []
        names = self._names
        for name, value in headers:
            known = names.get(name) or self._learn(name)
            kept.append(
                (known[0], value.decode("latin-1") if known[1] else "hash:" + self.digest(value))
            )
        return kept

    def target(self, target: bytes) -> str:
        """Path as it is; values of the query only where the name is listed."""
        mark = target.find(b"?")
        if mark < 0:
            return target.decode("latin-1")
        pairs = [self._pair(pair) for pair in target[mark + 1 :].split(b"&")]
        return target[:mark].decode("latin-1") + "?" + "&".join(pairs)

    def _pair(self, pair: bytes) -> str:
        name, equals, value = pair.partition(b"=")
        if not equals or name.lower() in _LISTED_QUERY:
            # A value without a name could be anything: a listed name is the only safe text.
            return pair.decode("latin-1") if equals else "hash:" + self.digest(pair)
        return name.decode("latin-1") + "=hash:" + self.digest(value)

    def _learn(self, name: bytes) -> tuple[str, bool]:
        lower = name.lower()
        known = (name.decode("latin-1"), lower in _LISTED or lower.startswith(_LISTED_PREFIXES))
        _remember(self._names, name, known)
        return known


def _remember(cache: dict[bytes, _V], key: bytes, value: _V) -> None:
    if len(cache) >= _MOST_CACHED:
        cache.clear()
    cache[key] = value
