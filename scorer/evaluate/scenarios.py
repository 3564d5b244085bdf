"""The four scenarios of HierCore: product labels known or not, at fit and at test.

Where labels are known at fit, the groups are the products; where they are known at test, each image is compared with
its own product's good images and every product has a threshold of its own. Nothing else differs, and the cells share
one pass of the backbone. What a line does is "unknown, unknown".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError, UsageError
from flawline.settings.scorer import ScorerSettings
from scorer import calibration
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector
from scorer.evaluate.accuracy import image_metrics
from scorer.features import backbone
from scorer.features.dataset import LazyImages, Sample
from scorer.features.store import Progress, checked, extract, in_order
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import fit_model
from scorer.model import Model

Floats = NDArray[np.float64]
OnUnreadable = Callable[[Sample, FlawlineError], None]

NAMES = ("known-known", "known-unknown", "unknown-known", "unknown-unknown")
"""The scenarios: labels at fit, labels at test."""


@dataclass(frozen=True)
class Scored:
    """Test images of one scenario: `margin` (n,) is the standardised score minus its threshold, above 0 an alarm."""

    margin: Floats
    products: NDArray[np.str_]
    is_defect: NDArray[np.bool_]

    def report(self) -> dict[str, Any]:
        """`pooled` and `macro` image AUROC and AP, the gap, the worst product, the spread, and the alarm rates."""
        names = sorted(set(self.products.tolist()))
        each = {name: image_metrics(self.is_defect[own], self.margin[own]) for name, own in self._by(names)}
        alarms = {name: _share(self.margin[own & ~self.is_defect] > 0) for name, own in self._by(names)}
        pooled = image_metrics(self.is_defect, self.margin)
        aurocs = [value["image_auroc"] for value in each.values() if value["image_auroc"] is not None]
        precisions = [value["image_ap"] for value in each.values() if value["image_ap"] is not None]
        macro = {
            "image_auroc": float(np.mean(aurocs)) if aurocs else None,
            "image_ap": float(np.mean(precisions)) if precisions else None,
        }
        both = pooled["image_auroc"] is not None and macro["image_auroc"] is not None
        known = [value for value in alarms.values() if value is not None]
        return {
            "pooled": pooled,
            "macro": macro,
            "pooled_minus_macro": pooled["image_auroc"] - macro["image_auroc"] if both else None,  # type: ignore[operator]
            "worst_product": min(aurocs) if aurocs else None,
            "std_over_products": float(np.std(aurocs)) if aurocs else None,
            "alarm_rate": {
                "mean": _share(self.margin[~self.is_defect] > 0),
                "worst_product": max(known) if known else None,
            },
            "recall_at_alarm_rate": _share(self.margin[self.is_defect] > 0),
            "per_product": {name: {**each[name], "alarm_rate": alarms[name]} for name in names},
        }

    def _by(self, names: Sequence[str]) -> list[tuple[str, NDArray[np.bool_]]]:
        return [(name, self.products == name) for name in names]


def _share(values: NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


def compare(
    train: Sequence[Sample],
    test: Sequence[Sample],
    settings: ScorerSettings,
    progress: Progress | None = None,
    on_unreadable: OnUnreadable | None = None,
) -> dict[str, Any]:
    """The report of each scenario by its name, and how well unlabelled groups match products.

    `group_purity`: the share of good training images that are of their group's most frequent product;
    `routed_to_own_product`: the share of test images, good and defective ones, that are routed to a group of theirs.

    Fits twice, once with the products of `train` as groups and once without any label. Raises UsageError for a product
    with fewer good images than a group can be calibrated on, or that is tested without having been fitted.
    """
    products = sorted({sample.product for sample in train})
    if strange := sorted({sample.product for sample in test} - set(products)):
        raise UsageError(f"{strange[0]}: is tested without training images: add {strange[0]}/train/good")
    graphs, features = backbone.of_settings(settings)
    skip = None if on_unreadable is None else (lambda i, error: on_unreadable(train[i], error))
    folder = WorkFolder(cache_dir() / "fits", None)
    try:
        store, kept = extract(LazyImages([sample.path for sample in train]), features, folder, progress, skip)
        labels = np.asarray([products.index(train[i].product) for i in kept], dtype=np.int64)
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
    readable, scores, routed = _standardised(fitted, features, products, test, progress, on_unreadable)
    tested = np.asarray([products.index(sample.product) for sample in readable])
    is_defect = np.asarray([sample.is_defect for sample in readable])
    report: dict[str, Any] = {}
    for name in NAMES:
        at_fit, at_test = name.split("-")
        cuts = _cuts(fitted[at_fit].model, labels, settings.alarm_rate, per_product=at_test == "known")
        report[name] = Scored(scores[name] - cuts[tested], np.asarray(products)[tested], is_defect).report()
    return {
        "scenarios": report,
        "groups": fitted["unknown"].groups,
        "group_purity": _purity(fitted["unknown"].model.groups, labels),
        "routed_to_own_product": {
            name: _share((_usual(fitted["unknown"].model.groups, labels)[routed] == tested)[chosen])
            for name, chosen in (("good", ~is_defect), ("defective", is_defect))
        },
        "alarm_rate_target": settings.alarm_rate,
        "images": len(readable),
    }


def _standardised(
    fitted: dict[str, CoresetDetector],
    features: backbone.Backbone,
    products: Sequence[str],
    test: Sequence[Sample],
    progress: Progress | None,
    on_unreadable: OnUnreadable | None,
) -> tuple[list[Sample], dict[str, Floats], NDArray[np.int64]]:
    """The readable test images, for each scenario their standardised scores, and their groups found without labels.

    One backbone pass an image.
    """
    from concurrent.futures import ThreadPoolExecutor

    images = LazyImages([sample.path for sample in test])

    def work(i: int) -> list[float] | FlawlineError:
        try:
            maps = features.features(checked(images[i]))
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            return error
        own = products.index(test[i].product)
        known, unknown = fitted["known"], fitted["unknown"]
        routed = unknown.score_features(maps)
        without = unknown.standardised(routed)
        return [
            known.standardised(known.score_features(maps, group=own)),
            known.standardised(known.score_features(maps)),
            without,  # a label at test picks the threshold only
            without,
            routed.group,
        ]

    readable, rows = [], []
    with ThreadPoolExecutor(features.threads) as pool:
        for i, row in enumerate(in_order(work, len(test), pool)):
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
    """The threshold of each product (k,): its own good images' or, the same for all, the model's."""
    count = int(labels.max()) + 1
    if not per_product:
        return np.full(count, model.review.value)
    return np.asarray(
        [calibration.threshold(np.sort(model.standardised[labels == k]), rate).value for k in range(count)]
    )


def _usual(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """The most frequent label of each group (K,)."""
    return np.asarray([np.bincount(labels[groups == k]).argmax() for k in range(int(groups.max()) + 1)], dtype=np.int64)


def _purity(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """The share of images that are of their group's most frequent product."""
    return float((_usual(groups, labels)[groups] == labels).mean())
