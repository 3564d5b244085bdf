"""What scoring an image gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flawline.messages import Decision

Grid = NDArray[np.float32]


class RegionInputs:
    """The inputs of region embeddings: patches and residuals, both float32 (h, w, D) on the grid of the heat map.

    `make` returns the two. It is called when they are first asked for: in an alarm storm most rejects are never
    described. `size_bytes` is the memory that waits for it.
    """

    def __init__(self, make: Callable[[], tuple[Grid, Grid]], size_bytes: int) -> None:
        self._make = make
        self.size_bytes = size_bytes

    @classmethod
    def of(cls, patches: Grid, residuals: Grid) -> RegionInputs:
        """Return inputs that are made already."""
        return cls(lambda: (patches, residuals), patches.nbytes + residuals.nbytes)

    @cached_property
    def grids(self) -> tuple[Grid, Grid]:
        """Patches (features minus the mean of their group) and residuals (minus what the bank knows near them)."""
        return self._make()


@dataclass(frozen=True)
class Scores:
    """The result of scoring one image.

    `raw` is the score in units of its group's patches (1 is ordinary), `aligned` its natural-log ratio to the scores of
    the good images that look like it, `p_value` the conformal p-value. `heatmap` (h, w) covers the whole image, on the
    finest layer's grid, in aligned units. Images that are accepted have no `region_inputs`.
    """

    group: int
    raw: float
    aligned: float
    p_value: float
    decision: Decision
    heatmap: Grid
    region_inputs: RegionInputs | None = None

    @property
    def patches(self) -> Grid | None:
        """The patches of the region inputs, None for an image that is accepted."""
        return self.region_inputs.grids[0] if self.region_inputs is not None else None

    @property
    def residuals(self) -> Grid | None:
        """The residuals of the region inputs, None for an image that is accepted."""
        return self.region_inputs.grids[1] if self.region_inputs is not None else None
