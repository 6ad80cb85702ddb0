"""The wall clock jumps while the sidecar runs: nothing that takes time notices."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from bin.standin import Standin
from tests.e2e import harness
from tests.e2e.test_divert import ANSWERS, GOOD, REVOKED, TICKETS, Stage
from tests.hazards.harness import TIMEOUTS, Sidecar, sound, wait_for
from tests.hazards.peers import (
    ANSWER,
    EVENTS,
    SSE_HEAD,
    Call,
    Upstream,
    chat,
    chunked,
    post,
)
from tests.hazards.test_streams import silent

HOUR = 3600.0
# Python runs this before anything else: `time.time` is off by what the file says, at every call.
CLOCK = """
import time
from pathlib import Path

_file = Path({file!r})
_true, _true_ns = time.time, time.time_ns
time.time = lambda: _true() + float(_file.read_text())
time.time_ns = lambda: _true_ns() + int(float(_file.read_text()) * 1e9)
"""


class Clock:
    """The wall clock of processes that were started with `path`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._offset = folder / "offset"
        self.set(0.0)
        (folder / "sitecustomize.py").write_text(CLOCK.format(file=str(self._offset)))
        known = os.environ.get("PYTHONPATH")
        self.path = f"{folder}{os.pathsep}{known}" if known else str(folder)

    def set(self, seconds: float) -> None:
        """That much ahead of the true time. Replaced at one go: it is read all the time."""
        new = self._offset.with_suffix(".new")
        new.write_text(str(seconds))
        new.replace(self._offset)


@contextlib.contextmanager
def running(root: Path) -> Iterator[tuple[Sidecar, Upstream, Clock]]:
    upstream, clock = Upstream(), Clock(root / "clock")
    sidecar = Sidecar(root / "sidecar", upstream.port, environment={"PYTHONPATH": clock.path})
    try:
        sidecar.start()
        yield sidecar, upstream, clock
    finally:
        sidecar.kill()
        sidecar.close_clients()
        upstream.close()


@contextlib.contextmanager
def jumping(clock: Clock) -> Iterator[None]:
    """To and fro, again and again."""
    over = threading.Event()

    def run() -> None:
        for number in range(10_000):
            if over.wait(0.1):
                return
            clock.set((HOUR, 0.0, -HOUR, 2 * HOUR)[number % 4])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_rows_keep_their_order_and_durations_their_length(tmp_path: Path) -> None:
    """T67: what is counted orders them, whatever the time of day."""
    jumps = (0.0, HOUR, -HOUR, 0.5, -HOUR, HOUR, 0.0)
    with running(tmp_path) as (sidecar, upstream, clock):
        client = sidecar.connect()
        for number, jump in enumerate(jumps):
            clock.set(jump)
            client.send(post(chat(f"jump-{number}")))
            assert client.reply().body == ANSWER
        rows = wait_for(lambda: len(found := sidecar.rows("jump-%")) == len(jumps) and found, 10)
        assert [row["path"] for row in rows] == [chat(f"jump-{n}") for n in range(len(jumps))]
        assert [row["seq"] for row in rows] == list(range(1, len(jumps) + 1))
        assert len({row["id"] for row in rows}) == len(jumps)
        for row, jump in zip(rows, jumps, strict=True):
            started = datetime.fromisoformat(row["started_at"]).timestamp()
            assert started - time.time() == pytest.approx(jump, abs=60), "the clock did not jump"
            assert 0 <= row["ttft_ms"] <= row["latency_ms"] < 2000
        assert upstream.connections == 1, "no connection was taken for an old one"
        assert sidecar.stop() == 0
        sound(sidecar)


def test_timeouts_are_neither_early_nor_late(tmp_path: Path) -> None:
    """T67."""
    with running(tmp_path) as (sidecar, upstream, clock), jumping(clock):
        idle, head = TIMEOUTS["upstream_idle"], TIMEOUTS["client_head"]
        client = sidecar.connect()
        began = time.monotonic()
        client.send(b"GET / HT")
        client.rest()
        assert head - 0.1 < time.monotonic() - began < head + 3
        began = time.monotonic()
        with upstream.playing(silent):
            assert sidecar.exchange(post(chat("silent"))).status == 504
        assert idle - 0.1 < time.monotonic() - began < idle + 3
        assert sidecar.row("silent")["latency_ms"] == pytest.approx(1000 * idle, abs=3000)
        assert sidecar.exchange(post(chat("next"))).body == ANSWER
        assert sidecar.stop() == 0
        sound(sidecar)


@pytest.mark.parametrize("ends", [True, False])
def test_the_drain_is_neither_early_nor_late(tmp_path: Path, ends: bool) -> None:
    """T67: a stream may end within it, and is cut after it."""
    go_on = threading.Event()
    ending = chunked(EVENTS[1] + b"data: [DONE]\n\n") + b"0\r\n\r\n"

    def answer(call: Call) -> None:
        call.read_body()
        call.send(SSE_HEAD + chunked(EVENTS[0]))
        go_on.wait(1.5 if ends else 10)
        call.send(ending)

    drain = 3.0
    upstream, clock = Upstream(), Clock(tmp_path / "clock")
    sidecar = Sidecar(
        tmp_path / "sidecar",
        upstream.port,
        timeouts=TIMEOUTS | {"drain": drain, "upstream_idle": 30},
        environment={"PYTHONPATH": clock.path},
    )
    try:
        sidecar.start()
        upstream.answer = answer
        client = sidecar.connect(10)
        client.send(post(chat("drained")))
        client.until(EVENTS[0] + b"\r\n")
        with jumping(clock):
            told = time.monotonic()
            sidecar.process.send_signal(signal.SIGTERM)
            assert client.rest() == (ending if ends else b"")
            if not ends:
                assert drain - 0.1 < time.monotonic() - told < drain + 3
            assert sidecar.process.wait(20) == 0
            assert time.monotonic() - told < drain + 5
        assert sidecar.row("drained")["complete"] == ends
        sound(sidecar)
    finally:
        go_on.set()
        sidecar.kill()
        sidecar.close_clients()
        upstream.close()


def test_what_is_served_locally_stays_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """T67: neither plan, proof of a key, breaker nor rollout take a jump for the passing of time;
    and the kill switch works at once."""
    clock = Clock(tmp_path / "clock")
    monkeypatch.setenv("PYTHONPATH", clock.path)
    with (
        harness.Upstream(Standin(ANSWERS, keys={GOOD, REVOKED})) as upstream,
        harness.Sidecar(tmp_path / "home", harness.fast_rollout(upstream.url)) as sidecar,
    ):
        stage = Stage(upstream, sidecar, iter(TICKETS))
        stage.learn()
        for jump in (HOUR, -HOUR, 0.0):
            clock.set(jump)
            served = [stage.ask() for _ in range(10)]
            assert served.count("triage") >= 8, f"{jump}: {served}"
            health = sidecar.health()
            assert health["diverting"]
            assert set(health["breakers"].values()) <= {"closed"}
            assert sidecar.phases() == ["live"]
        (sidecar.home / "kill").touch()
        wait_for(lambda: sidecar.health()["killed"], 3)
        assert stage.ask() == "upstream"
        assert "Traceback" not in sidecar.log.read_text()
