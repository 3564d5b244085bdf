"""Learned rounds of the discovery process: what to learn from, and what becomes of the result.

Identity is that of every round: learning only says which regions belong together. Its job is made from what the store
holds when it starts; while it runs intake goes on, and what has come meanwhile is left to the next round.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from discovery.learned import learning_task
from discovery.learned.learning_task import Job, LearningFailed, Result, Running
from discovery.round import clustering, single_round
from discovery.round.clustering import Clustering
from discovery.round.lineage import Registry
from discovery.round.single_round import Regions
from discovery.store import schema
from discovery.store.database import parts
from flawline import clock
from flawline.settings.tree import Settings
from scorer.vectors import unit

log = logging.getLogger(__name__)

HIGHEST_PEAK = 0.999


class LearnedRounds:
    """At most one learning round at a time. Not for several threads."""

    def __init__(self, settings: Settings, monotonic: clock.Monotonic = clock.monotonic) -> None:
        self._settings, self._monotonic = settings, monotonic
        self._running: Running | None = None
        self._started_at = 0.0

    @property
    def running(self) -> bool:
        return self._running is not None

    def start(self, job: Job) -> None:
        """Start a job; one line in the log when that cannot be done."""
        try:
            self._running = learning_task.start(job, self._settings)
        except LearningFailed as error:
            log.warning("learning round was given up: %s; the classes stay as they are", error)
            return
        self._started_at = self._monotonic()
        log.info("learning from %d crops", len(job.ids))

    def poll(self) -> Result | None:
        """The result, once. None while there is none, and when the round failed or took too long."""
        if self._running is None:
            return None
        try:
            result = self._running.poll()
            if result is None and self._monotonic() - self._started_at > self._settings.discovery.learning_timeout_s:
                raise LearningFailed(f"it took longer than {self._settings.discovery.learning_timeout_s:g} s")
        except LearningFailed as error:
            log.warning("learning round was given up: %s; the classes stay as they are", error)
            self.cancel()
            return None
        if result is not None:
            self._running = None
        return result

    def cancel(self) -> None:
        """End what is running."""
        if self._running is not None:
            self._running.cancel()
            self._running = None


@dataclass(frozen=True, eq=False)
class Plan:
    """A job, the clusters that it starts from and the embedding version of its regions."""

    job: Job
    found: Clustering
    version: str


def newest(regions: Regions, limit: int) -> Regions:
    """At most `limit` regions: every class's exemplars as far as they fit, then the latest."""
    if len(regions) <= limit:
        return regions
    order = np.lexsort((-regions.ids, ~regions.exemplars))
    return only(regions, np.sort(order[:limit]))


def only(regions: Regions, rows: np.ndarray) -> Regions:
    """Some rows of regions, in their order."""

    def taken(column: Any) -> Any:
        return column[rows] if isinstance(column, np.ndarray) else column and tuple(column[row] for row in rows)

    return Regions(**{each.name: taken(getattr(regions, each.name)) for each in fields(regions)})


def job_of(
    connection: Connection, regions: Regions, known: Registry, settings: Settings, version: str, last_id: int
) -> Plan | None:
    """A learning round over these regions, from clusters that start at the known classes; None when there are too few.

    `last_id` is the newest region that was there when the known classes were found. Regions whose crop is not kept any
    more are left out.
    """
    discovery = settings.discovery
    images = _images(connection, regions)
    rows = np.array([row for row, number in enumerate(regions.ids) if int(number) in images], int)
    shown = newest(only(regions, rows), discovery.learning_regions)
    found = single_round.clustered(shown, known, discovery, version, last_id)
    if found is None:
        return None
    fixed = {one.id for one in known.live if one.fixed}
    start, told = starting_labels(found.labels, shown.classes, fixed)
    if start.max() < 1:  # one kind: there is nothing to tell apart
        return None
    picked = [images[int(number)] for number in shown.ids]
    scores = anomaly_scores([peak for _, _, peak in picked])
    job = Job(
        ids=tuple(int(number) for number in shown.ids),
        crops=tuple(crop for crop, _, _ in picked),
        masks=tuple(mask for _, mask, _ in picked),
        vectors=unit(shown.vectors),
        start=tuple(int(label) for label in start),
        told=tuple(bool(each) for each in told),
        scores=tuple(float(each) for each in scores) if discovery.learning_correction else (),
        epochs=discovery.learning_epochs,
        seed=discovery.seed,
        backbone=discovery.crop_backbone,
        weights=str(discovery.crop_weights) if discovery.crop_weights else None,
        device=discovery.device,
    )
    return Plan(job, found, version)


def anomaly_scores(peaks: Sequence[float]) -> np.ndarray:
    """How anomalous regions are (n), 0 (ordinary) to 1, by the peaks of their maps on one scale over the set."""
    values = np.asarray(peaks, np.float64)
    return np.clip(values / max(float(np.quantile(values, HIGHEST_PEAK)), 1e-6), 0, 1)


def starting_labels(
    labels: np.ndarray, classes: Sequence[str | None], fixed: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Clusters 0..k-1 to start from, and which regions (n) have theirs from a person.

    A class that a person has spoken about is one cluster and a cluster of its own, whatever the clustering says.
    """
    start = labels.copy()
    told = np.array([name in fixed if name else False for name in classes], bool)
    names = np.array([name or "" for name in classes])
    for number, name in enumerate(sorted({str(each) for each in names[told]})):
        start[names == name] = int(labels.max()) + 1 + number
    return np.unique(start, return_inverse=True)[1], told


def clusters_of(regions: Regions, labels: Mapping[int, int], found: Clustering) -> tuple[Regions, Clustering] | None:
    """The regions that a result speaks of, as they are now, and their clusters; None when none of them is left.

    `found` is the clustering that learning started from.
    """
    rows = np.array([row for row, number in enumerate(regions.ids) if int(number) in labels], int)
    shown = only(regions, rows)
    learned = np.array([labels[int(number)] for number in shown.ids], int)
    inside = learned >= 0
    if not inside.any():
        return None
    learned[inside] = np.unique(learned[inside], return_inverse=True)[1]
    centroids = clustering.centroids_of(unit(shown.vectors[inside]), learned[inside])
    return shown, replace(found, labels=learned, centroids=centroids)


def _images(connection: Connection, regions: Regions) -> dict[int, tuple[bytes, bytes, float]]:
    """Crop, mask and peak by region id, where they are kept."""
    r = schema.regions
    found: dict[int, tuple[bytes, bytes, float]] = {}
    for part in parts([int(number) for number in regions.ids]):
        query = select(r.c.id, r.c.crop, r.c.mask, r.c.peak).where(r.c.id.in_(part))
        for row in connection.execute(query):
            if row.crop and row.mask:
                found[row.id] = row.crop, row.mask, row.peak
    return found
