"""What quality costs: AUROC against images per second, for both profiles and smaller variants of them.

    python -m benchmarks.frontier [--data FOLDER] [--json FILE] [--only NAME ...]

The folder (default: the environment's LINEBENCH) has <product>/train/good and <product>/test. Each point is fitted on
all good images without labels and scores all test images; reading them is not timed.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Final

from benchmarks.report import emit
from flawline.errors import FlawlineError
from scorer import detector
from scorer.dataset import LazyImages, test_samples, train_samples
from scorer.evaluation import evaluate
from scorer.settings import PROFILES, LayerSettings, ScorerSettings


def _smaller(layers: tuple[LayerSettings, ...], share: float) -> tuple[LayerSettings, ...]:
    """The layers with so much smaller banks."""
    return tuple(
        each.model_copy(update={"rows": int(each.rows * share), "rows_per_image": each.rows_per_image * share})
        for each in layers
    )


_FAST: Final = PROFILES["fast"]
POINTS: Final = {
    "fast_quarter_banks": _smaller(_FAST, 0.25),
    "fast_last_maps_only": tuple(each for each in _FAST if not each.earlier),
    "fast": _FAST,
    "accurate": PROFILES["accurate"],
}


def measure(folder: Path, layers: tuple[LayerSettings, ...]) -> dict[str, float]:
    """Pooled and macro image AUROC, pixel AUROC, AUPRO, and images per second of a model with these layers."""
    train, test = train_samples(folder), test_samples(folder)
    fitted = detector.fit(LazyImages([sample.path for sample in train]), ScorerSettings(layers=layers))
    report, _ = evaluate(fitted, test)
    figures = {f"pooled_{name}": value for name, value in report["pooled"].items()}
    figures |= {f"macro_{name}": value for name, value in report["macro"].items()}
    worst = [each["image_auroc"] for each in report["per_product"].values() if each["image_auroc"] is not None]
    figures |= {"worst_product_image_auroc": min(worst, default=None), "images_per_second": report["images_per_second"]}
    return {name: float(value) for name, value in figures.items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LINEBENCH"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(POINTS), default=list(POINTS))
    options = parser.parse_args()
    if options.data is None:
        raise SystemExit("no data folder: name one with --data, or set LINEBENCH")
    figures: dict[str, float] = {}
    try:
        for name in options.only:
            point = measure(Path(options.data), POINTS[name])
            figures |= {f"{name}.{figure}": value for figure, value in point.items()}
    except FlawlineError as error:
        raise SystemExit(str(error)) from error
    print("| point | images/s | pooled | macro | worst product | pixel | AUPRO |\n|---|---|---|---|---|---|---|")
    for name in options.only:
        columns = ("images_per_second", "pooled_image_auroc", "macro_image_auroc", "worst_product_image_auroc")
        shown = [figures.get(f"{name}.{each}", float("nan")) for each in columns]
        pixels = [figures.get(f"{name}.{each}", float("nan")) for each in ("pooled_pixel_auroc", "pooled_aupro")]
        print(f"| {name} | {shown[0]:.0f} | " + " | ".join(f"{value:.3f}" for value in (*shown[1:], *pixels)) + " |")
    emit("frontier", figures, json_path=options.json)


if __name__ == "__main__":
    main()
