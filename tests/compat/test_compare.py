"""The comparison that `bin/compat` prints: nothing that differs may go unseen."""

from __future__ import annotations

from typing import Any

import pytest

from tests.compat.compare import Difference, of_outcomes, of_values


def became(outcome: str, reason: str = "", *, calls: bool = True) -> dict[str, Any]:
    return {"outcome": outcome, "reason": reason, "calls": calls}


def test_equal_runs_differ_in_nothing() -> None:
    run = {"a": became("passed"), "b": became("failed", "404"), "c": became("passed", calls=False)}
    found = of_outcomes("suite", run, dict(run))
    assert not found.differences
    assert found.rows == {
        "tests": (3, 3),
        "failed": (1, 1),
        "passed": (2, 2),
        "that call the server": (2, 2),
        "... and pass": (1, 1),
    }
    assert "differ: 0" in str(found)


@pytest.mark.parametrize(
    "through",
    [{}, {"a": became("failed")}, {"a": became("passed"), "b": became("passed")}],
    ids=["missing", "another outcome", "one more"],
)
def test_a_test_that_differs_is_named(through: dict[str, Any]) -> None:
    found = of_outcomes("suite", {"a": became("passed")}, through)
    assert len(found.differences) == 1
    assert "differ: 1" in str(found)


def test_two_failures_for_different_reasons_differ() -> None:
    direct, through = {"a": became("failed", "404")}, {"a": became("failed", "502")}
    found = of_outcomes("suite", direct, through)
    assert found.differences == (Difference("a", "failed: 404", "failed: 502"),)


def test_a_value_is_shown_where_it_differs() -> None:
    direct = {"call": {"same": 1, "list": [1, {"deep": "x"}]}}
    through = {"call": {"same": 1, "list": [1, {"deep": "y"}]}}
    assert of_values(direct, through) == (Difference("call.list[1].deep", "x", "y"),)


def test_a_long_value_is_cut() -> None:
    (found,) = of_values({"call": "x" * 10_000}, {"call": ""})
    assert found.direct.endswith("(10000 characters)")
    assert len(found.direct) < 400
