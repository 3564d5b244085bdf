"""Finds defects among the training images by their cross-fitted scores, without labels, and leaves them out of a fit.

Scores of clean good parts spread about as far below their group's median as above it, apart from some skew. Defective
images add scores above only. So the lower tail, stretched for the skew, says how many high scores to expect, and the
cut lies where the actual ones outnumber them (a mirrored null, as in target-decoy search and in knock-offs: Barber and
Candes 2015).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from scorer.features.store import FeatureStore
from scorer.features.workfolder import PatchFile
from scorer.tiles import worst_tiles

Floats = NDArray[np.float64]

# How much farther good scores reach above the median than below. Clean products of linebench and of the simulated line
# reach up to 1.45 times as far, measured at 5 %.
_SKEW = 1.5
# Share of good images among those beyond the cut, as the mirrored tail expects them. A judgement.
_EXPECTED_GOOD = 0.2
# Fewer suspects than this share of all images are no contamination. A judgement.
_LEAST = 0.025
# Defective images are each other's neighbours in the banks, so that a first pass finds about half of them; and a group
# that is trimmed must keep the same scale as one that is not. So the top of every group goes: this many times the share
# of suspects, but at most the second number. What that finds is in docs/scoring.md (contamination).
_HIDDEN = 2.0
_MOST = 0.25


def suspicious_images(
    standardised: Floats, groups: NDArray[np.int64], sources: NDArray[np.int64] | None
) -> NDArray[np.bool_]:
    """Return which good images (n,) are suspicious: for tiles, all tiles of each suspicious image.

    `standardised` (n,) are their cross-fitted scores, `groups` (n,) their groups. `sources` (n,) say of which whole
    image each tile is, None for no tiles. Of an image its worst tile counts, in the group of that tile. The highest of
    many scores is skewed: where that was disregarded, a quarter of clean images stood out.
    """
    if sources is None:
        return suspects(standardised, groups)
    worst = worst_tiles(standardised, sources)
    is_suspicious = suspects(_as_normal(standardised[worst], groups[worst]), groups[worst])
    return np.isin(sources, sources[worst[is_suspicious]])


def _as_normal(highest: Floats, groups: NDArray[np.int64]) -> Floats:
    """Return scores (n,), each the highest of many, on a scale where those of clean images are normal and so symmetric.

    The highest of many scores follows a Gumbel law (Fisher and Tippett 1928), F(x) = exp(-exp(-(x - mu) / beta)). Its
    parameters come from the median and the 10 % quantile of the group, which defects hardly move. The result is the
    normal quantile of F.
    """
    from scipy.special import ndtri  # here: scoring needs no scipy, which takes a second to import

    result = np.empty(len(highest))
    for k in np.unique(groups):
        members = groups == k
        median, low = np.median(highest[members]), np.quantile(highest[members], 0.1)
        # -log(-log(0.5)) = 0.367, and -log(-log(0.1)) is 1.201 less.
        reduced = np.clip(0.367 + (highest[members] - median) * 1.201 / max(median - low, 1e-3), -6, 700)
        log_below = -np.exp(-reduced)
        result[members] = np.where(reduced > 0.367, -ndtri(-np.expm1(log_below)), ndtri(np.exp(log_below)))
    return result


def suspects(standardised: Floats, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which good images (n,) are suspicious: none as long as the scores are as those of clean data.

    `standardised` (n,) are their cross-fitted scores, `groups` (n,) their groups.
    """
    members = [np.flatnonzero(groups == k) for k in np.unique(groups)]
    offsets = np.empty(len(standardised))
    for images in members:
        from_median = standardised[images] - np.median(standardised[images])
        offsets[images] = from_median / max(-float(np.quantile(from_median, 0.1)), 1e-3)
    is_suspicious = _beyond_mirror(offsets)
    if is_suspicious.mean() < _LEAST:
        return np.zeros(len(standardised), dtype=bool)
    share = min(_HIDDEN * float(is_suspicious.mean()), _MOST)
    for images in members:
        is_suspicious[images[np.argsort(-offsets[images], kind="stable")[: round(share * len(images))]]] = True
    return is_suspicious


def _beyond_mirror(offsets: Floats) -> NDArray[np.bool_]:
    """Return which scores lie above the lowest cut whose share of expected good images is small enough.

    Offsets (n,) from the group's median are in units of its lower tail. A few strange images are no evidence: two good
    images more than the mirrored tail says are always expected, so that at least ten images must stand out.
    """
    order = np.argsort(-offsets, kind="stable")
    above = offsets[order][offsets[order] > 0]
    mirrored = np.sort(-offsets[offsets < 0] * _SKEW)
    expected = 2 + len(mirrored) - np.searchsorted(mirrored, above, side="left")
    enough = np.flatnonzero(expected <= _EXPECTED_GOOD * np.arange(1, len(above) + 1))
    is_beyond = np.zeros(len(offsets), dtype=bool)
    is_beyond[order[: enough[-1] + 1 if len(enough) else 0]] = True
    return is_beyond


@dataclass(frozen=True)
class _Chosen:
    """The patches of some images of a store, read when they are asked for."""

    whole: NDArray[np.float16] | PatchFile
    images: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.images), *self.whole.shape[1:])

    def __getitem__(self, images: NDArray[np.integer]) -> NDArray[np.float16]:
        return np.asarray(self.whole[self.images[images]])


def only(store: FeatureStore, images: NDArray[np.intp]) -> FeatureStore:
    """Return the features of some images, renumbered, without the working folder, which has results of all images."""
    return dataclasses.replace(
        store,
        patches=[_Chosen(layer, images) for layer in store.patches],  # type: ignore[misc]  # reads as an array does
        means=[layer[images] for layer in store.means],
        details=None if store.details is None else store.details[images],
        contents=None if store.contents is None else store.contents[images],
        folder=None,
    )
