"""The graph of a frozen backbone: its input size and its outputs, and the image and the maps it works on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from flawline.settings.scorer import LayerSettings

Layer = TypeVar("Layer")

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
    from the last block. The outputs of a transformer come from its `blocks`, by number from 1; a last one (1, 1, 1,
    channels) then describes the image.
    """

    backbone: str
    weights: str
    size: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    grids: tuple[int, ...]
    blocks: tuple[int, ...] = ()

    @property
    def outputs(self) -> int:
        """Return the number of outputs."""
        return len(self.strides) + bool(self.blocks)

    @property
    def stem(self) -> str:
        """Return the file name of the graph, without suffix."""
        return f"backbone-{self.size}"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Graph:
        """Return the graph whose fields `dataclasses.asdict` gave. Raises TypeError for other fields."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values)


def resized(image: Image, height: int, width: int) -> Image:
    """Return the image stretched to `height` times `width` pixels: by area mean where it shrinks, against aliasing."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=how), dtype=np.uint8)


@dataclass(frozen=True)
class Outputs:
    """The maps of one pass: the strides of a pyramid in ascending order, or the blocks of a transformer."""

    strides: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()


def passes(layers: Sequence[LayerSettings]) -> dict[int, Outputs]:
    """Return the backbone passes that the layers need: each input size with the maps that it gives."""
    sizes = sorted({layer.size for layer in layers})
    return {
        size: Outputs(
            tuple(sorted(layer.stride for layer in layers if layer.size == size and layer.stride)),
            tuple(sorted(layer.block for layer in layers if layer.size == size and layer.block)),
        )
        for size in sizes
    }


def in_order_of_layers(passes_of_image: Sequence[list[Layer]], graphs: Sequence[Graph]) -> list[Layer]:
    """Return the maps of all passes in the order of layers, then the vector (1, 1, c) of the image where there is one.

    The first pass, that of the smallest input, describes the image.
    """
    maps = [
        layer for graph, of_pass in zip(graphs, passes_of_image, strict=True) for layer in of_pass[: len(graph.strides)]
    ]
    return maps + passes_of_image[0][len(graphs[0].strides) :]
