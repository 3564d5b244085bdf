"""Sub-looks: the parts that the good images of a group fall into, such as the flavours of one bottle.

A wrong combination, a lime on the label of orange juice, has no patch that is not good somewhere. So the patches of an
image are compared a second time, with those of good images of its own sub-look alone. How far they are counts only
beyond what nearly all good images keep, as an alternative cause (noisy OR), like the image as a whole. A group whose
images do not fall into parts has no sub-looks.

A sub-look has banks of its own. The group's banks keep one row of what all sub-looks share, so that the rows from one
sub-look's images would leave holes: juice bottle reaches 0.987 with them and 0.989 with banks of its own, a simulated
bottle 0.965 and 0.980.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from scorer import calibration, maps
from scorer.gallery import Labels
from scorer.groups import parts_of_group
from scorer.vectors import Vectors
from scorer.whole_image import WholeUnit

Floats = NDArray[np.float64]

# As for the image as a whole: what one reach beyond the usual adds, in spreads of the patches' log scores, and the
# smallest reach that counts.
_GAIN = 2.0
_NARROWEST = 0.05


@dataclass(frozen=True)
class InLook:
    """How an image compares with the good images of its sub-look `look`.

    `added` goes to the log score, `heat` (h, w) to the log of the map; 0 for nearly all good images, and nearly
    everywhere.
    """

    look: int
    added: float
    heat: maps.Map


@dataclass(frozen=True)
class SubLooks:
    """The sub-looks of one group: their unit `centres` (S, d) among embeddings, their banks, and what is usual.

    `banks[s][l]` (m, c) as those of a group. `unit` is of the log scores of patches, in the units of the group, among
    the rows of their image's own sub-look.
    """

    centres: Vectors
    banks: list[list[Vectors]]
    unit: WholeUnit

    def of(self, embeddings: Vectors) -> Labels:
        """Return the sub-looks (...,) of images with these embeddings (..., d)."""
        return looks_near(embeddings, self.centres)

    def compared(self, look: int, ratios: maps.Map, top_share: float) -> InLook:
        """Return how an image of sub-look `look` compares with it, from its map (h, w) among the rows of the look.

        `top_share` is the model's.
        """
        added = float(self.unit.added(np.asarray(maps.log_score(ratios, top_share))))
        return InLook(look, added, heat_of(self.unit, ratios))

    def grown(self, look: int, rows: Sequence[Vectors]) -> SubLooks:
        """Return these with more rows (m, c) in each layer's bank of a sub-look."""
        banks = list(self.banks)
        banks[look] = [np.concatenate(both) for both in zip(self.banks[look], rows, strict=True)]
        return replace(self, banks=banks)


def heat_of(unit: WholeUnit, ratios: maps.Map) -> maps.Map:
    """Return what a map (h, w) among the rows of a sub-look adds, place by place, to the log of the image's map."""
    return np.asarray(unit.added(np.log(ratios)), dtype=np.float32)


def looks_near(embeddings: Vectors, centres: Vectors) -> Labels:
    """Return the number (...,) of the centre (S, d) that is most similar to each embedding (..., d)."""
    return np.asarray((embeddings @ centres.T).argmax(axis=-1), dtype=np.int64)


def find_sub_looks(embeddings: Vectors, members: Sequence[NDArray[np.intp]], seed: int) -> dict[int, Vectors]:
    """Return the centres (S, d) of the sub-looks by group, for groups that have any.

    `embeddings` (n, d) are the good images', `members[k]` the numbers of a group's images.
    """
    centres = {group: parts_of_group(embeddings[images], seed) for group, images in enumerate(members)}
    # As the artefact keeps them.
    return {group: of.astype(np.float16).astype(np.float32) for group, of in centres.items() if of is not None}


def fit(log_scores: Floats, groups: Labels, widths: Floats) -> tuple[dict[int, WholeUnit], Floats]:
    """Return the unit of each group with sub-looks, and what the good images (n,) themselves add.

    `log_scores` (n,) are of their patches among the rows of their own sub-look, cross-fitted; NaN in groups without
    sub-looks, of which there are others. `widths` (K,) are the spreads of the groups' patch log scores.
    """
    has_looks = np.flatnonzero(np.isfinite(log_scores))
    kinds, place = np.unique(groups[has_looks], return_inverse=True)
    scores = log_scores[has_looks]
    medians = np.asarray([np.median(scores[place == k]) for k in range(len(kinds))])
    reaches = np.maximum(calibration.group_widths(scores - medians[place], place), _NARROWEST)
    units = {
        int(group): WholeUnit(float(medians[k]), float(reaches[k]), float(_GAIN * widths[group]))
        for k, group in enumerate(kinds)
    }
    added = np.zeros(len(log_scores))
    for group, unit in units.items():
        members = groups == group
        added[members] = unit.added(log_scores[members])
    return units, added
