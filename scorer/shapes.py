"""How images that are not square come to the square model input: squeezed, with padding, or cut into square tiles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flawline.errors import FlawlineError
from scorer.features.graph import Image
from scorer.features.store import checked

if TYPE_CHECKING:
    from flawline.settings.scorer import ScorerSettings

log = logging.getLogger(__name__)

STRIP = 2.25
"""A strip is at least so many times as long as it is wide: between juice bottles (2), which are as good squeezed since
their flavours are told apart, and commutators (2.5), which are not (docs/scoring.md)."""
# As many images as the smallest group may have (scorer/groups.py) make a shape of their own.
_FEWEST_ALIKE = 10
# Images have one shape when the ratios of their sides differ by less than the first factor. A camera's strips do; crops
# around parts differ more, so that less than this share of those within the second factor has one shape. Chosen between
# commutators (all of one shape) and magnetic tiles (crops, which cutting made worse); the numbers are judgements.
_SAME, _NEAR, _SHARE_SAME = 1.03, 1.15, 0.9


@dataclass(frozen=True)
class Cutting:
    """How images are cut into tiles: into squares of `side_px` pixels or, with None, strips into squares.

    These are as wide as the strip. Strips are those of some `shapes` (see `is_strip`), or all; other images stay whole.
    `overlap` is the least share of a tile that the next one covers too.
    """

    side_px: int | None
    overlap: float
    shapes: tuple[float, ...] | None = None

    def tile_px(self, height: int, width: int) -> tuple[int, int]:
        """Return the side and the overlap of the tiles of an image of this size, in pixels."""
        side_px = self.side_px
        if side_px is None:
            side_px = min(height, width) if is_strip(height, width, self.shapes) else max(height, width)
        return side_px, round(side_px * self.overlap)


def is_strip(height: int, width: int, shapes: Sequence[float] | None) -> bool:
    """Return whether an image of this size is a strip, of one of some shapes (width over height), or of any (None)."""
    if max(height, width) < STRIP * min(height, width):
        return False
    return shapes is None or any(max(width / height / shape, shape * height / width) < _SAME for shape in shapes)


def strip_shapes(sizes: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Return the shapes (width over height) of the strips that a camera takes, by the sizes (height, width) of images.

    Ten images at least have such a shape, and hardly any image has one near it: strips of many shapes are crops.
    """
    ratios = np.asarray([width / height for height, width in sizes if is_strip(height, width, None)])
    shapes: list[float] = []
    while len(ratios) >= _FEWEST_ALIKE:
        apart = np.abs(np.log(ratios[:, None] / ratios))
        alike = (apart < np.log(_SAME)).sum(axis=1)
        middle = int(alike.argmax())
        is_near = apart[middle] < np.log(_NEAR)
        if alike[middle] >= max(_FEWEST_ALIKE, _SHARE_SAME * is_near.sum()):
            shapes.append(float(np.median(ratios[apart[middle] < np.log(_SAME)])))
        ratios = ratios[~is_near]
    return tuple(sorted(shapes))


def decided(settings: ScorerSettings, images: Sequence[Image]) -> tuple[ScorerSettings, Cutting | None]:
    """Return the settings with the shape that "auto" stands for, and how images are cut, None where they are not.

    "auto" stands for tiles where some strips have a shape of their own (`strip_shapes`), else for squeezed images. That
    is said in the log. Images that cannot be read say nothing.
    """
    if settings.tile_px is not None or settings.shape == "tile":
        cutting = Cutting(settings.tile_px, settings.tile_overlap)
        return settings.model_copy(update={"shape": "tile"}), cutting
    if settings.shape != "auto":
        return settings, None
    sizes = _sizes(images)
    shapes = strip_shapes(sizes)
    if not shapes:
        return settings.model_copy(update={"shape": "squeeze"}), None
    strips = [size for size in sizes if is_strip(*size, shapes)]
    log.warning(
        "%d of %d good images are strips, such as %dx%d px, which lose their small defects when they are squeezed to a "
        'square: they are cut into squares, which takes longer; to keep them whole, set scorer.shape to "squeeze" or '
        '"pad"',
        len(strips),
        len(sizes),
        *strips[0][::-1],
    )
    return settings.model_copy(update={"shape": "tile"}), Cutting(None, settings.tile_overlap, shapes)


def _sizes(images: Sequence[Image]) -> list[tuple[int, int]]:
    """Return height and width of the images that can be read; of files by their headers."""
    if (of_files := getattr(images, "sizes", None)) is not None:
        return list(of_files())
    sizes = []
    for image in images:
        try:
            height, width = checked(image).shape[:2]
        except FlawlineError:
            continue  # the fit reads it again, and names it with the error
        sizes.append((height, width))
    return sizes
