"""anomalib's PaDiM beside ours: on the same images, with the same backbone and weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.scorer_anomalib import SIDE, ranking, run_worker
from scorer.features.graph import resized

# Channels that PaDiM draws from those of all layers: the number in its paper for ResNet18 (Defard et al. 2021).
FEATURES = 100
SEED = 0


def compare(
    train: Sequence[np.ndarray], test: Sequence[np.ndarray], products: Sequence[str], is_defect: Sequence[bool]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the figures of PaDiM, fitted on all products together as ours is, and the versions in its environment."""
    train, test = ([resized(image, SIDE, SIDE) for image in images] for images in (train, test))
    result = run_worker("padim_worker.py", train, test, {"features": FEATURES, "seed": SEED})
    figures = {"padim_images_per_second": len(test) / result["inference_s"], "padim_fit_s": result["fit_s"]}
    figures |= {
        f"padim_{name}_image_auroc": value for name, value in ranking(products, is_defect, result["scores"]).items()
    }
    return figures, result["versions"]
