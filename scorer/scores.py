"""What scoring an image gives."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawline.messages import Decision


@dataclass(frozen=True)
class Scores:
    """The result of scoring one image.

    `raw` is the score in units of its group's patches (1 is ordinary), `aligned` its natural-log ratio to the scores of
    the good images that look like it, `p_value` the conformal p-value. `heatmap` (h, w) covers the whole image, on the
    finest layer's grid, in aligned units. `patches` (features minus their group's mean) and `residuals` (features minus
    what the bank knows near them), both (h, w, D) on the heat map's grid, are the inputs of region embeddings; images
    that are accepted have none.
    """

    group: int
    raw: float
    aligned: float
    p_value: float
    decision: Decision
    heatmap: NDArray[np.float32]
    patches: NDArray[np.float32] | None = None
    residuals: NDArray[np.float32] | None = None
