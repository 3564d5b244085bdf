"""When a round is run and in which steps, so that none keeps intake waiting: carry over, cluster or learn, write."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from sqlalchemy import select

from discovery import embedding_change
from discovery.learned import learned_round
from discovery.learned.learned_round import LearnedRounds, Plan
from discovery.learned.learning_task import Result
from discovery.round import single_round
from discovery.round.clustering import REGIONS_MIN
from discovery.round.lineage import Registry
from discovery.round.single_round import Outcome, Regions
from discovery.store import registry, schema
from discovery.store.database import fact, set_fact
from discovery.store.store import Store
from flawline import clock, telemetry
from flawline.errors import FlawlineError
from flawline.settings.tree import Settings

if TYPE_CHECKING:
    from discovery.learned.crop_backbone import CropBackbone

log = logging.getLogger(__name__)


class RoundRunner:
    """Rounds over one store. `step` does a piece of the round that was asked for. Not for several threads."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        utc_ns: clock.UtcNs = clock.utc_ns,
        monotonic: clock.Monotonic = clock.monotonic,
    ) -> None:
        self._settings, self._store, self._utc_ns, self._monotonic = settings, store, utc_ns, monotonic
        self._learned = LearnedRounds(settings, monotonic)
        self._plan: Plan | None = None
        self._wanted = False
        self._backbone: CropBackbone | None = None
        self._backbone_failed = False
        self._crops: embedding_change.CropVectors | None = None

    @property
    def busy(self) -> bool:
        """Whether a round was asked for and has not come to its end."""
        return self._wanted or self._learned.running

    def ask(self) -> None:
        """Ask for a round; nothing new while one is under way."""
        self._wanted = self._wanted or not self._learned.running

    def close(self) -> None:
        """End a learning round that runs."""
        self._learned.cancel()

    def step(self) -> bool:
        """Do a piece of what is under way; True when classes may have changed."""
        if self._learned.running:
            return self._apply(self._learned.poll())
        if not self._wanted:
            return False
        version = self._active_version()
        if version is not None and not self._carried_over(version):
            return False
        self._wanted = False
        if version is None:
            return False
        if self._settings.discovery.mode == "learned":
            return self._start_learning(version)
        return self._again_when_overtaken(lambda: self._cluster(version))

    def backbone(self) -> CropBackbone:
        """Return the backbone that describes crops; load it at the first use. Raises FlawlineError."""
        if self._backbone is None:
            from discovery.learned import crop_backbone

            settings = self._settings.discovery
            self._backbone = crop_backbone.load(settings.crop_backbone, settings.crop_weights, settings.device)
        return self._backbone

    def _again_when_overtaken(self, attempt: Callable[[], bool]) -> bool:
        while True:
            try:
                return attempt()
            except registry.StaleRegistry:
                log.info("classes were changed by a person during a round: it is run again")

    def _cluster(self, version: str) -> bool:
        started, at = self._monotonic(), self._utc_ns()
        known, last, regions = self._looked_at(version)
        if len(regions) < REGIONS_MIN:
            return False
        outcome = single_round.run_round(regions, known, self._settings.discovery, version, last, at)
        if outcome is None:
            return False
        self._write(regions, outcome, version, self._monotonic() - started, at)
        return True

    def _looked_at(self, version: str) -> tuple[Registry, int, Regions]:
        with self._store.reading() as connection:
            known = registry.load(connection)
            last = int(fact(connection, "last_region", "0"))
            return known, last, registry.regions_of_round(connection, self._settings.discovery, version)

    def _start_learning(self, version: str) -> bool:
        """Start a learned round; with too little to learn from, the round is one of centroids."""
        known, last, regions = self._looked_at(version)
        if len(regions) >= REGIONS_MIN:
            with self._store.reading() as connection:
                self._plan = learned_round.job_of(connection, regions, known, self._settings, version, last)
            if self._plan is not None:
                self._learned.start(self._plan.job)
                return False
        return self._again_when_overtaken(lambda: self._cluster(version))

    def _apply(self, result: Result | None) -> bool:
        if result is None or self._plan is None:
            return False
        plan, self._plan = self._plan, None
        return self._again_when_overtaken(lambda: self._write_learned(plan, result))

    def _write_learned(self, plan: Plan, result: Result) -> bool:
        at = self._utc_ns()
        known, last, regions = self._looked_at(plan.version)
        shown = learned_round.clusters_of(regions, result.labels, plan.clustering)
        if shown is None:
            return False
        outcome = single_round.run_round(shown[0], known, self._settings.discovery, plan.version, last, at, shown[1])
        if outcome is None:
            return False
        self._write(shown[0], outcome, plan.version, result.seconds, at)
        return True

    def _write(self, regions: Regions, outcome: Outcome, version: str, seconds: float, at: int) -> None:
        registry.write_round(self._store, regions, outcome, version, seconds, at)
        telemetry.ROUNDS.inc()
        telemetry.ROUND_SECONDS.observe(seconds)
        telemetry.UNASSIGNED_REGIONS.set(outcome.figures.unassigned)
        log.info(
            "round %d: %d regions, %d clusters (criteria said %d to %d), stability %.2f, %.1f s",
            outcome.registry.round,
            outcome.figures.regions,
            outcome.figures.clusters,
            outcome.figures.clusters_low,
            outcome.figures.clusters_high,
            outcome.figures.stability,
            seconds,
        )

    def _active_version(self) -> str | None:
        """Return the embedding version of most of the newest regions, and remember it; others cannot be compared."""
        if self._settings.discovery.embedding == "crop" and self._usable():
            return self.backbone().version
        table = schema.regions
        newest = (
            select(table.c.embedding_version).order_by(table.c.id.desc()).limit(self._settings.discovery.round_regions)
        )
        with self._store.reading() as connection:
            versions = Counter(connection.scalars(newest))
            before = fact(connection, "embedding_version", "")
        if not versions:
            return None
        version = str(max(sorted(versions), key=lambda name: versions[name]))
        if version != before:
            with self._store.transaction() as connection:
                set_fact(connection, "embedding_version", version)
                if before:
                    set_fact(connection, "compared_region", "0")
        if before and version != before:
            log.warning("embeddings changed from version %s to %s: classes are carried over by crops", before, version)
        return version

    def _carried_over(self, version: str) -> bool:
        """Return whether all classes of former versions are carried over; if not, carry over a slice of them."""
        settings = self._settings.discovery
        if settings.embedding == "crop":
            return not self._usable() or embedding_change.describe_again(
                self._store, version, settings, self.backbone().embed
            )
        with self._store.reading() as connection:
            exemplars, fresh = embedding_change.waiting(connection, version, settings)
            if not fresh or not self._usable():
                return True
            if self._crops is None:
                self._crops = embedding_change.CropVectors(self.backbone().embed)
            if not self._crops.prepare(connection, [*exemplars, *fresh]):
                return False
        joined = embedding_change.carry_over(self._store, version, exemplars, fresh, self._crops)
        self._crops.keep(list(exemplars))
        log.info("%d of %d regions joined classes of a former embedding by their crops", joined, len(fresh))
        return True

    def _usable(self) -> bool:
        """Return whether there is a backbone for crops; log one line when there is none."""
        if not self._backbone_failed:
            try:
                self.backbone()
            except FlawlineError as error:
                log.warning("crops cannot be described, so classes of former embeddings stay behind: %s", error)
                self._backbone_failed = True
        return not self._backbone_failed
