"""`understudy verify-wire`: each request directly and through the sidecar, and what differs."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from bin.wire_client import Address, Played, play
from bin.wire_diff import Comparison, Difference, Rules, Seen, compare, delays
from bin.wire_read import Headers, Message, Tape, read_reply, read_request
from bin.wire_replies import REPLIES
from bin.wire_request import Request, RequestError, conversations
from bin.wire_sidecar import PrivateSidecar
from bin.wire_upstream import ID, REPLY, Record, Upstream

# A relay that holds events back does so each time; a busy machine does not.
_TRIES: Final = 3
_MODELS_SECONDS: Final = 120.0  # a model may think before its first byte
Progress = Callable[[str], None]


def _silent(name: str) -> None:
    """The progress that nobody wants to see."""


@dataclass(frozen=True, slots=True)
class Way:
    """A sidecar to send through, and the name of that run."""

    name: str
    address: Address


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request in one run."""

    run: str
    request: Request
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Report:
    """`skipped`: requests that were not sent, for they cost money."""

    outcomes: tuple[Outcome, ...]
    skipped: tuple[str, ...] = ()
    masked: bool = False

    @property
    def differences(self) -> list[tuple[Outcome, Difference]]:
        return [(o, found) for o in self.outcomes for found in o.comparison.differences]

    @property
    def exit_code(self) -> int:
        return 1 if self.differences else 0


@dataclass(frozen=True, slots=True)
class Theirs:
    """An upstream of the user's. `through`: a running sidecar; None has a private one started."""

    upstream: str
    through: str | None = None
    key: bytes | None = field(default=None, repr=False)
    spend: bool = False


@dataclass(frozen=True, slots=True)
class Verification:
    """`upstream`: ours, which says what it got; None when it is the user's.

    `patience`: seconds without a byte of a reply.
    """

    direct: Address
    upstream: Upstream | None = None
    key: bytes | None = field(default=None, repr=False)
    patience: float = 15.0

    def run(
        self, requests: Sequence[Request], ways: Sequence[Way], progress: Progress = _silent
    ) -> list[Outcome]:
        outcomes: list[Outcome] = []
        for conversation in conversations(requests):
            progress(conversation[0].name)
            direct = self._seen(conversation, self.direct)
            for way in ways:
                compared = self._compared(conversation, direct, way)
                outcomes += [
                    Outcome(way.name, request, comparison)
                    for request, comparison in zip(conversation, compared, strict=True)
                ]
        return outcomes

    def _compared(
        self, conversation: tuple[Request, ...], direct: list[Seen], way: Way
    ) -> list[Comparison]:
        for attempt in itertools.count(1):
            through = self._seen(conversation, way.address)
            compared = [
                compare(one, two, self._rules(request))
                for request, one, two in zip(conversation, direct, through, strict=True)
            ]
            if attempt == _TRIES or not any(map(_only_late, compared)):
                return compared
            direct = self._seen(conversation, self.direct)
        raise AssertionError("unreachable")

    def _rules(self, request: Request) -> Rules:
        masked = self.upstream is None
        return Rules(
            host=self.direct.authority,
            refused=request.options.refused,
            masked=masked,
            generated=masked and request.spends,
        )

    def _seen(self, conversation: tuple[Request, ...], address: Address) -> list[Seen]:
        if self.upstream is None:
            played = self._play(conversation, address, [()] * len(conversation))
            return [Seen(one.reply, one.fault, None) for one in played]
        # The same in each run, so that the bytes are: what one run left is gone before the next.
        names = [b"%d" % index for index in range(len(conversation))]
        more = [
            ((ID, name), (REPLY, request.options.reply.encode()))
            for request, name in zip(conversation, names, strict=True)
        ]
        played = self._play(conversation, address, more)
        records = [self.upstream.take(name) for name in names]
        return [_seen(one, found) for one, found in zip(played, records, strict=True)]

    def _play(
        self, conversation: tuple[Request, ...], address: Address, more: Sequence[Headers]
    ) -> list[Played]:
        return play(conversation, address, address.filling(self.key), more, self.patience)


def _seen(played: Played, records: list[Record]) -> Seen:
    messages = tuple(record.message for record in records if record.message is not None)
    if len(messages) != 1:
        return Seen(played.reply, played.fault, messages)
    record = records[0]
    sent = read_request(played.sent.data, upgrades=messages[0].framing == "tunnel")
    answered = read_reply(record.reply.data, messages[0].method, True)
    return Seen(
        played.reply,
        played.fault,
        messages,
        _delays((answered, record.reply), (played.reply, played.got)),
        _delays((sent, played.sent), (messages[0], record.request)),
    )


def _delays(
    sent: tuple[Message | None, Tape], got: tuple[Message | None, Tape]
) -> tuple[float, ...]:
    (one, written), (two, read) = sent, got
    return () if one is None or two is None else delays((one, written), (two, read))


def _only_late(comparison: Comparison) -> bool:
    return any(found.side == "timing" for found in comparison.differences)


def _check_replies(requests: Sequence[Request]) -> None:
    for request in requests:
        if request.options.reply not in REPLIES:
            raise RequestError(
                f"options.reply {request.options.reply!r} of {request.name!r}: "
                f"must be one of {', '.join(REPLIES)}"
            )


def verify_ours(requests: Sequence[Request], progress: Progress = _silent) -> Report:
    """Against the deterministic upstream: a private sidecar that records, and one that does not.

    Raises RequestError and SidecarError.
    """
    _check_replies(requests)
    upstream = Upstream()
    with (
        contextlib.closing(upstream),
        PrivateSidecar(upstream.url, capture=False) as plain,
        PrivateSidecar(upstream.url, capture=True) as recording,
        upstream,  # last: with no thread of ours about, processes are started safely
    ):
        ways = [
            Way("without capture", Address.of(plain.url, "sidecar")),
            Way("with capture", Address.of(recording.url, "sidecar")),
        ]
        verification = Verification(Address.of(upstream.url, "upstream"), upstream)
        return Report(tuple(verification.run(requests, ways, progress)))


def verify_theirs(
    requests: Sequence[Request], theirs: Theirs, progress: Progress = _silent
) -> Report:
    """Against an upstream of the user's. Raises AddressError and SidecarError."""
    direct = Address.of(theirs.upstream, "--upstream")
    direct.check("--upstream")
    verification = Verification(direct, None, theirs.key, _MODELS_SECONDS)
    sent = [request for request in requests if theirs.spend or not request.spends]
    skipped = tuple(request.name for request in requests if request not in sent)
    with contextlib.ExitStack() as stack:
        through = theirs.through
        if through is None:
            through = stack.enter_context(PrivateSidecar(theirs.upstream, capture=True)).url
        way = Way("through the sidecar", Address.of(through, "--through"))
        way.address.check("--through")
        return Report(tuple(verification.run(sent, [way], progress)), skipped, masked=True)
