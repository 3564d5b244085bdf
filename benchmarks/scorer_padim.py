"""anomalib's PaDiM on the images that the rest of the benchmark is measured on, with the same backbone and weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.scorer_anomalib import SIDE, ranking, run_worker
from scorer.features.graph import resized

# Channels that PaDiM keeps of those that the layers have; its paper's number for ResNet18.
FEATURES = 100
SEED = 0


def compare(
    train: Sequence[np.ndarray], test: Sequence[np.ndarray], products: Sequence[str], is_defect: Sequence[bool]
) -> tuple[dict[str, float], dict[str, str]]:
    """Figures of PaDiM, fitted on all products together as ours is, and the versions in anomalib's environment."""
    train, test = ([resized(each, SIDE) for each in images] for images in (train, test))
    theirs = run_worker("padim_worker.py", train, test, {"features": FEATURES, "seed": SEED})
    figures = {"padim_images_per_second": len(test) / theirs["inference_s"], "padim_fit_s": theirs["fit_s"]}
    figures |= {
        f"padim_{name}_image_auroc": value for name, value in ranking(products, is_defect, theirs["scores"]).items()
    }
    return figures, theirs["versions"]
