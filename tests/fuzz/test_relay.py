"""The whole relay between a client and upstreams that read strictly, cut and interleaved anyhow."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

from hypothesis import assume, given
from hypothesis import strategies as st

from proxy.shapes import HOP
from tests.fuzz.ends import Seen, Sending, read_all
from tests.fuzz.messages import (
    NONE,
    Answer,
    Asked,
    Pairs,
    cut,
    cut_anyhow,
    damaged,
    replies,
    requests,
)
from tests.fuzz.plays import Client, Play
from tests.fuzz.readings import (
    Call,
    NoReplies,
    NoRequests,
    ReadReply,
    RequestsRead,
    is_vague,
    read_replies,
    read_requests,
    taught,
)
from tests.fuzz.runs import examples

MOVES = st.lists(st.integers(0, 40), max_size=40)
MARK = b"X-Call"


@dataclass(frozen=True)
class Exchange:
    """A request and the reply that is meant for it; both carry the same mark."""

    asked: Asked
    answer: Answer

    @property
    def mark(self) -> bytes:
        return self.asked.headers[0][1]


@st.composite
def exchanges(draw: st.DrawFn, mark: bytes) -> Exchange:
    asked = draw(requests())
    answer = draw(replies(method=asked.method))
    marked = ((MARK, mark),)
    return Exchange(
        replace(asked, headers=marked + asked.headers),
        replace(answer, headers=marked + answer.headers),
    )


@st.composite
def conversations(draw: st.DrawFn) -> list[list[Exchange]]:
    """Of one or two clients, some requests each."""
    counts = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    return [
        [draw(exchanges(b"%d.%d" % (client, number))) for number in range(count)]
        for client, count in enumerate(counts)
    ]


def nominated(headers: Pairs) -> set[bytes]:
    values = [value for name, value in headers if name.lower() == b"connection"]
    return {part.strip().lower() for part in b",".join(values).split(b",")}


def end_to_end(headers: Pairs, kept: frozenset[bytes] = frozenset()) -> Pairs:
    """What of the headers is meant for the far end (RFC 9110 section 7.6.1)."""
    dropped = HOP | (nominated(headers) - kept)
    return tuple(pair for pair in headers if pair[0].lower() not in dropped)


def may_be_last(asked: Asked) -> bool:
    if asked.line.endswith(b"1.0"):
        return True
    persistent = (b"connection", b"proxy-connection")
    return any(v == b"close" for name, v in asked.headers if name.lower() in persistent)


def check_request(seen: Seen, asked: Asked) -> None:
    assert seen.start == (asked.method, b"/base" + asked.target, b"1.1")
    framing = (*asked.headers, (b"Content-Length", b"%d" % len(asked.body)))
    expected = end_to_end(framing if asked.framing == "sized" else asked.headers)
    hosted = tuple((n, b"api.openai.com" if n.lower() == b"host" else v) for n, v in expected)
    assert end_to_end(seen.headers) == hosted
    assert seen.body == asked.body


def check_reply(seen: Seen, answer: Answer) -> None:
    _, status, *reason = answer.line.split(b" ", 2)
    assert seen.start == (status, b"".join(reason), b"1.1")
    length = ((b"Content-Length", b"%d" % len(answer.body)),) if answer.framing == "sized" else ()
    kept = frozenset((b"content-length", b"content-type", b"content-encoding"))
    assert end_to_end(seen.headers) == end_to_end(answer.headers + length, kept)
    assert seen.body == (b"" if answer.bodiless else answer.body)
    assert seen.whole


@examples(150)
@given(conversations(), MOVES, st.integers(0, 3), st.data())
def test_both_sides_see_what_was_meant(
    talks: list[list[Exchange]], moves: list[int], turns: int, data: st.DataObject
) -> None:
    by_mark = {one.mark: one for talk in talks for one in talk}
    streams = [b"".join(one.asked.wire for one in talk) for talk in talks]
    replied = {mark: cut_anyhow(data, one.answer.wire) for mark, one in by_mark.items()}

    def answer(seen: Seen) -> Sending:
        [mark] = seen.all(MARK.lower())
        return Sending(deque(replied[mark]), by_mark[mark].answer.closes)

    play = Play(
        [Client(deque(cut_anyhow(data, stream))) for stream in streams],
        answer,
        moves,
        taught(one.asked.like for one in by_mark.values()),
        turns,
    ).run_out()
    for seen in play.upstreams.requests:
        check_request(seen, by_mark[seen.all(MARK.lower())[0]].asked)
    answered = 0
    for client, talk in zip(play.clients, talks, strict=True):
        methods = [one.asked.method for one in talk]
        found = read_all(client.heard, methods, client.pipe.ended is not None)
        for seen, one in zip(found, talk, strict=False):
            check_reply(seen, one.answer)
        assert len(found) == len(talk) or may_be_last(talk[len(found) - 1].asked)
        answered += len(found)
    assert len(play.upstreams.requests) == answered


OFFER = (
    b"GET /v1/realtime HTTP/1.1\r\nHost: app\r\nConnection: %b\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: eA==\r\n\r\n"
)
ASSENT = b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\nX-A: 1\r\n\r\n"
RAW = st.one_of(st.binary(max_size=60), st.sampled_from((b"GET / HTTP/1.1\r\n\r\n", b"\r\n" * 9)))


@examples(100)
@given(RAW, RAW, MOVES, st.booleans(), st.booleans(), st.data())
def test_another_protocol_passes_to_the_byte(
    up: bytes, down: bytes, moves: list[int], early: bool, closes: bool, data: st.DataObject
) -> None:
    """`early`: bytes of it come before the assent, perhaps together with the offer."""
    offer = OFFER % data.draw(st.sampled_from((b"Upgrade", b"keep-alive, Upgrade")))
    sent = cut_anyhow(data, offer + up) if early else [offer]
    said = cut_anyhow(data, ASSENT + down)
    later = [] if early else cut_anyhow(data, up)
    client = Client(deque(sent), later=deque(later))
    play = Play([client], lambda seen: Sending(deque(said), closes, switches=True), moves).run_out()
    [end] = play.upstreams.ends
    assert client.heard == ASSENT + down
    assert end.raw is not None and up.startswith(end.raw)
    assert end.raw == up or closes


@examples(150)
@given(conversations(), MOVES, st.integers(0, 2), st.data())
def test_whoever_leaves_whenever(
    talks: list[list[Exchange]], moves: list[int], turns: int, data: st.DataObject
) -> None:
    """Clients reset, upstreams reset or close in mid-reply: nothing stays, nothing is mixed up."""
    by_mark = {one.mark: one for talk in talks for one in talk}

    def answer(seen: Seen) -> Sending:
        wire = by_mark[seen.all(MARK.lower())[0]].answer.wire
        end = data.draw(st.integers(0, len(wire)))
        return Sending(deque([wire[:end]]), closes=True, resets=data.draw(st.booleans()))

    streams = [b"".join(one.asked.wire for one in talk) for talk in talks]
    clients = [Client(deque(cut_anyhow(data, s)), data.draw(st.booleans())) for s in streams]
    play = Play(clients, answer, moves, turns_to_connect=turns).run_out()
    for client, talk in zip(play.clients, talks, strict=True):
        methods = [one.asked.method for one in talk]
        for seen, one in zip(read_all(client.heard, methods, True), talk, strict=False):
            ours = seen.all(b"x-understudy-error")
            assert ours or not seen.start or seen.all(b"x-call") == [one.mark]
            if not ours:
                assert one.answer.body.startswith(seen.body)
            # The end of such a reply is the end of its connection, by whatever cause.
            vague = one.answer.framing == NONE or one.asked.line.endswith(b"1.0")
            if seen.whole and not ours and not vague and not one.answer.bodiless:
                assert seen.body == one.answer.body


# -- damage on the client's side

NUMBERED = b"HTTP/1.1 200 OK\r\nX-Number: %d\r\nContent-Length: 2\r\n\r\nok"


@dataclass
class Numbered:
    """Answers the requests in the order in which they come."""

    count: int = 0

    def __call__(self, seen: Seen) -> Sending:
        self.count += 1
        data = NUMBERED % self.count
        return Sending(deque([data[:-2] if seen.start[0] == b"HEAD" else data]))


def forwarded(read: RequestsRead) -> list[tuple[bytes, bytes]]:
    """Heads and bodies of the requests that must go on, in their order."""
    return [(one.wire or b"", one.body) for one in read.requests if one.ended and not one.refused]


def check_forwarded(play: Play, read: RequestsRead) -> None:
    """Upstreams have seen what the parser has read, and no request besides. `one connection`."""
    whole = [seen for seen in play.upstreams.requests if seen.whole]
    cut_short = [seen for seen in play.upstreams.requests if not seen.whole]
    expected = forwarded(read)
    assert [seen.body for seen in whole] == [body for _, body in expected]
    raw = b"".join(bytes(end.pipe.written) for end in play.upstreams.ends)
    for wire, _ in expected:
        assert wire in raw
        raw = raw[raw.index(wire) + len(wire) :]
    assert len(cut_short) <= 1
    for seen in cut_short:
        last = read.requests[len(expected)]
        assert last.wire is not None and last.wire in raw
        assert last.body.startswith(seen.body)
        assert not last.ended or last.refused


def check_told(play: Play, read: RequestsRead) -> None:
    """One reply to each request, in order; then, if one was refused, the error, and the end."""
    [client] = play.clients
    methods = [bytes(one.traits[0]) if one.traits else b"GET" for one in read.requests]  # type: ignore[call-overload]
    found = read_all(client.heard, methods, client.pipe.ended is not None)
    good = forwarded(read)
    numbers = [seen.all(b"x-number") for seen in found[: len(good)]]
    assert numbers == [[b"%d" % (number + 1)] for number in range(len(good))]
    if read.refused:
        assert len(found) == len(good) + 1
        assert found[-1].all(b"x-understudy-error") and found[-1].all(b"connection") == [b"close"]
        assert client.pipe.ended in ("eof", "close")
    else:
        assert len(found) == len(good)


@examples(250)
@given(st.lists(requests(), min_size=1, max_size=4), MOVES, st.integers(0, 3), st.data())
def test_damaged_requests_reach_no_upstream(
    asked: list[Asked], moves: list[int], turns: int, data: st.DataObject
) -> None:
    stream = data.draw(damaged(b"".join(one.wire for one in asked)))
    assume(not is_vague(stream))
    read = read_requests(NoRequests(), [stream], refuses_offers=True)
    known = taught(one.like for one in asked)
    client = Client(deque(cut_anyhow(data, stream)))
    play = Play([client], Numbered(), moves, known, turns).run()
    check_forwarded(play, read)
    check_told(play, read)
    Play([Client(deque(cut(stream, [len(stream) // 2])))], Numbered(), moves, known).run_out()


# -- damage on the upstream's side

POISON = b"HTTP/1.1 200 OK\r\nX-Poison: 1\r\nContent-Length: 4\r\n\r\nevil"
WARM = 4  # replies that are alike come before the damaged one


@st.composite
def calls(draw: st.DrawFn) -> Asked:
    asked = draw(requests(hops=False, versions=False))
    return replace(asked, headers=((MARK, b"0"), *asked.headers))


def marked(asked: Asked, number: int) -> bytes:
    return replace(asked, headers=((MARK, b"%d" % number), *asked.headers[1:])).wire


def check_damaged(seen: Seen, measure: ReadReply, answered: Answer) -> None:
    """What the client has got of a damaged reply: all that the parser has read, or our error."""
    if not measure.wires:
        assert seen.all(b"x-understudy-error") and seen.whole
        return
    told = read_all(measure.wires[0], [answered.method], ended=False)
    assert (seen.start, seen.headers) == (told[0].start, told[0].headers)
    assert seen.whole == measure.ended
    assert seen.body == measure.body if measure.ended else measure.body.startswith(seen.body)


@examples(250)
@given(calls(), MOVES, st.integers(0, 2), st.booleans(), st.data())
def test_damaged_replies_are_told_and_never_taken_for_the_next(
    asked: Asked, moves: list[int], turns: int, poisoned: bool, data: st.DataObject
) -> None:
    good = data.draw(replies(method=asked.method))
    wire = data.draw(damaged(good.wire)) + POISON * poisoned
    [measure] = read_replies(NoReplies(), [Call(asked.method, [wire])])
    sent = cut_anyhow(data, wire)

    def answer(seen: Seen) -> Sending:
        [mark] = seen.all(b"x-call")
        if mark == b"%d" % WARM:
            return Sending(deque(sent), closes=True, faulty=True)
        whole = replace(good, headers=((MARK, mark), *good.headers))
        return Sending(deque([whole.wire]), closes=good.closes)

    stream = b"".join(marked(asked, number) for number in range(WARM + 3))
    play = Play([Client(deque([stream]))], answer, moves, turns_to_connect=turns).run_out()
    [client] = play.clients
    found = read_all(client.heard, [asked.method] * (WARM + 3), client.pipe.ended is not None)
    assert [seen.all(b"x-call") for seen in found[:WARM]] == [[b"%d" % n] for n in range(WARM)]
    check_damaged(found[WARM], measure, good)
    for number, seen in enumerate(found[WARM + 1 :], WARM + 1):
        assert seen.all(b"x-call") == [b"%d" % number] or seen.all(b"x-understudy-error")
        assert not seen.all(b"x-poison")
    assert len(found) == (WARM + 3 if found[WARM].whole else WARM + 1)
