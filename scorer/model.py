"""The fitted model as plain arrays, and how it is fitted from features: groups, banks, cross-fit, calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer import calibration, maps, whole_image
from scorer import groups as grouping
from scorer.alignment import group_levels, neighbour_shares, normal_level, shrunk
from scorer.calibration import Threshold
from scorer.coreset import projected
from scorer.crossfit import cross_fit
from scorer.features.store import FeatureStore, Progress
from scorer.maps import LayerUnit
from scorer.vectors import Vectors
from scorer.whole_image import WholeUnit

# Good images that are scored as if they were of another group, to see how hot a strong defect is.
_FOREIGN_IMAGES = 32
# Extent of the heat map's range, in natural-log units: at least, and where there is nothing foreign to look at.
_LEAST_SPAN = 0.5
_USUAL_SPAN = 1.25


@dataclass(frozen=True)
class Tiles:
    """How images were cut when the model's images are tiles; `sources` (n,) say of which whole image each one is."""

    side_px: int
    overlap_px: int
    sources: NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """Everything that scoring needs besides the backbone; K groups, L layers, n good images.

    `banks[k][l]` float32 (m, c) unit vectors; `units[k][l]`; `wholes[k]`; `shares[k]` of the neighbours in the normal
    level; `means[l]` (K, c) mean features of each group; `embeddings` (n, d), `groups` (n,), `log_scores` (n,) and
    `standardised` (n,) of the good images, cross-fitted; `gates` and `widths` (K,); `review` and `reject` cut-offs on
    standardised scores; `heatmap_range` for binarising.
    """

    layers: tuple[LayerSettings, ...]
    banks: list[list[Vectors]]
    units: list[list[LayerUnit]]
    wholes: list[WholeUnit]
    shares: list[float]
    means: list[NDArray[np.float32]]
    embeddings: Vectors
    groups: NDArray[np.int64]
    log_scores: NDArray[np.float64]
    gates: NDArray[np.float32]
    widths: NDArray[np.float64]
    standardised: NDArray[np.float64]
    review: Threshold
    reject: Threshold
    heatmap_range: tuple[float, float]
    look_alikes: int
    alarm_rate: float
    tiles: Tiles | None = None

    @cached_property
    def group_levels(self) -> NDArray[np.float64]:
        """The median log score of each group's good images (K,)."""
        return group_levels(self.log_scores, self.groups)

    def levels(self, groups: NDArray[np.int64], neighbours: NDArray[np.int64]) -> NDArray[np.float64]:
        """The normal log scores (n,) of images of these groups (n,) with these look-alikes (n, k), -1 for none."""
        near = normal_level(self.log_scores, neighbours)
        return shrunk(near, self.group_levels[groups], np.asarray(self.shares)[groups])

    def level(self, group: int, neighbours: NDArray[np.int64]) -> float:
        """The normal log score of one image of this group with these look-alikes (k,)."""
        share = self.shares[group]
        return float(share * normal_level(self.log_scores, neighbours) + (1 - share) * self.group_levels[group])

    @cached_property
    def calibration(self) -> NDArray[np.float64]:
        """The good images' standardised scores in rising order, which p-values are ranks among.

        NaN marks images that were added for their high scores: they are good, but no sample of what is to come.
        """
        return np.sort(self.standardised[np.isfinite(self.standardised)])


def embedding_layers(layers: Sequence[LayerSettings]) -> list[int]:
    """Which layers make the image embedding: the last of each stride in the first backbone pass."""
    return [i for i, layer in enumerate(layers) if layer.size == layers[0].size and not layer.earlier]


def region_layers(layers: Sequence[LayerSettings]) -> list[int]:
    """Which layers describe a defect: the two finest of the first pass.

    Deeper ones see more of the product around a defect than of the defect, and group defects by product.
    """
    return embedding_layers(layers)[:2]


def whole_part(layers: Sequence[LayerSettings], means: Sequence[NDArray[np.floating]], embeddings: Vectors) -> Vectors:
    """The part of image embeddings (n, d) that stands for the image as a whole; `means[l]` (..., c) give the sizes."""
    return whole_image.deepest(embeddings, means[embedding_layers(layers)[-1]].shape[-1])


def fit(
    store: FeatureStore,
    settings: ScorerSettings,
    threads: int = 1,
    progress: Progress | None = None,
    *,
    labels: NDArray[np.int64] | None = None,
    sources: NDArray[np.int64] | None = None,
) -> Model:
    """A model from the features of good images; the same features and seed give the same model, bit for bit.

    `labels` (n,), from 0 without a gap, give the groups where they are known, which a line never needs. `sources` (n,)
    say which whole image each one was cut from, when it is a tile: images are cross-fitted whole.
    Raises FlawlineError when there are fewer images than `minimum_images`.
    """
    layers = settings.active_layers
    if len(store) < settings.minimum_images:
        raise FlawlineError(
            f"{len(store)} good images: at least {settings.minimum_images} are needed to say what is normal: add more"
        )
    # The artefact keeps half precision, so the fit works with what will be loaded again.
    embeddings = grouping.embed([store.means[i] for i in embedding_layers(layers)])
    embeddings = embeddings.astype(np.float16).astype(np.float32)
    groups = grouping.group(embeddings, settings.groups, settings.seed) if labels is None else labels
    members = [np.flatnonzero(groups == k) for k in range(int(groups.max()) + 1)]
    # A copy of an image stands with it: apart, each would find itself in the bank, and score nothing. Tiles that are
    # alike are left alone, since an empty background would tie all images together.
    copies = grouping.copies(embeddings) if sources is None else np.arange(len(store))
    sources = copies if sources is None else sources
    banks, distances = cross_fit(store, settings, members, sources, threads, progress)
    return calibrated(store, settings, embeddings, groups, banks, distances, threads, sources=sources, copies=copies)


def calibrated(
    store: FeatureStore,
    settings: ScorerSettings,
    embeddings: Vectors,
    groups: NDArray[np.int64],
    banks: list[list[Vectors]],
    distances: Sequence[NDArray[np.float32]],
    threads: int,
    *,
    sources: NDArray[np.int64],
    copies: NDArray[np.int64],
) -> Model:
    """The model with these banks, everything else read off the good images' own patch distances (n, h * w) a layer.

    `sources` (n,) as in `fit`; `copies` (n,) have the same number where images are the same.
    """
    layers = settings.active_layers
    members = [np.flatnonzero(groups == k) for k in range(int(groups.max()) + 1)]
    units = [[LayerUnit.of(distances[i][own], layer.weight) for i, layer in enumerate(layers)] for own in members]
    ratios = _ratio_maps(distances, store.grids, groups, units, threads)
    log_scores = np.asarray([maps.log_score(each) for each in ratios])

    gallery = grouping.Gallery(embeddings, groups)
    look_alikes, within = gallery.neighbours_of_members(settings.look_alikes, copies)
    spreads = calibration.group_widths(log_scores - normal_level(log_scores, look_alikes), groups)
    wholes, added = whole_image.fit(whole_part(layers, store.means, embeddings), groups, sources, spreads)
    log_scores = log_scores + added
    near = normal_level(log_scores, look_alikes)
    shares = neighbour_shares(log_scores, near, groups)
    levels = shrunk(near, group_levels(log_scores, groups)[groups], np.asarray(shares)[groups])
    aligned = log_scores - levels
    widths = calibration.group_widths(aligned, groups)
    standardised = aligned / widths[groups]
    peaks = np.log([float(each.max()) for each in ratios]) - levels
    review, reject = cut_offs(np.sort(standardised), settings.alarm_rate, settings.active_reject_rate)
    foreign = _foreign_heat(store, settings, groups, banks, units, log_scores)
    return Model(
        layers=layers,
        banks=banks,
        units=units,
        wholes=wholes,
        shares=shares,
        means=[np.stack([each[own].mean(axis=0) for own in members]) for each in store.means],
        embeddings=embeddings,
        groups=groups,
        log_scores=log_scores,
        gates=grouping.gates(gallery, within),
        widths=widths,
        standardised=standardised,
        review=review,
        reject=reject,
        heatmap_range=_heatmap_range(peaks, foreign),
        look_alikes=settings.look_alikes,
        alarm_rate=settings.alarm_rate,
    )


def cut_offs(scores: NDArray[np.float64], alarm_rate: float, reject_rate: float) -> tuple[Threshold, Threshold]:
    """The cut-offs of review and of reject on sorted standardised scores, the second never below the first.

    They may come from different estimators, one a rank and one a tail, which can cross.
    """
    review = calibration.threshold(scores, alarm_rate)
    reject = calibration.threshold(scores, reject_rate)
    if reject.value < review.value:
        reject = dataclasses.replace(reject, value=review.value, upper_bound=review.upper_bound)
    return review, reject


def _heatmap_range(peaks: NDArray[np.float64], foreign: float | None) -> tuple[float, float]:
    """The heat map values from the peak that one good image in a hundred reaches to what foreign patches have."""
    low = float(np.quantile(peaks, 0.99))
    return low, max(low + _LEAST_SPAN, low + _USUAL_SPAN if foreign is None else foreign)


def _foreign_heat(
    store: FeatureStore,
    settings: ScorerSettings,
    groups: NDArray[np.int64],
    banks: Sequence[Sequence[Vectors]],
    units: Sequence[Sequence[LayerUnit]],
    log_scores: NDArray[np.float64],
) -> float | None:
    """The usual heat of patches of one product scored as another's: as strong a defect as there is, without any.

    None when there is one group only.
    """
    layers = settings.active_layers
    if not groups.any():
        return None
    rng = np.random.default_rng(settings.seed)
    heats = []
    for image in rng.permutation(len(groups))[:_FOREIGN_IMAGES]:
        group = int(rng.choice(np.setdiff1d(np.unique(groups), groups[image])))
        distances = [
            projected(store.pool(i, np.asarray([image])), banks[group][i], layer.neighbours)[0].reshape(grid, grid)
            for i, (layer, grid) in enumerate(zip(layers, store.grids, strict=True))
        ]
        level = float(np.median(log_scores[groups == group]))
        heats.append(float(np.median(np.log(maps.combined(distances, units[group])))) - level)
    return float(np.median(heats))


def _ratio_maps(
    distances: Sequence[NDArray[np.float32]],
    grids: Sequence[int],
    groups: NDArray[np.int64],
    units: Sequence[Sequence[LayerUnit]],
    threads: int,
) -> list[maps.Map]:
    def work(image: int) -> maps.Map:
        own = [each[image].reshape(grid, grid) for each, grid in zip(distances, grids, strict=True)]
        return maps.combined(own, units[groups[image]])

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, range(len(groups))))
