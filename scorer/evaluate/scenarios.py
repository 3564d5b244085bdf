"""The four scenarios of HierCore: product labels known or unknown, at fit and at test.

Where labels are known at fit, the groups are the products. Where they are known at test, each image is compared with
the good images of its product, and every product has its own threshold. Nothing else differs, and the scenarios share
one pass of the backbone. A line is the scenario "unknown-unknown".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError, UsageError
from flawline.settings.scorer import ScorerSettings
from scorer import calibration
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector
from scorer.evaluate.accuracy import image_accuracy
from scorer.features import backbone
from scorer.features.dataset import LazyImages, Sample
from scorer.features.store import Progress, checked, extract, in_order
from scorer.features.structure import resolved
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import fit_model
from scorer.model import Model

Floats = NDArray[np.float64]
OnUnreadable = Callable[[Sample, FlawlineError], None]

NAMES = ("known-known", "known-unknown", "unknown-known", "unknown-unknown")
"""The scenarios: labels at fit, then labels at test."""


@dataclass(frozen=True)
class Scored:
    """Test images of one scenario; `margin` (n,) is the standardised score minus its threshold, above 0 an alarm."""

    margin: Floats
    products: NDArray[np.str_]
    is_defect: NDArray[np.bool_]

    def report(self) -> dict[str, Any]:
        """Return pooled and macro image AUROC and AP, their gap, the worst product, the spread, and alarm rates."""
        names = sorted(set(self.products.tolist()))
        members = {name: self.products == name for name in names}
        accuracy = {name: image_accuracy(self.is_defect[of], self.margin[of]) for name, of in members.items()}
        alarm_rates = {name: _share(self.margin[of & ~self.is_defect] > 0) for name, of in members.items()}
        pooled = image_accuracy(self.is_defect, self.margin)
        aurocs = [value["image_auroc"] for value in accuracy.values() if value["image_auroc"] is not None]
        precisions = [value["image_ap"] for value in accuracy.values() if value["image_ap"] is not None]
        macro = {
            "image_auroc": float(np.mean(aurocs)) if aurocs else None,
            "image_ap": float(np.mean(precisions)) if precisions else None,
        }
        gap = None
        if pooled["image_auroc"] is not None and macro["image_auroc"] is not None:
            gap = pooled["image_auroc"] - macro["image_auroc"]
        known_rates = [rate for rate in alarm_rates.values() if rate is not None]
        return {
            "pooled": pooled,
            "macro": macro,
            "pooled_minus_macro": gap,
            "worst_product": min(aurocs) if aurocs else None,
            "std_over_products": float(np.std(aurocs)) if aurocs else None,
            "alarm_rate": {
                "mean": _share(self.margin[~self.is_defect] > 0),
                "worst_product": max(known_rates) if known_rates else None,
            },
            "recall_at_alarm_rate": _share(self.margin[self.is_defect] > 0),
            "per_product": {name: {**accuracy[name], "alarm_rate": alarm_rates[name]} for name in names},
        }


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def compare(
    train: Sequence[Sample],
    test: Sequence[Sample],
    settings: ScorerSettings,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> dict[str, Any]:
    """Return the report of each scenario by its name, and how well the groups found without labels match products.

    `group_purity` is the share of good training images that are of their group's most frequent product;
    `routed_to_own_product` the share of test images, good and defective, that are routed to a group of their product.

    Fits twice: with the products of `train` as groups, and without labels. An image that cannot be read is handed to
    `on_unreadable(sample, error)` and left out; without `on_unreadable` it ends the comparison. Raises UsageError for a
    product with fewer good images than a group can be calibrated on, or with test images only.
    """
    products = sorted({sample.product for sample in train})
    if untrained := sorted({sample.product for sample in test} - set(products)):
        raise UsageError(f"{untrained[0]}: is tested without training images: add {untrained[0]}/train/good")
    settings = resolved(settings)
    graphs, features = backbone.of_settings(settings)
    on_unreadable_training = None if on_unreadable is None else (lambda i, error: on_unreadable(train[i], error))
    folder = WorkFolder(cache_dir() / "fits", None)
    try:
        store, readable_training = extract(_images(train, settings), features, folder, progress, on_unreadable_training)
        labels = np.asarray([products.index(train[i].product) for i in readable_training], dtype=np.int64)
        sizes = np.bincount(labels, minlength=len(products))
        if sizes.min() < settings.folds:
            name = products[int(sizes.argmin())]
            raise UsageError(f"{name}: {sizes.min()} good images: at least {settings.folds} are needed to compare")
        fitted = {
            "known": CoresetDetector(
                fit_model(store, settings, features.threads, progress, labels=labels), graphs, features
            ),
            "unknown": CoresetDetector(fit_model(store, settings, features.threads, progress), graphs, features),
        }
    finally:
        folder.close()
    readable, scores, routed = _standardised(fitted, features, products, test, settings, progress, on_unreadable)
    tested = np.asarray([products.index(sample.product) for sample in readable])
    is_defect = np.asarray([sample.is_defect for sample in readable])
    report: dict[str, Any] = {}
    for name in NAMES:
        at_fit, at_test = name.split("-")
        cuts = _cuts(fitted[at_fit].model, labels, fitted[at_fit].model.alarm_rate, per_product=at_test == "known")
        report[name] = Scored(scores[name] - cuts[tested], np.asarray(products)[tested], is_defect).report()
    return {
        "scenarios": report,
        "groups": fitted["unknown"].groups,
        "group_purity": _purity(fitted["unknown"].model.groups, labels),
        "routed_to_own_product": {
            name: _share((_products_of_groups(fitted["unknown"].model.groups, labels)[routed] == tested)[of_kind])
            for name, of_kind in (("good", ~is_defect), ("defective", is_defect))
        },
        "alarm_rate_target": fitted["unknown"].model.alarm_rate,
        "images": len(readable),
    }


def _images(samples: Sequence[Sample], settings: ScorerSettings) -> LazyImages:
    return LazyImages([sample.path for sample in samples], sample_bits=(8, settings.sample_bits or 16))


def _standardised(
    fitted: dict[str, CoresetDetector],
    features: backbone.Backbone,
    products: Sequence[str],
    test: Sequence[Sample],
    settings: ScorerSettings,
    progress: Progress | None,
    on_unreadable: OnUnreadable | None,
) -> tuple[list[Sample], dict[str, Floats], NDArray[np.int64]]:
    """Return the readable test images, their standardised scores in each scenario, and their groups without labels.

    Each image passes through the backbone once. Raises FlawlineError when no image can be read.
    """
    images = _images(test, settings)

    def scores_of(i: int) -> list[float] | FlawlineError:
        try:
            maps = features.features(checked(images[i]))
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            return error
        product = products.index(test[i].product)
        known, unknown = fitted["known"], fitted["unknown"]
        routed = unknown.score_features(maps)
        score_without_label = unknown.standardised(routed)
        return [
            known.standardised(known.score_features(maps, group=product)),
            known.standardised(known.score_features(maps)),
            score_without_label,  # here a label at test chooses the threshold only
            score_without_label,
            routed.group,
        ]

    readable, rows = [], []
    with ThreadPoolExecutor(features.threads) as pool:
        for i, row in enumerate(in_order(scores_of, len(test), pool)):
            if isinstance(row, FlawlineError):
                assert on_unreadable is not None
                on_unreadable(test[i], row)
            else:
                readable.append(test[i])
                rows.append(row)
            if progress:
                progress("scoring", i + 1, len(test))
    if not rows:
        raise FlawlineError("none of the test images can be read: give images that can")
    *scores, groups = np.asarray(rows, dtype=np.float64).T
    return readable, dict(zip(NAMES, scores, strict=True)), groups.astype(np.int64)


def _cuts(model: Model, labels: NDArray[np.int64], rate: float, *, per_product: bool) -> Floats:
    """Return the threshold of each product (k,): from its own good images or, the same for all, the model's."""
    count = int(labels.max()) + 1
    if not per_product:
        return np.full(count, model.review.value)
    by_product = [model.standardised[(labels == k) & np.isfinite(model.standardised)] for k in range(count)]
    return np.asarray([calibration.threshold(np.sort(scores), rate).value for scores in by_product])


def _products_of_groups(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the most frequent label of each group (K,); `groups` and `labels` (n,) are of the good images."""
    return np.asarray([np.bincount(labels[groups == k]).argmax() for k in range(int(groups.max()) + 1)], dtype=np.int64)


def _purity(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Return the share of images that are of their group's most frequent product."""
    return float((_products_of_groups(groups, labels)[groups] == labels).mean())
