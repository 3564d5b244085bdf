"""Runs learned rounds of the discovery process: makes the job and turns its result into clusters.

Classes keep their ids as in every round: learning only decides which regions belong together. The job holds what the
store has when it starts. Intake goes on while the job runs, and the next round takes the regions that arrive meanwhile.
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

HIGHEST_PEAK = 0.999  # the quantile of the peaks that counts as score 1


class LearnedRounds:
    """Runs at most one learning round at a time. Not safe for several threads."""

    def __init__(self, settings: Settings, monotonic: clock.Monotonic = clock.monotonic) -> None:
        self._settings, self._monotonic = settings, monotonic
        self._running: Running | None = None
        self._started_at = 0.0

    @property
    def running(self) -> bool:
        return self._running is not None

    def start(self, job: Job) -> None:
        """Start a job. A failure to start is one line in the log."""
        try:
            self._running = learning_task.start(job, self._settings)
        except LearningFailed as error:
            log.warning("learning round was abandoned: %s; the classes stay as they are", error)
            return
        self._started_at = self._monotonic()
        log.info("learning from %d crops", len(job.ids))

    def poll(self) -> Result | None:
        """Return the result once; None before that, and when the round failed or took too long."""
        if self._running is None:
            return None
        try:
            result = self._running.poll()
            if result is None and self._monotonic() - self._started_at > self._settings.discovery.learning_timeout_s:
                raise LearningFailed(f"it took longer than {self._settings.discovery.learning_timeout_s:g} s")
        except LearningFailed as error:
            log.warning("learning round was abandoned: %s; the classes stay as they are", error)
            self.cancel()
            return None
        if result is not None:
            self._running = None
        return result

    def cancel(self) -> None:
        """End the running job, if there is one."""
        if self._running is not None:
            self._running.cancel()
            self._running = None


@dataclass(frozen=True, eq=False)
class Plan:
    """A job, the clustering that it starts from and the embedding version of its regions."""

    job: Job
    clustering: Clustering
    version: str


def newest(regions: Regions, limit: int) -> Regions:
    """Return at most `limit` regions: first the exemplars of every class, then the newest regions."""
    if len(regions) <= limit:
        return regions
    order = np.lexsort((-regions.ids, ~regions.exemplars))
    return only(regions, np.sort(order[:limit]))


def only(regions: Regions, rows: np.ndarray) -> Regions:
    """Return some rows of regions, in the order of `rows`."""

    def pick(column: Any) -> Any:
        return column[rows] if isinstance(column, np.ndarray) else column and tuple(column[row] for row in rows)

    return Regions(**{field.name: pick(getattr(regions, field.name)) for field in fields(regions)})


def job_of(
    connection: Connection, regions: Regions, known: Registry, settings: Settings, version: str, last_id: int
) -> Plan | None:
    """Return a learning round over these regions that starts at the known classes.

    Returns None when there are too few regions, or regions of one kind only. `last_id` is the newest region at the time
    when the known classes were formed. Regions whose crop the store has deleted take no part.
    """
    discovery = settings.discovery
    images = _images(connection, regions)
    rows = np.array([row for row, number in enumerate(regions.ids) if int(number) in images], int)
    shown = newest(only(regions, rows), discovery.learning_regions)
    start_clustering = single_round.clustered(shown, known, discovery, version, last_id)
    if start_clustering is None:
        return None
    fixed = {entry.id for entry in known.live if entry.fixed}
    start, confirmed = starting_labels(start_clustering.labels, shown.classes, fixed)
    if start.max() < 1:  # a single kind leaves nothing to learn
        return None
    picked = [images[int(number)] for number in shown.ids]
    scores = anomaly_scores([peak for _, _, peak in picked])
    job = Job(
        ids=tuple(int(number) for number in shown.ids),
        crops=tuple(crop for crop, _, _ in picked),
        masks=tuple(mask for _, mask, _ in picked),
        vectors=unit(shown.vectors),
        start=tuple(int(label) for label in start),
        confirmed=tuple(bool(flag) for flag in confirmed),
        scores=tuple(float(score) for score in scores) if discovery.learning_correction else (),
        epochs=discovery.learning_epochs,
        seed=discovery.seed,
        backbone=discovery.crop_backbone,
        weights=str(discovery.crop_weights) if discovery.crop_weights else None,
        device=discovery.device,
    )
    return Plan(job, start_clustering, version)


def anomaly_scores(peaks: Sequence[float]) -> np.ndarray:
    """Return how anomalous regions are, float64 (n) from 0 (ordinary) to 1, by the peaks of their maps.

    All peaks share one scale, whose end is the quantile HIGHEST_PEAK of the set.
    """
    values = np.asarray(peaks, np.float64)
    return np.clip(values / max(float(np.quantile(values, HIGHEST_PEAK)), 1e-6), 0, 1)


def starting_labels(
    labels: np.ndarray, classes: Sequence[str | None], fixed: set[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the clusters 0..k-1 to start from, int (n), and which regions a person has classified, bool (n).

    A class that a person has confirmed (`fixed`) becomes exactly one cluster and shares it with no other class.
    """
    start = labels.copy()
    confirmed = np.array([name in fixed if name else False for name in classes], bool)
    names = np.array([name or "" for name in classes])
    for number, name in enumerate(sorted({str(name) for name in names[confirmed]})):
        start[names == name] = int(labels.max()) + 1 + number
    return np.unique(start, return_inverse=True)[1], confirmed


def clusters_of(regions: Regions, labels: Mapping[int, int], start: Clustering) -> tuple[Regions, Clustering] | None:
    """Return the regions of a result, with their present values, and their clusters; None when no region is left.

    `labels` are the learned kinds by region id, -1 for no defect. `start` is the clustering that learning started from.
    """
    rows = np.array([row for row, number in enumerate(regions.ids) if int(number) in labels], int)
    shown = only(regions, rows)
    learned = np.array([labels[int(number)] for number in shown.ids], int)
    inside = learned >= 0
    if not inside.any():
        return None
    learned[inside] = np.unique(learned[inside], return_inverse=True)[1]
    centroids = clustering.centroids_of(unit(shown.vectors[inside]), learned[inside])
    return shown, replace(start, labels=learned, centroids=centroids)


def _images(connection: Connection, regions: Regions) -> dict[int, tuple[bytes, bytes, float]]:
    """Return crop (JPEG), mask (PNG) and peak by region id, for regions whose images the store still has."""
    r = schema.regions
    images: dict[int, tuple[bytes, bytes, float]] = {}
    for part in parts([int(number) for number in regions.ids]):
        query = select(r.c.id, r.c.crop, r.c.mask, r.c.peak).where(r.c.id.in_(part))
        for row in connection.execute(query):
            if row.crop and row.mask:
                images[row.id] = row.crop, row.mask, row.peak
    return images
