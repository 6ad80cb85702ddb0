"""What counts as a difference, what is allowed, and why: over messages written by hand."""

from __future__ import annotations

import pytest

from bin.wire_diff import Comparison, Rules, Seen, compare
from bin.wire_mask import masked_body
from bin.wire_read import Message, read_reply, read_request

RULES = Rules(host=b"up:1")


def reply(wire: bytes, method: bytes = b"GET") -> Message:
    found = read_reply(wire, method, ended=True)
    assert found is not None
    return found


def request(wire: bytes) -> Message:
    found = read_request(wire)
    assert found is not None
    return found


def ok(headers: bytes = b"", body: bytes = b"hello", start: bytes = b"HTTP/1.1 200 OK") -> Message:
    return reply(b"%b\r\n%bContent-Length: %d\r\n\r\n%b" % (start, headers, len(body), body))


def get(headers: bytes = b"", start: bytes = b"GET /a?b HTTP/1.1") -> Message:
    return request(b"%b\r\nHost: up:1\r\n%b\r\n" % (start, headers))


def replies(direct: Message, through: Message, rules: Rules = RULES) -> Comparison:
    return compare(Seen(direct), Seen(through), rules)


def requests(direct: Message, *through: Message, rules: Rules = RULES) -> Comparison:
    return compare(Seen(ok(), "", (direct,)), Seen(ok(), "", through), rules)


def whats(found: Comparison) -> list[tuple[str, str]]:
    return [(difference.side, difference.what) for difference in found.differences]


def allowed(found: Comparison) -> list[str]:
    return [item.what for item in found.allowed]


TWO_COOKIES = b"Set-Cookie: a=1\r\nX-A: 1\r\nSet-Cookie: b=2\r\n"


@pytest.mark.parametrize(
    ("direct", "through", "what"),
    [
        (ok(), ok(start=b"HTTP/1.1 201 OK"), "status"),
        (ok(), ok(start=b"HTTP/1.1 200 ok"), "reason"),
        (ok(b"X-A: 1\r\nX-B: 2\r\n"), ok(b"X-B: 2\r\nX-A: 1\r\n"), "header order"),
        (ok(b"X-A: 1\r\nX-B: 2\r\n"), ok(b"X-A: 1\r\n"), "header missing"),
        (ok(), ok(b"Via: 1.1 us\r\n"), "header added"),
        (ok(b"X-Aa: 1\r\n"), ok(b"x-aa: 1\r\n"), "header case"),
        (ok(b"X-A: \xff\r\n"), ok(b"X-A: \xc3\xbf\r\n"), "header value"),
        (ok(b"X-A:\r\n"), ok(), "header missing"),
        (ok(TWO_COOKIES), ok(b"Set-Cookie: a=1\r\nX-A: 1\r\n"), "header repeats"),
        (ok(TWO_COOKIES), ok(b"Set-Cookie: a=1, b=2\r\nX-A: 1\r\n"), "header repeats"),
        (ok(b"A: 1\r\nB: 2\r\nA: 3\r\n"), ok(b"A: 1\r\nA: 3\r\nB: 2\r\n"), "header order"),
        (ok(b"A: 1\r\nA: 3\r\n"), ok(b"A: 3\r\nA: 1\r\n"), "header value"),
        (ok(body=b"hello"), ok(body=b"hellO"), "body"),
    ],
)
def test_a_reply_that_was_changed_is_a_difference(
    direct: Message, through: Message, what: str
) -> None:
    assert ("reply", what) in whats(replies(direct, through))
    assert whats(replies(direct, direct)) == []


@pytest.mark.parametrize(
    ("direct", "through", "what"),
    [
        (get(), get(start=b"POST /a?b HTTP/1.1"), "method"),
        (get(start=b"GET //a HTTP/1.1"), get(start=b"GET /a HTTP/1.1"), "target"),
        (get(start=b"GET /a? HTTP/1.1"), get(start=b"GET /a HTTP/1.1"), "target"),
        (get(start=b"GET /%2f HTTP/1.1"), get(start=b"GET /%2F HTTP/1.1"), "target"),
        (get(b"X-A: 1\r\n"), get(), "header missing"),
        (get(), get(b"X-Forwarded-For: 1\r\n"), "header added"),
        (get(), request(b"GET /a?b HTTP/1.1\r\nHost: elsewhere\r\n\r\n"), "header value"),
        (get(), request(b"GET /a?b HTTP/1.1\r\nHost: up:1\r\nHost: up:1\r\n\r\n"),
         "header repeats"),
        (get(), get(b"TE: trailers\r\n"), "header added"),
        (get(b"Connection: Upgrade\r\nUpgrade: websocket\r\n"), get(), "Upgrade"),
    ],
)  # fmt: skip
def test_a_request_that_was_changed_is_a_difference(
    direct: Message, through: Message, what: str
) -> None:
    assert whats(requests(direct, through)) == [("request", what)]


def test_a_request_must_reach_the_upstream_exactly_once() -> None:
    assert whats(requests(get(), get())) == []
    assert whats(requests(get())) == [("request", "requests")]
    assert whats(requests(get(), get(), get())) == [("request", "requests")]


HOP = (
    b"Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: a\r\nTE: trailers\r\n"
    b"Proxy-Authorization: a\r\nTrailer: X\r\nUpgrade: h2c\r\nHTTP2-Settings: a\r\nExpect: a\r\n"
)


def test_what_ends_with_the_hop_may_go_and_only_that() -> None:
    found = requests(get(HOP + b"X-A: 1\r\n"), get(b"X-A: 1\r\n"))
    assert whats(found) == []
    assert set(allowed(found)) == {
        "Connection", "named by Connection", "Keep-Alive, Proxy-Connection", "TE", "Trailer",
        "Proxy-Authenticate, Proxy-Authorization", "Upgrade", "HTTP2-Settings", "Expect",
    }  # fmt: skip
    assert whats(requests(get(b"X-Hop: 1\r\n"), get())) == [("request", "header missing")]


def test_the_host_may_become_the_upstreams() -> None:
    mine = request(b"GET /a?b HTTP/1.1\r\nHost: app\r\n\r\n")
    assert (whats(requests(mine, get())), allowed(requests(mine, get()))) == ([], ["Host"])
    old = request(b"GET /a?b HTTP/1.0\r\n\r\n")
    found = requests(old, get())
    assert (whats(found), set(allowed(found))) == ([], {"Host", "HTTP version"})


def chunks(*pieces: bytes, extension: bytes = b"", trailers: bytes = b"") -> Message:
    body = b"".join(b"%x%b\r\n%b\r\n" % (len(p), extension, p) for p in pieces)
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    return reply(head + body + b"0\r\n" + trailers + b"\r\n")


def test_framing_is_the_hops_own_and_the_body_is_not() -> None:
    found = replies(
        chunks(b"ab", b"cd", extension=b";a", trailers=b"X: 1\r\n"), chunks(b"abc", b"d")
    )
    assert whats(found) == []
    assert allowed(found) == ["chunk borders", "trailers", "chunk extensions"]
    assert whats(replies(chunks(b"ab"), chunks(b"a", b"B"))) == [("reply", "body")]
    until_close = reply(b"HTTP/1.1 200 OK\r\n\r\nabcd")
    assert whats(replies(until_close, chunks(b"abcd"))) == []
    sized = whats(replies(chunks(b"hello"), ok()))  # held until its end was known
    assert sized == [("reply", "header added")]


def test_a_reply_that_was_cut_or_never_came_is_a_difference() -> None:
    cut = reply(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell")
    assert ("reply", "end of the body") in whats(replies(ok(), cut))
    none = compare(Seen(ok()), Seen(None, "connection lost"), RULES)
    assert [(d.what, d.through) for d in none.differences] == [("no reply", "connection lost")]
    neither = compare(Seen(None, "refused"), Seen(None, "refused"), RULES)
    assert whats(neither) == [("reply", "no reply")]


def interim(*codes: int) -> Message:
    return reply(b"".join(b"HTTP/1.1 %d X\r\n\r\n" % code for code in (*codes, 204)))


def test_interim_replies() -> None:
    assert allowed(replies(interim(103), interim())) == ["103 and other 1xx"]
    assert allowed(replies(interim(), interim(100))) == ["100 Continue"]
    assert whats(replies(interim(100), interim())) == [("reply", "100 Continue")]
    assert whats(replies(interim(), interim(103))) == [("reply", "interim replies")]


def test_a_websocket_upgrade_must_arrive_whatever_its_place() -> None:
    head = b"HTTP/1.1 101 Switching Protocols\r\n"
    direct = reply(head + b"Upgrade: websocket\r\nConnection: Upgrade\r\nX-A: 1\r\n\r\n\x81\0")
    moved = reply(head + b"X-A: 1\r\nconnection: upgrade\r\nUpgrade: WebSocket\r\n\r\n\x81\0")
    assert whats(replies(direct, moved)) == [("reply", "header value")]
    same = reply(head + b"X-A: 1\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\0")
    assert whats(replies(direct, same)) == []
    lost = reply(head + b"X-A: 1\r\n\r\n\x81\0")
    assert whats(replies(direct, lost)) == [("reply", "Upgrade")]


def test_a_refusal_counts_only_if_it_is_the_sidecars_own_and_nothing_went_up() -> None:
    rules = Rules(host=b"up:1", refused=400)
    ours = ok(b"x-understudy-error: bad_request\r\n", start=b"HTTP/1.1 400 Bad Request")
    direct = Seen(ok(), "", (get(),))
    assert allowed(compare(direct, Seen(ours), rules)) == ["refused by the sidecar"]
    assert whats(compare(direct, Seen(ours, "", (get(),)), rules)) != []
    assert whats(compare(direct, Seen(ok(start=b"HTTP/1.1 400 Bad")), rules)) != []
    assert whats(compare(direct, Seen(ours), RULES)) != []


def timed(*delays: float) -> Seen:
    return Seen(ok(), "", (), delays)


def test_an_event_is_held_back_beyond_50_ms_and_the_direct_runs_own_spread() -> None:
    steady = timed(0.001, 0.001, 0.001)
    assert whats(compare(steady, timed(0.002, 0.04, 0.002), RULES)) == []
    held = compare(steady, timed(0.002, 0.08, 0.002), RULES)
    assert whats(held) == [("timing", "reply held back")]
    assert held.differences[0].through == "event 1 after 80.0 ms"
    assert held.added == pytest.approx(0.079)
    assert whats(compare(timed(0.001, 0.06, 0.001), timed(0.001, 0.08, 0.002), RULES)) == []
    whole = compare(timed(0.001, 0.001), timed(0.9, 0.9), RULES)  # nothing to hold back
    assert (whats(whole), whole.added) == ([], 0.0)


THEIRS = Rules(host=b"up:1", masked=True)
GENERATED = Rules(host=b"up:1", masked=True, generated=True)


def said(body: bytes, date: bytes = b"1", kind: bytes = b"application/json") -> Message:
    return ok(b"Date: %b\r\nCF-Ray: %b\r\nContent-Type: %b\r\n" % (date, date, kind), body)


def test_of_a_real_upstream_only_what_changes_by_itself_is_masked() -> None:
    one = said(b'{"object":"list","data":[{"id":"a","created":1,"owned_by":"x"},{"id":"b"}]}')
    two = said(
        b'{"object":"list","data":[{"id":"c"},{"id":"dd","created":2,"owned_by":"x"}]}', b"2"
    )
    other = said(b'{"object":"list","data":[{"id":"c"},{"id":"d","created":2,"owned_by":"y"}]}')
    assert whats(replies(one, two, THEIRS)) == []
    assert whats(replies(one, two)) != []
    assert whats(replies(one, other, THEIRS)) == [("reply", "body")]
    lower = ok(b"date: 1\r\nCF-Ray: 1\r\nContent-Type: application/json\r\n", one.body)
    assert whats(replies(one, lower, THEIRS)) == [("reply", "header case")]


def test_what_a_model_wrote_is_compared_by_its_shape() -> None:
    one = said(b'{"id":"1","choices":[{"message":{"content":"ok"}}],"usage":{"n":3}}')
    two = said(b'{"id":"22","choices":[{"message":{"content":"fine"}}],"usage":{"n":4}}')
    odd = said(b'{"id":"22","choices":[{"message":{"content":null}}],"usage":{"n":4}}')
    assert whats(replies(one, two, GENERATED)) == []
    assert whats(replies(one, two, THEIRS)) == [("reply", "body")]
    assert whats(replies(one, odd, GENERATED)) == [("reply", "body")]
    stream = b"text/event-stream"
    short = said(b'data: {"delta":"a"}\n\ndata: [DONE]\n\n', kind=stream)
    longer = said(b'data: {"delta":"b"}\n\ndata: {"delta":"c"}\n\ndata: [DONE]\n\n', kind=stream)
    assert masked_body(short, True) == masked_body(longer, True)
    assert masked_body(short, False) != masked_body(longer, False)


def test_values_of_credentials_are_never_shown() -> None:
    one, two = get(b"Authorization: Bearer sk-one\r\n"), get(b"Authorization: Bearer sk-other\r\n")
    shown = str(requests(one, two).differences) + str(requests(one, get()).differences)
    assert "header value" in shown
    assert "sk-" not in shown
