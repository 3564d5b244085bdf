"""A stream of regions through store and rounds, without a broker: what the service does, step by step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from discovery.round import single_round
from discovery.round.lineage import Registry
from discovery.store import registry
from discovery.store.store import Batch, Store, TakenDefect
from flawline.settings.discovery import DiscoverySettings
from scorer.vectors import unit
from tests.discovery import factories


class Stream:
    """Feeds kinds of defects into a store and runs rounds; remembers the true kind of every frame."""

    def __init__(self, store: Store, settings: DiscoverySettings, directions: np.ndarray, spread: float = 0.35) -> None:
        self.store, self.settings, self.directions, self.spread = store, settings, directions.copy(), spread
        self.rng = np.random.default_rng(3)
        self.truth: dict[str, int] = {}
        self.sequence = 0

    def feed(self, kinds: Sequence[int]) -> None:
        """Ingest a frame with one region for each of `kinds`, in a random order."""
        assigner = single_round.Assigner(self.registry(), factories.VERSION)
        taken = []
        for kind in self.rng.permutation(kinds):
            vector = factories.near(self.directions[kind], self.rng, self.spread)
            defect = factories.defect(self.sequence, vector)
            self.truth[defect.frame_id] = int(kind)
            self.sequence += 1
            stored = unit(defect.regions[0].embedding.array()[None])
            taken.append(TakenDefect(defect, tuple(assigner.assign(stored))))
        self.store.ingest(Batch(defects=taken))

    def round(self) -> single_round.Outcome | None:
        """Run a round and write it to the store."""
        known = self.registry()
        with self.store.reading() as connection:
            regions = registry.regions_of_round(connection, self.settings, factories.VERSION)
        last = int(self.last_region())
        at = factories.START_NS + self.sequence * 1_000_000_000
        outcome = single_round.run_round(regions, known, self.settings, factories.VERSION, last, at)
        if outcome is not None:
            registry.write_round(self.store, regions, outcome, factories.VERSION, 0.1, at)
        return outcome

    def registry(self) -> Registry:
        return registry.read(self.store)

    def last_region(self) -> str:
        with self.store.reading() as connection:
            return registry.fact(connection, "last_region", "0")

    def class_of_kind(self) -> dict[int, str]:
        """Return the class that holds most frames of each kind."""
        votes: dict[int, dict[str, int]] = {}
        for frame, name in self.store.assignments().items():
            kind = votes.setdefault(self.truth[frame], {})
            kind[name] = kind.get(name, 0) + 1
        return {kind: max(sorted(names), key=names.get) for kind, names in sorted(votes.items())}
