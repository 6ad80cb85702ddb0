"""The two files the proxy polls: anything wrong with them means that all is relayed."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from policies.plan import EMPTY, LIFETIME, Plan, PlannedCandidate, PlannedTask, dump
from proxy.watch import Watch

TASK = PlannedTask("canary", "small", 10.0, 3.0, "salt")
CANDIDATE = PlannedCandidate("/run/small.sock", 4096, 2, 0.0)


def current(**changes: object) -> Plan:
    plan = Plan(time.time() + 20, True, {"small": CANDIDATE}, {"task": TASK})
    return replace(plan, **changes)  # type: ignore[arg-type]


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path / "plan.json", tmp_path / "kill")


def put(watch: Watch, data: bytes) -> None:
    """Replace the plan as the director does."""
    assert watch.plan_file is not None
    new = watch.plan_file.with_suffix(".new")
    new.write_bytes(data)
    new.replace(watch.plan_file)
    watch.poll()


def test_no_plan(watch: Watch) -> None:
    watch.poll()
    assert (watch.plan, watch.diverts, watch.problem) == (EMPTY, False, None)


def test_a_good_plan(watch: Watch) -> None:
    plan = current()
    put(watch, dump(plan))
    assert (watch.plan, watch.diverts) == (plan, True)


def test_a_plan_that_shadows_only_diverts_nothing(watch: Watch) -> None:
    put(watch, dump(current(tasks={"task": replace(TASK, percent=0.0)})))
    assert not watch.diverts


BROKEN = {
    "empty": b"",
    "half": dump(current())[:50],
    "not JSON": b"\xff\x00",
    "a list": b"[]",
    "a null": b"null",
    "another version": orjson.dumps({**orjson.loads(dump(current())), "version": 99}),
    "an unknown field": dump(current()).replace(b'"salt"', b'"pepper"'),
    "a date": dump(current(valid_until="tomorrow")),
    "tasks is a list": dump(current(tasks=[])),
    "a share is a text": dump(current()).replace(b"10.0", b'"10"'),
    "too large": b" " * (5 << 20),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plan_replaces_a_good_one_with_none(watch: Watch, name: str) -> None:
    put(watch, dump(current()))
    put(watch, BROKEN[name])
    assert (watch.plan, watch.diverts) == (EMPTY, False)
    put(watch, dump(current()))
    assert (watch.diverts, watch.problem) == (True, None)


def test_a_plan_that_is_removed_holds_no_more(watch: Watch) -> None:
    put(watch, dump(current()))
    assert watch.plan_file is not None
    watch.plan_file.unlink()
    watch.poll()
    assert not watch.diverts


def test_a_plan_expires(watch: Watch) -> None:
    put(watch, dump(current(valid_until=time.time() + 0.05)))
    assert watch.diverts
    time.sleep(0.06)
    watch.poll()
    assert (watch.plan, watch.diverts) == (EMPTY, False)


def test_a_plan_of_the_past_never_holds(watch: Watch) -> None:
    put(watch, dump(current(valid_until=time.time() - 1)))
    assert not watch.diverts


def test_a_plan_never_holds_longer_than_its_lifetime(watch: Watch) -> None:
    put(watch, dump(current(valid_until=time.time() + 1e6)))
    assert watch._expires <= time.monotonic() + LIFETIME


def test_killed_and_resumed(watch: Watch) -> None:
    put(watch, dump(current()))
    watch.kill_file.touch()
    watch.poll()
    assert (watch.killed, watch.plan, watch.diverts) == (True, EMPTY, False)
    watch.kill_file.unlink()
    watch.poll()
    assert (watch.killed, watch.diverts) == (False, True)


def test_without_a_plan_file_only_the_kill_switch_is_looked_at(tmp_path: Path) -> None:
    watch = Watch(None, tmp_path / "kill")
    (tmp_path / "plan.json").write_bytes(dump(current()))
    watch.poll()
    assert (watch.diverts, watch.killed) == (False, False)
    (tmp_path / "kill").touch()
    watch.poll()
    assert watch.killed
