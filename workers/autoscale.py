"""How many actors run, where `worker.actors = "auto"`: as many as the load asks for, between two bounds.

Frames that wait for long are a reason for another actor only while the actors are busy: a slow broker, or a camera that
sends a backlog of hours, is not healed by more of them. An actor leaves when the others would have time for its frames.
Each change moves cameras, so that some time passes between two of them.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flawline import clock
from flawline.settings.tree import Settings

if TYPE_CHECKING:
    from workers.inspector import Health

# Frames that wait for longer want another actor: a few times what a frame takes when nothing waits. A judgement.
LONG_WAIT_S = 2.0
# Share of their time that actors score, from which on they are busy. A judgement.
BUSY = 0.8
# The same for the actors that stay when another leaves: they must not be busy then. A judgement.
BUSY_AFTERWARDS = 0.6
# For how long the load must ask for another actor, or for one fewer: a burst of a few seconds is no reason for either.
# To be without an actor that is needed costs more than to have one that is not. Judgements.
GROW_AFTER_S = 5.0
SHRINK_AFTER_S = 60.0
# Least time between two changes: an actor takes about ten seconds to load its model and to get its cameras.
PAUSE_S = 30.0
# Actors are added by this factor, so that a large line does not wait for one after the other.
GROWTH = 1.5


@dataclass(frozen=True)
class Demand:
    """What the actors have to do: the longest time that a frame waits, and the mean share of time that they score."""

    wait_s: float
    busy: float

    @classmethod
    def of(cls, reports: Iterable[Health]) -> Demand | None:
        """Return the load that the actors report, None while none of them does."""
        known = list(reports)
        if not known:
            return None
        return cls(max(health.wait_s for health in known), sum(health.busy for health in known) / len(known))


@dataclass(frozen=True)
class Bounds:
    """The fewest and the most actors."""

    fewest: int
    most: int


def bounds(settings: Settings) -> Bounds:
    """Return the fewest and the most actors that the settings allow.

    Each actor gets two partitions at least, since fewer could not be spread evenly. On a machine without a cluster
    there are not more actors than its CPUs have room for.
    """
    worker = settings.worker
    if worker.actors != "auto":
        return Bounds(worker.actors, worker.actors)
    most = max(1, settings.kafka.camera_partitions // 2)
    if worker.most_actors is not None:
        most = min(most, worker.most_actors)
    elif not worker.ray_address and worker.num_cpus > 0:
        most = min(most, int((os.cpu_count() or 1) / worker.num_cpus))
    return Bounds(worker.fewest_actors, max(most, worker.fewest_actors))


class ActorCount:
    """Follows the load with a number of actors."""

    def __init__(self, limits: Bounds, now: clock.Monotonic = clock.monotonic) -> None:
        self._limits = limits
        self._now = now
        self._changed = -math.inf
        self._many_since: float | None = None
        self._few_since: float | None = None

    def next(self, count: int, load: Demand) -> int:
        """Return how many actors are to run, of which `count` run now. Called again and again, as load is reported."""
        now = self._now()
        asks_for_more = load.wait_s > LONG_WAIT_S and load.busy > BUSY
        asks_for_fewer = count > 1 and load.wait_s < LONG_WAIT_S and load.busy * count / (count - 1) < BUSY_AFTERWARDS
        self._many_since = (self._many_since or now) if asks_for_more else None
        self._few_since = (self._few_since or now) if asks_for_fewer else None
        if now - self._changed < PAUSE_S:
            return count
        wanted = count
        if self._many_since is not None and now - self._many_since >= GROW_AFTER_S:
            wanted = min(self._limits.most, math.ceil(count * GROWTH))
        elif self._few_since is not None and now - self._few_since >= SHRINK_AFTER_S:
            wanted = max(self._limits.fewest, count - 1)
        if wanted != count:
            self._changed, self._many_since, self._few_since = now, None, None
        return wanted
