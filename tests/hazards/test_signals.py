"""Told to stop: what is under way ends well and is kept, and nothing can keep it from ending."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.hazards.harness import TIMEOUTS, Sidecar, sound, wait_for
from tests.hazards.peers import (
    ANSWER,
    EVENTS,
    SSE_HEAD,
    Call,
    Peer,
    Upstream,
    chat,
    chunked,
    get,
    plain,
    post,
    sized,
)

MODEL = Path(__file__).parents[2] / "shadow" / "models" / "triage.gguf"
ENDING = chunked(EVENTS[1] + b"data: [DONE]\n\n") + b"0\r\n\r\n"


@contextlib.contextmanager
def running(root: Path, drain: float, **policy: Any) -> Iterator[tuple[Sidecar, Upstream]]:
    upstream = Upstream()
    timeouts = TIMEOUTS | {"drain": drain}
    sidecar = Sidecar(root, upstream.port, timeouts=timeouts, policy=policy)
    try:
        sidecar.start()
        yield sidecar, upstream
    finally:
        sidecar.kill()
        sidecar.close_clients()
        upstream.close()


def terminate(sidecar: Sidecar) -> float:
    sidecar.process.send_signal(signal.SIGTERM)
    return time.monotonic()


@dataclass
class Caller:
    """One call after the other on one connection, until that ends: each answered, or not begun."""

    name: str
    client: Peer
    answered: int = 0
    half: list[bytes] = field(default_factory=list)

    def run(self) -> None:
        while self.client.ended is None:
            self.client.send(post(chat(f"{self.name}-{self.answered}")))
            reply = self.client.reply()
            if reply.body == ANSWER and reply.whole:
                self.answered += 1
            elif reply.start:
                self.half.append(reply.start + reply.body)


@contextlib.contextmanager
def load(sidecar: Sidecar, count: int) -> Iterator[list[Caller]]:
    callers = [Caller(f"caller{number}", sidecar.connect(20)) for number in range(count)]
    threads = [threading.Thread(target=caller.run) for caller in callers]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: all(caller.answered > 10 for caller in callers), 10)
        yield callers
    finally:
        for caller in callers:
            with contextlib.suppress(OSError):
                caller.client.socket.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(10)


def is_refused(sidecar: Sidecar) -> bool:
    try:
        with socket.create_connection(sidecar.address, 1):
            return False
    except OSError:
        return True


def test_under_load_with_streams_in_flight(tmp_path: Path) -> None:
    """T63."""
    go_on = threading.Event()

    def answer(call: Call) -> None:
        call.read_body()
        if b"stream" not in call.target:
            call.send(sized(ANSWER, headers=b"Content-Type: application/json\r\n"))
            return
        call.send(SSE_HEAD + chunked(EVENTS[0]))
        go_on.wait(10)
        call.send(ENDING)

    with running(tmp_path, 8) as (sidecar, upstream):
        upstream.answer = answer
        idle = sidecar.connect()
        idle.send(post(chat("idle")))
        idle.reply()
        streams = [sidecar.connect(20) for _ in range(10)]
        for number, client in enumerate(streams):
            client.send(post(chat(f"stream-{number}")))
            client.until(EVENTS[0] + b"\r\n")
        with load(sidecar, 4) as callers:
            told = terminate(sidecar)
            wait_for(lambda: is_refused(sidecar), 1)
            assert idle.wait_ended(1)
            wait_for(lambda: all(caller.client.ended for caller in callers), 2)
        time.sleep(1.2)  # younger than a second, a run is not taken for over
        assert sidecar.process.poll() is None, "it waits for the streams"
        go_on.set()
        assert [client.rest() for client in streams] == [ENDING] * len(streams)
        assert sidecar.process.wait(20) == 0
        assert time.monotonic() - told < 8 + 5
        assert [caller.half for caller in callers] == [[], [], [], []]
        _is_all_recorded(sidecar, callers, len(streams))
        sound(sidecar)


def _is_all_recorded(sidecar: Sidecar, callers: list[Caller], streams: int) -> None:
    for caller in callers:
        rows = sidecar.rows(f"{caller.name}-%")
        ended_well = [row["path"] for row in rows if row["outcome"] == "ok"]
        told = [chat(f"{caller.name}-{number}") for number in range(caller.answered)]
        assert sorted(ended_well[: len(told)]) == sorted(told)
        assert len(rows) <= len(told) + 1  # one may have been cut off by us, at the end
    rows = sidecar.rows("stream-%")
    assert [(row["outcome"], row["complete"]) for row in rows] == [("ok", 1)] * streams
    (run,) = sidecar.query("SELECT * FROM runs")
    assert run["ended_clean"] == 1
    assert run["recorded"] == run["highest_seq"]
    wal = sidecar.home / "understudy.db-wal"
    assert not wal.exists() or wal.stat().st_size == 0
    assert not list((sidecar.home / "spool").glob("*/*"))


def test_what_does_not_end_in_time_is_cut_visibly(tmp_path: Path) -> None:
    """T63: after the drain, and recorded as far as it came."""

    def answer(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD + chunked(EVENTS[0]))
        call.wait_ended(10)

    with running(tmp_path, 1) as (sidecar, upstream):
        upstream.answer = answer
        client = sidecar.connect(10)
        client.send(post(chat("cut")))
        client.until(EVENTS[0] + b"\r\n")
        told = terminate(sidecar)
        assert client.rest() == b""  # no last chunk
        assert 0.9 < time.monotonic() - told < 1 + 4
        assert sidecar.process.wait(20) == 0
        row = sidecar.row("cut")
        assert (row["complete"], row["response_bytes"]) == (0, len(EVENTS[0]))
        sound(sidecar)


def test_the_second_signal_means_now(tmp_path: Path) -> None:
    """T63, and what has come is kept all the same."""
    with running(tmp_path, 20) as (sidecar, upstream):
        upstream.answer = lambda call: (call.read_body(), call.wait_ended(10), None)[2]
        client = sidecar.connect(10)
        client.send(post(chat("hurried")))
        upstream.next_call()
        terminate(sidecar)
        wait_for(lambda: is_refused(sidecar), 2)
        again = terminate(sidecar)
        assert sidecar.process.wait(20) == 0
        assert time.monotonic() - again < 5
        assert sidecar.row("hurried")["complete"] == 0


# -- what could keep it from ending


@contextlib.contextmanager
def locked(sidecar: Sidecar, upstream: Upstream) -> Iterator[None]:
    """Another program holds the database, and there is something to be written."""
    database = sqlite3.connect(sidecar.home / "understudy.db", isolation_level=None)
    with contextlib.closing(database):
        database.execute("BEGIN EXCLUSIVE")
        sidecar.exchange(post(chat("waits")))
        yield
        database.execute("ROLLBACK")


@contextlib.contextmanager
def unread(sidecar: Sidecar, upstream: Upstream) -> Iterator[None]:
    """A client does not read its reply."""

    def flood(call: Call) -> None:
        if b"files" not in call.target:
            plain(call)
            return
        call.send(b"HTTP/1.1 200 OK\r\nContent-Length: 268435456\r\n\r\n")
        with contextlib.suppress(OSError):
            call.socket.sendall(bytes(1 << 26))

    with upstream.playing(flood):
        client = sidecar.connect()
        client.send(get("/v1/files/a/content"))
        client.message_head()
        yield


@contextlib.contextmanager
def hung(sidecar: Sidecar, upstream: Upstream) -> Iterator[None]:
    """The model's process stands still."""
    wait_for(lambda: (sidecar.home / "plan.json").exists(), 20)
    os.kill(sidecar.pid("model:triage"), signal.SIGSTOP)
    yield  # it is killed in the end: SIGKILL needs no SIGCONT


TROUBLES = {
    "locked": [locked],
    "not read": [unread],
    "hung": [hung],
    "all of it": [unread, hung, locked],
}


@pytest.mark.parametrize("name", TROUBLES)
def test_it_ends_whatever_hangs(tmp_path: Path, name: str) -> None:
    """T64: within the drain and five seconds."""
    drain = 1.0
    candidates = [{"name": "triage", "gguf": str(MODEL), "context": 512}]
    policy = {"candidates": candidates} if hung in TROUBLES[name] else {}
    with running(tmp_path, drain, **policy) as (sidecar, upstream):
        sidecar.exchange(post(chat("before")))
        sidecar.row("before")
        with contextlib.ExitStack() as troubles:
            for trouble in TROUBLES[name]:
                troubles.enter_context(trouble(sidecar, upstream))
            told = terminate(sidecar)
            assert sidecar.process.wait(60) == 0
            assert time.monotonic() - told < drain + 5
        assert "Traceback" not in sidecar.errors()
        if locked in TROUBLES[name]:  # what could not be written waits in the spool
            assert list((sidecar.home / "spool").glob("*/*.seg"))
            assert sidecar.canaries() == []
            sidecar.start()
            assert sidecar.row("waits")["outcome"] == "ok"
            assert sidecar.stop() == 0
        sound(sidecar)
