"""Whether one ranking serves products that differ much in their number of images: pooled image AUROC beside macro.

    python -m benchmarks.alignment_gap [--data FOLDER ...] [--json FILE] [--draws N] [--profile fast|accurate]

Each draw takes three products of all data folders, and 30 to 200 good training images of each, fits a model on them and
tests it on all test images of the three. `macro` is the mean of the products' AUROC, `pooled` that of all images in one
list. Not all of the gap between them is lost by alignment: macro counts a product of twelve good test images as much as
one of eighty. `gap_by_own_tests` is what remains when each product's scores are ranks among its own good test images,
which no fit can know. Good training images that no draw took tell the alarm rates: up to
40 of a product. By default the folders are the environment's LINEBENCH and, where there is one, linebench2 beside it.
20 draws take about half an hour and 2 GB of memory on two cores.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.report import Goal, add_json_option, emit
from benchmarks.scorer_quality import Lab
from flawline.settings.scorer import ScorerSettings
from scorer import calibration
from scorer.features.dataset import test_samples, train_samples
from scorer.features.graph import Maps
from scorer.model import Model

SEED: Final = 0
DRAWS: Final = 20
PRODUCTS: Final = 3
FEWEST, MOST = 30, 200
# Good images of a product that the alarm rates are measured on, of those that were not fitted.
HELD_OUT: Final = 40
RATES: Final = {"5_percent": 0.05, "1_percent": 0.01, "half_percent": 0.005}
GOALS: Final[dict[str, Goal]] = {
    "worst_gap": ("<=", 0.02),
    "mean_gap": ("<=", 0.01),
    "worst_gap_standardised": ("<=", 0.02),
    "mean_gap_standardised": ("<=", 0.01),
}


@dataclass(frozen=True)
class Draw:
    """Some products, and the numbers of their good training images that are fitted, and of some that are not."""

    products: list[str]
    fitted: NDArray[np.intp]
    held_out: NDArray[np.intp]


def draws(products: NDArray[np.str_], count: int, seed: int = SEED) -> list[Draw]:
    """Return `count` draws from the good training images, whose products are `products` (n,)."""
    rng = np.random.default_rng(seed)
    names = np.unique(products)
    drawn = []
    for _ in range(count):
        chosen = sorted(rng.choice(names, min(PRODUCTS, len(names)), replace=False).tolist())
        fitted, held_out = [], []
        for name in chosen:
            images = rng.permutation(np.flatnonzero(products == name))
            size = min(int(rng.integers(FEWEST, MOST + 1)), len(images))
            fitted.append(images[:size])
            held_out.append(images[size : size + HELD_OUT])
        drawn.append(Draw(chosen, np.sort(np.concatenate(fitted)), np.sort(np.concatenate(held_out))))
    return drawn


def measured(lab: Lab, draw: Draw, cache: dict[int, Maps]) -> dict[str, Any]:
    """Return what a model fitted on a draw shows: its groups, AUROC of both scores, alarm rates and recall."""
    fitted = lab.fit(draw.fitted)
    tested = np.flatnonzero(~lab.is_train & np.isin(lab.products, draw.products))
    images = np.concatenate([tested, draw.held_out])

    def maps_of(number: int) -> Maps:
        if number not in cache:
            cache[number] = lab.maps(number)
        return cache[number]

    def scores_of(number: int) -> tuple[float, float]:
        scores = fitted.score_features(maps_of(number))
        return scores.aligned, fitted.standardised(scores)

    with ThreadPoolExecutor(lab.features.threads) as pool:
        scores = np.asarray(list(pool.map(scores_of, images.tolist())), dtype=np.float64)
    of_tests = scores[: len(tested)]
    is_defect, products = lab.is_defect[tested], lab.products[tested]
    result: dict[str, Any] = {
        "images": {name: int((lab.products[draw.fitted] == name).sum()) for name in draw.products},
        "groups": groups_of(fitted.model, lab.products[draw.fitted]),
    }
    for place, kind in enumerate(("", "_standardised")):
        by_product = [
            roc_auc_score(is_defect[products == name], of_tests[products == name, place]) for name in draw.products
        ]
        result[f"pooled{kind}"] = float(roc_auc_score(is_defect, of_tests[:, place]))
        result[f"macro{kind}"] = float(np.mean(by_product))
    ranks = ranks_among_own(of_tests[:, 0], is_defect, products)
    result["pooled_by_own_tests"] = float(roc_auc_score(is_defect, ranks))
    for name, rate in RATES.items():
        is_alarmed = scores[:, 1] > calibration.threshold(fitted.model.calibration, rate).value
        result[f"recall_{name}"] = float(is_alarmed[: len(tested)][is_defect].mean())
        result[f"alarms_{name}"] = {
            product: [int(is_alarmed[len(tested) :][of].sum()), int(of.sum())]
            for product in draw.products
            if (of := lab.products[draw.held_out] == product).any()
        }
    return result


def ranks_among_own(
    scores: NDArray[np.float64], is_defect: NDArray[np.bool_], products: NDArray[np.str_]
) -> NDArray[np.float64]:
    """Return the share of its product's good test images that lie below each image (n,): the best of alignments."""
    ranks = np.empty(len(scores))
    for name in np.unique(products):
        of = products == name
        good = np.sort(scores[of & ~is_defect])
        ranks[of] = np.searchsorted(good, scores[of]) / len(good)
    return ranks


def groups_of(model: Model, products: NDArray[np.str_]) -> list[dict[str, int]]:
    """Return for each group how many of its images are of which product."""
    groups = []
    for group in range(len(model.banks)):
        names, counts = np.unique(products[model.groups == group], return_counts=True)
        groups.append(dict(zip(names.tolist(), counts.tolist(), strict=True)))
    return groups


def figures(results: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Return the figures of all draws together."""
    summary: dict[str, float] = {}
    for kind in ("", "_standardised"):
        gaps = [result[f"macro{kind}"] - result[f"pooled{kind}"] for result in results]
        summary |= {f"worst_gap{kind}": max(gaps), f"mean_gap{kind}": float(np.mean(gaps))}
        summary |= {
            f"{name}{kind}": float(np.mean([result[f"{name}{kind}"] for result in results]))
            for name in ("pooled", "macro")
        }
    remaining = [result["macro"] - result["pooled_by_own_tests"] for result in results]
    summary |= {"worst_gap_by_own_tests": max(remaining), "mean_gap_by_own_tests": float(np.mean(remaining))}
    sizes = [sum(group.values()) for result in results for group in result["groups"]]
    summary["groups_for_each_product"] = float(np.mean([len(r["groups"]) / len(r["images"]) for r in results]))
    summary["images_of_smallest_group"] = min(sizes)
    summary["share_in_group_of_own_product"] = float(
        sum(max(group.values()) for result in results for group in result["groups"]) / sum(sizes)
    )
    for name in RATES:
        by_product: dict[str, list[list[int]]] = {}
        for result in results:
            for product, counts in result[f"alarms_{name}"].items():
                by_product.setdefault(product, []).append(counts)
        totals = {product: np.sum(counts, axis=0) for product, counts in by_product.items()}
        if totals:
            alarms, images = np.sum(list(totals.values()), axis=0)
            summary[f"held_out_alarm_rate_at_{name}"] = float(alarms / images)
            summary[f"worst_product_held_out_alarm_rate_at_{name}"] = float(max(a / n for a, n in totals.values()))
        summary[f"recall_at_{name}"] = float(np.mean([result[f"recall_{name}"] for result in results]))
    return summary


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=default_folders())
    add_json_option(parser)
    parser.add_argument("--draws", type=int, default=DRAWS)
    parser.add_argument("--profile", choices=("fast", "accurate"), default="fast")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("--data or LINEBENCH: name folders with <product>/train/good and <product>/test")
    train = [sample for folder in arguments.data for sample in train_samples(folder)]
    test = [sample for folder in arguments.data for sample in test_samples(folder)]
    lab = Lab(train, test, ScorerSettings(profile=arguments.profile, runtime="openvino"))
    cache: dict[int, Maps] = {}
    try:
        drawn = draws(lab.products[lab.is_train], arguments.draws)
        results = [measured(lab, draw, cache) for draw in drawn]
    finally:
        lab.close()
    details = {"seed": SEED, "folders": [folder.name for folder in arguments.data], "draws": results}
    emit("alignment_gap", figures(results), GOALS, arguments.json, details=details)


def default_folders() -> list[Path]:
    """Return the folder that LINEBENCH names, and linebench2 beside it, where they are."""
    named = os.environ.get("LINEBENCH")
    if named is None:
        return []
    return [folder for folder in (Path(named), Path(named).parent / "linebench2") if folder.is_dir()]


if __name__ == "__main__":
    main()
