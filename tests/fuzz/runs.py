"""How long a property is tried: the same few examples in each run, or many new ones."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

MORE = "UNDERSTUDY_FUZZ"  # in the environment: so many times the examples, drawn anew


def examples(count: int) -> settings:
    """In a normal run `count`, always the same: a check that fails by chance is none."""
    times = int(os.environ.get(MORE, "0"))
    return settings(
        max_examples=count * max(1, times),
        derandomize=not times,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
