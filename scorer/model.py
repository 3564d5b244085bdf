"""The fitted model as plain arrays: all that scoring needs besides the backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scorer import calibration, whole_image
from scorer.alignment import group_levels, normal_level, shrunk
from scorer.calibration import Threshold
from scorer.maps import LayerUnit
from scorer.shapes import Cutting
from scorer.sub_looks import SubLooks
from scorer.vectors import Vectors
from scorer.whole_image import WholeUnit

if TYPE_CHECKING:
    from flawline.settings.scorer import LayerSettings


@dataclass(frozen=True)
class Tiles:
    """How images are cut, for a model of tiles; `sources` (n,) say of which whole image each tile is."""

    cutting: Cutting
    sources: NDArray[np.int64]


@dataclass(frozen=True)
class Model:
    """All that scoring needs besides the backbone; K groups, L layers, n good images.

    `banks[k][l]` float32 (m, c) unit vectors; `units[k][l]`; `wholes[k]`; `sub_looks[k]`, None in a group without;
    `shares[k]` of the neighbours in the normal
    level; `means[l]` (K, c) mean features of each group; `embeddings` (n, d), `groups` (n,), `log_scores` (n,) and
    `standardised` (n,) of the good images, cross-fitted; `gates` and `widths` (K,); `review` and `reject` cut-offs on
    standardised scores; `heatmap_range` for binarising; `sample_bits` are the depths of the good images. `top_share` is
    the share of the patches that makes the score. `copies` (n,) are the numbers of the first images that they are
    copies of, None for tiles of one size. `contents` (n, 2) are the rows and columns of cells that the images fill
    where they keep their proportions (see `features.padding`), None where they are squeezed. `quiet` (K, 2)
    are the usual quiet heat of a good image (see `maps.quiet_heat`) and what it rarely exceeds, None in a model of an
    earlier release.
    """

    layers: tuple[LayerSettings, ...]
    banks: list[list[Vectors]]
    units: list[list[LayerUnit]]
    wholes: list[WholeUnit]
    sub_looks: list[SubLooks | None]
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
    top_share: float
    tiles: Tiles | None = None
    sample_bits: tuple[int, ...] = (8,)
    copies: NDArray[np.int64] | None = None
    contents: NDArray[np.int64] | None = None
    quiet: NDArray[np.float64] | None = None

    @property
    def shape(self) -> str:
        """How images come to the square model input: "squeeze", "pad" or "tile"."""
        return "tile" if self.tiles is not None else "squeeze" if self.contents is None else "pad"

    @cached_property
    def group_levels(self) -> NDArray[np.float64]:
        """The median log score of each group's good images (K,)."""
        return group_levels(self.log_scores, self.groups)

    @cached_property
    def groups_with_looks(self) -> list[int]:
        """The groups that have sub-looks."""
        return [group for group, count in enumerate(self.look_counts) if count]

    @property
    def look_counts(self) -> list[int]:
        """How many sub-looks each group has; 0 for none."""
        return [0 if sub_looks is None else len(sub_looks.centres) for sub_looks in self.sub_looks]

    def levels(self, groups: NDArray[np.int64], neighbours: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the normal log scores (n,) of images of groups (n,) with look-alikes (n, k), -1 for none."""
        near = normal_level(self.log_scores, neighbours)
        return shrunk(near, self.group_levels[groups], np.asarray(self.shares)[groups])

    def level(self, group: int, neighbours: NDArray[np.int64]) -> float:
        """Return the normal log score of one image of this group with these look-alikes (k,)."""
        share = self.shares[group]
        return float(share * normal_level(self.log_scores, neighbours) + (1 - share) * self.group_levels[group])

    @cached_property
    def calibration(self) -> NDArray[np.float64]:
        """The good images' standardised scores in rising order; a p-value is a rank among them.

        Without NaN, which marks copies of other images, and images that were added because of their high scores: they
        are good, but no sample of what is to come.
        """
        return np.sort(self.standardised[np.isfinite(self.standardised)])


def picture_layers(layers: Sequence[LayerSettings]) -> list[int]:
    """Return the numbers of the layers that tell what a picture shows, from fine to deep, of the first backbone pass.

    They are the last map of each stride; of a vision transformer, all maps.
    """
    return [i for i, layer in enumerate(layers) if layer.size == layers[0].size and not layer.earlier]


def embedding_layers(layers: Sequence[LayerSettings]) -> list[int]:
    """Return the numbers of the features of the image embedding.

    A vision transformer gives a vector of the image after its maps; elsewhere, the picture's layers serve.
    """
    return [len(layers)] if layers[0].block else picture_layers(layers)


def region_layers(layers: Sequence[LayerSettings]) -> list[int]:
    """Return the numbers of the layers that describe a defect: the two finest that tell what a picture shows.

    Deeper layers see more of the product around a defect than of the defect, and group defects by product. Of a vision
    transformer they are the last two, since its early blocks know edges and places (a judgement, not measured).
    """
    return picture_layers(layers)[-2:] if layers[0].block else picture_layers(layers)[:2]


def whole_part(layers: Sequence[LayerSettings], means: Sequence[NDArray[np.floating]], embeddings: Vectors) -> Vectors:
    """Return the part of image embeddings (n, d) that stands for the image as a whole.

    `means[l]` (..., c) tell how many channels each layer has.
    """
    return whole_image.deepest(embeddings, means[embedding_layers(layers)[-1]].shape[-1])


def cut_offs(scores: NDArray[np.float64], alarm_rate: float, reject_rate: float) -> tuple[Threshold, Threshold]:
    """Return the cut-offs of review and of reject on sorted standardised scores (n,), the second never below the first.

    Both are of one tail, so that `reject_rate`, which is not above `alarm_rate`, has the higher one.
    """
    return calibration.threshold(scores, alarm_rate), calibration.threshold(scores, reject_rate)
