"""The kit itself: every runtime that is here goes through a proxy, as far as it can be led."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runtimes.kit import RUNTIMES, Kit, Runtime
from tests.runtimes.needs import NEEDS
from tests.runtimes.openai_host import OpenaiHost
from tests.runtimes.redirect import Redirector
from tests.runtimes.telling import KNOWN, Way

# What is missing is told by `python -m tests.runtimes.kit`, with what helps.
CASES = [(runtime, task) for runtime in Kit.here().ready() for task in runtime.tasks]
SAID = {"chat": "hi: The quick", "stream": "The quick", "upload": "file-scripted"}
KEY = {"OPENAI_API_KEY": "sk-of-the-app"}


@pytest.fixture(scope="module")
def kit() -> Kit:
    return Kit.here()


def test_the_table_names_what_there_is() -> None:
    assert len({runtime.name for runtime in RUNTIMES}) == len(RUNTIMES)
    for runtime in RUNTIMES:
        assert set(runtime.needs) <= NEEDS.keys(), runtime.name
        assert set(runtime.told) <= set(KNOWN), runtime.name
        assert set(runtime.deaf) <= set(runtime.tasks), runtime.name


def test_what_is_missing_is_told_with_what_helps(tmp_path: Path) -> None:
    kit = Kit.here({"UNDERSTUDY_RUNTIMES": str(tmp_path)})
    missing = {found.need: found for found in kit.missing()}
    assert missing["openai3"].runtimes == ("openai3-sync", "openai3-async")
    assert f"{tmp_path}/openai3/bin/pip install" in missing["openai3"].how
    lacking = {name for found in missing.values() for name in found.runtimes}
    assert {runtime.name for runtime in kit.ready()} == {r.name for r in RUNTIMES} - lacking


@pytest.mark.parametrize(("runtime", "task"), CASES, ids=lambda case: getattr(case, "name", case))
def test_a_runtime_goes_where_it_is_led(
    kit: Kit, host: OpenaiHost, way: Redirector, tmp_path: Path, runtime: Runtime, task: str
) -> None:
    led = Way(way.url, host.root, tmp_path).variables(runtime.told)
    outcome = kit.run(runtime, task, {**KEY, **led})
    assert outcome.ok == runtime.led(task), outcome.raw
    assert len(way.asked) == int(runtime.led(task))
    if outcome.ok:
        assert (outcome.text or "").startswith(SAID.get(task, "session.created session.updated"))
