"""What the scorer promises beside accuracy, on a data folder: scenarios, alarm rates, unknown products, defects among
the good images, and the same decision on every runtime.

    python -m benchmarks.scorer_quality [--data FOLDER] [--json FILE] [--profile NAME] [--limit N] [--only PART]

The folder (default: the environment's LINEBENCH) has <product>/train/good and <product>/test. Parts: scenarios, alarms,
unknown, contamination, decisions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from benchmarks.report import Goal, add_json_option, emit
from flawline.errors import FlawlineError
from flawline.messages import Decision
from flawline.settings.scorer import ScorerSettings
from scorer import calibration, trimming
from scorer.cache import cache_dir
from scorer.detector import CoresetDetector
from scorer.evaluate import scenarios
from scorer.features import backbone
from scorer.features.dataset import LazyImages, Sample, test_samples, train_samples
from scorer.features.graph import Maps
from scorer.features.store import extract
from scorer.features.workfolder import WorkFolder
from scorer.fit_model import fit_model
from scorer.gallery import Gallery, group_gates, image_embeddings
from scorer.groups import find_groups
from scorer.model import embedding_layers

PARTS = ("scenarios", "alarms", "unknown", "contamination", "decisions")
RATES = {"5_percent": 0.05, "1_percent": 0.01}
SEED = 0
SPLITS = 4
CONTAMINATION = 0.1

Figures = dict[str, float]


class Lab:
    """The features of all images of a data folder, computed once, and detectors fitted on parts of the images.

    Images have the numbers of the training images, then of the test images.
    """

    def __init__(self, train: Sequence[Sample], test: Sequence[Sample], settings: ScorerSettings) -> None:
        self.train, self.test, self.settings = list(train), list(test), settings
        self.graphs, self.features = backbone.of_settings(settings)
        self.folder = WorkFolder(cache_dir() / "fits", None)
        images = LazyImages([sample.path for sample in [*train, *test]])
        self.store, _ = extract(images, self.features, self.folder)
        self.products = np.asarray([sample.product for sample in [*train, *test]])
        self.is_defect = np.asarray([sample.is_defect for sample in [*train, *test]])
        self.is_train = np.arange(len(images)) < len(train)
        self._images = images

    def close(self) -> None:
        """Remove the features from disk."""
        self.folder.close()

    def fit(self, chosen: NDArray[np.intp], *, trim: bool = False) -> CoresetDetector:
        """Return a detector fitted on some images by number, with `trim` without those that stand out."""
        store = trimming.only(self.store, chosen)
        model = fit_model(store, self.settings, self.features.threads)
        if trim and (suspects := trimming.suspects(model.standardised, model.groups)).any():
            model = fit_model(trimming.only(self.store, chosen[~suspects]), self.settings, self.features.threads)
        return CoresetDetector(model, self.graphs, self.features)

    def maps(self, number: int) -> Maps:
        """Return the feature maps of an image by number."""
        return self.features.features(self._images[number])

    def scores(self, fitted: CoresetDetector, chosen: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the aligned and the standardised score (n, 2) of some images by number."""

        def scores_of(number: int) -> tuple[float, float]:
            scores = fitted.score_features(self.maps(number))
            return scores.aligned, fitted.standardised(scores)

        with ThreadPoolExecutor(self.features.threads) as pool:
            return np.asarray(list(pool.map(scores_of, chosen.tolist())), dtype=np.float64).reshape(-1, 2)


def compare_scenarios(lab: Lab) -> tuple[Figures, dict[str, Goal]]:
    """Return the figures of the four scenarios: labels known or unknown, at fit and at test."""
    report = scenarios.compare(lab.train, lab.test, lab.settings)
    figures = {"group_purity": report["group_purity"]}
    figures |= {f"routed_to_own_product_{kind}": value for kind, value in report["routed_to_own_product"].items()}
    for name, cell in report["scenarios"].items():
        name = name.replace("-", "_")
        figures |= {
            f"{name}_macro": cell["macro"]["image_auroc"],
            f"{name}_pooled": cell["pooled"]["image_auroc"],
            f"{name}_worst_product": cell["worst_product"],
            f"{name}_std": cell["std_over_products"],
            f"{name}_alarm_rate": cell["alarm_rate"]["mean"],
            f"{name}_alarm_rate_worst_product": cell["alarm_rate"]["worst_product"],
            f"{name}_recall": cell["recall_at_alarm_rate"],
        }
    return figures, {}


def alarms(lab: Lab) -> tuple[Figures, dict[str, Goal]]:
    """Return the alarm rates of good training images that took no part in the fit: each is left out of one of four."""
    good = np.flatnonzero(lab.is_train)
    split_of_image = np.random.default_rng(SEED).permutation(len(good)) % SPLITS
    is_alarmed = {name: np.zeros(len(good), dtype=bool) for name in RATES}
    for split in range(SPLITS):
        fitted = lab.fit(good[split_of_image != split])
        standardised = lab.scores(fitted, good[split_of_image == split])[:, 1]
        for name, rate in RATES.items():
            cut = calibration.threshold(fitted.model.calibration, rate).value
            is_alarmed[name][split_of_image == split] = standardised > cut
    figures: Figures = {}
    products = lab.products[good]
    for name, flags in is_alarmed.items():
        figures[f"alarm_rate_at_{name}"] = float(flags.mean())
        figures[f"worst_product_alarm_rate_at_{name}"] = max(
            float(flags[products == product].mean()) for product in np.unique(products)
        )
    return figures, {f"worst_product_alarm_rate_at_{name}": ("<=", 2 * rate) for name, rate in RATES.items()}


def unknown(lab: Lab) -> tuple[Figures, dict[str, Goal]]:
    """Return how often good images count as an unknown product: those of products left out of the fit, and others.

    Each product is left out in turn. Routing and gates need only embeddings, so no bank is fitted.
    """
    layers = embedding_layers(lab.settings.active_layers)
    embeddings = image_embeddings([lab.store.means[i] for i in layers]).astype(np.float16).astype(np.float32)
    names = np.unique(lab.products[lab.is_train])
    unknown_rates, known_rates = [], []
    for name in names:
        is_fitted = lab.is_train & (lab.products != name)
        groups = find_groups(embeddings[is_fitted], lab.settings.groups, lab.settings.seed)
        gallery = Gallery(embeddings[is_fitted], groups)
        _, within = gallery.neighbours_of_members(lab.settings.look_alikes)
        gates = group_gates(gallery, within)

        def share_unknown(chosen: NDArray[np.bool_], gallery: Gallery = gallery, gates: Any = gates) -> float:
            looks = [gallery.look(embedding, 1) for embedding in embeddings[chosen]]
            return float(np.mean([look.distance > gates[look.group] for look in looks]))

        good = ~lab.is_train & ~lab.is_defect
        unknown_rates.append(share_unknown((lab.is_train | good) & (lab.products == name)))
        known_rates.append(share_unknown(good & (lab.products != name)))
    figures = {
        "unknown_product_flagged": float(np.mean(unknown_rates)),
        "unknown_product_flagged_worst": min(unknown_rates),
        "known_product_flagged": float(np.mean(known_rates)),
        "known_product_flagged_worst": max(known_rates),
    }
    return figures, {"unknown_product_flagged": (">=", 0.95), "known_product_flagged": ("<=", 0.01)}


def contamination(lab: Lab) -> tuple[Figures, dict[str, Goal]]:
    """Return pooled AUROC with defects as one in ten of the training images, trimmed and not.

    The defects among the training images are not tested.
    """
    rng = np.random.default_rng(SEED)
    good = np.flatnonzero(lab.is_train)
    share = CONTAMINATION / (1 - CONTAMINATION)
    defects_in_training = []
    for product in np.unique(lab.products[good]):
        defects = np.flatnonzero(lab.is_defect & (lab.products == product))
        count = round(share * int((lab.products[good] == product).sum()))
        defects_in_training.append(rng.choice(defects, min(count, len(defects) // 2), replace=False))
    defective = np.concatenate(defects_in_training)
    tested = np.setdiff1d(np.flatnonzero(~lab.is_train), defective)

    def pooled(fitted: CoresetDetector) -> float:
        return float(roc_auc_score(lab.is_defect[tested], lab.scores(fitted, tested)[:, 0]))

    clean_fit = lab.fit(good)
    clean = pooled(clean_fit)
    contaminated = np.concatenate([good, defective])
    untrimmed = lab.fit(contaminated)
    suspects = trimming.suspects(untrimmed.model.standardised, untrimmed.model.groups)
    figures = {
        "clean_pooled": clean,
        "clean_images_trimmed": float(trimming.suspects(clean_fit.model.standardised, clean_fit.model.groups).mean()),
        "contaminated_pooled_untrimmed": pooled(untrimmed),
        "contaminated_pooled": pooled(lab.fit(contaminated[~suspects])) if suspects.any() else pooled(untrimmed),
        "contamination_found": float(suspects[len(good) :].mean()),
        "good_images_trimmed": float(suspects[: len(good)].mean()),
    }
    figures["contamination_cost"] = clean - figures["contaminated_pooled"]
    return figures, {"contamination_cost": ("<=", 0.02), "clean_images_trimmed": ("<=", 0.02)}


def decisions(lab: Lab) -> tuple[Figures, dict[str, Goal]]:
    """Return the share of test images with the same decision on two runtimes or precisions.

    Thresholds are calibrated in f32, and for bf16 in bf16.
    """
    good, tested = np.flatnonzero(lab.is_train), np.flatnonzero(~lab.is_train)
    fitted = lab.fit(good)
    reference = _decisions(fitted, lab, tested)
    figures: Figures = {}
    others = {"openvino_f32_torch_f32": {"runtime": "torch", "precision": "f32"}}
    if lab.settings.runtime != "torch":
        others["openvino_f32_openvino_bf16"] = {"runtime": "openvino", "precision": "bf16"}
    for name, changes in others.items():
        try:
            other = Lab(lab.train, lab.test, lab.settings.model_copy(update=changes))
        except FlawlineError as error:
            print(f"{name}: not measured: {error}")
            continue
        try:
            same = CoresetDetector(fitted.model, lab.graphs, other.features)
            second = other.fit(good) if changes["precision"] == "bf16" else same
            agreement = float(np.mean(_decisions(second, other, tested) == reference))
            figures[f"decision_agreement_{name}"] = agreement
        finally:
            other.close()
    return figures, dict.fromkeys(figures, (">=", 0.999))


def _decisions(fitted: CoresetDetector, lab: Lab, chosen: NDArray[np.intp]) -> NDArray[np.str_]:
    def decision_of(number: int) -> Decision:
        return fitted.score_features(lab.maps(number)).decision

    with ThreadPoolExecutor(lab.features.threads) as pool:
        return np.asarray([str(decision) for decision in pool.map(decision_of, chosen.tolist())])


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--data", type=Path, default=os.environ.get("LINEBENCH"))
    parser.add_argument("--profile", choices=("fast", "accurate"), default="fast")
    parser.add_argument("--limit", type=int, help="At most so many training and test images of each product and kind.")
    parser.add_argument("--only", choices=PARTS, action="append")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data or LINEBENCH: name a folder with <product>/train/good and <product>/test")
    train = _limited(train_samples(Path(arguments.data)), arguments.limit)
    lab = Lab(
        train,
        _limited(test_samples(Path(arguments.data)), arguments.limit),
        ScorerSettings(profile=arguments.profile, runtime="openvino"),
    )
    figures: Figures = {}
    goals: dict[str, Goal] = {}
    measures = dict(zip(PARTS, (compare_scenarios, alarms, unknown, contamination, decisions), strict=True))
    try:
        for part in arguments.only or PARTS:
            figures_of_part, goals_of_part = measures[part](lab)
            figures |= figures_of_part
            goals |= goals_of_part
    finally:
        lab.close()
    emit("scorer_quality", figures, goals, arguments.json)


def _limited(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """Return at most `limit` samples of each product and label, evenly chosen; all without a limit."""
    kinds: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        kinds.setdefault((sample.product, sample.label), []).append(sample)
    return [sample for members in kinds.values() for sample in members[:: -(-len(members) // (limit or len(members)))]]


if __name__ == "__main__":
    main()
