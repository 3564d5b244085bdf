"""Defects among the training images: found by their cross-fitted scores, without labels, and left out of the fit.

Scores of clean good parts spread about as far below their group's median as above it, save for some skew; what
defective images add lies above only. So the lower tail, stretched for the skew, says how many high scores are to be
expected, and the cut lies where the actual ones outnumber them (a mirrored null, as in target-decoy search and in
knock-offs: Barber and Candes 2015).
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

# Good scores reach this much farther above the median than below: clean products of linebench and of the simulated
# line reach up to 1.45 times as far at 5 %.
_SKEW = 1.5
# Share of the images beyond the cut that the mirrored tail may expect to be good.
_EXPECTED_GOOD = 0.2
# Fewer suspects than this share of all images are no contamination.
_LEAST = 0.025
# Defective images stand in for each other in the banks, so that a first pass finds about half of them; and a group
# that is trimmed must not be left with another scale than one that is not. So the top of every group goes, this many
# times the share of suspects, but never more than the most.
_HIDDEN = 2.0
_MOST = 0.25


def suspicious_images(
    standardised: Floats, groups: NDArray[np.int64], sources: NDArray[np.int64] | None
) -> NDArray[np.bool_]:
    """Which good images (n,) are to be left out or, when these are tiles, the tiles of which whole images.

    `sources` (n,) say of which whole image each tile is, None for no tiles. An image stands for its worst tile, in the
    group of that tile. A highest of many is skewed: with clean images, without regard to that, a quarter stood out.
    """
    if sources is None:
        return suspects(standardised, groups)
    worst = worst_tiles(standardised, sources)
    found = suspects(_as_normal(standardised[worst], groups[worst]), groups[worst])
    return np.isin(sources, sources[worst[found]])


def _as_normal(highest: Floats, groups: NDArray[np.int64]) -> Floats:
    """Scores (n,), each the highest of many, on a scale where those of clean images are normal and so symmetric.

    The highest of many follows a Gumbel law (Fisher and Tippett 1928), F(x) = exp(-exp(-(x - mu) / beta)), here with
    the median and the 10 % quantile of its group, which defects hardly move. The result is the normal quantile of F.
    """
    from scipy.special import ndtri  # here: scoring needs no scipy, which takes a second to import

    result = np.empty(len(highest))
    for k in np.unique(groups):
        own = groups == k
        median, low = np.median(highest[own]), np.quantile(highest[own], 0.1)
        # -log(-log(0.5)) = 0.367, and -log(-log(0.1)) lies 1.201 below it.
        reduced = np.clip(0.367 + (highest[own] - median) * 1.201 / max(median - low, 1e-3), -6, 700)
        log_below = -np.exp(-reduced)
        result[own] = np.where(reduced > 0.367, -ndtri(-np.expm1(log_below)), ndtri(np.exp(log_below)))
    return result


def suspects(standardised: Floats, groups: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which good images (n,) are to be left out: none as long as there is no more than clean data shows.

    `standardised` (n,) are their cross-fitted scores, `groups` (n,) their groups.
    """
    members = [np.flatnonzero(groups == k) for k in np.unique(groups)]
    offsets = np.empty(len(standardised))
    for own in members:
        below = standardised[own] - np.median(standardised[own])
        offsets[own] = below / max(-float(np.quantile(below, 0.1)), 1e-3)
    marked = _beyond_mirror(offsets)
    out = np.zeros(len(standardised), dtype=bool)
    share = min(_HIDDEN * float(marked.mean()), _MOST)
    if marked.mean() < _LEAST:
        return out
    out |= marked
    for own in members:
        out[own[np.argsort(-offsets[own], kind="stable")[: round(share * len(own))]]] = True
    return out


def _beyond_mirror(offsets: Floats) -> NDArray[np.bool_]:
    """The scores above the lowest cut whose share of expected good ones is small enough.

    Offsets are in units of the lower tail of their group. A few strange images are no evidence: two more good ones than
    the mirrored tail says are always expected, so that at least ten images must stand out.
    """
    order = np.argsort(-offsets, kind="stable")
    above = offsets[order][offsets[order] > 0]
    mirrored = np.sort(-offsets[offsets < 0] * _SKEW)
    expected = 2 + len(mirrored) - np.searchsorted(mirrored, above, side="left")
    enough = np.flatnonzero(expected <= _EXPECTED_GOOD * np.arange(1, len(above) + 1))
    marked = np.zeros(len(offsets), dtype=bool)
    marked[order[: enough[-1] + 1 if len(enough) else 0]] = True
    return marked


@dataclass(frozen=True)
class _Chosen:
    """The patches of some images of a store, read when asked for."""

    whole: NDArray[np.float16] | PatchFile
    images: NDArray[np.intp]

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.images), *self.whole.shape[1:])

    def __getitem__(self, images: NDArray[np.integer]) -> NDArray[np.float16]:
        return np.asarray(self.whole[self.images[images]])


def only(store: FeatureStore, images: NDArray[np.intp]) -> FeatureStore:
    """The features of some images, renumbered; what the fit keeps on disk for the whole is not taken for theirs."""
    return dataclasses.replace(
        store,
        patches=[_Chosen(each, images) for each in store.patches],  # type: ignore[misc]  # reads as an array does
        means=[each[images] for each in store.means],
        folder=None,
    )
