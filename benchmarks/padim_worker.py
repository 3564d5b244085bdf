"""Measures anomalib's PaDiM on the images of a file; runs in anomalib's environment and imports nothing of Flawline.

    python padim_worker.py IN.npz OUT.json

IN as for `anomalib_worker`, with `features`, the number of channels that PaDiM chooses at random, and `seed`.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib_worker import batches, load_weights  # beside this script, in whose folder Python looks first


def main() -> None:
    """Fit the model and score the test images; write the seconds of each step, the scores and the versions."""
    inputs = np.load(sys.argv[1], allow_pickle=False)
    torch.set_num_threads(int(inputs["threads"]))
    torch.manual_seed(int(inputs["seed"]))
    model = PadimModel(
        layers=[str(layer) for layer in inputs["layers"]],
        backbone=str(inputs["backbone"]),
        pre_trained=False,
        n_features=int(inputs["features"]),
    )
    load_weights(model, inputs)
    model.train()
    model.feature_extractor.eval()
    with torch.inference_mode():
        started = time.perf_counter()
        for batch in batches(inputs, "train"):
            model(batch)
        model.fit()
        fit_s = time.perf_counter() - started
        model.eval()
        test_batches = batches(inputs, "test")
        model(test_batches[0])
        started = time.perf_counter()
        scores = [model(batch).pred_score.reshape(-1).tolist() for batch in test_batches]
        inference_s = time.perf_counter() - started
    result = {
        "fit_s": fit_s,
        "inference_s": inference_s,
        "scores": [score for batch in scores for score in batch],
        "versions": {name: importlib.metadata.version(name) for name in ("anomalib", "torch", "timm", "lightning")},
    }
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
