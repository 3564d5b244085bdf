"""The price of accuracy: AUROC against images per second, for both profiles and for points between and below them.

    python -m benchmarks.frontier [--data FOLDER] [--json FILE] [--svg FILE] [--only NAME ...]

The folder (default: the environment's LINEBENCH) has <product>/train/good and <product>/test. Each point is fitted on
all good images without labels and scores all test images. Features are computed once, with the layers of all points.
Speeds are of whole scoring, without reading, by a detector with the layers of its point only. The detectors take turns,
so that other work on the machine disturbs all of them alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.report import add_json_option, emit
from flawline.errors import FlawlineError
from flawline.settings.scorer import PROFILES, LayerSettings, ScorerSettings
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector
from scorer.evaluate.evaluation import Row, pixel_histograms, row, summarise
from scorer.features import backbone
from scorer.features.dataset import LazyImages, Sample, test_samples, train_samples
from scorer.features.store import FeatureStore, checked, extract, in_order
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import fit_model

Layers = tuple[LayerSettings, ...]


def _smaller(layers: Layers, share: float) -> Layers:
    """Return the layers with banks of this share of their rows."""
    return tuple(
        layer.model_copy(update={"rows": int(layer.rows * share), "rows_per_image": layer.rows_per_image * share})
        for layer in layers
    )


_FAST, _ACCURATE = PROFILES["fast"], PROFILES["accurate"]
POINTS: Final[dict[str, Layers]] = {
    "fast_quarter_banks": _smaller(_FAST, 0.25),
    "fast_last_maps_only": tuple(layer for layer in _FAST if not layer.earlier),
    "fast": _FAST,
    "fast_and_last_map_at_512": (*_FAST, *(layer for layer in _ACCURATE if layer.size == 512 and not layer.earlier)),
    "accurate_quarter_banks": _smaller(_ACCURATE, 0.25),
    "accurate": _ACCURATE,
}
COLUMNS: Final = {
    "images_per_second": "images/s",
    "processor_ms_per_image": "processor ms an image",
    "pooled_image_auroc": "pooled",
    "macro_image_auroc": "macro",
    "worst_product_image_auroc": "worst product",
    "pooled_pixel_auroc": "pooled pixel",
    "macro_pixel_auroc": "macro pixel",
    "pooled_aupro": "pooled AUPRO",
}
_ROUNDS = 5
_TIMED_IMAGES = 48


def measure(folder: Path, names: Sequence[str], settings: ScorerSettings) -> dict[str, float]:
    """Return the figures of the points as `<point>.<figure>`: accuracy, images per second, seconds of the fit."""
    train, test = train_samples(folder), test_samples(folder)
    settings_of = {name: settings.model_copy(update={"layers": POINTS[name]}) for name in names}
    all_layers = {_place(layer): layer for point in settings_of.values() for layer in point.active_layers}
    union = settings.model_copy(update={"layers": tuple(all_layers.values())})
    places = [_place(layer) for layer in union.active_layers]
    layers_of = {
        name: [places.index(_place(layer)) for layer in point.active_layers] for name, point in settings_of.items()
    }
    _, features = backbone.of_settings(union)
    folder_of_work = WorkFolder(cache_dir() / "fits", None)
    figures: dict[str, float] = {}
    fitted: dict[str, CoresetDetector] = {}
    try:
        store, _ = extract(LazyImages([sample.path for sample in train]), features, folder_of_work)
        for name, point in settings_of.items():
            started = time.perf_counter()
            model = fit_model(_some(store, layers_of[name]), point, features.threads)
            figures[f"{name}.fit_seconds_after_features"] = time.perf_counter() - started
            fitted[name] = CoresetDetector(model, *backbone.of_settings(point))
    finally:
        folder_of_work.close()
    figures |= _accuracy(fitted, layers_of, features, test)
    return figures | _speeds(fitted, [LazyImages([sample.path])[0] for sample in _spread(test, _TIMED_IMAGES)])


def _place(layer: LayerSettings) -> tuple[str, bool]:
    return layer.name, layer.earlier


def _some(store: FeatureStore, layers: Sequence[int]) -> FeatureStore:
    """Return some layers of a store; a fit takes banks that another point has too from its folder."""
    return dataclasses.replace(
        store,
        patches=[store.patches[i] for i in layers],
        means=[store.means[i] for i in layers],
        grids=[store.grids[i] for i in layers],
    )


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    return [samples[i] for i in np.unique(np.linspace(0, len(samples) - 1, count).astype(int))]


def _accuracy(
    fitted: Mapping[str, CoresetDetector],
    layers_of: Mapping[str, Sequence[int]],
    features: backbone.Backbone,
    test: Sequence[Sample],
) -> dict[str, float]:
    """Return the accuracy figures of all points; each test image passes through the backbone once."""
    images = LazyImages([sample.path for sample in test])

    def scored(i: int) -> dict[str, tuple[Row, np.ndarray]]:
        maps = features.features(checked(images[i]))
        scores = {
            name: detector.score_features([maps[layer] for layer in layers_of[name]])
            for name, detector in fitted.items()
        }
        return {
            name: (row(test[i], scores_of_point), scores_of_point.heatmap) for name, scores_of_point in scores.items()
        }

    with ThreadPoolExecutor(features.threads) as pool:
        results = list(in_order(scored, len(test), pool))
    figures: dict[str, float | None] = {}
    for name, detector in fitted.items():
        rows = [result[name][0] for result in results]
        histograms = pixel_histograms(test, [result[name][1] for result in results])
        report = summarise(rows, histograms, detector.alarm_rate)
        for kind in ("pooled", "macro"):
            figures |= {f"{name}.{kind}_{figure}": value for figure, value in report[kind].items()}
        figures |= {f"{name}.{product}": value["image_auroc"] for product, value in report["per_product"].items()}
        aurocs = [value["image_auroc"] for value in report["per_product"].values() if value["image_auroc"] is not None]
        figures[f"{name}.worst_product_image_auroc"] = min(aurocs, default=None)
        figures[f"{name}.recall_at_alarm_rate"] = report["recall_at_alarm_rate"]
        figures[f"{name}.alarm_rate"] = report["alarm_rate"]["mean"]
    return {name: float(value) for name, value in figures.items() if value is not None}


def _speeds(fitted: Mapping[str, CoresetDetector], images: Sequence[np.ndarray]) -> dict[str, float]:
    """Return images per second, and processor time an image, which other work on the machine disturbs less."""
    seconds: dict[str, list[float]] = {name: [] for name in fitted}
    processor_s: dict[str, list[float]] = {name: [] for name in fitted}
    for detector in fitted.values():
        detector.score(images)
    for _ in range(_ROUNDS):
        for name, detector in fitted.items():
            started, used_s = time.perf_counter(), time.process_time()
            detector.score(images)
            seconds[name].append(time.perf_counter() - started)
            processor_s[name].append(time.process_time() - used_s)
    figures = {f"{name}.images_per_second": len(images) / min(values) for name, values in seconds.items()}
    return figures | {
        f"{name}.processor_ms_per_image": 1e3 * min(values) / len(images) for name, values in processor_s.items()
    }


def table(figures: Mapping[str, float], names: Sequence[str]) -> str:
    """Return the points as a Markdown table."""
    lines = ["| point | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name in names:
        values = [figures.get(f"{name}.{column}", float("nan")) for column in COLUMNS]
        shown = [f"{values[0]:.0f}", f"{values[1]:.1f}", *(f"{value:.3f}" for value in values[2:])]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def drawing(figures: Mapping[str, float], names: Sequence[str]) -> str:
    """Return the points as an SVG: image AUROC, pooled and macro, over images per second of one core (log scale)."""
    width, height, left, bottom = 720, 420, 60, 50
    speed_of = {name: 1000 / figures[f"{name}.processor_ms_per_image"] for name in names}
    speeds = list(speed_of.values())
    kinds = {"pooled_image_auroc": "#1f77b4", "macro_image_auroc": "#d95f02"}
    values = [figures[f"{name}.{kind}"] for name in names for kind in kinds]
    low, high = np.floor(min(values) * 100 - 0.5) / 100, np.ceil(max(values) * 100 + 0.5) / 100
    first, last = np.log(min(speeds) / 1.3), np.log(max(speeds) * 1.6)

    def place(speed: float, value: float) -> tuple[float, float]:
        across = (np.log(speed) - first) / (last - first)
        return left + across * (width - left - 20), 20 + (high - value) / (high - low) * (height - bottom - 20)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">images per second of one core</text>',
    ]
    for value in np.arange(low, high + 1e-9, 0.01):
        y = place(speeds[0], value)[1]
        parts.append(f'<line x1="{left}" y1="{y:.1f}" x2="{width - 20}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.2f}</text>')
    for speed in (tick for tick in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000) if first <= np.log(tick) <= last):
        x = place(speed, low)[0]
        parts.append(f'<line x1="{x:.1f}" y1="20" x2="{x:.1f}" y2="{height - bottom}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{speed}</text>')
    for number, (kind, colour) in enumerate(kinds.items()):
        for name in names:
            x, y = place(speed_of[name], figures[f"{name}.{kind}"])
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>')
            if number == 0:
                parts.append(f'<text x="{x + 8:.1f}" y="{y + 14:.1f}">{name.replace("_", " ")}</text>')
        parts.append(f'<circle cx="{left + 14}" cy="{height - bottom - 34 + 18 * number}" r="5" fill="{colour}"/>')
        label = kind.replace("_", " ").replace("auroc", "AUROC")
        parts.append(f'<text x="{left + 24}" y="{height - bottom - 30 + 18 * number}">{label}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=os.environ.get("LINEBENCH"))
    add_json_option(parser)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--only", nargs="+", choices=list(POINTS), default=list(POINTS))
    options = parser.parse_args()
    if options.data is None:
        raise SystemExit("no data folder: name one with --data, or set LINEBENCH")
    settings = ScorerSettings()
    try:
        figures = measure(Path(options.data), options.only, settings)
    except FlawlineError as error:
        raise SystemExit(str(error)) from error
    print(table(figures, options.only))
    if options.svg:
        options.svg.write_text(drawing(figures, options.only))
    emit("frontier", figures, json_path=options.json, details={"seed": settings.seed, "precision": settings.precision})


if __name__ == "__main__":
    main()
