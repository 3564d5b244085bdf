"""Measures anomalib's PatchCore on the images of a file; runs in anomalib's environment and imports nothing from here.

    python anomalib_worker.py IN.npz PICTURES OUT.json

Two ways are timed: the model's forward on prepared batches, which is the most that anomalib can do, and what its users
run, `Engine.predict` on the folder PICTURES with the test images, which decodes, pre- and post-processes (drawing of
results is off).

IN holds `train` and `test` (n, side, side, 3) uint8, `mean` and `std` (3,) in 0 to 1, `layers`, `backbone`, `ratio`,
`threads`, `batch`, `share` (of the coreset steps to time), `chosen` (the bank, where the share is less than all of it)
and the weights as `weights/<name>`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib.data import PredictDataset
from anomalib.engine import Engine
from anomalib.models import Patchcore
from anomalib.models.components.sampling import KCenterGreedy
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Compose, Normalize, Resize


def main() -> None:
    """Fit the model, select its bank and score the test images; write the seconds of each step and the scores."""
    inputs = np.load(sys.argv[1], allow_pickle=False)
    torch.set_num_threads(int(inputs["threads"]))
    torch.manual_seed(0)
    model = PatchcoreModel(
        layers=[str(layer) for layer in inputs["layers"]], backbone=str(inputs["backbone"]), pre_trained=False
    )
    load_weights(model, inputs)
    model.train()
    model.feature_extractor.eval()
    started = time.perf_counter()
    with torch.inference_mode():
        for batch in batches(inputs, "train"):
            model(batch)
        features_s = time.perf_counter() - started
        vectors = torch.vstack(model.embedding_store)
        share = float(inputs["share"])
        started = time.perf_counter()
        bank = KCenterGreedy(embedding=vectors, sampling_ratio=float(inputs["ratio"]) * share).sample_coreset()
        coreset_s = (
            time.perf_counter() - started
        ) / share  # each step looks at every vector once, so all take the same time
        model.memory_bank = bank if share == 1 else vectors[torch.from_numpy(inputs["chosen"])]
        model.eval()
        test_batches = batches(inputs, "test")
        model(test_batches[0])
        started = time.perf_counter()
        scores = [model(batch).pred_score.reshape(-1).tolist() for batch in test_batches]
        inference_s = time.perf_counter() - started
    side = inputs["test"].shape[1]
    normalise = Normalize(mean=inputs["mean"].tolist(), std=inputs["std"].tolist())
    pipeline = Patchcore(
        layers=[str(layer) for layer in inputs["layers"]],
        backbone=str(inputs["backbone"]),
        pre_trained=False,
        pre_processor=PreProcessor(transform=Compose([Resize((side, side), antialias=True), normalise])),
        visualizer=False,
    )
    pipeline.model = model
    engine_s = {str(batch): predict_s(pipeline, Path(sys.argv[2]), batch) for batch in (1, int(inputs["batch"]))}
    result = {
        "features_s": features_s,
        "coreset_s": coreset_s,
        "inference_s": inference_s,
        "engine_s": engine_s,
        "vectors": len(vectors),
        "bank": list(model.memory_bank.shape),
        "scores": [score for batch in scores for score in batch],
    }
    Path(sys.argv[3]).write_text(json.dumps(result))


class Stopwatch(Callback):
    """Measures the seconds from the first batch to the last, without the set-up."""

    def on_predict_start(self, trainer, pl_module) -> None:
        self.started = time.perf_counter()

    def on_predict_end(self, trainer, pl_module) -> None:
        self.seconds = time.perf_counter() - self.started


def predict_s(model: Patchcore, pictures: Path, batch: int) -> float:
    """Return the seconds that `Engine.predict` takes for a folder of pictures, the shorter of two runs."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(2):
            watch = Stopwatch()
            engine = Engine(
                callbacks=[watch],
                accelerator="cpu",
                devices=1,
                logger=False,
                enable_progress_bar=False,
                default_root_dir=folder,
            )
            data = PredictDataset(pictures)
            engine.predict(model=model, dataloaders=DataLoader(data, batch_size=batch, collate_fn=data.collate_fn))
            seconds.append(watch.seconds)
    return min(seconds)


def load_weights(model: Any, inputs: Mapping[str, np.ndarray]) -> None:
    """Load the weights of the file `inputs` into the model's backbone."""
    weights = {name.removeprefix("weights/"): inputs[name] for name in inputs if name.startswith("weights/")}
    model.feature_extractor.feature_extractor.load_state_dict(
        {name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}
    )


def batches(inputs: Mapping[str, np.ndarray], kind: str) -> list[torch.Tensor]:
    """Return the images of a kind (`train` or `test`) as normalised float32 batches (batch, 3, side, side)."""
    mean, std = (torch.from_numpy(inputs[name].astype(np.float32)).view(1, 3, 1, 1) for name in ("mean", "std"))
    step, images = int(inputs["batch"]), inputs[kind]
    parts = [images[i : i + step] for i in range(0, len(images), step)]
    return [(torch.from_numpy(part).permute(0, 3, 1, 2).float() / 255 - mean) / std for part in parts]


if __name__ == "__main__":
    main()
