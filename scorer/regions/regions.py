"""From the anomaly map of one frame to its defect regions: boxes, masks, square crops and embeddings.

Crops follow AnomalyNCD (arXiv:2410.14379): squares with a margin around each component, joined where they touch. The
embedding joins what the scorer has already computed for the map with a closer look at the region.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from flawline import imaging
from flawline.messages import Codec, DefectRegion, Tensor
from scorer.regions import binarize, closeup
from scorer.vectors import unit

EMBEDDING_VERSION = "pooled-2"
"""Changes whenever the same scores would give another embedding; joined to the detector's own embedding version."""
CLOSER_VERSION = "closer-1"
"""The same for what a closer look adds."""

# Longest side of the grid on which regions are found, longest side and JPEG quality of the stored crops, and regions of
# a frame, which bound the time of its description (two closer looks each). Judgements, not measured.
WORK_SIDE_PX = 256
CROP_SIDE_LIMIT_PX = 256
CROP_QUALITY = 90
REGION_LIMIT = 4
# A component is cut again at this share of its peak. On the simulated line the cut raised the IoU with the true masks
# from .34 to .51 (docs/discovery.md); other shares are not on record.
SHARP_SHARE = 0.6
# Patches weigh exp((a - peak) / this) in an embedding, a in natural-log units of the map. A judgement.
PEAK_TEMPERATURE = 0.1

# Of AnomalyNCD: half side from the longer side of the box; its bounds and the joining gap from the long image side.
HALF_SIDE_OF_BOX = 0.55
HALF_SIDE_MIN = 0.1
HALF_SIDE_MAX = 0.5
JOIN_GAP = 0.01


def embedding_version(detector_version: str, closer: bool = False) -> str:
    """Return the version of region embeddings made from a detector's features, with or without closer looks."""
    return "+".join([detector_version, EMBEDDING_VERSION, *([CLOSER_VERSION] if closer else [])])


@dataclass(frozen=True)
class Square:
    """An axis-aligned rectangle in image pixels, end exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def xywh(self) -> tuple[int, int, int, int]:
        """Left, top, width and height, as messages have it."""
        return self.x0, self.y0, self.x1 - self.x0, self.y1 - self.y0

    @property
    def area(self) -> int:
        return (self.x1 - self.x0) * (self.y1 - self.y0)

    def gap(self, other: Square) -> int:
        """Return the pixels between the two, -1 when they overlap."""
        x = max(self.x0, other.x0) - min(self.x1, other.x1)
        y = max(self.y0, other.y0) - min(self.y1, other.y1)
        return -1 if x < 0 and y < 0 else max(x, y, 0)


@dataclass(frozen=True)
class LocalRegion:
    """Where a region is and how hot it is: all that a verdict says of it.

    `box` and `crop` are in image pixels, `mask` is bool (h, w) on the map's grid, `peak` in aligned units.
    """

    box: Square
    crop: Square
    mask: np.ndarray
    area_px: int
    peak: float


@dataclass(frozen=True)
class LocalRegions:
    """The regions of one frame before a closer look.

    `fine` is the heat map, float32 (h, w); `mask`, bool (h, w), is all that is hot, also beyond the listed regions.
    """

    fine: np.ndarray
    mask: np.ndarray
    regions: tuple[LocalRegion, ...]


def locate(
    heatmap: np.ndarray, height: int, width: int, lo: float, hi: float, *, limit: int = REGION_LIMIT
) -> LocalRegions:
    """Return where the regions of one frame that was not accepted are, largest first, at most `limit`, never none.

    `heatmap` is float (h, w) in aligned units over the whole image of `height` times `width` pixels; `lo`, `hi` are
    the detector's range for MEBin. A frame without anything local gives one global region: the whole image, an empty
    mask and area 0. Raises ValueError for a map that is empty or not finite.
    """
    if heatmap.ndim != 2 or heatmap.size == 0 or not np.isfinite(heatmap).all():
        raise ValueError(f"anomaly map of shape {list(heatmap.shape)} is empty or holds values that are not finite")
    fine = fine_map(heatmap, height, width)
    mask = sharp_mask(fine, lo, hi)
    if not mask.any():
        whole = Square(0, 0, width, height)
        return LocalRegions(fine, mask, (LocalRegion(whole, whole, mask, 0, float(fine.max())),))
    pixels_per_cell = (height / mask.shape[0]) * (width / mask.shape[1])
    return LocalRegions(
        fine,
        mask,
        tuple(
            LocalRegion(
                box=_box(part, height, width),
                crop=crop,
                mask=part,
                area_px=round(int(part.sum()) * pixels_per_cell),
                peak=float(fine[part].max()),
            )
            for crop, part in _local(mask, height, width, limit)
        ),
    )


def describe(
    image: np.ndarray,
    located: LocalRegions,
    patches: np.ndarray,
    residuals: np.ndarray,
    *,
    closer: closeup.Closer | None = None,
    field_px: int | None = None,
    crop_side_limit_px: int = CROP_SIDE_LIMIT_PX,
) -> list[DefectRegion]:
    """Return the located regions with their masks, crops and embeddings, in the same order.

    `image` is uint8 (H, W, 3); `patches` and `residuals` are float (h', w', D): features and their difference to the
    nearest good ones. `closer` gives the feature maps of an enlarged part of the image; without it embeddings are of
    the map's patches alone, and of another version. `field_px` is the side of what the detector sees at once, when
    that is not the whole image: looks are shares of it.
    Raises ValueError for arrays that are not finite or do not fit together.
    """
    _check(image, patches, residuals)
    fine = located.fine
    places = []
    for region in located.regions:
        if region.mask.any():
            # Another region nearby must not draw the look to itself.
            places.append((np.where(located.mask & ~region.mask, fine.min(), fine), region.mask))
        else:
            places.append((fine, ~region.mask))
    embeddings = region_embeddings(image, places, patches, residuals, closer, field_px)
    return [
        _described(image, region, embedding, crop_side_limit_px)
        for region, embedding in zip(located.regions, embeddings, strict=True)
    ]


def extract(
    image: np.ndarray,
    heatmap: np.ndarray,
    patches: np.ndarray,
    residuals: np.ndarray,
    lo: float,
    hi: float,
    *,
    closer: closeup.Closer | None = None,
    field_px: int | None = None,
    limit: int = REGION_LIMIT,
    crop_side_limit_px: int = CROP_SIDE_LIMIT_PX,
) -> list[DefectRegion]:
    """Return the described regions of one frame that was not accepted: `locate`, then `describe`."""
    _check(image, patches, residuals)
    height, width = image.shape[:2]
    located = locate(heatmap, height, width, lo, hi, limit=limit)
    return describe(
        image, located, patches, residuals, closer=closer, field_px=field_px, crop_side_limit_px=crop_side_limit_px
    )


def sharp_mask(fine: np.ndarray, lo: float, hi: float) -> np.ndarray:
    """Return which pixels are defective, bool (h, w): MEBin's components, each cut at 0.6 of its own peak.

    The map is blurred by the receptive field of its features, so a strong defect is above any fixed threshold far
    around itself. A map that stays below `lo` but is above what is ordinary (0) is cut at 0.6 of its peak as a whole.
    """
    binarized = binarize.defect_mask(fine, lo, hi)
    if not binarized.count:
        peak = float(fine.max())
        return fine > SHARP_SHARE * peak if peak > 0 else np.zeros(fine.shape, bool)
    sharp = np.zeros(fine.shape, bool)
    for where, part in _components(binarized.mask):
        heat = fine[where]
        sharp[where] |= part & (heat > SHARP_SHARE * float(heat[part].max()))
    return sharp


def peak_weights(fine: np.ndarray, mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return how much each patch (h', w') says about a region: what is hottest in it says most, exp((a - peak) / 0.1).

    Measured on linebench and on the simulated line, this pools better than the mask does, even the true mask.
    """
    inside = np.where(mask, fine, -np.inf)
    return _on_grid(np.exp((inside - inside.max()) / PEAK_TEMPERATURE), shape)


def fine_map(heatmap: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return the map as float32 with the image's proportions and a long side of 256 px, so that MEBin's kernel fits."""
    scale = WORK_SIDE_PX / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(np.ascontiguousarray(heatmap, np.float32), size, interpolation=cv2.INTER_LINEAR)


def embed(patches: np.ndarray, residuals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return float32 (2 D) of length 1: the region's features less what is normal for its product, and their residual.

    `weights` (h', w') says how much of each patch belongs to the region. Both halves have the same length. What is
    normal for the product is the mean of the good features nearest to this image's patches, which needs no label.
    """
    flat = weights.reshape(-1).astype(np.float32)
    total = float(flat.sum())
    flat = flat / total if total > 0 else np.full(flat.shape, 1 / flat.size, np.float32)
    features, differences = patches.reshape(flat.size, -1), residuals.reshape(flat.size, -1)
    normal = features.mean(axis=0, dtype=np.float32) - differences.mean(axis=0, dtype=np.float32)
    return np.concatenate([unit(flat @ features - normal), unit(flat @ differences)]) * np.float32(np.sqrt(0.5))


def region_embeddings(
    image: np.ndarray,
    places: Sequence[tuple[np.ndarray, np.ndarray]],
    patches: np.ndarray,
    residuals: np.ndarray,
    closer: closeup.Closer | None,
    field_px: int | None = None,
) -> list[np.ndarray]:
    """Return the unit vectors of regions: their patches and, with a closer look, that too, with the same length.

    `places` are a map and a mask (h, w) for each region, which cover the whole image; the rest as for `extract`.
    """
    pooled = [
        closeup.rooted(embed(patches, residuals, peak_weights(fine, mask, patches.shape[:2]))) for fine, mask in places
    ]
    if closer is None:
        return pooled
    # The look is at the hottest place of the region, with the heat around it.
    centred = [np.where(mask, fine, np.minimum(fine, fine[mask].max() - np.float32(1e-3))) for fine, mask in places]
    looks = closeup.describe(image, centred, closer, field_px)
    return [
        np.concatenate([of_patches, look]) * np.float32(np.sqrt(0.5))
        for of_patches, look in zip(pooled, looks, strict=True)
    ]


def crop_squares(boxes: list[Square], height: int, width: int) -> list[Square]:
    """Return AnomalyNCD's squares around component boxes, one for each box, shifted to stay inside the image."""
    long_side = max(height, width)
    squares = []
    for box in boxes:
        side = max(box.x1 - box.x0, box.y1 - box.y0)
        half = min(max(int(HALF_SIDE_OF_BOX * side), int(HALF_SIDE_MIN * long_side)), int(HALF_SIDE_MAX * long_side))
        squares.append(_centred(box, max(1, half), height, width))
    return squares


def groups_of(squares: list[Square], height: int, width: int) -> list[list[int]]:
    """Return indices of squares that belong to one crop: a square with all its direct neighbours, subsets left out.

    This is the published rule. It is no transitive closure, so a chain of small defects does not grow to one crop.
    A component belongs to one region only: to the largest of the groups that hold it.
    """
    limit = int(JOIN_GAP * max(height, width))
    near = [
        frozenset(j for j, other in enumerate(squares) if square.gap(other) < limit or square is other)
        for square in squares
    ]
    largest: list[frozenset[int]] = []
    for group in sorted(set(near), key=lambda members: (-len(members), min(members))):
        if not any(group <= larger for larger in largest):
            largest.append(group)
    taken: set[int] = set()
    result = []
    for group in largest:
        if rest := sorted(group - taken):
            result.append(rest)
            taken |= group
    return result


def _check(image: np.ndarray, patches: np.ndarray, residuals: np.ndarray) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise ValueError(f"image {image.dtype}{list(image.shape)} is not uint8 (height, width, 3)")
    if patches.ndim != 3 or patches.shape != residuals.shape or patches.size == 0:
        raise ValueError(
            f"patches {list(patches.shape)} and residuals {list(residuals.shape)} are not one (h, w, D) grid"
        )
    if not (np.isfinite(patches).all() and np.isfinite(residuals).all()):
        raise ValueError("patches or residuals hold values that are not finite")


def _local(mask: np.ndarray, height: int, width: int, limit: int) -> list[tuple[Square, np.ndarray]]:
    """Return the crop square in image pixels and the mask at the map's size of the `limit` largest regions."""
    components = _components(mask)
    areas = [np.count_nonzero(part) for _, part in components]
    scale_x, scale_y = width / mask.shape[1], height / mask.shape[0]
    tight = [Square(x.start, y.start, x.stop, y.stop) for (y, x), _ in components]
    squares = crop_squares([_scaled(box, scale_x, scale_y, height, width) for box in tight], height, width)
    groups = sorted(groups_of(squares, height, width), key=lambda group: -sum(areas[i] for i in group))
    result = []
    for group in groups[:limit]:
        crop = squares[group[0]] if len(group) == 1 else _joined([squares[i] for i in group], height, width)
        inside = np.zeros(mask.shape, bool)
        for where, part in (components[i] for i in group):
            inside[where] |= part
        result.append((crop, inside))
    return result


def _components(mask: np.ndarray) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Return the connected components of a mask: the rectangle of each, as rows and columns, and its mask in there.

    OpenCV's own statistics of components take four times as long, and this runs before the verdict.
    """
    _, labels = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
    return [(where, labels[where] == label) for label, where in enumerate(ndimage.find_objects(labels), start=1)]


def _described(image: np.ndarray, region: LocalRegion, embedding: np.ndarray, crop_side_limit_px: int) -> DefectRegion:
    height, width = image.shape[:2]
    crop = region.crop
    pixels = image[crop.y0 : crop.y1, crop.x0 : crop.x1]
    scale = min(1.0, crop_side_limit_px / max(pixels.shape[:2]))
    size = max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale))
    if scale < 1:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    return DefectRegion(
        box=region.box.xywh,
        area_px=region.area_px,
        peak=region.peak,
        crop_box=crop.xywh,
        mask=imaging.encode_mask(_cut(region.mask, crop, height, width, size)),
        crop=imaging.encode(pixels, Codec.JPEG, quality=CROP_QUALITY),
        embedding=Tensor.of(embedding, "float16"),
    )


def _cut(mask: np.ndarray, crop: Square, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """Return the part of a map-sized mask under a crop, at the crop's stored size (width, height)."""
    columns = ((np.arange(size[0]) + 0.5) * (crop.x1 - crop.x0) / size[0] + crop.x0) * mask.shape[1] / width
    rows = ((np.arange(size[1]) + 0.5) * (crop.y1 - crop.y0) / size[1] + crop.y0) * mask.shape[0] / height
    return mask[np.ix_(rows.astype(int), columns.astype(int))]


def _on_grid(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(weights.astype(np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_AREA)


def _box(mask: np.ndarray, height: int, width: int) -> Square:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tight = Square(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return _scaled(tight, width / mask.shape[1], height / mask.shape[0], height, width)


def _scaled(box: Square, scale_x: float, scale_y: float, height: int, width: int) -> Square:
    x0, y0 = min(int(box.x0 * scale_x), width - 1), min(int(box.y0 * scale_y), height - 1)
    x1, y1 = min(int(np.ceil(box.x1 * scale_x)), width), min(int(np.ceil(box.y1 * scale_y)), height)
    return Square(x0, y0, max(x1, x0 + 1), max(y1, y0 + 1))


def _joined(squares: list[Square], height: int, width: int) -> Square:
    union = Square(
        min(s.x0 for s in squares), min(s.y0 for s in squares), max(s.x1 for s in squares), max(s.y1 for s in squares)
    )
    half = min(-(-max(union.x1 - union.x0, union.y1 - union.y0) // 2), max(1, int(HALF_SIDE_MAX * max(height, width))))
    return _centred(union, half, height, width)


def _centred(box: Square, half: int, height: int, width: int) -> Square:
    """Return a square of twice `half` around a box's centre, shifted inside the image and cut where it does not fit."""
    x0, x1 = _span(box.x0, box.x1, half, width)
    y0, y1 = _span(box.y0, box.y1, half, height)
    return Square(x0, y0, x1, y1)


def _span(start: int, end: int, half: int, side: int) -> tuple[int, int]:
    first = max(0, min((start + end) // 2 - half, side - 2 * half))
    return first, min(side, first + 2 * half)
