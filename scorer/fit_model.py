"""Fits a model on the features of good images: groups, banks, cross-fit, calibration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.settings.scorer import ScorerSettings
from scorer import calibration, maps, sub_looks, whole_image
from scorer.alignment import group_levels, neighbour_shares, normal_level, shrunk
from scorer.coreset import projected
from scorer.crossfit import cross_fit
from scorer.features.store import FeatureStore, Progress
from scorer.gallery import Gallery, first_copies, group_gates, image_embeddings
from scorer.groups import find_groups
from scorer.maps import LayerUnit
from scorer.model import Model, cut_offs, embedding_layers, whole_part
from scorer.near_copies import near_copies
from scorer.sub_looks import SubLooks, find_sub_looks, looks_near
from scorer.vectors import Vectors

Floats = NDArray[np.float64]

# Good images that are scored as if they were of another group, to see how hot a strong defect is. A judgement.
_FOREIGN_IMAGES = 32
# Share of good images below the limit of the quiet heat. A judgement: of a camera's frames half must be above it.
_QUIET_QUANTILE = 0.99
# The extent of the heat map's range in natural-log units: the least, and what is taken where there is one group only.
# Judgements.
_LEAST_SPAN = 0.5
_USUAL_SPAN = 1.25


@dataclass(frozen=True)
class GoodImages:
    """The good images of a fit: features, unit embeddings (n, d), groups (n,), and which images show one thing.

    `sources` (n,): images with one number are left out of a bank together, as the tiles of one image are. `copies` (n,)
    have the same number where images are the same.
    """

    store: FeatureStore
    embeddings: Vectors
    groups: NDArray[np.int64]
    sources: NDArray[np.int64]
    copies: NDArray[np.int64]

    @cached_property
    def members(self) -> list[NDArray[np.intp]]:
        """The numbers of each group's images."""
        return [np.flatnonzero(self.groups == k) for k in range(int(self.groups.max()) + 1)]


@dataclass(frozen=True)
class CrossFittedLooks:
    """The sub-looks of all groups that have any: centres (S, d) and `banks[s][l]` by group.

    `distances[l]` (n, h * w) are the good images' to banks of their own sub-look that hold nothing of them; without
    meaning for images of other groups.
    """

    centres: dict[int, Vectors]
    banks: dict[int, list[list[Vectors]]]
    distances: list[NDArray[np.float32]]


def fit_model(
    store: FeatureStore,
    settings: ScorerSettings,
    threads: int = 1,
    progress: Progress | None = None,
    *,
    labels: NDArray[np.int64] | None = None,
    sources: NDArray[np.int64] | None = None,
) -> Model:
    """Return a model fitted on the features of good images.

    The same features and seed give the same model, bit for bit.

    `labels` (n,), from 0 without a gap, give the groups where they are known; a line never needs them. `sources` (n,)
    say which whole image each one was cut from, when it is a tile: images are cross-fitted whole.
    Raises FlawlineError when there are fewer images than `minimum_images`.
    """
    if len(store) < settings.minimum_images:
        raise FlawlineError(
            f"{len(store)} good images: at least {settings.minimum_images} are needed to say what is normal: add more"
        )
    embeddings = image_embeddings([store.means[i] for i in embedding_layers(settings.active_layers)])
    # The artefact keeps half precision, so the fit works with what will be loaded again.
    embeddings = embeddings.astype(np.float16).astype(np.float32)
    groups = find_groups(embeddings, settings.groups, settings.seed) if labels is None else labels
    # A copy of an image stays with it: apart, each would find itself in the bank, and score nothing.
    copies = _copies(store, embeddings, groups, sources)
    images = GoodImages(store, embeddings, groups, copies if sources is None else sources[copies], copies)
    banks, distances = cross_fit(store, settings, images.members, images.sources, threads, progress)
    model = calibrate_model(
        images, settings, banks, distances, threads, _cross_fitted_looks(images, settings, threads, progress)
    )
    return model if store.details is None and sources is not None else dataclasses.replace(model, copies=copies)


def _cross_fitted_looks(
    images: GoodImages, settings: ScorerSettings, threads: int, progress: Progress | None
) -> CrossFittedLooks | None:
    """Return the sub-looks with their banks, None where no group has any.

    A sub-look is fitted as a group is.
    """
    centres = find_sub_looks(images.embeddings, images.members, settings.seed)
    if not centres:
        return None
    members = []
    for group, of_group in centres.items():
        looks = looks_near(images.embeddings[images.members[group]], of_group)
        members += [images.members[group][looks == look] for look in range(len(of_group))]
    banks, distances = cross_fit(images.store, settings, members, images.sources, threads, progress, "sub-looks")
    remaining = iter(banks)
    of_groups = {group: [next(remaining) for _ in of_group] for group, of_group in centres.items()}
    return CrossFittedLooks(centres, of_groups, distances)


def _copies(
    store: FeatureStore, embeddings: Vectors, groups: NDArray[np.int64], sources: NDArray[np.int64] | None
) -> NDArray[np.int64]:
    """Return for each image (n,) the number of the first one that shows the same thing.

    Tiles that are alike are left alone, since an empty background would tie all images together: where images are cut,
    only those that stay whole are copies.
    """
    numbers = np.arange(len(store))
    if sources is None:
        same = first_copies(embeddings)
        return same if store.details is None else near_copies(store.details, groups, same)
    if store.details is None:
        return numbers
    whole = np.flatnonzero(np.bincount(sources)[sources] == 1)
    numbers[whole] = whole[near_copies(store.details[whole], groups[whole], first_copies(embeddings[whole]))]
    return numbers


def calibrate_model(
    images: GoodImages,
    settings: ScorerSettings,
    banks: list[list[Vectors]],
    distances: Sequence[NDArray[np.float32]],
    threads: int,
    in_look: CrossFittedLooks | None = None,
) -> Model:
    """Return the model with these banks, calibrated on the good images' patch distances (n, h * w) of each layer.

    The distances are cross-fitted: to banks that hold nothing of the image. Five steps: units of the layers and log
    scores of the patches; what sub-looks add; what whole images add; alignment with look-alikes; cut-offs and the heat
    map's range.
    """
    gallery = Gallery(images.embeddings, images.groups)
    look_alikes, within = gallery.neighbours_of_members(settings.look_alikes, images.copies)

    units = _layer_units(images, settings, distances)
    numbers = np.arange(len(images.groups))
    ratios = _ratios(images, units, distances, numbers, threads)
    patch_scores = np.asarray([maps.log_score(image, settings.active_top_share) for image in ratios])
    spreads = calibration.group_widths(patch_scores - normal_level(patch_scores, look_alikes), images.groups)
    looks, added_in_look, heats = _sub_looks(images, units, in_look, spreads, settings.active_top_share, threads)
    wholes, added = whole_image.fit(
        whole_part(settings.active_layers, images.store.means, images.embeddings),
        images.groups,
        images.sources,
        spreads,
    )
    log_scores = patch_scores + added + added_in_look
    aligned = _aligned(images.groups, log_scores, look_alikes, _counts_once(images))
    alarm_rate, reject_rate = settings.rates(calibration.vouched_rate(len(np.unique(images.sources))))
    once = aligned.standardised[np.isfinite(aligned.standardised)]
    review, reject = cut_offs(np.sort(once), alarm_rate, reject_rate)

    peaks = np.log([float(image.max()) for image in ratios])
    quiet = np.asarray([maps.quiet_heat(np.log(image)) for image in ratios])
    for member, heat in heats.items():
        heatmap = np.log(ratios[member]) + heat
        peaks[member], quiet[member] = float(heatmap.max()), maps.quiet_heat(heatmap)
    return Model(
        layers=settings.active_layers,
        banks=banks,
        units=units,
        wholes=wholes,
        sub_looks=looks,
        shares=aligned.shares,
        means=[np.stack([layer[members].mean(axis=0) for members in images.members]) for layer in images.store.means],
        embeddings=images.embeddings,
        groups=images.groups,
        log_scores=log_scores,
        gates=group_gates(gallery, within),
        widths=aligned.widths,
        standardised=aligned.standardised,
        review=review,
        reject=reject,
        heatmap_range=_heatmap_range(peaks - aligned.levels, _foreign_heat(images, settings, banks, units, log_scores)),
        quiet=np.asarray(
            [np.quantile((quiet - aligned.levels)[members], [0.5, _QUIET_QUANTILE]) for members in images.members]
        ),
        look_alikes=settings.look_alikes,
        alarm_rate=alarm_rate,
        top_share=settings.active_top_share,
        contents=images.store.contents,
    )


def _layer_units(
    images: GoodImages, settings: ScorerSettings, distances: Sequence[NDArray[np.float32]]
) -> list[list[LayerUnit]]:
    """Return the unit of each group and layer."""
    return [
        [LayerUnit.of(distances[i][members], layer.weight) for i, layer in enumerate(settings.active_layers)]
        for members in images.members
    ]


def _ratios(
    images: GoodImages,
    units: Sequence[Sequence[LayerUnit]],
    distances: Sequence[NDArray[np.float32]],
    numbers: NDArray[np.intp],
    threads: int,
) -> list[maps.Map]:
    """Return the maps of some good images by number in the units of their groups."""

    def ratios(image: int) -> maps.Map:
        layers = []
        for i, layer in enumerate(distances):
            rows, columns = images.store.map_shape(i, image)
            layers.append(layer[image, : rows * columns].reshape(rows, columns))
        return maps.combined(layers, units[images.groups[image]])

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ratios, numbers.tolist()))


def _sub_looks(
    images: GoodImages,
    units: Sequence[Sequence[LayerUnit]],
    in_look: CrossFittedLooks | None,
    spreads: Floats,
    top_share: float,
    threads: int,
) -> tuple[list[SubLooks | None], Floats, dict[int, maps.Map]]:
    """Return the sub-looks of each group, what they add to the good images' log scores (n,), and to their heat maps.

    The heat is by the number of the image, for those whose group has sub-looks.
    """
    count = len(images.groups)
    if in_look is None:
        return [None] * len(units), np.zeros(count), {}
    members = np.flatnonzero(np.isin(images.groups, list(in_look.centres)))
    ratios = _ratios(images, units, in_look.distances, members, threads)
    log_scores = np.full(count, np.nan)
    log_scores[members] = [maps.log_score(image, top_share) for image in ratios]
    usual, added = sub_looks.fit(log_scores, images.groups, spreads)
    heats = {
        int(member): sub_looks.heat_of(usual[int(images.groups[member])], image)
        for member, image in zip(members, ratios, strict=True)
    }
    looks: list[SubLooks | None] = [
        SubLooks(in_look.centres[k], in_look.banks[k], usual[k]) if k in usual else None for k in range(len(units))
    ]
    return looks, added, heats


@dataclass(frozen=True)
class _Aligned:
    """How good images (n,) stand to their look-alikes: normal levels, the groups' (K,) shares and widths, scores."""

    levels: Floats
    shares: list[float]
    widths: Floats
    standardised: Floats


def _counts_once(images: GoodImages) -> NDArray[np.bool_]:
    """Return which good images (n,) are counted: of copies the first; all where a group shows one thing only."""
    counts = images.copies == np.arange(len(images.copies))
    for members in images.members:
        if counts[members].sum() < 2:
            counts[members] = True
    return np.asarray(counts)


def _aligned(
    groups: NDArray[np.int64], log_scores: Floats, look_alikes: NDArray[np.int64], counts: NDArray[np.bool_]
) -> _Aligned:
    """Return how good images stand to their look-alikes; the standardised score of one that does not count is NaN."""
    near = normal_level(log_scores, look_alikes)
    shares = neighbour_shares(log_scores, near, groups)
    levels = shrunk(near, group_levels(log_scores, groups)[groups], np.asarray(shares)[groups])
    widths, widths_of_others = calibration.decision_widths((log_scores - levels)[counts], groups[counts])
    standardised = np.full(len(log_scores), np.nan)
    standardised[counts] = (log_scores - levels)[counts] / widths_of_others
    return _Aligned(levels, shares, widths, standardised)


def _heatmap_range(peaks: Floats, foreign: float | None) -> tuple[float, float]:
    """Return heat map values: the peak that one good image in a hundred reaches, and what foreign patches have."""
    low = float(np.quantile(peaks, 0.99))
    return low, max(low + _LEAST_SPAN, low + _USUAL_SPAN if foreign is None else foreign)


def _foreign_heat(
    images: GoodImages,
    settings: ScorerSettings,
    banks: Sequence[Sequence[Vectors]],
    units: Sequence[Sequence[LayerUnit]],
    log_scores: Floats,
) -> float | None:
    """Return the usual heat of patches of one product scored as another's, which stand for the strongest defects.

    None when there is one group only.
    """
    store, groups = images.store, images.groups
    if not groups.any():
        return None
    rng = np.random.default_rng(settings.seed)
    heats = []
    for image in rng.permutation(len(groups))[:_FOREIGN_IMAGES]:
        group = int(rng.choice(np.setdiff1d(np.unique(groups), groups[image])))
        distances = [
            projected(store.pool(i, np.asarray([image])), banks[group][i], layer.neighbours)[0].reshape(
                store.map_shape(i, int(image))
            )
            for i, layer in enumerate(settings.active_layers)
        ]
        level = float(np.median(log_scores[groups == group]))
        heats.append(float(np.median(np.log(maps.combined(distances, units[group])))) - level)
    return float(np.median(heats))
