"""Images that keep their proportions in the square input of a backbone: what is left of the square is padding.

An image fills whole cells from the upper left corner, so that on every map its patches are a rectangle, which is cut
out: nothing behind the backbone sees a patch of the padding. A cell is the largest square of the input that has whole
patches on all maps, 32 px of 256 for example; so proportions are rounded to eighths there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from flawline.errors import FlawlineError
from scorer.features.graph import Image, Maps, resized

# With fewer cells along a side, proportions would be rounded too far. A judgement.
_FEWEST_CELLS = 4


@dataclass(frozen=True)
class Padding:
    """Brings images into a square of `cells` times `cells` cells."""

    cells: int

    @classmethod
    def of(cls, grids: Sequence[int]) -> Padding:
        """Return the padding for maps with these sides in patches. Raises FlawlineError where they have no cells."""
        cells = math.gcd(*grids)
        if cells < _FEWEST_CELLS:
            raise FlawlineError(
                f'scorer.shape = "pad" needs maps whose sides share a divisor of at least {_FEWEST_CELLS}, and these '
                f"layers have sides of {', '.join(map(str, sorted(set(grids))))} patches: choose other sizes"
            )
        return cls(cells)

    def content(self, height: int, width: int) -> tuple[int, int]:
        """Return the rows and columns of cells that an image of `height` times `width` pixels fills."""
        longest = max(height, width)
        return max(1, round(self.cells * height / longest)), max(1, round(self.cells * width / longest))

    def resized(self, image: Image, size: int) -> Image:
        """Return the image in the upper left of a square of `size` pixels, which it continues as in a mirror.

        So its borders look like its inside to the backbone, and not like edges.
        """
        cell_px = size // self.cells
        rows, columns = self.content(*image.shape[:2])
        inside = resized(image, rows * cell_px, columns * cell_px)
        below, right = size - rows * cell_px, size - columns * cell_px
        return np.asarray(cv2.copyMakeBorder(inside, 0, below, 0, right, cv2.BORDER_REFLECT_101), dtype=np.uint8)

    def extent(self, content: tuple[int, int], grid: int) -> tuple[int, int]:
        """Return the rows and columns of patches of some content, on a map with `grid` patches along a side."""
        patches = grid // self.cells
        return content[0] * patches, content[1] * patches

    def whole(self, patches: int, content: tuple[int, int]) -> int:
        """Return the patches of a whole map, of which some content has `patches`; 1 for the vector of an image."""
        return patches if patches == 1 else patches * self.cells**2 // (content[0] * content[1])

    def cropped(self, maps: Maps, height: int, width: int) -> Maps:
        """Return maps (h, h, c) without padding, of an image of `height` times `width` pixels.

        The vector (1, 1, c) of the image, which may follow them, stays.
        """
        content = self.content(height, width)
        return [layer if len(layer) == 1 else _first(layer, *self.extent(content, len(layer))) for layer in maps]


def _first(layer: np.ndarray, rows: int, columns: int) -> np.ndarray:
    return np.ascontiguousarray(layer[:rows, :columns])


def squared(image: Image, size: int, padding: Padding | None) -> Image:
    """Return the image as a square of `size` pixels: squeezed, or with its proportions and padding."""
    return resized(image, size, size) if padding is None else padding.resized(image, size)
