"""Where an image is to be inspected: polygons or a mask file, and what that means for the scorer's maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline import imaging
from flawline.errors import FlawlineError
from scorer.maps import LayerUnit, Map

Mask = NDArray[np.bool_]
Polygon = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class RegionOfInterest:
    """What of a camera's frames is inspected: inside `inspect` (everything, when that is empty), outside `ignore`.

    Polygons are points (x, y) in fractions of the frame's width and height, so that they hold at every resolution;
    `mask` (h, w), when there is one, has the frames' size and is True where they are inspected.
    """

    inspect: tuple[Polygon, ...] = ()
    ignore: tuple[Polygon, ...] = ()
    mask: Mask | None = None
    name: str = ""

    def of(self, height: int, width: int) -> Mask:
        """The mask (height, width) of a frame, True where it is inspected.

        Raises FlawlineError for a mask file of another size, and when nothing is left to inspect.
        """
        kept = np.full((height, width), not self.inspect)
        for polygon in self.inspect:
            kept |= _filled(polygon, height, width)
        for polygon in self.ignore:
            kept &= ~_filled(polygon, height, width)
        if self.mask is not None:
            if self.mask.shape != kept.shape:
                high, wide = self.mask.shape
                raise FlawlineError(
                    f"{self.name}: mask of {wide}x{high} px does not fit frames of {width}x{height} px: draw it anew"
                )
            kept &= self.mask
        if not kept.any():
            raise FlawlineError(f"{self.name}: nothing of a {width}x{height} px frame is left to inspect: ignore less")
        return kept


def read_mask(path: Path) -> Mask:
    """A mask file (any image: what is brighter than middle grey is inspected). Raises FlawlineError."""
    try:
        mask = imaging.decode_mask(path.read_bytes())
    except OSError as error:
        raise FlawlineError(f"{path}: mask cannot be read: {error.strerror}") from error
    except imaging.ImageError as error:
        raise FlawlineError(f"{path}: {error}: give an image that is white where frames are inspected") from error
    if not mask.any():
        raise FlawlineError(f"{path}: mask is black everywhere: make it white where frames are inspected")
    return mask


def _filled(polygon: Polygon, height: int, width: int) -> Mask:
    """The pixels whose centres lie inside a polygon (even-odd rule), row by row; its outline belongs to nobody."""
    ends = np.asarray(polygon, dtype=np.float64) * (width, height)
    starts = np.roll(ends, 1, axis=0)
    centres = np.arange(width) + 0.5
    filled = np.zeros((height, width), dtype=bool)
    for row in range(height):
        y = row + 0.5
        crossed = (starts[:, 1] <= y) != (ends[:, 1] <= y)
        (x0, y0), (x1, y1) = starts[crossed].T, ends[crossed].T
        crossings = np.sort(x0 + (y - y0) / (y1 - y0) * (x1 - x0))
        filled[row] = np.searchsorted(crossings, centres) % 2 == 1
    return filled


def on_grid(mask: Mask, side: int) -> Mask:
    """The cells (side, side) of a map that hold no pixel to ignore.

    A cell that the border runs through is ignored: what lies beyond it would show in the whole cell. When no cell is
    whole, those that are inspected most stay.
    """
    share = cv2.resize(mask.astype(np.float32), (side, side), interpolation=cv2.INTER_AREA)
    whole = np.asarray(share > 1 - 1e-4, dtype=bool)
    return whole if whole.any() else np.asarray(share >= share.max(), dtype=bool)


def without_ignored(distances: Sequence[Map], units: Sequence[LayerUnit], mask: Mask) -> list[Map]:
    """Distance maps (h, w) of all layers with what is usual for the group wherever a layer sees ignored pixels.

    Layer by layer: beside an ignored place the fine layers still see what the coarse ones have to pass over.
    """
    return [
        np.where(on_grid(mask, each.shape[0]), each, np.float32(unit.median)).astype(np.float32)
        for each, unit in zip(distances, units, strict=True)
    ]


def cooled(ratios: Map, mask: Mask) -> Map:
    """The combined map (h, w) with its coolest inspected value wherever it is ignored: no score, no region there."""
    kept = on_grid(mask, ratios.shape[0])
    return np.where(kept, ratios, ratios[kept].min()).astype(np.float32)
