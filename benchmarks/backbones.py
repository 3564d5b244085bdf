"""How fast backbones are on this machine's CPU: images a second of each, by OpenVINO, with random weights.

    python -m benchmarks.backbones [--json FILE] [--only NAME ...] [--seconds S]

The speed of a backbone does not depend on its weights, so none are fetched. Each one gives the layers that a fit takes
by default, at the size in its name. Images come decoded; resizing is included. The backbones take turns, so that other
work on the machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import save_file

from benchmarks import report
from flawline.settings.scorer import PROFILES, ScorerSettings
from scorer.features import backbone, weights
from scorer.features.backbone import Backbone
from scorer.features.conversion import prepare
from scorer.features.graph import Image
from scorer.features.structure import resolved

REFERENCE = "tf_efficientnet_lite0"
DINO = "vit_small_patch14_reg4_dinov2"
VIT_SIZES_PX = (224, 392, 448, 518)
BACKBONES: dict[str, tuple[str, int | None]] = {
    "lite0_256": (REFERENCE, None),
    "resnet18_256": ("resnet18", None),
    "wide_resnet50_256": ("wide_resnet50_2", None),
    "convnext_tiny_256": ("convnext_tiny", None),
    **{f"dinov2_s_{size}": (DINO, size) for size in VIT_SIZES_PX},
}
"""Names of figures, with the timm name of each backbone and the side of its input where it is not the profile's."""


def loaded(name: str, size_px: int | None, folder: Path) -> Backbone:
    """Return a backbone in OpenVINO, one thread for each CPU; `folder` takes random weights where none are packaged."""
    file: Path | None = None
    if not weights.is_packaged(name):
        file = folder / f"{name}.safetensors"
        if not file.exists():
            torch.manual_seed(0)
            save_file(timm.create_model(name, pretrained=False).state_dict(), file)
    layers = None
    if size_px is not None:
        layers = tuple(layer.model_copy(update={"size": size_px}) for layer in PROFILES["foundation"])
    settings = resolved(ScorerSettings(backbone=name, weights=file, layers=layers))
    return backbone.load(list(prepare(settings, folder / "cache").values()), runtime="openvino")


def images_per_second(features: Backbone, images: Sequence[Image], seconds: float) -> float:
    """Return how many images a second pass through, on all threads for about so many seconds."""
    count = 0
    start = time.perf_counter()
    with ThreadPoolExecutor(features.threads) as pool:
        while (passed_s := time.perf_counter() - start) < seconds or count == 0:
            count += sum(1 for _ in pool.map(features.features, images[: features.threads * 2]))
    passed_s = time.perf_counter() - start
    return count / passed_s


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the backbones and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.add_json_option(parser)
    parser.add_argument("--only", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--seconds", type=float, default=4, help="of each backbone in each of the three rounds")
    chosen = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (512, 640, 3), dtype=np.uint8) for _ in range(2 * (os.cpu_count() or 1))]
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        backbones = {name: loaded(*BACKBONES[name], Path(folder)) for name in chosen.only}
        rounds = [
            {name: images_per_second(features, images, chosen.seconds) for name, features in backbones.items()}
            for _ in range(3)
        ]
    for name in backbones:
        figures[f"images_per_second.{name}"] = max(of_round[name] for of_round in rounds)
    report.emit("backbones", figures, json_path=chosen.json)


if __name__ == "__main__":
    main()
