"""What follows from the names of a head's headers alone.

An app sends the same header names call after call. Where the length stands, what is dropped, what
may be written down is worked out once, as a `Shape`; a head is then one `%` of a template with the
values: a third of the cost of a loop over headers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Final, TypeVar

from policies.identity import NO_STORE_HEADER, PREFIX, SESSION_HEADER

Names = tuple[bytes, ...]
# By place: header by header, or group by group of the pattern that a head has matched.
Values = Sequence[bytes] | re.Match[bytes]
Texts = tuple[bytes, ...]
Pick = Callable[[Values], Texts]
S = TypeVar("S", bound="Shape")

MOST_SHAPES: Final = 256
_LONGEST_KEPT: Final = 4096  # bytes of names: more is no app's habit
HOP: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate",
     b"proxy-authorization", b"te", b"trailer", b"transfer-encoding", b"upgrade",
     b"http2-settings", b"expect")
)  # fmt: skip
UPGRADING: Final = frozenset((b"connection", b"upgrade"))
_CREDENTIALS: Final = frozenset(
    (b"authorization", b"api-key", b"x-api-key", b"openai-organization", b"openai-project")
)
_LISTED: Final = frozenset(
    b"""accept accept-encoding accept-language age allow cache-control connection content-encoding
    content-length content-type date expect host idempotency-key location openai-beta
    openai-processing-ms openai-version prefer retry-after retry-after-ms
    sec-websocket-extensions server traceparent
    transfer-encoding user-agent vary via x-request-id x-session-id x-should-retry""".split()
)
_OURS: Final = PREFIX.encode()
_LISTED_PREFIXES: Final = (b"x-stainless-", b"x-ratelimit-", _OURS)
_NO_STORE: Final = NO_STORE_HEADER.encode()
_SESSIONS: Final = (SESSION_HEADER.encode(), b"x-session-id")


def _is_for_proxies(lower: bytes) -> bool:
    """Proxy-Status alone is meant for the far end (RFC 9209 section 2)."""
    return lower.startswith(b"proxy-") and lower != b"proxy-status"


def _picker(indexes: list[int]) -> Pick:
    """The values at these places, as a tuple."""
    if not indexes:
        return lambda values: ()
    if len(indexes) == 1:
        only = indexes[0]
        return lambda values: (values[only],)
    return itemgetter(*indexes)


def keep(shapes: dict[tuple[Names, bytes], S], names: Names, connection: bytes, made: S) -> S:
    if len(shapes) >= MOST_SHAPES:
        shapes.clear()
    if sum(map(len, names)) + len(connection) <= _LONGEST_KEPT:
        shapes[names, connection] = made
    return made


class Shape:
    """`template % kept(values)` are the headers to send on; `json % (values of listed, hidden)` is
    their record, values of listed names as they are and all others hashed. `readable`: lower-case
    names that are listed besides the usual ones.
    """

    __slots__ = ("dropped", "every", "hidden", "host_sent", "json", "kept", "listed",
                 "names", "places", "recorded", "template")  # fmt: skip

    def __init__(
        self,
        names: Names,
        dropped: frozenset[bytes],
        host: bytes | None = None,
        readable: frozenset[bytes] = frozenset(),
    ) -> None:
        self.names = names
        self.host_sent = host
        lower = [name.lower() for name in names]
        self.dropped = dropped.union(filter(_is_for_proxies, lower))
        self.places: dict[bytes, list[int]] = {}
        for index, name in enumerate(lower):
            self.places.setdefault(name, []).append(index)
        self.template, self.kept = self._sent_on(lower, host)
        shows = _LISTED | readable
        listed = [i for i, n in enumerate(lower) if n in shows or n.startswith(_LISTED_PREFIXES)]
        hidden = [i for i in range(len(names)) if i not in listed]
        # The length differs from call to call, and the record counts the bytes itself.
        listed = [i for i in listed if lower[i] != b"content-length"]
        self.recorded = listed, hidden
        self.listed, self.hidden = _picker(listed), _picker(hidden)
        self.every = _picker(list(range(len(names))))
        # Names are tokens (RFC 9110 section 5.6.2): nothing in them needs escaping but '%' here.
        shown_names = [names[i].replace(b"%", b"%%") for i in listed + hidden]
        self.json = b"[" + b",".join(b'["%b",%%b]' % n for n in shown_names) + b"]"

    def _sent_on(self, lower: list[bytes], host: bytes | None) -> tuple[bytes, Pick]:
        lines, kept = [], []
        ours = b"" if host is None else host.replace(b"%", b"%%")
        for index, name in enumerate(lower):
            if name in self.dropped:
                continue
            shown = self.names[index].replace(b"%", b"%%")
            if name == b"host" and host is not None:
                lines.append(b"%b: %b\r\n" % (shown, ours))
            else:
                lines.append(shown + b": %b\r\n")
                kept.append(index)
        if host is not None and b"host" not in self.places:
            lines.insert(0, b"Host: %b\r\n" % ours)
        return b"".join(lines), _picker(kept)

    def place(self, name: bytes) -> int:
        """Where the (first) header of this name stands; -1: nowhere."""
        places = self.places.get(name)
        return places[0] if places else -1

    def lines(self, values: Values) -> bytes:
        return self.template % self.kept(values)

    def lines_upgrading(self, values: Values) -> bytes:
        """With the offer to speak another protocol, or the assent, in its place."""
        named = list(self.every(values))
        at = self.place(b"connection")
        if at >= 0 and named[at].lower() != b"upgrade":
            named[at] = b"Upgrade"  # whatever else it named has been heeded
        return Shape(self.names, self.dropped - UPGRADING, self.host_sent).lines(named)

    def by_groups(self, groups: list[int]) -> Shape:
        """The same shape for values that are groups of a match; `groups`: header by header."""
        other = Shape(self.names, self.dropped)
        listed, hidden = self.recorded
        other.listed = _picker([groups[i] for i in listed])
        other.hidden = _picker([groups[i] for i in hidden])
        other.every = _picker(groups)
        return other


class RequestShape(Shape):
    """`fault`: refused whatever the values are."""

    __slots__ = ("connection", "content_encoding", "content_type", "credentials", "expect", "fault",
                 "host", "length", "no_store", "retry_count", "session", "transfer_encoding",
                 "upgrade")  # fmt: skip

    def __init__(
        self,
        names: Names,
        named: frozenset[bytes],
        host: bytes,
        readable: frozenset[bytes] = frozenset(),
    ) -> None:
        """`named`: what the Connection header nominates (RFC 9110 section 7.6.1)."""
        ours = {lower for lower in map(bytes.lower, names) if lower.startswith(_OURS)}
        super().__init__(names, HOP | named | ours, host, readable)
        self.connection = self.place(b"connection")
        self.content_encoding = self.place(b"content-encoding")
        self.content_type = self.place(b"content-type")
        self.expect = self.place(b"expect")
        self.host = self.place(b"host")
        self.length = self.place(b"content-length")
        self.retry_count = self.place(b"x-stainless-retry-count")
        self.no_store = self.places.get(_NO_STORE, [])
        self.session = next((self.places[n][0] for n in _SESSIONS if n in self.places), -1)
        self.transfer_encoding = self.place(b"transfer-encoding")
        # An offer that Connection does not name is not made to us (RFC 9110 section 7.8).
        once = all(len(self.places.get(n, ())) == 1 for n in UPGRADING)
        self.upgrade = self.place(b"upgrade") if once and b"upgrade" in named else -1
        self.credentials = _picker(
            sorted(i for name in _CREDENTIALS for i in self.places.get(name, ()))
        )
        self.fault = self._fault()

    def _fault(self) -> str | None:
        if len(self.places.get(b"host", ())) > 1:
            return "more than one Host header"
        if self.length >= 0 and self.transfer_encoding >= 0:
            return "both Content-Length and Transfer-Encoding"
        if len(self.places.get(b"transfer-encoding", ())) > 1:
            return "a Transfer-Encoding other than 'chunked'"
        if len(self.places.get(b"content-length", ())) > 1:
            return "Content-Length is not one whole number"
        return None
