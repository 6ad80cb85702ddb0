"""Capture: what reaches the segments, what is cut, and that ids rise."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from policies.fingerprint import request_hash, task_id
from policies.policy import Capture
from policies.spool import SEGMENT_SUFFIX, Event, Kind, unpack
from proxy.capture import Spool
from proxy.heads import RequestHeads, response_of
from proxy.ids import Ids
from proxy.redact import Redactor
from proxy.routes import Route
from proxy.tapes import Tape

HEAD = RequestHeads(Route.to("http://h")).read(
    b"POST", b"/v1/x?key=s", "1.1", (b"Host", b"X-A"), [b"app", b"s"]
)
ABOUT = Redactor(bytes(32)).request(HEAD, "k")
REPLY = response_of(200, b"OK", [(b"Content-Type", b"text/plain")], 5)


def spooled(tmp_path: Path, play: Callable[[Spool], Any], **policy: Any) -> list[Event]:
    """The events on disk after `play` has been played."""
    folder = tmp_path / "spool" / "run"

    async def main() -> None:
        loop = asyncio.get_running_loop()
        spool = Spool(folder, Capture(**policy), Redactor(bytes(32)), loop, Ids())
        try:
            if asyncio.iscoroutine(waiting := play(spool)):
                await waiting
        finally:
            spool.close()

    asyncio.run(main())
    events = []
    for segment in sorted(folder.glob(f"*{SEGMENT_SUFFIX}")):
        data = segment.read_bytes()
        found = list(unpack(data))
        assert (found[-1].end if found else 0) == len(data)  # nothing torn
        assert segment.stat().st_mode & 0o777 == 0o600
        events += [event for batch in found for event in batch.events]
    return events


def whole(tape: Tape) -> None:
    tape.request_body(b"ask")
    tape.response_head(REPLY)
    tape.response_body(b"answer")
    tape.closed("ok")


def kinds(events: list[Event]) -> list[Kind]:
    return [event.kind for event in events]


def closed(events: list[Event]) -> dict[str, Any]:
    said: dict[str, Any] = orjson.loads(next(e.payload for e in events if e.kind == Kind.CLOSED))
    return said


def test_one_exchange(tmp_path: Path) -> None:
    events = spooled(tmp_path, lambda spool: whole(spool.open(ABOUT, True)[1]))
    assert kinds(events) == [
        Kind.OPENED, Kind.REQUEST_BODY, Kind.RESPONSE_HEAD, Kind.RESPONSE_BODY, Kind.CLOSED,
    ]  # fmt: skip
    assert len({event.exchange for event in events}) == 1
    assert [e.at for e in events] == sorted(e.at for e in events)
    opened = orjson.loads(events[0].payload)
    assert (opened["seq"], opened["method"], opened["key"]) == (1, "POST", "k")
    assert opened["target"].startswith("/v1/x?key=hash:")
    assert opened["headers"][0] == ["Host", "app"]
    assert orjson.loads(events[2].payload) == {
        "status": 200, "headers": [["Content-Type", "text/plain"]],
    }  # fmt: skip
    assert closed(events) == {
        "outcome": "ok", "error": None, "request_bytes": 3, "response_bytes": 6, "cut": {},
    }  # fmt: skip


def test_bodies_are_counted_where_they_are_not_kept(tmp_path: Path) -> None:
    events = spooled(tmp_path, lambda spool: whole(spool.open(ABOUT, False)[1]))
    assert kinds(events) == [Kind.OPENED, Kind.RESPONSE_HEAD, Kind.CLOSED]
    assert closed(events)["response_bytes"] == 6


def test_a_body_over_the_limit_is_cut_and_stays_cut(tmp_path: Path) -> None:
    def play(spool: Spool) -> None:
        _, tape = spool.open(ABOUT, True)
        for piece in (b"x" * 60, b"y" * 60, b"z"):
            tape.response_body(piece)
        tape.request_body(b"small")
        tape.closed("upstream_reset", 'a "reason"')
        assert spool.counters.bodies_cut == 1

    events = spooled(tmp_path, play, body_bytes=100)
    assert [e.payload for e in events if e.kind == Kind.RESPONSE_BODY] == [b"x" * 60]
    assert [e.payload for e in events if e.kind == Kind.REQUEST_BODY] == [b"small"]
    said = closed(events)
    assert (said["cut"], said["response_bytes"]) == ({"response": "limit"}, 121)
    assert (said["outcome"], said["error"]) == ("upstream_reset", 'a "reason"')


def test_ids_are_unique_and_rise(tmp_path: Path) -> None:
    ids: list[bytes] = []

    def play(spool: Spool) -> None:
        ids.extend(spool.open(ABOUT, True)[0] for _ in range(5000))

    spooled(tmp_path, play)
    assert len(set(ids)) == 5000
    assert ids == sorted(ids)
    assert {UUID(bytes=each).version for each in ids} == {7}


def test_records_are_written_without_being_asked(tmp_path: Path) -> None:
    async def play(spool: Spool) -> None:
        whole(spool.open(ABOUT, True)[1])
        for _ in range(100):
            await asyncio.sleep(0.01)
            if list((tmp_path / "spool").glob(f"*/*{SEGMENT_SUFFIX}")):
                return
        raise AssertionError("nothing was written")

    assert len(spooled(tmp_path, play)) == 5


def test_large_traffic_fills_several_segments_in_order(tmp_path: Path) -> None:
    async def play(spool: Spool) -> None:
        _, tape = spool.open(ABOUT, True)
        for number in range(200):
            tape.response_body(bytes([number]) * 100_000)
            await asyncio.sleep(0.001)
        tape.closed("ok")

    events = spooled(tmp_path, play, body_bytes=1 << 30)
    bodies = [e.payload for e in events if e.kind == Kind.RESPONSE_BODY]
    assert [body[0] for body in bodies] == list(range(200))
    assert len(list((tmp_path / "spool" / "run").glob(f"*{SEGMENT_SUFFIX}"))) > 1


def test_above_high_water_heads_and_endings_are_kept(tmp_path: Path) -> None:
    async def play(spool: Spool) -> None:
        for _ in range(120):
            _, tape = spool.open(ABOUT, True)
            tape.response_head(REPLY)
            tape.response_body(bytes(200_000))
            tape.closed("ok")
            await asyncio.sleep(0.003)
        assert spool.counters.bodies_cut > 0
        assert spool.counters.records_dropped == 0

    events = spooled(tmp_path, play, spool_bytes=1 << 20)
    assert kinds(events).count(Kind.OPENED) == kinds(events).count(Kind.CLOSED) == 120
    assert kinds(events).count(Kind.RESPONSE_BODY) < 120
    reasons = [orjson.loads(e.payload)["cut"] for e in events if e.kind == Kind.CLOSED]
    assert {"response": "high_water"} in reasons


def test_a_folder_that_can_not_be_written_to_is_counted_and_survived(tmp_path: Path) -> None:
    """Something lies in its place: as good as a full disk, and it works for root too."""

    async def play(spool: Spool) -> None:
        folder = tmp_path / "spool" / "run"
        folder.parent.mkdir()
        folder.write_text("in the way")
        whole(spool.open(ABOUT, True)[1])
        await asyncio.sleep(0.1)
        assert spool.counters.records_dropped == 5
        assert spool.counters.write_errors == 1
        assert f"[Errno {errno.EEXIST}]" in str(spool.counters.last_error)
        folder.unlink()
        whole(spool.open(ABOUT, True)[1])

    assert len(spooled(tmp_path, play)) == 5


@pytest.mark.parametrize(("times", "kept"), [(1.5, True), (8, False)])
def test_the_last_of_the_disk_is_left_to_others(tmp_path: Path, times: float, kept: bool) -> None:
    """Above twice the bound all is kept again, so what is free lies in between."""
    disk = os.statvfs(tmp_path)
    least = int(disk.f_bavail * disk.f_frsize * times)

    async def play(spool: Spool) -> None:
        whole(spool.open(ABOUT, True)[1])
        await asyncio.sleep(0.1)
        whole(spool.open(ABOUT, True)[1])
        await asyncio.sleep(0.1)
        assert spool.counters.bodies_cut == 2
        assert spool.counters.records_dropped == (0 if kept else 8)

    events = spooled(tmp_path, play, least_free=least)
    assert kinds(events).count(Kind.CLOSED) == (2 if kept else 0)
    if kept:
        said = [orjson.loads(e.payload)["cut"] for e in events if e.kind == Kind.CLOSED]
        assert said == [{}, {"request": "low_disk", "response": "low_disk"}]


# -- exchanges whose bodies may not be kept

ASKED = {"model": "m", "messages": [{"role": "user", "content": "a secret"}]}
CHAT = orjson.dumps(ASKED)
HASHES = {"task_id": task_id("chat.completions", ASKED), "request_hash": request_hash(ASKED)}


def bare(
    spool: Spool, body: bytes, length: int | None = None, sketched: bool = True, step: int = 1 << 16
) -> None:
    _, tape = spool.open_bare(ABOUT, sketched, len(body) if length is None else length)
    for start in range(0, len(body), step):
        tape.request_body(body[start : start + step])
    tape.response_head(REPLY)
    tape.keep_bodies()
    tape.response_body(b"another secret")
    tape.closed("ok", "why")


def hashes(events: list[Event]) -> dict[str, str]:
    assert kinds(events) == [Kind.OPENED, Kind.RESPONSE_HEAD, Kind.CLOSED]
    said = closed(events)
    assert (said["outcome"], said["error"], said["cut"]) == ("ok", "why", {})
    assert said["response_bytes"] == len(b"another secret")
    return {name: said[name] for name in said if name in HASHES}


@pytest.mark.parametrize("length", [None, -1])
@pytest.mark.parametrize("step", [1 << 16, 7])
def test_of_a_bare_exchange_the_task_is_told_and_no_more(
    tmp_path: Path, length: int | None, step: int
) -> None:
    """Whether the length was said (None) or the body came in chunks."""
    events = spooled(tmp_path, lambda spool: bare(spool, CHAT, length, step=step))
    assert hashes(events) == HASHES
    assert closed(events)["request_bytes"] == len(CHAT)
    for segment in (tmp_path / "spool").rglob(f"*{SEGMENT_SUFFIX}"):
        assert b"secret" not in segment.read_bytes()


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", CHAT[:-1], CHAT + b"x", b'{"messages":' * 20_000, b"\xff",
     CHAT[:-1] + b" " * (256 << 10) + b"}"],
    ids=["none", "list", "null", "cut", "junk", "deep", "bytes", "large"],
)  # fmt: skip
@pytest.mark.parametrize("length", [None, -1])
def test_of_what_is_no_whole_chat_nothing_is_told(
    tmp_path: Path, body: bytes, length: int | None
) -> None:
    assert hashes(spooled(tmp_path, lambda spool: bare(spool, body, length))) == {}


def test_of_what_is_no_chat_at_all_nothing_is_told(tmp_path: Path) -> None:
    assert hashes(spooled(tmp_path, lambda spool: bare(spool, CHAT, sketched=False))) == {}


def test_bare_exchanges_that_wait_hold_a_bounded_memory(tmp_path: Path) -> None:
    """What comes above the bound is not told; what ended or was given up makes room again."""
    large = CHAT[:-1] + b" " * (250 << 10) + b"}"

    def play(spool: Spool) -> None:
        tapes = [spool.open_bare(ABOUT, True, -1)[1] for _ in range(200)]
        for tape in tapes:
            tape.request_body(large)
        assert spool._sketched <= 32 << 20
        for tape in tapes:
            tape.request_body(b" " * (10 << 10))  # over what one may have
        assert spool._sketched == 0
        for tape in tapes:
            tape.closed("ok")
        bare(spool, CHAT, -1)
        assert spool._sketched == 0 or spool._sketched == len(CHAT)

    events = spooled(tmp_path, play)
    said = [orjson.loads(e.payload) for e in events if e.kind == Kind.CLOSED]
    assert [("task_id" in each) for each in said] == [False] * 200 + [True]


def test_bare_and_whole_exchanges_keep_their_order(tmp_path: Path) -> None:
    def play(spool: Spool) -> None:
        for _ in range(50):
            bare(spool, CHAT)
            whole(spool.open(ABOUT, True)[1])

    events = spooled(tmp_path, play)
    assert len(events) == 50 * (3 + 5)
    for kind in (Kind.OPENED, Kind.CLOSED):
        assert kinds(events).count(kind) == 100
    seen: dict[bytes, list[Kind]] = {}
    for event in events:
        seen.setdefault(event.exchange, []).append(event.kind)
    assert all((found[0], found[-1]) == (Kind.OPENED, Kind.CLOSED) for found in seen.values())


def test_bare_endings_that_can_not_be_written_are_counted(tmp_path: Path) -> None:
    async def play(spool: Spool) -> None:
        folder = tmp_path / "spool" / "run"
        folder.parent.mkdir()
        folder.write_text("in the way")
        bare(spool, CHAT)
        await asyncio.sleep(0.1)
        assert (spool.counters.records_dropped, spool.counters.write_errors) == (3, 1)
        folder.unlink()
        bare(spool, CHAT)

    assert hashes(spooled(tmp_path, play)) == HASHES
