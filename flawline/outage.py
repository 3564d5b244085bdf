"""A thing that fails and is tried again: pauses that grow, and a line in the log only now and then."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from flawline.backoff import Backoff
from flawline.clock import Monotonic, monotonic

REMINDER_S = 300.0
"""How often the log says that a thing still fails. A judgement, not measured."""


@dataclass(frozen=True)
class Failure:
    """One failure: how many there have been in this outage, and whether the log is to say so."""

    number: int
    since_s: float
    pause_s: float
    is_first: bool
    is_reported: bool


class Outage:
    """Counts the failures of one thing. Not for several threads, but `age_s` may be called from any."""

    def __init__(
        self,
        first_pause_s: float,
        longest_pause_s: float,
        *,
        reminder_s: float = REMINDER_S,
        clock: Monotonic = monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._backoff = Backoff(first_pause_s, longest_pause_s, chance)
        self._reminder_s = reminder_s
        self._clock = clock
        self._since: float | None = None
        self._reported_at = 0.0
        self.failures = 0

    @property
    def is_on(self) -> bool:
        """Whether the thing has failed and was not called well since then."""
        return self._since is not None

    def age_s(self) -> float:
        """Return how long the outage has lasted, in seconds; 0 when there is none."""
        since = self._since
        return 0.0 if since is None else self._clock() - since

    def failed(self) -> Failure:
        """Count a failure; the first one is reported, and later ones once each `reminder_s`."""
        now = self._clock()
        is_first = self._since is None
        if self._since is None:
            self._since = now
        self.failures += 1
        is_reported = is_first or now - self._reported_at >= self._reminder_s
        if is_reported:
            self._reported_at = now
        return Failure(self.failures, now - self._since, self._backoff.next_s(), is_first, is_reported)

    def ended(self) -> None:
        """Say that the thing is well: the next failure is the first one of another outage."""
        self._since, self.failures = None, 0
        self._backoff.reset()
