"""anomalib's PaDiM on the images that the rest of the benchmark is measured on, with the same backbone and weights."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import scorer_anomalib
from benchmarks.scorer_anomalib import BATCH, LAYERS, SIDE, STRIDES, ranking
from scorer import backbone
from scorer import weights as weight_files
from scorer.settings import ScorerSettings

# Channels that PaDiM keeps of those that the layers have; its paper's number for ResNet18.
FEATURES = 100
SEED = 0


def compare(
    train: Sequence[np.ndarray], test: Sequence[np.ndarray], products: Sequence[str], is_defect: Sequence[bool]
) -> tuple[dict[str, float], dict[str, str]]:
    """Figures of PaDiM, fitted on all products together as ours is, and the versions in anomalib's environment."""
    theirs = _padim([backbone.resized(each, SIDE) for each in train], [backbone.resized(each, SIDE) for each in test])
    figures = {"padim_images_per_second": len(test) / theirs["inference_s"], "padim_fit_s": theirs["fit_s"]}
    figures |= {
        f"padim_{name}_image_auroc": value for name, value in ranking(products, is_defect, theirs["scores"]).items()
    }
    return figures, theirs["versions"]


def _padim(train: Sequence[np.ndarray], test: Sequence[np.ndarray]) -> dict[str, Any]:
    settings = ScorerSettings()
    module = backbone.torch_module(weight_files.find(settings.backbone, settings.weights), SIDE, STRIDES)
    with tempfile.TemporaryDirectory(prefix="flawline-padim-") as folder:
        given, result = Path(folder) / "in.npz", Path(folder) / "out.json"
        np.savez(
            given,
            train=np.stack(train),
            test=np.stack(test),
            mean=module.mean.flatten().numpy() / 255,
            std=1 / module.scale.flatten().numpy() / 255,
            layers=np.asarray(LAYERS),
            backbone=np.asarray(settings.backbone),
            features=FEATURES,
            seed=SEED,
            threads=backbone.cpu_count(),
            batch=BATCH,
            **{f"weights/{name}": value.numpy() for name, value in module.body.state_dict().items()},
        )
        worker = Path(__file__).with_name("padim_worker.py")
        command = [str(scorer_anomalib.environment()), str(worker), str(given), str(result)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return dict(json.loads(result.read_text()))
