"""When to stop trusting a candidate that fails to answer diverted requests."""

from __future__ import annotations

from collections import deque
from typing import Final

_WINDOW: Final = 100
_MOST_FAILURES: Final = 2  # over 2 % of the last 100; three in a row are covered by it


class Breaker:
    """Open after three failures among the last 100 diverted requests.

    Only a shadow probe that succeeded after the breaker opened closes it: a live request never
    tries a sick model. Times are seconds of CLOCK_MONOTONIC.
    """

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=_WINDOW)  # True = failed
        self.opened_at: float | None = None

    @property
    def failures(self) -> int:
        return sum(self._recent)

    def admits(self, waiting: int) -> bool:
        """May one more request try, with `waiting` already waiting for their head?

        Those still waiting may fail too: counting them keeps the requests that pay the patience at
        three, however many arrive at once.
        """
        return self.opened_at is None and self.failures + waiting <= _MOST_FAILURES

    def record(self, failed: bool, at: float) -> None:
        self._recent.append(failed)
        if self.opened_at is None and self.failures > _MOST_FAILURES:
            self.opened_at = at

    def probed(self, at: float) -> None:
        """A shadow run succeeded at `at`."""
        if self.opened_at is not None and at > self.opened_at:
            self.opened_at = None
            self._recent.clear()
