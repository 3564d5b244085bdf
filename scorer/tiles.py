"""Images far larger than the model input, or strips, tile by tile: small defects stay visible, and the map has no seam.

To the model a tile is an image: it is routed, scored and aligned with good tiles that look like it. An image is as bad
as its worst tile, and so calibrated on the worst tiles of the good images, each cross-fitted with its whole image left
out. Tiles overlap, and their maps are blended with weights that fall to zero towards the edge of a tile.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.messages import Decision
from scorer import calibration
from scorer.detector import CoresetDetector, check_mask
from scorer.evidence import part_name
from scorer.features.graph import Image
from scorer.features.store import OnUnreadable, Progress, checked
from scorer.model import Model, Tiles, cut_offs
from scorer.regions.masks import Mask
from scorer.scores import Grid, RegionInputs, Scores
from scorer.shapes import Cutting

# The longest side of an image's region inputs in cells: bounds their memory for images of any size. A judgement.
_GRID = 96
# Tiles of small images are scored together up to this number, so that all threads, or a GPU's batch, have work. A
# judgement.
_TILES_AT_ONCE = 64


@dataclass(frozen=True)
class Box:
    """A tile in image pixels, end exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    def of(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """Return this part of an image or mask."""
        return pixels[self.y0 : self.y1, self.x0 : self.x1]

    def name(self, whole: str) -> str:
        """Return the tile's name, from the name of its image."""
        return part_name(whole, self.x0, self.y0, self.x1 - self.x0, self.y1 - self.y0)


def worst(scores: NDArray[np.float64], sources: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the highest score of each whole image's tiles, by rising `sources` (n,); NaN where any of them is NaN."""
    whole = np.unique(sources, return_inverse=True)[1]
    result = np.full(int(whole.max()) + 1, -np.inf)
    with np.errstate(invalid="ignore"):  # NaN passes on, as it should
        np.maximum.at(result, whole, scores)
    return result


def worst_tiles(scores: NDArray[np.float64], sources: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return the number of the tile with the highest score in each whole image, by rising `sources` (n,)."""
    order = np.lexsort((scores, sources))
    last = np.flatnonzero(np.append(np.diff(sources[order]) != 0, True))
    return np.asarray(order[last])


def cut(height: int, width: int, cutting: Cutting) -> list[Box]:
    """Return the tiles of an image of this size."""
    return boxes(height, width, *cutting.tile_px(height, width))


def boxes(height: int, width: int, side_px: int, overlap_px: int) -> list[Box]:
    """Return square tiles that cover an image evenly, with at least that overlap; one where the image is no longer."""
    rows, columns = _starts(height, side_px, overlap_px), _starts(width, side_px, overlap_px)
    return [Box(x, y, min(x + side_px, width), min(y + side_px, height)) for y in rows for x in columns]


def _starts(length: int, side_px: int, overlap_px: int) -> list[int]:
    count = max(1, -(-(length - overlap_px) // (side_px - overlap_px)))
    return [round(start) for start in np.linspace(0, max(0, length - side_px), count)]


class TiledImages(Sequence[Image]):
    """The tiles of some images, see `cut`, each cut when it is asked for; `sources` (n,) say of which image it is."""

    def __init__(
        self,
        images: Sequence[Image],
        cutting: Cutting,
        on_unreadable: OnUnreadable | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._images = images
        self._tiles: list[tuple[int, Box]] = []
        for number in range(len(images)):
            if progress:
                progress("tiles", number + 1, len(images))
            try:
                height, width = checked(images[number]).shape[:2]
            except FlawlineError as error:
                if on_unreadable is None:
                    raise
                on_unreadable(number, error)
                continue
            self._tiles += [(number, box) for box in cut(height, width, cutting)]
        self.sources = np.asarray([number for number, _ in self._tiles], dtype=np.int64)
        self.sample_bits: tuple[int, ...] = getattr(images, "sample_bits", (8,))
        self._last: dict[int, Image] = {}  # tiles come in order: an image is read once, not once a tile
        self._lock = Lock()

    @property
    def names(self) -> list[str]:
        """The tiles' names: those of their images, with the place; empty where the images have no names."""
        names = getattr(self._images, "names", [])
        return [box.name(names[number]) for number, box in self._tiles] if names else []

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, index):
        number, box = self._tiles[index]
        with self._lock:
            if number not in self._last:
                self._last = {**dict(list(self._last.items())[-1:]), number: self._images[number]}
            image = self._last[number]
        return box.of(image)


@dataclass(frozen=True)
class _Inspected:
    """An image with its mask, and the tiles of it that are inspected."""

    image: Image
    mask: Mask | None
    boxes: list[Box]


class TiledCoreset(CoresetDetector):
    """A detector with a model that was fitted on tiles."""

    @property
    def tiles(self) -> Tiles:
        """How images are cut."""
        assert self.model.tiles is not None
        return self.model.tiles

    @cached_property
    def worst(self) -> NDArray[np.float64]:
        """The standardised score of each good image's worst tile, in rising order; images are calibrated on these."""
        scores = worst(self.model.standardised, self.tiles.sources)
        return np.sort(scores[np.isfinite(scores)])  # NaN: images that were added because of their high scores

    @property
    def cut_offs(self) -> tuple[calibration.Threshold, calibration.Threshold]:
        """The cut-offs of review and reject for whole images."""
        return self._cut_offs

    @cached_property
    def _cut_offs(self) -> tuple[calibration.Threshold, calibration.Threshold]:
        return cut_offs(self.worst, self.model.review.rate, self.model.reject.rate)

    def score(self, images: Sequence[Image], masks: Sequence[Mask | None] | None = None) -> list[Scores]:
        """Return the scores of images, with the tiles of several images at once; see the parent class."""
        masks = [None] * len(images) if masks is None else masks
        waiting: list[_Inspected] = []
        scores: list[Scores] = []
        for image, mask in zip(images, masks, strict=True):
            check_mask(checked(image), mask)
            boxes_of_image = [box for box in self.boxes(image) if mask is None or box.of(mask).any()]
            if not boxes_of_image:
                raise FlawlineError("mask leaves nothing of the image to inspect: ignore less")
            waiting.append(_Inspected(image, mask, boxes_of_image))
            if sum(len(item.boxes) for item in waiting) >= _TILES_AT_ONCE:
                scores += self._score_wholes(waiting)
                waiting = []
        return scores + self._score_wholes(waiting)

    def boxes(self, image: Image) -> list[Box]:
        """Return the tiles of an image."""
        height, width = image.shape[:2]
        return cut(height, width, self.tiles.cutting)

    def field_px(self, height: int, width: int) -> int | None:
        """Return the side of a tile of an image, see the parent class."""
        return self.tiles.cutting.tile_px(height, width)[0]

    def _score_wholes(self, images: Sequence[_Inspected]) -> list[Scores]:
        tiles = [np.ascontiguousarray(box.of(item.image)) for item in images for box in item.boxes]
        masks = [None if item.mask is None else box.of(item.mask) for item in images for box in item.boxes]
        scores = iter(self._scored(tiles, masks))
        return [
            self._score_whole(item.image, item.boxes, list(itertools.islice(scores, len(item.boxes))))
            for item in images
        ]

    def _score_whole(self, image: Image, inspected: Sequence[Box], tiles: Sequence[Scores]) -> Scores:
        blend = _Blend(image.shape[0], image.shape[1])
        worst: tuple[float, Scores] | None = None
        unknown = 0
        for box, scores in zip(inspected, tiles, strict=True):
            blend.add(box, scores)
            unknown += scores.decision is Decision.UNKNOWN_PRODUCT
            standardised = self.standardised(scores)
            if worst is None or standardised > worst[0]:
                worst = standardised, scores
        assert worst is not None
        decision = self._decide_whole(worst[0], unknown / len(inspected))
        region_inputs = None
        if decision is not Decision.ACCEPT:
            region_inputs = tiles[0].region_inputs  # of an image that is not cut
            if region_inputs is None or len(self.boxes(image)) > 1:
                region_inputs = blend.region_inputs()
        return Scores(
            group=worst[1].group,
            raw=worst[1].raw,
            aligned=worst[1].aligned,
            p_value=float(calibration.p_values(np.asarray(worst[0]), self.worst)),
            decision=decision,
            heatmap=blend.heatmap(),
            region_inputs=region_inputs,
        )

    def decided(self, tiles: Sequence[Scores]) -> Decision:
        """Return the decision on an image whose tiles have these scores."""
        unknown = np.mean([tile.decision is Decision.UNKNOWN_PRODUCT for tile in tiles])
        return self._decide_whole(max(self.standardised(tile) for tile in tiles), float(unknown))

    def _decide_whole(self, standardised: float, unknown: float) -> Decision:
        """Return the decision: unknown product when most of the tiles are of unknown products; a defect fills few."""
        review, reject = self.cut_offs
        if unknown > 0.5:
            return Decision.UNKNOWN_PRODUCT
        if standardised > reject.value:
            return Decision.REJECT
        return Decision.REVIEW if standardised > review.value else Decision.ACCEPT


class _Blend:
    """The map and the region inputs of a whole image, built from its tiles one after the other."""

    def __init__(self, height: int, width: int) -> None:
        self._size = height, width
        self._cell: tuple[float, float] | None = None
        self._heat = self._weight = np.empty((0, 0), np.float32)
        self._hot: list[tuple[Box, RegionInputs]] = []

    def add(self, box: Box, scores: Scores) -> None:
        """Add a tile. Its cells do not fall on those of the whole map, so its map is shifted by a part of a cell."""
        height, width = self._size
        rows, columns = scores.heatmap.shape
        if self._cell is None:
            self._cell = (box.y1 - box.y0) / rows, (box.x1 - box.x0) / columns
            shape = max(1, round(height / self._cell[0])), max(1, round(width / self._cell[1]))
            self._heat, self._weight = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        whole_rows, whole_columns = self._heat.shape
        scale_y, scale_x = height / whole_rows, width / whole_columns  # pixels of one cell of the whole map
        # Cells of the whole map whose centres lie in the tile, and where those centres are on the tile's own map.
        y0, y1 = int(np.ceil(box.y0 / scale_y - 0.5)), int(np.ceil(box.y1 / scale_y - 0.5))
        x0, x1 = int(np.ceil(box.x0 / scale_x - 0.5)), int(np.ceil(box.x1 / scale_x - 0.5))
        ys = ((np.arange(y0, y1) + 0.5) * scale_y - box.y0) / (box.y1 - box.y0)
        xs = ((np.arange(x0, x1) + 0.5) * scale_x - box.x0) / (box.x1 - box.x0)
        map_y, map_x = np.meshgrid(ys * rows - 0.5, xs * columns - 0.5, indexing="ij")
        heat = cv2.remap(
            scores.heatmap,
            map_x.astype(np.float32),
            map_y.astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
        weight = np.outer(_taper(ys), _taper(xs)).astype(np.float32)
        self._heat[y0:y1, x0:x1] += weight * heat
        self._weight[y0:y1, x0:x1] += weight
        if scores.region_inputs is not None:
            self._hot.append((box, scores.region_inputs))

    def heatmap(self) -> NDArray[np.float32]:
        """Return the blended map; places that no tile covers, because they are ignored, are as cool as the coolest."""
        covered = self._weight > 0
        heat = np.where(covered, self._heat / np.where(covered, self._weight, 1), np.inf)
        return np.where(covered, heat, heat.min()).astype(np.float32)

    def region_inputs(self) -> RegionInputs:
        """Return inputs on a grid over the whole image, zero (nothing unusual) in accepted tiles."""
        return RegionInputs(self._whole_grids, sum(inputs.size_bytes for _, inputs in self._hot))

    def _whole_grids(self) -> tuple[Grid, Grid]:
        height, width = self._size
        scale = _GRID / max(height, width)
        rows, columns = max(1, round(height * scale)), max(1, round(width * scale))
        depth = self._hot[0][1].grids[0].shape[2] if self._hot else 1
        whole = np.zeros((2, rows, columns, depth), np.float32)
        weight = np.full((rows, columns, 1), 1e-9, np.float32)
        for box, inputs in self._hot:
            y0, y1 = int(box.y0 * scale), max(int(box.y0 * scale) + 1, min(rows, round(box.y1 * scale)))
            x0, x1 = int(box.x0 * scale), max(int(box.x0 * scale) + 1, min(columns, round(box.x1 * scale)))
            ys, xs = (np.arange(y1 - y0) + 0.5) / (y1 - y0), (np.arange(x1 - x0) + 0.5) / (x1 - x0)
            taper = np.outer(_taper(ys), _taper(xs)).astype(np.float32)[:, :, None]
            for target, values in zip(whole, inputs.grids, strict=True):
                high, wide = values.shape[:2]
                picked = values[(ys * high).astype(int)][:, (xs * wide).astype(int)]
                target[y0:y1, x0:x1] += taper * picked
            weight[y0:y1, x0:x1] += taper
        return whole[0] / weight, whole[1] / weight


def _taper(share: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return weights at places (0 to 1) of a tile: a raised cosine that is nearly zero at the edges."""
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * share) + 1e-4)


def detector_class(model: Model) -> type[CoresetDetector]:
    """Return the class that serves a model: of tiles, or of whole images."""
    return CoresetDetector if model.tiles is None else TiledCoreset
