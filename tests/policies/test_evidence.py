"""The gate's statistics, by simulation: it holds under constant looking, and it has power."""

from __future__ import annotations

import random
from itertools import accumulate
from math import exp, lgamma

import pytest

from policies.evidence import (
    Sample,
    bounds,
    fell,
    first_of_each,
    judge,
    newest_of_each,
    verdict,
)
from policies.policy import Rollout


def stream(seed: int, agreement: float, length: int) -> list[bool]:
    chance = random.Random(seed)
    return [chance.random() < agreement for _ in range(length)]


def promoted_at(results: list[bool], threshold: float) -> int | None:
    """The look at which the gate opens, of one after every pair."""
    for pairs, matched in enumerate(accumulate(results), start=1):
        if verdict(matched, pairs, threshold, 0.95, 50) == "above":
            return pairs
    return None


def test_a_candidate_below_the_threshold_is_seldom_promoted_however_often_one_looks() -> None:
    looks = (promoted_at(stream(seed, 0.94, 1000), 0.95) for seed in range(1000))
    assert sum(look is not None for look in looks) <= 50


def test_a_good_candidate_is_promoted_soon() -> None:
    looks = [promoted_at(stream(seed, 0.99, 500), 0.95) for seed in range(200)]
    assert sum(look is not None for look in looks) >= 190


def test_a_candidate_above_the_threshold_is_seldom_found_below() -> None:
    found = 0
    for seed in range(300):
        sums = accumulate(stream(seed, 0.95, 600))
        found += any(
            verdict(matched, pairs, 0.95, 0.95, 1) == "below"
            for pairs, matched in enumerate(sums, start=1)
        )
    assert found <= 15


@pytest.mark.parametrize(
    ("matched", "pairs"), [(0, 1), (1, 1), (0, 40), (40, 40), (95, 100), (20, 50), (990, 1000)]
)
def test_bounds_are_where_a_grid_finds_them(matched: int, pairs: int) -> None:
    low, high = bounds(matched, pairs, 0.95)
    assert low == pytest.approx(grid(matched, pairs, 20, 1)[0], abs=2e-3)
    assert high == pytest.approx(grid(matched, pairs, 1, 1)[1], abs=2e-3)
    assert 0 <= low <= matched / pairs <= high <= 1


def grid(matched: int, pairs: int, a: float, b: float) -> tuple[float, float]:
    """Least and greatest p at which the mixture, written out, is below 1/alpha."""
    beta = exp(
        lgamma(a + matched) + lgamma(b + pairs - matched) - lgamma(a + b + pairs)
        - lgamma(a) - lgamma(b) + lgamma(a + b)
    )  # fmt: skip
    inside = [
        p
        for p in (i / 2000 for i in range(2001))
        if beta < 20 * p**matched * (1 - p) ** (pairs - matched)
    ]
    return min(inside), max(inside)


@pytest.mark.parametrize("pairs", [50, 141, 400])
def test_the_verdict_and_the_bounds_say_the_same(pairs: int) -> None:
    for matched in range(pairs + 1):
        low, high = bounds(matched, pairs, 0.95)
        said = verdict(matched, pairs, 0.9, 0.95, 1)
        assert said == ("above" if low > 0.9 else "below" if high < 0.9 else "uncertain")


def test_no_evidence_bounds_nothing() -> None:
    assert bounds(0, 0, 0.95) == (0.0, 1.0)
    assert verdict(0, 0, 0.95, 0.95, 0) == "thin"


def test_too_few_pairs_are_thin_however_good() -> None:
    assert verdict(49, 49, 0.5, 0.95, 50) == "thin"
    assert verdict(50, 50, 0.5, 0.95, 50) == "above"


def test_a_request_asked_again_proves_nothing_new() -> None:
    same = [Sample("a", True)] * 500 + [Sample("b", False)]
    assert first_of_each(same) == [True, False]
    assert judge(same, Rollout()).figures.pairs == 2


def test_the_gate_keeps_the_first_answer_and_the_window_the_newest() -> None:
    samples = [Sample("a", True), Sample("b", True), Sample("a", False)]
    assert first_of_each(samples) == [True, True]
    assert newest_of_each(samples, 10) == [False, True]
    assert newest_of_each(samples, 1) == [False]


@pytest.mark.parametrize(("threshold", "before", "most"), [(0.85, 0.97, 80), (0.95, 0.99, 40)])
def test_a_sudden_fall_is_seen_within_tens_of_pairs(
    threshold: float, before: float, most: int
) -> None:
    rules = Rollout(threshold=threshold)
    for seed in range(100):
        results = stream(seed, before, rules.window) + stream(seed + 1000, 0.4, most)
        assert any(
            fell(results[:end][::-1], rules) for end in range(rules.window, len(results) + 1)
        )


def test_a_good_candidate_is_not_demoted() -> None:
    rules = Rollout()
    for seed in range(50):
        results = stream(seed, 0.96, 1500)
        assert not any(
            fell(results[end - rules.window : end][::-1], rules)
            for end in range(rules.window, len(results))
        )


def test_a_window_shorter_than_the_shortest_suffix_still_demotes() -> None:
    assert fell([False] * 10, Rollout(window=10))
    assert not fell([False] * 9, Rollout(window=10))


def test_judging_reads_evidence_oldest_first() -> None:
    good = [Sample(f"g{i}", True) for i in range(300)]
    bad = [Sample(f"b{i}", False) for i in range(16)]
    judged = judge(good + bad, Rollout(threshold=0.85))
    assert (judged.gate, judged.recent) == ("above", "below")
    assert judge(bad + good, Rollout(threshold=0.85)).recent == "steady"
