"""Exchanges that ask for usage: what goes wrong in them is counted, and the bytes pass."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from policies.metrics import TABLE, Sample, render
from policies.policy import Capture
from proxy import injected
from proxy.capture import Spool
from proxy.ids import Ids
from proxy.inject import Stripper
from proxy.known import KnownRequests
from proxy.metrics import counted
from proxy.relay import Relay
from tests.fuzz.pipes import Network, client_of, relay_on
from tests.fuzz.readings import REDACTOR

BODY = b'{"model":"m","stream":true}'
ASKED = b'{"model":"m","stream":true,"stream_options":{"include_usage":true}}'
CHUNK = b'data: {"choices":[{}],"usage":null}\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def request(target: bytes = b"/v1/chat/completions") -> bytes:
    head = b"POST %b HTTP/1.1\r\nHost: app\r\nContent-Type: application/json\r\n" % target
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def played(
    tmp_path: Path, *replies: bytes, asked: bytes = b"", **how: Any
) -> tuple[Relay, bytes, bytes]:
    """The relay, what the upstream got, and what the client got of these pieces of a reply."""

    async def main() -> tuple[Relay, bytes, bytes]:
        network = Network()
        relay = relay_on(network, KnownRequests())
        loop = asyncio.get_running_loop()
        relay.spool = Spool(tmp_path / "spool", Capture(), REDACTOR, loop, Ids())
        relay.inject_usage = how.get("inject", True)
        client = client_of(relay)
        client.deliver(asked or request())
        await turns()
        (upstream,) = network.opened
        for reply in replies:
            upstream.deliver(reply)
            await turns()
        got = bytes(upstream.written), bytes(client.written)
        for pipe in (client, upstream):
            pipe.deliver(None)
            pipe.discard()
        relay.spool.close()
        return relay, *got

    return asyncio.run(main())


def faults(relay: Relay) -> int:
    """As health tells them, and the metrics."""
    found = counted(relay)["inject_failed"]
    sample = Sample(1, True, dict.fromkeys((one.name for one in TABLE), 0) | counted(relay))
    assert b"\nunderstudy_inject_failed_total %d\n" % found in render([sample])
    assert relay.health()["inject_failed"] == found
    return found


async def turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_it_asks_and_the_client_does_not_see_it(tmp_path: Path) -> None:
    relay, sent, got = played(tmp_path, HEAD + chunked(CHUNK[:9]), chunked(CHUNK[9:]))
    assert sent.endswith(b"\r\nAccept-Encoding: identity\r\n\r\n" + ASKED)
    assert b"Content-Length: %d\r\n" % len(ASKED) in sent
    assert got.endswith(b"\r\n\r\n" + chunked(b'data: {"choices":[{}]}\n\n'))
    assert faults(relay) == 0


@pytest.mark.parametrize("target", [b"/v1/responses", b"/v1/embeddings", b"/v1/x"])
def test_other_calls_are_not_asked(tmp_path: Path, target: bytes) -> None:
    _, sent, got = played(tmp_path, HEAD + chunked(CHUNK), asked=request(target))
    assert sent.endswith(b"\r\n\r\n" + BODY)
    assert got.endswith(chunked(CHUNK))


def test_without_the_option_nothing_is_asked(tmp_path: Path) -> None:
    _, sent, got = played(tmp_path, HEAD + chunked(CHUNK), inject=False)
    assert sent.endswith(b"\r\n\r\n" + BODY)
    assert b"identity" not in sent
    assert got.endswith(chunked(CHUNK))


class Fault(Exception):
    """Of ours."""


def failing(*_: object) -> Any:
    raise Fault


@pytest.mark.parametrize("part", ["with_usage", "unencoded"])
def test_a_fault_in_asking_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr(injected, part, failing)
    relay, sent, got = played(tmp_path, HEAD + chunked(CHUNK))
    assert sent.endswith(b"\r\n\r\n" + BODY)
    assert b"identity" not in sent
    assert got.endswith(chunked(CHUNK))
    assert faults(relay) == 1


def test_a_fault_in_the_stream_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = [CHUNK, CHUNK[:9], CHUNK[9:], CHUNK]

    class Faulty(Stripper):
        def feed(self, data: bytes) -> bytes:
            return failing() if data == CHUNK[9:] else super().feed(data)

    monkeypatch.setattr(injected, "Stripper", Faulty)
    relay, _, got = played(tmp_path, HEAD, *(chunked(piece) for piece in pieces))
    assert got.endswith(chunked(b'data: {"choices":[{}]}\n\n', CHUNK, CHUNK))
    assert faults(relay) == 1


def test_a_fault_at_the_end_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stripper, "end", failing)
    relay, _, got = played(tmp_path, HEAD + chunked(b"data: [DONE]"), b"0\r\n\r\n")
    assert got.endswith(chunked(b"data: [DONE]") + b"0\r\n\r\n")
    assert faults(relay) == 1


def test_a_fault_in_reading_the_head_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(injected, "can_strip", failing)
    relay, _, got = played(tmp_path, HEAD + chunked(CHUNK), b"0\r\n\r\n")
    assert got.endswith(chunked(CHUNK) + b"0\r\n\r\n")
    assert faults(relay) == 1
