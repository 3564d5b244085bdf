"""The graph of a frozen backbone: its input size and its outputs, and the image and the maps it works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline.settings.scorer import LayerSettings

Image = NDArray[np.uint8]
"""An RGB image (height, width, 3)."""
Maps = list[NDArray[np.float32]]
"""The feature maps of one image, (h, w, channels) for each layer."""


@dataclass(frozen=True)
class Graph:
    """A backbone at one input size: what an engine needs to run it, and a model to recognise it.

    `backbone` is its timm name, `weights` the key of its weights, `size` the side of its square input in pixels. Its
    outputs are float32 (1, h, w, channels), described by `strides`, `channels` and `grids` (h, equal to w). Where
    `strides` names a stride twice, the first output comes from halfway through the blocks of that stride, the second
    from the last block.
    """

    backbone: str
    weights: str
    size: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    grids: tuple[int, ...]

    @property
    def stem(self) -> str:
        """Return the file name of the graph, without suffix."""
        return f"backbone-{self.size}"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Graph:
        """Return the graph whose fields `dataclasses.asdict` gave. Raises TypeError for other fields."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values)


def resized(image: Image, size: int) -> Image:
    """Return the image stretched to a square of `size` pixels: by area mean where it shrinks, against aliasing."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    shrinks = height >= size and width >= size
    return np.asarray(
        cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )


def passes(layers: Sequence[LayerSettings]) -> dict[int, tuple[int, ...]]:
    """Return the backbone passes that the layers need: each input size with its layers' strides in ascending order."""
    sizes = sorted({layer.size for layer in layers})
    return {size: tuple(sorted(layer.stride for layer in layers if layer.size == size)) for size in sizes}
