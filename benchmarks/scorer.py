"""How fast and how good the scorer is: whole scoring against the bare backbone, and quality on real images.

    python -m benchmarks.scorer [--json FILE] [--data FOLDER] [--profile fast|accurate]

Quality needs a data folder (default: the environment's LINEBENCH); without one, speed is measured on drawn images.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.report import Goal, emit
from scorer import backbone, commands, detector
from scorer.dataset import LazyImages, test_samples
from scorer.settings import ScorerSettings

ROUNDS = 5
IMAGES = 96


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("LINEBENCH"))
    parser.add_argument("--profile", choices=("fast", "accurate"), default="fast")
    parser.add_argument("--precision", choices=("f32", "bf16"), default="f32")
    arguments = parser.parse_args()
    settings = ScorerSettings(profile=arguments.profile, precision=arguments.precision)
    figures: dict[str, float] = {}
    goals: dict[str, Goal] = {"share_of_backbone": (">=", 0.8)}
    with tempfile.TemporaryDirectory(prefix="flawline-benchmark-") as folder:
        if arguments.data:
            report = commands.fit(Path(arguments.data), Path(folder) / "model", settings)
            figures |= {f"{kind}_{key}": value for kind in ("pooled", "macro") for key, value in report[kind].items()}
            figures["worst_product_alarm_rate"] = report["alarm_rate"]["worst_product"]
            figures["recall_at_alarm_rate"] = report["recall_at_alarm_rate"]
            figures |= {key: report[key] for key in ("fit_seconds", "model_bytes", "groups")}
            goals |= {"pooled_image_auroc": (">=", 0.88), "fit_seconds": ("<=", 120)}
            fitted = detector.load(Path(folder) / "model")
            samples = test_samples(Path(arguments.data))
            images = list(LazyImages([each.path for each in samples[:: max(1, len(samples) // IMAGES)]]))
        else:
            images = drawn(IMAGES)
            fitted = detector.fit(images, settings)
            figures["fit_seconds"] = fitted.report["fit_seconds"]
        figures |= speed(fitted, settings, images)
    emit("scorer", figures, goals, arguments.json)


def speed(
    fitted: detector.HierarchicalCoreset, settings: ScorerSettings, images: Sequence[np.ndarray]
) -> dict[str, float]:
    """Images per second of scoring and of the backbone alone, rounds in turn so that a busy machine hits both alike."""
    bare = backbone.load(list(backbone.prepare(settings).values()), precision=settings.precision)
    with ThreadPoolExecutor(bare.threads) as pool:
        tasks: dict[str, Callable[[], object]] = {
            "scoring": lambda: fitted.score(images),
            "backbone": lambda: list(pool.map(bare.features, images)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for task in tasks.values():
            task()
        for _ in range(ROUNDS):
            for name, task in tasks.items():
                started = time.perf_counter()
                task()
                seconds[name].append(time.perf_counter() - started)
    best = {name: len(images) / min(values) for name, values in seconds.items()}
    return {
        "images_per_second": best["scoring"],
        "backbone_images_per_second": best["backbone"],
        "share_of_backbone": best["scoring"] / best["backbone"],
    }


def drawn(count: int) -> list[np.ndarray]:
    """Noisy plates of two materials, 256 px."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    plates = [np.sin(x / 3) * 40 + 120, (x + y) / 4 + 60]
    return [
        np.clip(plates[i % 2][:, :, None] + rng.normal(0, 8, (256, 256, 3)), 0, 255).astype(np.uint8)
        for i in range(count)
    ]


if __name__ == "__main__":
    main()
