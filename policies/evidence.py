"""What comparisons prove about a candidate's agreement, valid however often one looks.

A rollout looks at its evidence after every pair. An interval made for one look (Wilson, Clopper)
is wrong then: looked at from 50 to 1,000 pairs it promotes a just-insufficient model in 27 % of
runs at a nominal 5 %. A *confidence sequence* is right at all looks at once.

With s matches among n distinct requests, and q drawn from Beta(a, b), the mixture of likelihoods

    M_n(p) = B(a + s, b + n - s) / (B(a, b) * p^s * (1 - p)^(n - s))

is a martingale of mean 1 when agreement is p (Robbins 1970, "Statistical methods related to the law
of the iterated logarithm"). Ville's inequality: it ever reaches 1/alpha with probability at most
alpha. So the p with M_n(p) < 1/alpha hold the truth at every n (Howard, Ramdas, McAuliffe, Sekhon
2021, "Time-uniform, nonparametric, nonasymptotic confidence sequences", the beta-binomial mixture).
log M_n is convex in p with its minimum at s/n: the set is an interval, and one look needs one
evaluation at the threshold, no root.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import inf, lgamma, log
from typing import Final, Literal

from policies.policy import Rollout

Finding = Literal["thin", "uncertain", "above", "below"]
Recent = Literal["steady", "below"]

# Each side is tested with the mixture that is quick to find it. Against a threshold of 0.95 a
# candidate that agrees in 0.99 needs 141 pairs (median) under Beta(20, 1), 254 under Beta(1, 1).
# A fall may end anywhere: the other side is spread evenly.
_RISE: Final = (20.0, 1.0)
_FALL: Final = (1.0, 1.0)
_SHORTEST: Final = 16  # newest pairs in the shortest suffix that can demote


@dataclass(frozen=True, slots=True)
class Sample:
    """One comparison as evidence: which request, whether the answers agreed, and when (epoch)."""

    request_hash: str
    matched: bool
    at: float = 0.0


@dataclass(frozen=True, slots=True)
class Figures:
    """Agreement so far: `matched` of `pairs` distinct requests, and its bounds.

    Each bound holds with the policy's confidence, at every look.
    """

    matched: int
    pairs: int
    low: float
    high: float

    @property
    def agreement(self) -> float:
        return self.matched / self.pairs if self.pairs else 0.0


NOTHING: Final = Figures(0, 0, 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class Judgement:
    """`gate`: all evidence against the threshold. `recent`: only the newest, for demotion."""

    gate: Finding
    recent: Recent
    figures: Figures


def judge(samples: Sequence[Sample], rules: Rollout) -> Judgement:
    """`samples`: oldest first."""
    first = first_of_each(samples)
    matched, pairs = sum(first), len(first)
    gate = verdict(matched, pairs, rules.threshold, rules.confidence, rules.minimum_pairs)
    low, high = bounds(matched, pairs, rules.confidence)
    newest = newest_of_each(samples, rules.window)
    recent: Recent = "below" if fell(newest, rules) else "steady"
    return Judgement(gate, recent, Figures(matched, pairs, low, high))


def first_of_each(samples: Iterable[Sample]) -> list[bool]:
    """One result per distinct request, the first: asked again, a question proves nothing new."""
    seen: dict[str, bool] = {}
    for sample in samples:
        seen.setdefault(sample.request_hash, sample.matched)
    return list(seen.values())


def newest_of_each(samples: Sequence[Sample], window: int) -> list[bool]:
    """The newest result per distinct request, newest first, at most `window` of them."""
    seen: dict[str, bool] = {}
    for sample in reversed(samples):
        if len(seen) == window:
            break
        seen.setdefault(sample.request_hash, sample.matched)
    return list(seen.values())


def verdict(matched: int, pairs: int, threshold: float, confidence: float, minimum: int) -> Finding:
    """Is agreement proven to be above or below the threshold? `thin`: too few pairs to ask."""
    if pairs < max(minimum, 1):
        return "thin"
    limit = -log(1 - confidence)
    side: Finding = "above" if matched > threshold * pairs else "below"
    prior = _RISE if side == "above" else _FALL
    return side if _log_martingale(matched, pairs, threshold, prior) >= limit else "uncertain"


def bounds(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Each bound holds with `confidence` at every look; `verdict` is above when low > threshold."""
    if not trials:
        return 0.0, 1.0
    limit = -log(1 - confidence)
    mean = successes / trials
    low = _root(successes, trials, limit, _RISE, 0.0, mean) if successes else 0.0
    high = _root(successes, trials, limit, _FALL, 1.0, mean) if successes < trials else 1.0
    return low, high


def _root(
    successes: int, trials: int, limit: float, prior: tuple[float, float], far: float, near: float
) -> float:
    """Between `far`, where the martingale is over its limit, and `near`, the mean: under 1 there,
    as no mixture of likelihoods exceeds the greatest of them."""
    for _ in range(60):
        middle = (far + near) / 2
        if _log_martingale(successes, trials, middle, prior) >= limit:
            far = middle
        else:
            near = middle
    return far


def _log_martingale(matched: int, pairs: int, p: float, prior: tuple[float, float]) -> float:
    a, b = prior
    missed = pairs - matched
    likelihood = _log_power(p, matched) + _log_power(1 - p, missed)
    return _log_beta(a + matched, b + missed) - _log_beta(a, b) - likelihood


def _log_power(base: float, exponent: int) -> float:
    if not exponent:
        return 0.0
    return exponent * log(base) if base > 0 else -inf


@lru_cache(maxsize=1 << 16)
def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)


def fell(newest: Sequence[bool], rules: Rollout) -> bool:
    """Are the newest results, newest first, proven to be below the threshold?

    The whole window answers slowly after a sudden change: 30 bad pairs hide behind 170 good ones.
    So its suffixes of the newest 16, 32, 64, ... are asked as well. A window that slides is a new
    test at each pair, not one more look at the same: the permitted error is therefore split among
    the suffixes *and* the looks in one window. A candidate just at the threshold is then wrongly
    demoted in at most `1 - confidence` of windows, a better one far more seldom.
    """
    sizes = _suffixes(rules.window)
    limit = log(len(sizes) * rules.window / (1 - rules.confidence))
    there = [size for size in sizes if size <= len(newest)]
    return any(_fell_within(newest[:size], rules.threshold, limit) for size in there)


def _suffixes(window: int) -> list[int]:
    sizes = []
    size = _SHORTEST
    while size < window:
        sizes.append(size)
        size *= 2
    return [*sizes, window]


def _fell_within(results: Sequence[bool], threshold: float, limit: float) -> bool:
    matched, pairs = sum(results), len(results)
    if matched >= threshold * pairs:
        return False
    return _log_martingale(matched, pairs, threshold, _FALL) >= limit
