"""The director against a real model process and a record in memory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp

from policies import plan
from policies.plan import Plan
from policies.settings import Settings, dump
from shadow.director import Director
from tests.shadow.fakes import FakeRecord
from tests.shadow.processes import GGUF, ROOT, ModelProcess, settings, short_folder

FAST = {
    "threshold": 0.85, "minimum_pairs": 40, "step_time": 0.2, "steps": [10, 100],
    "retry_after": 1000, "window": 100,
}  # fmt: skip


async def until(condition: Callable[[], bool], patience: float = 30.0) -> None:
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.05)


def read(settings: Settings) -> Plan:
    try:
        return plan.load(settings.home.plan.read_bytes())
    except FileNotFoundError:
        return plan.EMPTY


class Stage:
    """A model process, a record, and a director that can be stopped and started again."""

    def __init__(self, folder: Path, rollout: dict[str, Any], **policy: Any) -> None:
        self.gguf = folder / "candidate.gguf"
        self.gguf.write_bytes(GGUF.read_bytes())
        self.settings = settings(folder, self.gguf, rollout={**FAST, **rollout}, **policy)
        self.record = FakeRecord()
        self.model = ModelProcess(self.settings)
        self.director = Director(self.settings, self.record)

    @property
    def plan(self) -> Plan:
        return read(self.settings)

    @property
    def percent(self) -> float:
        return sum(task.percent for task in self.plan.tasks.values())

    async def restart(self) -> None:
        await self.director.close()
        self.director = Director(self.settings, self.record)
        self.director.start()

    async def phase(self, name: str) -> None:
        await until(lambda: self.record.phases[-1:] == [name])

    def revive(self) -> None:
        self.model.kill()
        self.model.start()


@asynccontextmanager
async def stage(rollout: dict[str, Any] | None = None, **policy: Any) -> AsyncIterator[Stage]:
    with short_folder() as folder:
        made = Stage(folder, rollout or {}, **policy)
        made.director.start()
        try:
            yield made
        finally:
            await made.director.close()
            if made.model.process.poll() is None:
                os.kill(made.model.process.pid, signal.SIGCONT)
            made.model.kill()


def test_agreement_promotes_step_by_step_and_a_fall_demotes() -> None:
    async def play() -> None:
        async with stage() as it:
            it.record.add(100)
            await it.phase("canary")
            await until(lambda: it.percent == 10)
            (task,) = it.plan.tasks.values()
            assert (task.phase, task.candidate, task.holdback) == ("canary", "tiny", 3.0)
            assert stat.S_IMODE(it.settings.home.plan.stat().st_mode) == 0o600
            it.record.add(20)
            await it.phase("live")
            await until(lambda: it.percent == 100)
            it.record.add(60, wrong=True)
            await it.phase("demoted")
            await until(lambda: it.percent == 0)
            assert it.record.phases == ["collecting", "shadow", "canary", "live", "demoted"]

    asyncio.run(play())


def test_disagreement_stays_in_shadow() -> None:
    async def play() -> None:
        async with stage() as it:
            it.record.add(80, wrong=True)
            await until(lambda: len(it.record.compared) == 80)
            await asyncio.sleep(1.2)
            assert it.record.phases == ["collecting", "shadow"]
            assert not it.plan.tasks

    asyncio.run(play())


def test_a_restarted_director_goes_on_where_it_was() -> None:
    async def play() -> None:
        async with stage({"step_time": 1000}) as it:
            it.record.add(100)
            await it.phase("canary")
            await until(lambda: len(it.record.observations) == 100)
            salts = {task: planned.salt for task, planned in it.plan.tasks.items()}
            logged = len(it.record.log)
            it.settings.home.plan.unlink()
            await it.restart()
            await until(lambda: it.percent == 10)
            assert {task: planned.salt for task, planned in it.plan.tasks.items()} == salts
            (case,) = it.director.judge.cases.values()
            assert len(case.samples) == 100 and len(it.record.log) == logged

    asyncio.run(play())


def test_another_file_starts_again_at_nothing() -> None:
    async def play() -> None:
        async with stage({"step_time": 1000}) as it:
            it.record.add(100)
            await it.phase("canary")
            it.gguf.write_bytes(GGUF.read_bytes() + b"\0" * 64)
            it.revive()
            await until(lambda: it.percent == 0)
            await it.phase("shadow")
            assert "file changed" in it.record.log[-1].why
            it.record.add(60)
            await it.phase("canary")

    asyncio.run(play())


def test_a_model_that_crashes_burns_no_pair() -> None:
    async def play() -> None:
        async with stage() as it:
            it.record.add(30)
            await until(lambda: bool(it.record.observations))
            it.model.kill()
            it.record.add(30)
            await asyncio.sleep(1.5)
            it.model.start()
            await until(lambda: len(it.record.compared) == 60)
            assert all(o.error is None for o in it.record.observations.values())

    asyncio.run(play())


def test_a_request_that_kills_the_model_each_time_is_given_up() -> None:
    async def die(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speaks like a model process, and drops dead at the first request for an answer."""
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"GET /status"):
            status = b'{"state":"ready","reason":"","sha256":"sha","context":512}'
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(status) + status)
            await writer.drain()
        writer.close()

    async def play() -> None:
        with short_folder() as folder:
            made, record = settings(folder), FakeRecord()
            server = await asyncio.start_unix_server(die, made.home.model_socket("tiny"))
            record.add(1)
            director = Director(made, record)
            director.start()
            try:
                await until(lambda: bool(record.compared))
                (observation,) = record.observations.values()
                (comparison,) = record.compared.values()
                assert str(observation.error).startswith("crash")
                assert (comparison.verdict, comparison.why) == ("mismatched", observation.error)
            finally:
                await director.close()
                server.close()

    asyncio.run(play())


def test_a_model_that_hangs_stops_neither_heartbeat_nor_stop() -> None:
    async def play() -> None:
        async with stage({"step_time": 1000}) as it:
            it.record.add(60)
            await it.phase("canary")
            await until(lambda: it.percent == 10)
            it.model.signal(signal.SIGSTOP)
            it.record.add(5)
            before = it.plan.valid_until
            await until(lambda: it.plan.valid_until >= before + 4)
            await until(lambda: it.percent == 0)  # silent too long: no traffic for it
            it.model.signal(signal.SIGCONT)
            await until(lambda: it.percent == 10)
            it.model.signal(signal.SIGSTOP)
            began = time.monotonic()
            await it.director.close()
            assert time.monotonic() - began < 5

    asyncio.run(play())


def test_idle_it_probes() -> None:
    async def play() -> None:
        async with stage() as it:
            await until(lambda: "tiny" in it.plan.candidates)
            first = it.plan.candidates["tiny"].probed
            await until(lambda: first < it.plan.candidates["tiny"].probed <= time.monotonic())

    asyncio.run(play())


def test_sigterm_stops_the_process_within_seconds() -> None:
    child = (
        "import asyncio, sys\n"
        "from policies.settings import load\n"
        "from shadow.director import run\n"
        "from tests.shadow.fakes import FakeRecord\n"
        "asyncio.run(run(load(sys.stdin.buffer.readline()), FakeRecord()))\n"
    )
    with short_folder() as folder:
        made = settings(folder)
        process = subprocess.Popen(
            [sys.executable, "-c", child], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
        )
        try:
            assert process.stdin is not None
            process.stdin.write(dump(made))
            process.stdin.flush()
            asyncio.run(until(made.home.plan.exists))
            process.terminate()
            _, said = process.communicate(timeout=5)
            assert (process.returncode, said) == (0, b"")
        finally:
            process.kill()
            process.wait()


def test_a_recorder_that_is_away_loses_nothing() -> None:
    async def play() -> None:
        async with stage() as it:
            it.record.away = True
            it.record.add(60)
            await asyncio.sleep(2)
            assert not it.record.log and not it.plan.tasks
            it.record.away = False
            await it.phase("canary")
            await until(lambda: len(it.record.compared) == 60)

    asyncio.run(play())


def test_what_can_t_be_answered_is_skipped_with_the_reason() -> None:
    async def play() -> None:
        async with stage() as it:
            user = [{"role": "user", "content": "hi"}]
            it.record.append("tools", {"messages": user, "tools": [{"type": "web"}]}, "x")
            it.record.append("long", {"messages": [{**user[0], "content": "a b " * 900}]}, "x")
            it.record.append("fine", {"messages": user}, "x")
            await until(lambda: len(it.record.observations) == 3)
            errors = {key[0]: o.error for key, o in it.record.observations.items()}
            assert errors["tools"] == "skipped:field:tools" and errors["fine"] is None
            assert str(errors["long"]).startswith("skipped:") and "leave no room" in str(
                errors["long"]
            )
            await until(lambda: [key[0] for key in it.record.compared] == ["fine"])

    asyncio.run(play())


def test_the_sample_is_the_configured_share() -> None:
    async def play() -> None:
        async with stage(shadow={"sample": 50}) as it:
            it.record.add(100)
            await until(lambda: len(it.record.observations) == 100)
            skipped = [o for o in it.record.observations.values() if o.error is not None]
            assert {o.error for o in skipped} == {"skipped:unsampled"}
            assert 25 < len(skipped) < 75

    asyncio.run(play())


def test_a_deadline_is_an_error_of_the_candidate_and_counts_against_it() -> None:
    async def play() -> None:
        async with stage(shadow={"deadline": 0.5}) as it:
            await until(lambda: it.director.runners[0].reachable is not None)
            it.model.signal(signal.SIGSTOP)
            it.record.add(1)
            await until(lambda: bool(it.record.compared))
            assert [o.error for o in it.record.observations.values()] == ["deadline"]
            (found,) = it.record.compared.values()
            assert (found.verdict, found.score, found.why) == ("mismatched", 0.0, "deadline")

    asyncio.run(play())


async def fetch(
    http: aiohttp.ClientSession, path: str, headers: dict[str, str] | None = None
) -> tuple[int, str]:
    async with http.get(path, headers=headers) as response:
        return response.status, await response.text()


def test_the_admin_site_shows_all_to_who_has_the_token() -> None:
    async def play(listening: socket.socket, folder: Path) -> None:
        base = f"http://127.0.0.1:{listening.getsockname()[1]}"
        made = replace(settings(folder), fd=listening.detach(), admin_token="s3cret")
        record = FakeRecord()
        director = Director(made, record)
        director.start()
        try:
            async with aiohttp.ClientSession(base) as http:
                await until(lambda: "heartbeat" in {t.get_name() for t in asyncio.all_tasks()})
                assert (await fetch(http, "/readyz"))[0] == 401
                assert await fetch(http, "/readyz?token=s3cret") == (200, "ready\n")
                assert (await fetch(http, "/"))[0] == 401
                assert (await fetch(http, "/?token=wrong"))[0] == 401
                status, page = await fetch(http, "/", {"Authorization": "Bearer s3cret"})
                assert status == 200 and "tiny" in page and "away" in page
                assert (await fetch(http, "/?token=s3cret", {"Host": "evil.example"}))[0] == 403
                admitted = {"Host": "localhost:1", "Authorization": "Bearer s3cret"}
                assert (await fetch(http, "/readyz", admitted))[0] == 200
        finally:
            await director.close()

    with short_folder() as folder, socket.create_server(("127.0.0.1", 0)) as listening:
        asyncio.run(play(listening, folder))
