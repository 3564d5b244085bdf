"""What learned rounds add to centroids: the same regions of real defects, k given, by product.

    python -m benchmarks.discovery_learned --data FOLDER [--model MODEL] [--epochs 10] [--product NAME] [--json FILE]

FOLDER has <product>/train/good/* and <product>/test/<kind>/*. Without a model one is fitted for all products, at an
alarm rate at which nearly all defects are seen, as in the published protocol. `[discovery]` names the backbone.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.report import add_json_option, emit
from discovery.learned import crop_backbone
from discovery.offline import agreement, discover_folder
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.scorer import ScorerSettings
from flawline.settings.tree import load_settings
from scorer.detector import Detector
from scorer.features.dataset import LazyImages, train_samples
from scorer.fit import fit_detector
from scorer.load import load_detector

ALARM_RATE: Final = 0.45
PRODUCTS: Final = ("magnetic_tile", "pcb", "screw", "tire", "transistor")
FIGURES: Final = ("nmi", "ari", "accuracy")


def compare(data: Path, fitted: Detector, products: Sequence[str], settings: DiscoverySettings) -> dict[str, float]:
    """Return NMI, ARI and accuracy of both modes for each product, their means, and the seconds that learning took."""
    backbone = crop_backbone.load(settings.crop_backbone, settings.crop_weights, settings.device)
    figures: dict[str, float] = {}
    for product in products:
        shown = [picture for picture in discover_folder.pictures(data / product) if not picture.is_good]
        described = discover_folder.by_model(shown, fitted, lambda done, total, stage: None)
        described.vectors = np.stack([region.embedding.array().astype(np.float32) for region in described.regions])
        truth = [str(picture.kind) for picture in described.pictures]
        for mode in ("centroids", "learned"):
            started = time.monotonic()
            chosen = settings.model_copy(update={"mode": mode})
            classes = discover_folder.classify(described, chosen, len(set(truth)), backbone)
            names = [name or discover_folder.NONE for name in classes.by_picture]
            measured = agreement.agreement(truth, names)
            figures |= {f"{product}_{mode}_{name}": measured[name] for name in FIGURES}
            figures[f"{product}_{mode}_seconds"] = time.monotonic() - started
        figures[f"{product}_regions"] = len(described.regions)
    for mode in ("centroids", "learned"):
        for name in FIGURES:
            figures[f"mean_{mode}_{name}"] = float(
                np.mean([figures[f"{product}_{mode}_{name}"] for product in products])
            )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("LINEBENCH"), required="LINEBENCH" not in os.environ
    )
    parser.add_argument("--model", type=Path, help="A fitted model that sees nearly all defects.")
    parser.add_argument("--product", action="append", help="Only this one; may be given again.")
    parser.add_argument("--epochs", type=int)
    add_json_option(parser)
    arguments = parser.parse_args()
    data, settings = Path(arguments.data), load_settings().discovery
    if arguments.epochs:
        settings = settings.model_copy(update={"learning_epochs": arguments.epochs})
    fitted = (
        load_detector(arguments.model)
        if arguments.model
        else fit_detector(
            LazyImages([sample.path for sample in train_samples(data)]), ScorerSettings(alarm_rate=ALARM_RATE)
        )
    )
    emit("discovery_learned", compare(data, fitted, arguments.product or PRODUCTS, settings), {}, arguments.json)


if __name__ == "__main__":
    main()
