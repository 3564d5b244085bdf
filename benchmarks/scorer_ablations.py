"""What each part of the scorer contributes: the product's functions on the same features, with one thing changed.

Rows say what an image is compared with:

- flat: one bank for all products, as many rows as all banks together; the level is that of all good images.
- grouped: a bank for each group found without labels; the level is that of the group.
- neighbour: the same banks; the level is that of the 25 most similar good images.
- product: the same banks, both levels weighted by how well they predict good images. This is Flawline.

Columns say where the level comes from:

- raw: there is none, scores are compared as they are.
- in_sample: good images' scores against banks that hold their own patches.
- cross_fit: good images' scores against banks that hold nothing of them.
- head: a ridge regression on the image embedding, after CADA, predicts the cross-fitted scores. It is trained on the
  good images and on copies with foreign texture pasted in, whose target is the score of the clean image. In the rows
  below grouped it is averaged with the row's level, each weighted by how well it predicts good images.

Thresholds are made as in the product, for 5 % of good images, from the good images' scores of the same cell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import Ridge

from benchmarks.scorer_anomalib import ranking
from flawline.settings.scorer import ScorerSettings
from scorer import calibration
from scorer.alignment import group_levels, normal_level
from scorer.cache import cache_dir
from scorer.coreset import projected
from scorer.detector import CoresetDetector
from scorer.extend.audit import pasted
from scorer.features import backbone
from scorer.features.graph import Image, Maps
from scorer.features.store import FeatureStore, checked, extract
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import GoodImages, calibrate_model, fit_model
from scorer.gallery import Gallery, first_copies
from scorer.model import Model
from scorer.search.bank import Int8Index

ROWS: Final = ("flat", "grouped", "neighbour", "product")
COLUMNS: Final = ("raw", "in_sample", "cross_fit", "head")
ALARM_RATE: Final = 0.05
_PASTED_SIDE: Final = 0.1
_PENALTIES: Final = tuple(10.0**power for power in range(-3, 4))
_FOLDS: Final = 5
# The side of pasted defects, the penalties and the folds are judgements, not measured.
_SHOWN: Final = ("pooled", "macro", "worst_product", "alarm_rate", "alarm_rate_worst_product")

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Tested:
    """The results of the test images: log scores and groups (n,), look-alikes (n, k) with -1 for none."""

    log_scores: Floats
    groups: Labels
    neighbours: Labels


@dataclass(frozen=True)
class Cell:
    """Aligned scores of good training images (cross-fitted or not, by the column) and of test images."""

    good: Floats
    test: Floats
    good_groups: Labels
    test_groups: Labels


def ablations(
    train: Sequence[Image],
    test: Sequence[Image],
    products: Sequence[str],
    is_defect: Sequence[bool],
    settings: ScorerSettings,
) -> dict[str, float]:
    """Return AUROC and alarm rates of each cell, as `ablation.<row>.<column>.<figure>`.

    `products` and `is_defect` (len(test)) are for the figures only.
    """
    settings = settings.model_copy(update={"alarm_rate": ALARM_RATE})
    graphs, features = backbone.of_settings(settings)
    folder = WorkFolder(cache_dir() / "fits", None)
    try:
        store, _ = extract(train, features, folder)
        grouped = fit_model(store, settings, features.threads)
        flat = fit_model(
            store, _as_many_rows(settings, grouped), features.threads, labels=np.zeros(len(store), dtype=np.int64)
        )
        fitted = {
            name: CoresetDetector(model, graphs, features)
            for name, model in {
                "flat": flat,
                "grouped": grouped,
                "flat in sample": _in_sample(store, settings, flat, features.threads),
                "grouped in sample": _in_sample(store, settings, grouped, features.threads),
            }.items()
        }
    finally:
        folder.close()
    maps = [features.features(checked(image)) for image in test]
    tested = {name: _tested(detector, maps) for name, detector in fitted.items()}
    product = fitted["grouped"]
    embeddings = product.embeddings(maps)
    del maps
    changed = product.embeddings([features.features(image) for image in _with_defects(train)])
    models = {name: detector.model for name, detector in fitted.items()}
    figures: dict[str, float] = {}
    for row in ROWS:
        for column in COLUMNS:
            name = ("flat" if row == "flat" else "grouped") + (" in sample" if column == "in_sample" else "")
            cell = _cell(row, column, models[name], tested[name], embeddings, changed)
            cell_figures = _figures(cell, np.asarray(products), np.asarray(is_defect), per_group=column != "raw")
            figures |= {f"ablation.{row}.{column}.{figure}": value for figure, value in cell_figures.items()}
    return figures


def _as_many_rows(settings: ScorerSettings, grouped: Model) -> ScorerSettings:
    """Return settings by which one bank has as many rows as the banks of all groups together."""
    layers = []
    for i, layer in enumerate(settings.active_layers):
        rows = sum(len(banks[i]) for banks in grouped.banks)
        layers.append(layer.model_copy(update={"rows": rows, "rows_per_image": float(rows)}))
    return settings.model_copy(update={"layers": tuple(layers)})


def _in_sample(store: FeatureStore, settings: ScorerSettings, model: Model, threads: int) -> Model:
    """Return the model calibrated on distances of its own training patches; all else is the same."""
    distances = []
    for i, (layer, patches) in enumerate(zip(model.layers, store.patches, strict=True)):
        banks = [Int8Index(banks[i]) for banks in model.banks]
        distances_of_layer = np.empty(patches.shape[:2], dtype=np.float32)
        for image, group in enumerate(model.groups):
            vectors = store.pool(i, np.asarray([image]))
            distances_of_layer[image], _ = projected(vectors, banks[group], layer.neighbours)
        distances.append(distances_of_layer)
    numbers = np.arange(len(store))
    settings = settings.model_copy(update={"layers": model.layers})
    images = GoodImages(store, model.embeddings, model.groups, sources=numbers, copies=numbers)
    return calibrate_model(images, settings, model.banks, distances, threads)


def _tested(detector: CoresetDetector, maps: Sequence[Maps]) -> Tested:
    model = detector.model
    neighbours = np.full((len(maps), model.look_alikes), -1, dtype=np.int64)
    log_scores, groups = np.empty(len(maps)), np.empty(len(maps), dtype=np.int64)
    for i, maps_of_image in enumerate(maps):
        scores, look = detector.score_features(maps_of_image), detector.route(maps_of_image)
        log_scores[i], groups[i] = np.log(scores.raw), scores.group
        neighbours[i, : len(look.neighbours)] = look.neighbours
        level = model.level(look.group, look.neighbours)
        if abs(scores.aligned - (log_scores[i] - level)) > 1e-6:
            raise AssertionError("the scores of cell `product, cross_fit` differ from those of the product")
    return Tested(log_scores, groups, neighbours)


def _with_defects(images: Sequence[Image]) -> list[Image]:
    """Return each image with a piece of another one in it, as the audit of an extended model makes them."""
    half = len(images) // 2
    return [pasted(image, images[i - half], _PASTED_SIDE, seed=i) for i, image in enumerate(images)]


def _cell(
    row: str, column: str, model: Model, tested: Tested, embeddings: NDArray[np.float32], changed: NDArray[np.float32]
) -> Cell:
    good_level, test_level = np.zeros(len(model.log_scores)), np.zeros(len(tested.log_scores))
    if column != "raw":
        good_level, test_level = _levels(row, model, tested)
    if column == "head":
        head_good, head_test = head(model.log_scores, model.embeddings, changed, embeddings)
        share = 0.0
        if row in ("neighbour", "product"):
            errors = [np.mean((model.log_scores - level) ** 2) for level in (head_good, good_level)]
            share = float(errors[0] / max(sum(errors), 1e-12))
        good_level = share * good_level + (1 - share) * head_good
        test_level = share * test_level + (1 - share) * head_test
    return Cell(model.log_scores - good_level, tested.log_scores - test_level, model.groups, tested.groups)


def _levels(row: str, model: Model, tested: Tested) -> tuple[Floats, Floats]:
    """Return the normal log scores of the good images and of the test images, by the row's rule."""
    gallery = Gallery(model.embeddings, model.groups)
    look_alikes, _ = gallery.neighbours_of_members(model.look_alikes, first_copies(model.embeddings))
    if row == "neighbour":
        return normal_level(model.log_scores, look_alikes), normal_level(model.log_scores, tested.neighbours)
    if row == "product":
        return model.levels(model.groups, look_alikes), model.levels(tested.groups, tested.neighbours)
    levels = group_levels(model.log_scores, model.groups)
    return levels[model.groups], levels[tested.groups]


def head(
    log_scores: Floats, embeddings: NDArray[np.float32], changed: NDArray[np.float32], tested: NDArray[np.float32]
) -> tuple[Floats, Floats]:
    """Return log scores predicted from embeddings: of the good images (n,) and of the `tested` ones (m, d).

    `changed` (n, d) are the embeddings of the good images' copies with defects. A good image is predicted without
    itself and its copy. The penalty is the one with the least error on the good images.
    """
    fold_of_image = np.random.default_rng(0).permutation(len(log_scores)) % _FOLDS

    def trained(penalty: float, chosen: NDArray[np.bool_]) -> Ridge:
        both = np.concatenate([embeddings[chosen], changed[chosen]])
        return Ridge(alpha=penalty).fit(both, np.tile(log_scores[chosen], 2))

    predicted = {penalty: np.empty(len(log_scores)) for penalty in _PENALTIES}
    for penalty, values in predicted.items():
        for fold in range(_FOLDS):
            left_out = fold_of_image == fold
            values[left_out] = trained(penalty, ~left_out).predict(embeddings[left_out])
    best = min(_PENALTIES, key=lambda penalty: float(np.mean((predicted[penalty] - log_scores) ** 2)))
    everything = np.ones(len(log_scores), dtype=bool)
    return predicted[best], np.asarray(trained(best, everything).predict(tested), dtype=np.float64)


def _figures(cell: Cell, products: NDArray[np.str_], is_defect: NDArray[np.bool_], per_group: bool) -> dict[str, float]:
    """Return the figures of a cell; with `per_group` scores are divided by their group's spread, as in the product."""
    good, test = cell.good, cell.test
    if per_group:
        widths = calibration.group_widths(cell.good, cell.good_groups)
        good, test = cell.good / widths[cell.good_groups], cell.test / widths[cell.test_groups]
    is_alarmed = test > calibration.threshold(np.sort(good), ALARM_RATE).value
    alarm_rates = [
        float(is_alarmed[(products == name) & ~is_defect].mean()) for name in np.unique(products[~is_defect])
    ]
    return {
        **ranking(products.tolist(), is_defect.tolist(), cell.test.tolist()),
        "alarm_rate": float(is_alarmed[~is_defect].mean()),
        "alarm_rate_worst_product": max(alarm_rates),
        "recall": float(is_alarmed[is_defect].mean()),
    }


def table(figures: Mapping[str, float]) -> str:
    """Return the cells as a Markdown table: pooled / macro / worst product; alarm rate / that of the worst product."""
    lines = [
        f"pooled / macro / worst product's image AUROC; good test images alarmed at {ALARM_RATE:.0%} "
        "(all / worst product)",
        "",
        "| | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
    ]
    for row in ROWS:
        cells = []
        for column in COLUMNS:
            shown = {name: figures.get(f"ablation.{row}.{column}.{name}", float("nan")) for name in _SHOWN}
            aurocs = " / ".join(f"{shown[name]:.3f}" for name in _SHOWN[:3])
            cells.append(f"{aurocs}; " + " / ".join(f"{100 * shown[name]:.1f} %" for name in _SHOWN[3:]))
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
