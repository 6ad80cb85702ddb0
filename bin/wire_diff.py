"""What differs between a call made directly and the same call through the sidecar. Pure.

Two things may differ: what is listed in ALLOWED, each with its reason, and, with an upstream whose
answers are not the same twice, values that `wire_mask` masks. All else is a difference. (White
space around a value is no part of it, RFC 9110 section 5.5.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from bin.wire_mask import masked_body, masked_names
from bin.wire_read import Headers, Message, Tape

Side = Literal["reply", "request", "timing"]
Change = Literal["missing", "added", "changed"]

HELD_SECONDS: Final = 0.05
_ANY: Final[frozenset[Change]] = frozenset(("missing", "added", "changed"))
_MISSING: Final[frozenset[Change]] = frozenset(("missing",))
_SHOWN: Final = 72
_SECRET: Final = frozenset(
    b"authorization api-key x-api-key cookie set-cookie proxy-authorization".split()
)


@dataclass(frozen=True, slots=True)
class Allowed:
    """A difference that hop-by-hop semantics permit. `names`: of headers, in lower case."""

    what: str
    reason: str
    names: frozenset[bytes] = frozenset()
    changes: frozenset[Change] = _ANY


def _headers(what: str, reason: str, changes: frozenset[Change] = _MISSING) -> Allowed:
    return Allowed(what, reason, frozenset(what.lower().encode().split(b", ")), changes)


_NAMED: Final = Allowed(
    "named by Connection", "RFC 9110 section 7.6.1: what Connection names ends with the hop"
)
_HOST: Final = Allowed("Host", "RFC 9110 section 7.2: a gateway asks under the upstream's own name")
_VERSION: Final = Allowed("HTTP version", "RFC 9110 section 2.5: each hop speaks for itself")
_TRAILERS: Final = Allowed("trailers", "RFC 9110 section 6.5.1: may be dropped, are never merged")
_CHUNKS: Final = Allowed("chunk borders", "RFC 9112 section 7.1: the framing of one hop")
_EXTENSIONS: Final = Allowed("chunk extensions", "RFC 9112 section 7.1.1: end with the hop")
_FRAMING: Final = Allowed("framing", "RFC 9112 section 6.3: each hop chooses how a body ends")
_CONTINUE: Final = Allowed(
    "100 Continue", "RFC 9110 section 10.1.1: the sidecar answers Expect itself, at once"
)
_INTERIM: Final = Allowed(
    "103 and other 1xx", "RFC 9110 section 15.2 binds proxies; a gateway may keep hints to itself"
)
_REFUSED: Final = Allowed(
    "refused by the sidecar", "RFC 9112 sections 2.2 and 3: doubtful requests get a 400 of its own"
)
_UPGRADE: Final = _headers("Upgrade", "RFC 9110 section 7.8: an offer to the next hop; not in 101")

ALLOWED: Final = (
    _headers("Connection", "RFC 9110 section 7.6.1: each hop decides on its own connection", _ANY),
    _NAMED,
    _headers("Keep-Alive, Proxy-Connection", "RFC 9110 section 7.6.1: of one connection"),
    _headers("Proxy-Authenticate, Proxy-Authorization", "RFC 9110 section 11.7: of the next proxy"),
    _headers("TE", "RFC 9110 section 10.1.4: what the next hop may send"),
    _headers("Trailer", "RFC 9110 section 6.6.2: announces the trailers that are dropped"),
    _TRAILERS,
    _headers("Transfer-Encoding", "RFC 9112 section 6.1: the framing of one hop", _ANY),
    _FRAMING,
    _CHUNKS,
    _EXTENSIONS,
    _UPGRADE,
    _headers("HTTP2-Settings", "RFC 9113 section 3.1: belongs to an Upgrade that is not taken up"),
    _headers("Expect", "RFC 9110 section 10.1.1: answered by the sidecar, and then done with"),
    _CONTINUE,
    _INTERIM,
    _HOST,
    _VERSION,
    _REFUSED,
)
_BY_NAME: Final = {name: allowed for allowed in ALLOWED for name in allowed.names}


@dataclass(frozen=True, slots=True)
class Seen:
    """One run of a request.

    `requests`: as the upstream got them; None where it can't be asked. `fault`: why `reply` is
    None. Delays: seconds from written to read, of each head and event; none where unknown.
    """

    reply: Message | None
    fault: str = ""
    requests: tuple[Message, ...] | None = ()
    reply_delays: tuple[float, ...] = ()
    request_delays: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Rules:
    """`host`: the upstream's own. `refused`: see `Options`.

    `masked`: the upstream is not ours, `generated`: and a model wrote the answer.
    """

    host: bytes
    refused: int = 0
    masked: bool = False
    generated: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    side: Side
    what: str
    direct: str
    through: str


Finding = Difference | Allowed


@dataclass(frozen=True, slots=True)
class Comparison:
    """`added`: the longest that the sidecar added to a head's or event's way, in seconds."""

    differences: tuple[Difference, ...]
    allowed: tuple[Allowed, ...]
    added: float = 0.0


def compare(direct: Seen, through: Seen, rules: Rules) -> Comparison:
    found = list(_all(direct, through, rules))
    added = max(
        _added(direct.reply_delays, through.reply_delays),
        _added(direct.request_delays, through.request_delays),
    )
    return Comparison(
        tuple(item for item in found if isinstance(item, Difference)),
        tuple(item for item in found if isinstance(item, Allowed)),
        added,
    )


def _all(direct: Seen, through: Seen, rules: Rules) -> Iterator[Finding]:
    if rules.refused and _is_refused(through, rules.refused):
        yield _REFUSED
        return
    yield from _replies(direct, through, rules)
    if direct.requests is not None and through.requests is not None:
        yield from _requests(direct.requests, through.requests, rules)
    yield from _timing("reply", direct.reply_delays, through.reply_delays)
    yield from _timing("request", direct.request_delays, through.request_delays)


def _is_refused(through: Seen, status: int) -> bool:
    reply = through.reply
    ours = reply is not None and bool(reply.all(b"x-understudy-error"))
    return ours and reply is not None and reply.status == status and not through.requests


# -- replies


def _replies(direct: Seen, through: Seen, rules: Rules) -> Iterator[Finding]:
    one, two = direct.reply, through.reply
    if one is None or two is None:
        yield Difference("reply", "no reply", _told(direct), _told(through))
        return
    if one.status != two.status:
        yield Difference("reply", "status", str(one.status), str(two.status))
    if one.reason != two.reason:
        yield Difference("reply", "reason", show(one.reason), show(two.reason))
    yield from _interim(one.interim, two.interim)
    yield from _message("reply", one, two, rules)


def _told(seen: Seen) -> str:
    return seen.fault if seen.reply is None else show(seen.reply.start)


def _interim(direct: tuple[int, ...], through: tuple[int, ...]) -> Iterator[Finding]:
    if 100 in through and 100 not in direct:
        yield _CONTINUE
    elif 100 in direct and 100 not in through:
        yield Difference("reply", "100 Continue", "sent", "missing")
    hints = [code for code in direct if code != 100]
    theirs = [code for code in through if code != 100]
    if hints == theirs:
        return
    if not theirs:
        yield _INTERIM
    else:
        yield Difference("reply", "interim replies", str(hints), str(theirs))


# -- requests


def _requests(
    direct: tuple[Message, ...], through: tuple[Message, ...], rules: Rules
) -> Iterator[Finding]:
    if len(direct) != len(through):
        counts = f"{len(direct)} at the upstream", f"{len(through)} at the upstream"
        yield Difference("request", "requests", *counts)
        return
    for one, two in zip(direct, through, strict=True):
        if one.method != two.method:
            yield Difference("request", "method", show(one.method), show(two.method))
        if one.target != two.target:
            yield Difference("request", "target", show(one.target), show(two.target))
        yield from _message("request", one, two, rules)


# -- of both


def _message(side: Side, one: Message, two: Message, rules: Rules) -> Iterator[Finding]:
    if one.version != two.version:
        yield _VERSION
    yield from _header_findings(side, one, two, rules)
    yield from _upgrade(side, one, two)
    yield from _body(side, one, two, rules)
    yield from _frame(side, one, two)


def _frame(side: Side, one: Message, two: Message) -> Iterator[Finding]:
    if one.framing != two.framing:
        yield _FRAMING
    elif one.framing == "chunked" and [s[2] for s in one.spans] != [s[2] for s in two.spans]:
        yield _CHUNKS
    if one.trailers != two.trailers:
        if not two.trailers:
            yield _TRAILERS
        else:
            yield Difference(side, "trailers", str(one.trailers), str(two.trailers))
    if two.extensions < one.extensions:
        yield _EXTENSIONS
    elif two.extensions > one.extensions:
        yield Difference(side, "chunk extensions", str(one.extensions), str(two.extensions))


def _body(side: Side, one: Message, two: Message, rules: Rules) -> Iterator[Finding]:
    if one.whole != two.whole:
        ends = {True: "whole", False: "cut short"}
        yield Difference(side, "end of the body", ends[one.whole], ends[two.whole])
    if one.body == two.body:
        return
    if rules.masked and side == "reply":
        direct, through = (masked_body(m, rules.generated) for m in (one, two))
        if direct == through:
            return
    else:
        direct, through = one.body, two.body
    yield Difference(side, "body", *_around(direct, through))


def _around(one: bytes, two: bytes) -> tuple[str, str]:
    """Both sizes, and what stands where they part."""
    pairs = zip(one, two, strict=False)
    at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(two)))
    start = max(0, at - 8)
    end = at + 24
    return tuple(  # type: ignore[return-value]
        f"{len(body)} bytes, from {start}: {show(body[start:end])}" for body in (one, two)
    )


def _upgrade(side: Side, one: Message, two: Message) -> Iterator[Finding]:
    """Of a WebSocket both ends must learn; where the headers stand is up to the hop."""
    if not _switches(side, one) or _switches(side, two):
        return
    shown = [show(b", ".join(m.all(b"connection") + m.all(b"upgrade"))) for m in (one, two)]
    yield Difference(side, "Upgrade", *shown)


def _switches(side: Side, message: Message) -> bool:
    if side == "reply" and message.status != 101:
        return False
    named = {part.strip().lower() for v in message.all(b"connection") for part in v.split(b",")}
    offers = [value.lower() for value in message.all(b"upgrade")]
    return b"upgrade" in named and offers == [b"websocket"]


# -- headers


def _header_findings(side: Side, one: Message, two: Message, rules: Rules) -> Iterator[Finding]:
    named = {part.strip().lower() for v in one.all(b"connection") for part in v.split(b",")}
    hidden = masked_names(rules.masked, rules.generated) if side == "reply" else frozenset()
    direct, through = _grouped(one.headers), _grouped(two.headers)
    settled: set[bytes] = set(_BY_NAME) | named
    for name in dict.fromkeys([*direct, *through]):
        mine, theirs = direct.get(name, []), through.get(name, [])
        if mine == theirs:
            continue
        allowed = _allowance(name, mine, theirs, named)
        if name == b"host" and side == "request" and [v for _, v in theirs] == [rules.host]:
            allowed = _HOST if [n.lower() for n, _ in mine] in ([], [b"host"]) else None
        if allowed is not None:
            yield allowed
        else:
            yield from _one_name(side, mine, theirs, _is_masked(name, hidden))
        if len(mine) != len(theirs):
            settled.add(name)
    yield from _order(side, one.headers, two.headers, settled)


def _is_masked(name: bytes, hidden: frozenset[bytes]) -> bool:
    return name in hidden or (bool(hidden) and name.startswith(b"x-ratelimit-"))


def _grouped(headers: Headers) -> dict[bytes, list[tuple[bytes, bytes]]]:
    found: dict[bytes, list[tuple[bytes, bytes]]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append((name, value))
    return found


def _allowance(
    name: bytes,
    mine: Sequence[tuple[bytes, bytes]],
    theirs: Sequence[tuple[bytes, bytes]],
    named: set[bytes],
) -> Allowed | None:
    change: Change = "missing" if not theirs else "added" if not mine else "changed"
    allowed = _BY_NAME.get(name)
    if allowed is not None and change in allowed.changes:
        return allowed
    return _NAMED if change == "missing" and name in named else None


def _one_name(
    side: Side,
    mine: Sequence[tuple[bytes, bytes]],
    theirs: Sequence[tuple[bytes, bytes]],
    masked: bool,
) -> Iterator[Finding]:
    """Repeats, then case, then values of one header's lines."""
    name = (mine or theirs)[0][0]
    if len(mine) != len(theirs):
        what = "header missing" if not theirs else "header added" if not mine else "header repeats"
        yield Difference(side, what, _lines(mine), _lines(theirs))
        return
    for (one, value), (two, other) in zip(mine, theirs, strict=True):
        if one != two:
            yield Difference(side, "header case", show(one), show(two))
        if value != other and not masked:
            shown = _values(name, value, other)
            yield Difference(side, "header value", *(f"{show(name)}: {v}" for v in shown))


def _lines(pairs: Sequence[tuple[bytes, bytes]]) -> str:
    shown = [f"{show(name)}: {_value(name, value)}" for name, value in pairs]
    return "; ".join(shown) or "none"


def _value(name: bytes, value: bytes) -> str:
    return "(hidden)" if name.lower() in _SECRET else show(value)


def _values(name: bytes, one: bytes, two: bytes) -> tuple[str, str]:
    if name.lower() in _SECRET:
        return f"(hidden, {len(one)} bytes)", f"(hidden, {len(two)} bytes)"
    return show(one), show(two)


def _order(side: Side, one: Headers, two: Headers, settled: set[bytes]) -> Iterator[Finding]:
    direct = [name.lower() for name, _ in one if name.lower() not in settled]
    through = [name.lower() for name, _ in two if name.lower() not in settled]
    if direct == through:
        return
    at = next(i for i, (a, b) in enumerate(zip(direct, through, strict=True)) if a != b)
    shown = [show(b", ".join(names[at:])) for names in (direct, through)]
    yield Difference(side, "header order", *shown)


# -- timing


def _is_paced(delays: Sequence[float]) -> bool:
    """More than a head and a body: there is something that could be held back."""
    return len(delays) > 2


def _added(direct: Sequence[float], through: Sequence[float]) -> float:
    if not _is_paced(direct):
        return 0.0
    return max((b - a for a, b in zip(direct, through, strict=False)), default=0.0)


def _timing(what: str, direct: Sequence[float], through: Sequence[float]) -> Iterator[Finding]:
    """Held back: over 50 ms later than in the direct run, and over what that run's own vary by."""
    if not _is_paced(direct):
        return
    limit = HELD_SECONDS + max(direct) - min(direct)
    for index, (one, two) in enumerate(zip(direct, through, strict=False)):
        if two - one > limit:
            place = f"event {index}" if index else "head"
            shown = f"{place} after {one * 1000:.1f} ms", f"{place} after {two * 1000:.1f} ms"
            yield Difference("timing", f"{what} held back", *shown)
            return


def delays(sent: tuple[Message, Tape], got: tuple[Message, Tape]) -> tuple[float, ...]:
    """Seconds from written to read, of the head and of each write of the body."""
    (message, written), (other, read) = sent, got
    found = [read.at(other.head_end) - written.at(message.head_end)]
    done = 0
    for end, at in written.marks:
        size = message.body_by(end)
        if done < size <= len(other.body):
            found.append(read.at(other.wire_for(size)) - at)
        done = max(done, size)
    return tuple(found)


def show(data: bytes) -> str:
    """Bytes for a person, escaped and cut."""
    text = repr(data)[2:-1]
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."
