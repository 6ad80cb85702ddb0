"""What of a head may be written down: values of listed headers; a keyed hash for all others.

A hash still tells two keys apart, and is of no use without the install's own key.
"""

from __future__ import annotations

import hashlib
from typing import Final

import orjson

from policies.privacy import Mode
from policies.proof import proof
from proxy.heads import RequestHead, ResponseHead
from proxy.shapes import Shape, Values

_LISTED_QUERY: Final = frozenset(
    b"api-version after before limit order include beta stream model purpose".split()
)
_MOST_CACHED: Final = 8192
_LONGEST_CACHED: Final = 512


class _Cache(dict[bytes, bytes]):
    """Bounded: the same names and values come with every request of an app."""

    def keep(self, key: bytes, value: bytes) -> bytes:
        if len(self) >= _MOST_CACHED:
            self.clear()
        if len(key) <= _LONGEST_CACHED:
            self[key] = value
        return value


class Redactor:
    """Heads as JSON, cheaply: every text is cached as the JSON it becomes."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._hashes: dict[tuple[bytes, ...], str] = {}
        self._shown = _Cache()
        self._hidden = _Cache()
        self._targets = _Cache()

    def digest(self, value: bytes) -> str:
        return hashlib.blake2b(value, key=self._key, digest_size=12).hexdigest()

    def proof(self, nonce: bytes) -> str:
        """That we hold the install key, for who holds it too."""
        return proof(self._key, nonce)

    def key_hash(self, credentials: tuple[bytes, ...]) -> str | None:
        """One hash over all credentials: the same key under another project is another caller."""
        if not credentials:
            return None
        found = self._hashes.get(credentials)
        if found is None:
            found = self.digest(b"\0".join(credentials))
            if len(self._hashes) >= _MOST_CACHED:
                self._hashes.clear()
            self._hashes[credentials] = found
        return found

    def request(self, head: RequestHead, key: str | None, mode: Mode = "full") -> bytes:
        """What may be known of a request by its head: the rest of a JSON object, after `{`."""
        route = head.route
        return b'%b%b"method":"%b","target":%b,"headers":%b,"key":%b}' % (
            b"" if mode == "full" else b'"mode":"%b",' % mode.encode(),
            b'"host":"%b",' % route.origin.host.encode() if route.forwarded else b"",
            head.method,
            self.target(head.target),
            self._lists(head.shape, head.values),
            b"null" if key is None else b'"%b"' % key.encode(),
        )

    def response(self, head: ResponseHead) -> bytes:
        return self._lists(head.shape, head.values)

    def _lists(self, shape: Shape, values: Values) -> bytes:
        """JSON: a list of [name, value] pairs, listed names first."""
        shown, hidden = self._shown, self._hidden
        return shape.json % (
            *[shown.get(v) or self._show(v) for v in shape.listed(values)],
            *[hidden.get(v) or self._hide(v) for v in shape.hidden(values)],
        )

    def target(self, target: bytes) -> bytes:
        """JSON text: path as it is; values of the query only where the name is listed."""
        return self._targets.get(target) or self._targets.keep(target, self._target(target))

    def _show(self, value: bytes) -> bytes:
        return self._shown.keep(value, orjson.dumps(value.decode("latin-1")))

    def _hide(self, value: bytes) -> bytes:
        return self._hidden.keep(value, b'"hash:%b"' % self.digest(value).encode())

    def _target(self, target: bytes) -> bytes:
        path, mark, query = target.partition(b"?")
        shown = path + mark + b"&".join(self._pair(pair) for pair in query.split(b"&") if mark)
        return orjson.dumps(shown.decode("latin-1"))

    def _pair(self, pair: bytes) -> bytes:
        name, equals, value = pair.partition(b"=")
        if equals and name.lower() in _LISTED_QUERY:
            return pair
        # A value without a name could be anything.
        hidden = b"hash:" + self.digest(value if equals else pair).encode()
        return name + b"=" + hidden if equals else hidden
