"""Regions of three simulated lines, as discovery gets them: real pictures through a real detector, kept for later runs.

They are computed once (some minutes on one core) and kept under `FLAWLINE_CACHE`, by default `~/.cache/flawline`.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

import numpy as np

from flawline.settings.scorer import ScorerSettings
from producers.simulation import LineSettings, SimulatedLine
from producers.simulation.line import Truth
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector
from scorer.fit import fit_detector
from scorer.regions import regions

LINES: Final = {
    "seven_products": LineSettings(seed=21),
    "three_products": LineSettings(seed=22, products=("board", "disc", "fabric")),
    "faint": LineSettings(seed=23, size=0.7, contrast=0.7),
}
STRAY: Final = "stray"
"""The kind of what is seen on a good part."""
GOOD_PARTS: Final = 140
PARTS_PER_KIND: Final = 126
GOOD_PARTS_TRIED: Final = 280
# More than on a real line, so that a few hundred good parts give some false alarms to draw from.
ALARM_RATE: Final = 0.05
# Raise it when pictures, detector or regions change their meaning.
_FORMAT: Final = 1


@dataclass(frozen=True, eq=False)
class Bank:
    """Regions of one line: embeddings float32 (n, D), the true kind, the product and the look-alike group of each."""

    vectors: np.ndarray
    kinds: np.ndarray
    products: np.ndarray
    groups: np.ndarray

    @property
    def true_kinds(self) -> tuple[str, ...]:
        """The kinds of defects, without what is seen on good parts."""
        return tuple(sorted(set(self.kinds.tolist()) - {STRAY}))


def bank_of(name: str) -> Bank:
    """Return the regions of one of LINES, from the cache where they are there."""
    settings = LINES[name]
    key = blake2b(repr((settings, _FORMAT, PARTS_PER_KIND, GOOD_PARTS, ALARM_RATE)).encode(), digest_size=8).hexdigest()
    file = cache_dir() / "benchmarks" / f"{name}-{key}.npz"
    if not file.exists():
        _save(file, _computed(settings))
    with np.load(file, allow_pickle=False) as data:
        return Bank(**{field: data[field] for field in ("vectors", "kinds", "products", "groups")})


def _save(file: Path, bank: Bank) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f"part-{file.name}")
    np.savez(part, **vars(bank))
    part.replace(file)


def _computed(settings: LineSettings) -> Bank:
    """Render defects of every kind on every product in turn, and take the regions of those that are not accepted."""
    line = SimulatedLine(settings)
    detector = fit_detector([part.image for part in line.good_parts(GOOD_PARTS)], ScorerSettings(alarm_rate=ALARM_RATE))
    rows: list[tuple[np.ndarray, str, str, int]] = []
    for kind in settings.defects:
        for index in range(PARTS_PER_KIND):
            product = settings.products[index % len(settings.products)]
            part = line.part(Truth(product, kind), index, f"bank/{kind}")
            rows += [(vector, kind, product, group) for vector, group in _regions(detector, part.image)]
    for part in line.good_parts(GOOD_PARTS_TRIED, start=GOOD_PARTS):
        rows += [(vector, STRAY, part.product, group) for vector, group in _regions(detector, part.image)]
    vectors, kinds, products, groups = zip(*rows, strict=True)
    return Bank(np.stack(vectors).astype(np.float32), np.array(kinds), np.array(products), np.array(groups))


def _regions(detector: CoresetDetector, image: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """Return the embedding and the look-alike group of each region of a frame; an accepted frame has none."""
    scores = detector.score([image])[0]
    if scores.region_inputs is None:
        return []
    lo, hi = detector.heatmap_range
    frame_regions = regions.extract(
        image, scores.heatmap, *scores.region_inputs.grids, lo, hi, closer=detector.close_ups
    )
    return [(region.embedding.array(), scores.group) for region in frame_regions]


if __name__ == "__main__":
    for name in LINES:
        bank = bank_of(name)
        counts = {str(kind): int((bank.kinds == kind).sum()) for kind in np.unique(bank.kinds)}
        print(name, bank.vectors.shape, f"{len(set(bank.groups.tolist()))} groups", counts, flush=True)
