"""The evaluation of a detector on a data set: image and pixel accuracy, alarm rates, speed."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.messages import Decision
from scorer.detector import Detector
from scorer.evaluate.accuracy import PixelHistogram, image_accuracy
from scorer.features.dataset import GOOD, Delivery, LazyImages, Sample, read_mask
from scorer.features.graph import Image
from scorer.features.store import Progress
from scorer.maps import enlarged
from scorer.scores import Scores

# Side in pixels of the maps and masks that pixel accuracy is computed on: the input size of the fast profile.
_SIDE = 256
# Images in memory at once. A judgement: a hundred megabytes for images of a megapixel.
_BATCH = 32


@dataclass(frozen=True)
class Row:
    """A test image and its scores; `decision` is what the line would decide."""

    path: str
    product: str
    label: str
    group: int
    raw: float
    aligned: float
    p_value: float
    decision: str


def evaluate(
    detector: Detector,
    samples: Sequence[Sample],
    progress: Progress | None = None,
    on_unreadable: Callable[[Sample, FlawlineError], None] | None = None,
    delivery: Delivery | None = None,
) -> tuple[dict[str, Any], list[Row]]:
    """Return the report on test samples, with the keys that `evaluate --json` prints, and the row of each image.

    `pooled` takes all images of all products as one list, `macro` is the mean over products. Figures are fractions,
    None where a figure has no meaning. `images_per_second` is of scoring alone, without reading. `delivery` is the
    codec that the images pass through. A sample that cannot be read is handed to `on_unreadable(sample, error)` and
    left out; without `on_unreadable` it ends the evaluation. Raises FlawlineError when no sample can be read.
    """
    readable: list[Sample] = []
    rows: list[Row] = []
    heatmaps: list[NDArray[np.float32]] = []
    seconds = 0.0
    images = LazyImages([sample.path for sample in samples], delivery, detector.sample_bits)
    for start in range(0, len(samples), _BATCH):
        batch = _read(samples, images, range(start, min(start + _BATCH, len(samples))), on_unreadable)
        began = time.perf_counter()
        scores = detector.score([image for _, image in batch])
        seconds += time.perf_counter() - began
        for (sample, _), scores_of_image in zip(batch, scores, strict=True):
            readable.append(sample)
            heatmaps.append(scores_of_image.heatmap)
            rows.append(row(sample, scores_of_image))
        if progress:
            progress("scoring", min(start + _BATCH, len(samples)), len(samples))
    if not rows:
        raise FlawlineError("none of the test images can be read: give images that can")
    report = summarise(rows, pixel_histograms(readable, heatmaps, progress), detector.alarm_rate)
    return report | {"images_per_second": round(len(rows) / max(seconds, 1e-9), 2)}, rows


def row(sample: Sample, scores: Scores) -> Row:
    """Return the row of a test image and its scores."""
    return Row(
        path=str(sample.path),
        product=sample.product,
        label=sample.label,
        group=scores.group,
        raw=scores.raw,
        aligned=scores.aligned,
        p_value=scores.p_value,
        decision=str(scores.decision),
    )


def _read(
    samples: Sequence[Sample],
    images: LazyImages,
    indices: range,
    on_unreadable: Callable[[Sample, FlawlineError], None] | None,
) -> list[tuple[Sample, Image]]:
    """Return the readable ones of some samples by number, with their images."""
    batch = []
    for i in indices:
        try:
            batch.append((samples[i], images[i]))
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            on_unreadable(samples[i], error)
    return batch


def pixel_histograms(
    samples: Sequence[Sample], heatmaps: Sequence[NDArray[np.float32]], progress: Progress | None = None
) -> dict[str, PixelHistogram]:
    """Return the histogram of each product's pixel scores; images without ground truth are left out."""
    low, high = min(float(heat.min()) for heat in heatmaps), max(float(heat.max()) for heat in heatmaps)
    histograms: dict[str, PixelHistogram] = {}
    for done, (sample, heatmap) in enumerate(zip(samples, heatmaps, strict=True), start=1):
        mask = read_mask(sample, (_SIDE, _SIDE))
        histogram = histograms.setdefault(sample.product, PixelHistogram.empty(low, high))
        if mask is not None:
            histogram.add(enlarged(heatmap, _SIDE, _SIDE), mask)
        if progress:
            progress("pixels", done, len(samples))
    return histograms


def summarise(rows: Sequence[Row], histograms: dict[str, PixelHistogram], alarm_rate: float) -> dict[str, Any]:
    """Return the report of scored images: `pooled`, `macro`, `per_product`, `alarm_rate`, `recall_at_alarm_rate`.

    `alarm_rate` is the detector's target; `histograms` has one entry for each product.
    """
    products = sorted({row.product for row in rows})
    per_product = {
        product: _quality([row for row in rows if row.product == product], histograms[product]) for product in products
    }
    all_pixels = PixelHistogram.empty(0, 1)
    for histogram in histograms.values():
        all_pixels += histogram
    pooled = _quality(rows, all_pixels)
    accuracy = ("image_auroc", "image_ap", "pixel_auroc", "aupro")
    alarm_rates = [quality["alarm_rate"] for quality in per_product.values() if quality["alarm_rate"] is not None]
    return {
        "pooled": {key: pooled[key] for key in accuracy},
        "macro": {key: _mean([quality[key] for quality in per_product.values()]) for key in accuracy},
        "per_product": per_product,
        "alarm_rate": {
            "target": alarm_rate,
            "mean": pooled["alarm_rate"],
            "worst_product": max(alarm_rates) if alarm_rates else None,
        },
        "recall_at_alarm_rate": pooled["recall_at_alarm_rate"],
        "images": len(rows),
    }


def _quality(rows: Sequence[Row], histogram: PixelHistogram) -> dict[str, Any]:
    is_defect = np.asarray([row.label != GOOD for row in rows])
    is_alarmed = np.asarray([row.decision != Decision.ACCEPT for row in rows])
    return {
        **image_accuracy(is_defect, np.asarray([row.aligned for row in rows])),
        **histogram.accuracy(),
        "alarm_rate": float(is_alarmed[~is_defect].mean()) if not is_defect.all() else None,
        "recall_at_alarm_rate": float(is_alarmed[is_defect].mean()) if is_defect.any() else None,
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def write_scores(rows: Sequence[Row], file: Path) -> None:
    """Write the rows to `file`, whole or not at all: as JSON when its name ends in .json, else as CSV.

    Raises FlawlineError when the file cannot be written.
    """
    partial = file.with_name(f".{file.name}.partial")
    records = [asdict(row) for row in rows]
    try:
        with partial.open("w", newline="", encoding="utf-8") as out:
            if file.suffix.lower() == ".json":
                json.dump(records, out, indent=1)
            else:
                writer = csv.DictWriter(out, fieldnames=list(Row.__dataclass_fields__))
                writer.writeheader()
                writer.writerows(records)
        partial.replace(file)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise FlawlineError(f"{file}: cannot be written: {error.strerror}: choose another place") from error
