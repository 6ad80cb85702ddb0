"""What a head says to us alone: who asks, and how much of it may be kept."""

from __future__ import annotations

import asyncio
from pathlib import Path

import orjson
import pytest

from policies.policy import Capture, Policy, build
from proxy.capture import Spool
from proxy.heads import RequestHead, RequestHeads
from proxy.known import KnownRequests
from proxy.modes import Modes
from proxy.redact import Redactor
from proxy.routes import Route
from proxy.tapes import BLANK
from tests.fuzz.pipes import Network, relay_on

NOTHING = Policy()
HERE = Route.to("https://api.openai.com")


def read(
    *pairs: tuple[bytes, bytes],
    target: bytes = b"/v1/chat/completions?x=1",
    policy: Policy = NOTHING,
    route: Route = HERE,
) -> RequestHead:
    modes = Modes(policy.privacy, policy.identity)
    names = (b"Host", *(name for name, _ in pairs))
    values = [b"app", *(value for _, value in pairs)]
    return RequestHeads(route, modes.readable).read(b"POST", target, "1.1", names, values)


def mode(head: RequestHead, policy: Policy = NOTHING, key: str | None = "k") -> str:
    return Modes(policy.privacy, policy.identity).of(head, key)


@pytest.mark.parametrize("value", [b"1", b"true", b"TRUE", b"yes", b"", b"please"])
def test_who_asks_for_no_store_gets_it(value: bytes) -> None:
    policy = build({"privacy": {"rules": [{"path": "/v1", "mode": "full"}]}})
    for name in (b"x-understudy-no-store", b"X-Understudy-No-Store"):
        assert mode(read((name, value)), policy) == "off"


def test_who_says_no_to_it_does_not() -> None:
    policy = build({"privacy": {"mode": "redacted"}})
    for value in (b"0", b"false", b"False"):
        assert mode(read((b"x-understudy-no-store", value)), policy) == "redacted"
    both = read((b"x-understudy-no-store", b"0"), (b"X-Understudy-no-store", b"1"))
    assert mode(both, policy) == "off"


def test_rules_by_tenant_and_path() -> None:
    policy = build({
        "identity": {"tenant": ["header:X-Team", "openai-project", "key"]},
        "privacy": {"rules": [
            {"tenant": "law", "mode": "off"},
            {"tenant": "proj_*", "mode": "metadata"},
            {"tenant": "k", "path": "/v1/chat/completions", "mode": "redacted"},
        ]},
    })  # fmt: skip
    assert mode(read((b"x-team", b"law")), policy) == "off"
    assert mode(read((b"x-team", b"art"), (b"X-Team", b"law")), policy) == "full"
    assert mode(read((b"OpenAI-Project", b"proj_1")), policy) == "metadata"
    assert mode(read(), policy) == "redacted"
    assert mode(read(), policy, key=None) == "full"
    assert mode(read(target=b"/v1/embeddings"), policy) == "full"


def test_a_host_in_front_of_the_path_is_no_part_of_it() -> None:
    policy = build({"privacy": {"rules": [{"path": "/v1/files", "mode": "off"}]}})
    prefix = b"http://api.openai.com"
    route = Route(HERE.origin, prefix, len(prefix), forwarded=True)
    assert mode(read(target=prefix + b"/v1/files?a=b", route=route), policy) == "off"
    assert mode(read(target=prefix + b"/v1/x", route=route), policy) == "full"
    everything = build({"privacy": {"rules": [{"path": "/", "mode": "off"}]}})
    assert mode(read(target=prefix, route=route), everything) == "off"


OURS = (
    (b"X-Understudy-Task", b"triage"), (b"x-understudy-tenant", b"acme"),
    (b"x-understudy-session", b"s1"), (b"x-understudy-no-store", b"0"),
    (b"x-understudy-anything", b"5"), (b"X-UNDERSTUDY-PURPOSE", b"shadow"),
)  # fmt: skip
TEAM = build({"identity": {"tenant": ["header:X-Team", "openai-organization"]}})


def test_what_is_for_us_is_never_sent_on() -> None:
    pairs = ((b"A", b"1"), *OURS, (b"X-Team", b"law"), (b"Content-Length", b"3"))
    plain = read((b"A", b"1"), (b"X-Team", b"law"), (b"Content-Length", b"3"))
    assert read(*pairs).wire(3) == plain.wire(3)
    named = (b"Connection", b"x-understudy-task, x-team")
    assert read(named, *pairs).wire(3) == read((b"A", b"1"), (b"Content-Length", b"3")).wire(3)


@pytest.mark.parametrize(
    "framing",
    [
        ((b"Transfer-Encoding", b"chunked"),),
        ((b"Connection", b"upgrade"), (b"Upgrade", b"websocket")),
        ((b"Connection", b"Upgrade, x-understudy-task"), (b"Upgrade", b"websocket")),
    ],
)
def test_nor_with_chunks_or_an_offer(framing: tuple[tuple[bytes, bytes], ...]) -> None:
    sent = read(*OURS, *framing).wire(0)
    assert b"understudy" not in sent.lower()
    assert sent == read(*[(n, v.partition(b",")[0]) for n, v in framing]).wire(0)


def shown(head: RequestHead) -> dict[str, str]:
    said = orjson.loads(b"{" + Redactor(bytes(32)).request(head, None))
    return {name.lower(): value for name, value in said["headers"]}


def test_what_says_who_asks_stays_readable() -> None:
    pairs = (*OURS, (b"X-Team", b"law"), (b"OpenAI-Organization", b"org_1"), (b"X-Other", b"x"))
    usual, own = shown(read(*pairs)), shown(read(*pairs, policy=TEAM))
    for found in (usual, own):
        assert found["x-understudy-task"] == "triage"
        assert found["x-understudy-anything"] == "5"
        assert found["x-other"].startswith("hash:")
    assert usual["x-team"].startswith("hash:")
    assert usual["openai-organization"].startswith("hash:")
    assert (own["x-team"], own["openai-organization"]) == ("law", "org_1")
    assert shown(read((b"OpenAI-Project", b"proj_1")))["openai-project"] == "proj_1"


def test_the_session_that_is_named_to_us_comes_first() -> None:
    assert read((b"x-session-id", b"theirs")).session == b"theirs"
    assert read((b"x-session-id", b"a"), (b"X-Understudy-Session", b"b")).session == b"b"
    assert read().session == b""


def test_the_record_names_any_mode_but_the_usual() -> None:
    head = read()
    redactor = Redactor(bytes(32))
    assert b"mode" not in redactor.request(head, None, "full")
    assert redactor.request(head, None, "full") == redactor.request(head, None)
    said = orjson.loads(b"{" + redactor.request(head, "k", "redacted"))
    assert (said["mode"], said["method"], said["key"]) == ("redacted", "POST", "k")


@pytest.mark.parametrize("usual", ["off", "metadata"])
def test_of_a_tunnel_nothing_is_kept_where_nothing_is(tmp_path: Path, usual: str) -> None:
    async def main() -> None:
        relay = relay_on(Network(), KnownRequests())
        relay.modes = Modes(build({"privacy": {"mode": usual}}).privacy)
        loop = asyncio.get_running_loop()
        relay.spool = Spool(tmp_path / "run", Capture(), Redactor(bytes(32)), loop, relay.ids)
        tape = relay.tunnel_tape(b"example.com:443")
        counters = relay.spool.counters
        relay.spool.close()
        assert (tape is BLANK) is (usual == "off")
        assert (counters.not_recorded, counters.exchanges) == ((1, 0) if tape is BLANK else (0, 1))

    asyncio.run(main())
