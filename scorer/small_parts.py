"""Parts that fill a small share of a uniform frame, found from what the pictures of a group's good images show.

An image is squeezed to the model input, so that little is left of a part that fills a sixth of its frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from scorer.features.graph import Image

# Cells of the grid that pictures are looked at on, along each side, and pixels of a cell. Judgements.
_CELLS = 32
_CELL_PX = 8
# A cell shows something when grey levels in it, or from image to image, spread beyond this (of 255): the noise of a
# camera and JPEG's blocks stay below 4 on the eleven development products. A judgement.
_QUIET = 6.0
# A part in less than this share of the frame is proposed. A judgement: a side of half the frame.
_SMALL = 0.25
# Around the part, in cells: parts to come lie a little elsewhere. A judgement.
_MARGIN = 1


@dataclass(frozen=True)
class SmallPart:
    """The part of the frame that shows anything in a group's good images: a box in shares of width and height."""

    group: int
    left: float
    top: float
    right: float
    bottom: float

    @property
    def share(self) -> float:
        """The share of the frame that the box fills."""
        return (self.right - self.left) * (self.bottom - self.top)

    @property
    def polygon(self) -> list[list[float]]:
        """The box as a polygon of a camera's key `inspect`."""
        return [[self.left, self.top], [self.right, self.top], [self.right, self.bottom], [self.left, self.bottom]]


def small_part(pictures: Sequence[Image], group: int) -> SmallPart | None:
    """Return where the parts on pictures of one group are, None where they fill the frame or all of it is uniform."""
    side = _CELLS * _CELL_PX
    grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in pictures]
    cells = np.stack([cv2.resize(picture, (side, side), interpolation=cv2.INTER_AREA) for picture in grey])
    cells = cells.reshape(-1, _CELLS, _CELL_PX, _CELLS, _CELL_PX).astype(np.float32)
    within = cells.std(axis=(2, 4)).max(axis=0)
    across = cells.mean(axis=(2, 4)).std(axis=0)
    return _box(np.maximum(within, across) > _QUIET, group)


def _box(shows: NDArray[np.bool_], group: int) -> SmallPart | None:
    if not shows.any():
        return None
    rows, columns = np.flatnonzero(shows.any(axis=1)), np.flatnonzero(shows.any(axis=0))
    top, bottom = max(0, int(rows[0]) - _MARGIN), min(_CELLS, int(rows[-1]) + 1 + _MARGIN)
    left, right = max(0, int(columns[0]) - _MARGIN), min(_CELLS, int(columns[-1]) + 1 + _MARGIN)
    part = SmallPart(group, left / _CELLS, top / _CELLS, right / _CELLS, bottom / _CELLS)
    return part if part.share < _SMALL else None
