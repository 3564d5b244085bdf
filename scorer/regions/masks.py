"""The part of an image that is inspected: from polygons or a mask file to the scorer's maps."""

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

# What float32 means of a cell's pixels may lack of 1 by rounding; less than one pixel of a cell of 10,000.
_SHARE_ROUNDING = 1e-4


@dataclass(frozen=True)
class RegionOfInterest:
    """The part of a camera's frames that is inspected: inside `inspect` (everywhere if empty), outside `ignore`.

    Polygons are points (x, y) in fractions of the frame's width and height, so they fit every resolution. `mask`
    (height, width), if any, has the size of the frames and is True where they are inspected. `name` begins the error
    messages.
    """

    inspect: tuple[Polygon, ...] = ()
    ignore: tuple[Polygon, ...] = ()
    mask: Mask | None = None
    name: str = ""

    def of(self, height: int, width: int) -> Mask:
        """Return the mask (height, width) of a frame, True where it is inspected.

        Raises FlawlineError for a mask file of another size, and when nothing is left to inspect.
        """
        inspected = _filled(self.inspect, height, width) if self.inspect else np.ones((height, width), dtype=bool)
        inspected &= ~_filled(self.ignore, height, width)
        if self.mask is not None:
            if self.mask.shape != inspected.shape:
                mask_height, mask_width = self.mask.shape
                raise FlawlineError(
                    f"{self.name}: mask of {mask_width}x{mask_height} px does not fit frames of {width}x{height} px: "
                    "draw it anew"
                )
            inspected &= self.mask
        if not inspected.any():
            raise FlawlineError(f"{self.name}: nothing of a {width}x{height} px frame is left to inspect: ignore less")
        return inspected


def read_mask(path: Path) -> Mask:
    """Return the mask of a file: of any image, True where it is brighter than middle grey.

    Raises FlawlineError when the file cannot be read as an image, or is black everywhere.
    """
    try:
        mask = imaging.decode_mask_file(path.read_bytes())
    except OSError as error:
        raise FlawlineError(f"{path}: mask cannot be read: {error.strerror}") from error
    except imaging.ImageError as error:
        raise FlawlineError(f"{path}: {error}: give an image that is white where frames are inspected") from error
    if not mask.any():
        raise FlawlineError(f"{path}: mask is black everywhere: make it white where frames are inspected")
    return mask


def _filled(polygons: Sequence[Polygon], height: int, width: int) -> Mask:
    """Return the mask (height, width) of the pixels whose centres are inside any of the polygons.

    Where a polygon crosses itself, the even-odd rule tells what is inside. Corners are rounded to half pixels, so a
    pixel may be wrong when its centre is less than two thirds of a pixel from the outline.
    """
    # OpenCV fills the outline too. On a grid of half pixels the centres of pixels have odd places and their borders
    # have even ones, so an outline along borders of pixels adds nothing to either side.
    half_pixels = np.zeros((2 * height + 1, 2 * width + 1), dtype=np.uint8)
    for polygon in polygons:
        corners = np.rint(np.asarray(polygon, dtype=np.float64) * (2 * width, 2 * height)).astype(np.int32)
        cv2.fillPoly(half_pixels, [corners], 1)
    return half_pixels[1::2, 1::2].astype(bool)


def on_grid(mask: Mask, rows: int, columns: int) -> Mask:
    """Return the cells (rows, columns) of a map that hold no ignored pixel.

    A cell on the border is ignored, because what is beyond the border shows in the whole cell. When every cell holds
    ignored pixels, those with the largest inspected share remain.
    """
    share = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
    whole = np.asarray(share > 1 - _SHARE_ROUNDING, dtype=bool)
    return whole if whole.any() else np.asarray(share >= share.max(), dtype=bool)


def without_ignored(distances: Sequence[Map], units: Sequence[LayerUnit], mask: Mask) -> list[Map]:
    """Return the distance maps (h, w) of all layers with the group's median wherever a layer sees ignored pixels.

    Each layer has its own grid: near the border fine layers still see places that coarse layers have to ignore.
    """
    return [
        np.where(on_grid(mask, *layer.shape), layer, np.float32(unit.median)).astype(np.float32)
        for layer, unit in zip(distances, units, strict=True)
    ]


def cooled(ratios: Map, mask: Mask) -> Map:
    """Return the combined map (h, w) with its lowest inspected value wherever it is ignored: no score, no region."""
    inspected = on_grid(mask, *ratios.shape)
    return np.where(inspected, ratios, ratios[inspected].min()).astype(np.float32)
