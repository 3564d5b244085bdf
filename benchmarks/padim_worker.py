"""anomalib's PaDiM on given images; runs in anomalib's own environment and imports nothing of ours.

    python padim_worker.py IN.npz OUT.json

IN as for `anomalib_worker`, with `features`, the number of channels that PaDiM keeps by chance, and `seed`.
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
    """Fit and score; write seconds of each, the scores, and what versions made them."""
    given = np.load(sys.argv[1], allow_pickle=False)
    torch.set_num_threads(int(given["threads"]))
    torch.manual_seed(int(given["seed"]))
    model = PadimModel(
        layers=[str(each) for each in given["layers"]],
        backbone=str(given["backbone"]),
        pre_trained=False,
        n_features=int(given["features"]),
    )
    load_weights(model, given)
    model.train()
    model.feature_extractor.eval()
    with torch.inference_mode():
        started = time.perf_counter()
        for batch in batches(given, "train"):
            model(batch)
        model.fit()
        fit_s = time.perf_counter() - started
        model.eval()
        inputs = batches(given, "test")
        model(inputs[0])
        started = time.perf_counter()
        scores = [model(batch).pred_score.reshape(-1).tolist() for batch in inputs]
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
