"""How good and how fast the scorer is: quality, ablations, speed beside the bare backbone, search beside faiss, growth
with products and images, and anomalib beside it.

    python -m benchmarks.scorer [--json FILE] [--markdown FILE] [--parts PART,...] [--data FOLDER] [--train-images N]
                                [--test-images N] [--profile fast|accurate] [--precision auto|f32|bf16]
                                [--coreset-share S] [--fit-images N,N,...]

Parts: quality, ablations, speed, search, growth, fit, anomalib (PatchCore and PaDiM). Images come from a data folder
(default: the environment's LINEBENCH; <product>/train/good, <product>/test); without one they are simulated. `quality`
fits and tests on all images; ablations, speed, search and anomalib on the same N of each product, taken evenly from the
list. `--fit-images 20000` fits so many simulated images, which takes 4.5 GB of disk under FLAWLINE_CACHE. The tables
are written beside the JSON (.md), or to standard error where there is no file. All parts take about a quarter of an
hour on two cores.

Speeds are of whole scoring without decoding, the best of several rounds taken in turn, so that other work on the
machine disturbs both sides alike. anomalib 2.7 is installed once, into its own environment under FLAWLINE_CACHE, which
needs the network; leave `anomalib` out of --parts where there is none.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from benchmarks import scorer_ablations, scorer_anomalib, scorer_growth, scorer_padim, scorer_search
from benchmarks.report import Goal, add_json_option, emit, markdown
from flawline.imaging import read_image
from flawline.settings.scorer import ScorerSettings
from scorer import commands
from scorer.features import backbone
from scorer.features.conversion import prepare
from scorer.features.dataset import Sample, test_samples, train_samples
from scorer.features.graph import resized
from scorer.fit import fit_detector
from scorer.search.bank import trusted_kind

Item = TypeVar("Item")

PARTS = ("quality", "ablations", "speed", "search", "growth", "fit", "anomalib")
ROUNDS = 7
IMAGES = 96
# A quarter of the images: the indices of faiss take most of the time.
SEARCH_IMAGES = 24
# Fits that are measured within minutes.
FIT_IMAGES = (500, 1000, 2000)
GOALS: dict[str, Goal] = {
    "share_of_backbone_f32": (">=", 0.75),
    "share_of_backbone_bf16": (">=", 0.6),
    "time_ratio_1000_groups": ("<=", 1.3),
    "model_mb_per_group_fast": ("<=", 4),
    "model_mb_per_group_accurate": ("<=", 6),
    "fit_peak_gb_20000_images": ("<=", 4),
    "times_anomalib_coreset": (">=", 20),
    "auroc_over_anomalib": (">=", 0),
    "pooled_image_auroc": (">=", 0.91),
    **scorer_search.GOALS,
}


@dataclass(frozen=True)
class Images:
    """The images of a benchmark: good ones to fit, and test images, some of them defective, with their products."""

    train: list[np.ndarray]
    test: list[np.ndarray]
    is_defect: list[bool]
    products: list[str]


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_json_option(parser)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--data", type=Path, default=os.environ.get("LINEBENCH"))
    parser.add_argument("--train-images", type=int, default=30, help="of each product")
    parser.add_argument("--test-images", type=int, default=60, help="of each product")
    parser.add_argument("--fit-images", default=",".join(map(str, FIT_IMAGES)), help="sizes of the fits measured")
    parser.add_argument("--profile", choices=("fast", "accurate"), default="fast")
    parser.add_argument("--precision", choices=("auto", "f32", "bf16"), default="auto")
    parser.add_argument("--coreset-share", type=float, default=0.1, help="of anomalib's coreset steps that are timed")
    arguments = parser.parse_args()
    parts = arguments.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--parts {sorted(unknown)[0]}: choose from {','.join(PARTS)}")
    fastest = "bf16" if bf16_units() else "f32"
    precision = fastest if arguments.precision == "auto" else arguments.precision
    settings = ScorerSettings(profile=arguments.profile)
    sizes = arguments.train_images, arguments.test_images
    images = chosen(Path(arguments.data), *sizes) if arguments.data else simulated(*sizes)
    details = {
        "seed": settings.seed,
        "profile": settings.profile,
        "precision": precision,
        "images": "simulated" if not arguments.data else Path(arguments.data).name,
        "train_images": len(images.train),
        "test_images": len(images.test),
    }
    tables: dict[str, str] = {}
    figures: dict[str, float] = {"cpu_has_bf16": int(bf16_units()), "images_are_simulated": int(not arguments.data)}
    goals = dict(GOALS)
    if "quality" in parts and arguments.data:
        figures |= quality(Path(arguments.data), settings)
    if "ablations" in parts:
        figures |= scorer_ablations.ablations(images.train, images.test, images.products, images.is_defect, settings)
        tables["Ablations"] = scorer_ablations.table(figures)
    if "speed" in parts:
        for speed_precision in dict.fromkeys(("f32", precision)):
            speeds = speed(images, settings.model_copy(update={"precision": speed_precision}))
            figures |= {f"{name}_{speed_precision}": value for name, value in speeds.items()}
    if "search" in parts:
        fitted = fit_detector(images.train, with_full_banks(settings))
        figures |= scorer_search.compare(fitted, spread(images.test, SEARCH_IMAGES))
        tables["Search beside faiss, one thread each"] = scorer_search.table(figures)
        details["search_instructions"] = trusted_kind().name
    if "growth" in parts:
        figures |= scorer_growth.groups(settings)
    if "fit" in parts:
        figures |= scorer_growth.fits(settings, [int(count) for count in arguments.fit_images.split(",")])
    if "anomalib" in parts:
        figures |= scorer_anomalib.compare(
            images.train,
            images.test,
            images.products,
            images.is_defect,
            settings.model_copy(update={"precision": precision}),
            arguments.coreset_share,
        )
        goals["times_anomalib_images_per_second"] = (">=", 20 if precision == "bf16" else 10)
        padim, versions = scorer_padim.compare(images.train, images.test, images.products, images.is_defect)
        figures |= padim
        figures["auroc_over_padim"] = (
            figures["beside_anomalib_pooled_image_auroc"] - figures["padim_pooled_image_auroc"]
        )
        tables["Beside anomalib, on the same images"] = beside(figures, settings.profile)
        details |= {f"{name} (anomalib's environment)": version for name, version in versions.items()}
    goals = {name: goal for name, goal in goals.items() if name in figures}
    report = emit("scorer", figures, goals, arguments.json, details=details)
    text = markdown(report, tables)
    target = arguments.markdown or (arguments.json and arguments.json.with_suffix(".md"))
    if target:
        target.write_text(text)
    else:
        print(text, file=sys.stderr)


def beside(figures: Mapping[str, float], profile: str) -> str:
    """Return ours, PatchCore and PaDiM as a Markdown table."""
    names = {"beside_anomalib": f"`{profile}`", "anomalib": "anomalib PatchCore", "padim": "anomalib PaDiM"}
    lines = ["| | pooled image AUROC | macro | worst product | images/s |", "|---|---|---|---|---|"]
    for prefix, name in names.items():
        aurocs = [figures[f"{prefix}_{kind}_image_auroc"] for kind in ("pooled", "macro", "worst_product")]
        shown = " | ".join(f"{value:.3f}" for value in aurocs)
        lines.append(f"| {name} | {shown} | {figures[f'{prefix}_images_per_second']:.1f} |")
    return "\n".join(lines)


def bf16_units() -> bool:
    """Return whether OpenVINO has bf16 on this CPU."""
    import openvino

    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def chosen(data: Path, train_images: int, test_images: int) -> Images:
    """Return some good training images and test images of a data folder, so many of each product, evenly chosen."""

    def some(samples: Sequence[Sample], count: int) -> list[Sample]:
        products = sorted({sample.product for sample in samples})
        of_product = [[sample for sample in samples if sample.product == product] for product in products]
        return [sample for members in of_product for sample in spread(members, count)]

    def read(samples: Sequence[Sample]) -> list[np.ndarray]:
        return [resized(read_image(sample.path), 512, 512) for sample in samples]

    test = some(test_samples(data), test_images)
    return Images(
        read(some(train_samples(data), train_images)),
        read(test),
        [sample.is_defect for sample in test],
        [sample.product for sample in test],
    )


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` of the items, evenly from the whole sequence."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, count).astype(int))]


def with_full_banks(settings: ScorerSettings) -> ScorerSettings:
    """Return settings by which every bank has as many rows as a group of any size may have.

    Fits of few images have small banks, which would flatter the search.
    """
    layers = tuple(layer.model_copy(update={"rows_per_image": layer.rows}) for layer in settings.active_layers)
    return settings.model_copy(update={"layers": layers})


def simulated(train_images: int, test_images: int, products: int = 6) -> Images:
    """Return simulated images, so many of each of `products` products; half of the test images are defective."""
    draw = scorer_growth.drawn
    test = [
        (f"product {p}", bad, image)
        for p in range(products)
        for bad in (False, True)
        for image in draw(p, max(1, test_images // 2), seed=1 + bad, defect=bad)
    ]
    return Images(
        [image for p in range(products) for image in draw(p, train_images)],
        [image for _, _, image in test],
        [bad for _, bad, _ in test],
        [product for product, _, _ in test],
    )


def quality(data: Path, settings: ScorerSettings) -> dict[str, float]:
    """Return the figures of a fit on all training images of the folder, evaluated on all its test images."""
    with tempfile.TemporaryDirectory(prefix="flawline-benchmark-") as folder:
        report = commands.fit(data, Path(folder) / "model", settings)
    figures = {f"{kind}_{key}": value for kind in ("pooled", "macro") for key, value in report[kind].items()}
    figures["worst_product_alarm_rate"] = report["alarm_rate"]["worst_product"]
    return figures | {key: report[key] for key in ("recall_at_alarm_rate", "fit_seconds", "model_bytes", "groups")}


def speed(images: Images, settings: ScorerSettings) -> dict[str, float]:
    """Return images per second of scoring and of the backbone alone, at the same precision, size and threads."""
    fitted = fit_detector(images.train, with_full_banks(settings))
    test = [images.test[i] for i in np.linspace(0, len(images.test) - 1, IMAGES).astype(int)]
    bare = backbone.load(list(prepare(settings).values()), precision=settings.precision)
    with ThreadPoolExecutor(bare.threads) as pool:
        tasks: dict[str, Callable[[], object]] = {
            "scoring": lambda: fitted.score(test),
            "backbone": lambda: list(pool.map(bare.features, test)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        processor_s: dict[str, list[float]] = {name: [] for name in tasks}
        for task in tasks.values():
            task()
        for _ in range(ROUNDS):
            for name, task in tasks.items():
                started, used_s = time.perf_counter(), time.process_time()
                task()
                seconds[name].append(time.perf_counter() - started)
                processor_s[name].append(time.process_time() - used_s)
    best = {name: len(test) / min(values) for name, values in seconds.items()}
    return {
        "images_per_second": best["scoring"],
        "backbone_images_per_second": best["backbone"],
        "share_of_backbone": best["scoring"] / best["backbone"],
        # Other work on the machine disturbs processor time least.
        "processor_time_share_of_backbone": float(
            np.median(np.divide(processor_s["backbone"], processor_s["scoring"]))
        ),
        "rows_of_largest_bank": max(len(bank) for banks in fitted.model.banks for bank in banks),
    }


if __name__ == "__main__":
    main()
