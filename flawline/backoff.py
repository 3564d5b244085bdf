"""Growing pauses between attempts."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Exponential waits with jitter, so that what went away together does not come back together."""

    def __init__(self, first_s: float, longest_s: float, chance: Callable[[], float] = random.random) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._chance = chance
        self._failures = 0

    def next_s(self) -> float:
        """Return the next wait in seconds: between half and all of first * 2^failures, at most the longest."""
        # 2^30 s is longer than any plant runs; the bound keeps the power a float after years of failures.
        full = min(self._longest_s, self._first_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        return full * (0.5 + 0.5 * self._chance())

    def reset(self) -> None:
        """Start again from the first wait: the thing works."""
        self._failures = 0
