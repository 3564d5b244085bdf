"""The cost of more products and more images: time an image with 1,000 groups and with 10, time and memory of fits."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline.settings.scorer import PROFILES, ScorerSettings
from scorer.detector import CoresetDetector
from scorer.features.conversion import prepare
from scorer.features.graph import Maps
from scorer.fit import fit_detector
from scorer.model import Model, embedding_layers
from scorer.sub_looks import SubLooks

PRODUCTS = 10
GROUPS = 1000
GOOD_IMAGES = 20
ROUNDS = 3
# The number of products, and the side of the images in pixels, of the fits that are measured.
FIT_PRODUCTS = 20
FIT_SIDE = 160


def drawn(product: int, count: int, seed: int = 0, defect: bool = False, side: int = 256) -> list[np.ndarray]:
    """Return `count` noisy images of a simulated product, with its own gratings and colours; a defect is a blot."""
    world = np.random.default_rng([7, product])
    waves, tint = world.uniform(0.05, 0.9, (3, 2)), world.uniform(40, 200, 3)
    rng = np.random.default_rng([seed, product, int(defect)])
    y, x = np.mgrid[:side, :side].astype(np.float32)
    images = []
    for _ in range(count):
        shift = rng.uniform(0, 2, 2)
        pattern = sum(np.sin((x + shift[0]) * a + (y + shift[1]) * b) for a, b in waves)
        image = tint + 18 * np.asarray(pattern)[:, :, None] + rng.normal(0, 6, (side, side, 3))
        if defect:
            row, column = rng.integers(side // 8, side - side // 8, 2)
            inside = (y - row) ** 2 + (x - column) ** 2 < (side // 24) ** 2
            image[inside] += rng.choice([-45, 45])
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return images


def groups(settings: ScorerSettings) -> dict[str, float]:
    """Return the time an image with 1,000 groups relative to 10, backbone included, and bytes of model for each group.

    Ten products are fitted. Ninety-nine rotations of feature space give 990 more groups: of the same size and
    difficulty, with banks that have nothing in common.
    """
    images = [image for product in range(PRODUCTS) for image in drawn(product, GOOD_IMAGES)]
    few = fit_detector(images, settings.model_copy(update={"groups": PRODUCTS}))
    copies = GROUPS // few.groups
    channels = [mean.shape[1] for mean in few.model.means]
    rng = np.random.default_rng(0)
    turns = [[_rotation(c, rng) if copy else np.eye(c, dtype=np.float32) for c in channels] for copy in range(copies)]
    many = few.replaced(multiplied(few.model, turns), None, {})

    features = [few.features(image) for image in images[::2]]
    copy_of_image = rng.integers(copies, size=len(features))
    turned = [_turned(maps, turns[copy]) for maps, copy in zip(features, copy_of_image, strict=True)]
    seconds: dict[str, list[float]] = {"few": [], "many": [], "backbone": []}
    raw = np.asarray([few.score_features(maps).raw for maps in features])
    raw_turned = np.asarray([many.score_features(maps).raw for maps in turned])
    assert np.allclose(raw_turned / raw, 1, atol=0.05), "a rotated product must score as the product itself"
    for _ in range(ROUNDS):
        for name, work in (
            ("few", lambda: [few.score_features(maps) for maps in features]),
            ("many", lambda: [many.score_features(maps) for maps in turned]),
            ("backbone", lambda: [few.features(image) for image in images[::2]]),
        ):
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    best = {name: min(values) / len(features) for name, values in seconds.items()}
    figures = {
        "time_ratio_1000_groups": (best["backbone"] + best["many"]) / (best["backbone"] + best["few"]),
        "ms_beside_backbone_10_groups": best["few"] * 1e3,
        "ms_beside_backbone_1000_groups": best["many"] * 1e3,
        "groups_simulated": many.groups,
    }
    for profile in PROFILES:
        figures[f"model_mb_per_group_{profile}"] = bank_bytes(ScorerSettings(profile=profile)) / 1e6
    figures["model_mb_per_group"] = figures[f"model_mb_per_group_{settings.profile}"]
    return figures


def bank_bytes(settings: ScorerSettings) -> int:
    """Return the bytes of the largest banks that a group can have, as the artefact stores them."""
    graphs = [graph for graph, _ in prepare(settings).values()]
    channels = [count for graph in graphs for count in graph.channels]
    return sum(2 * layer.rows * count for layer, count in zip(settings.active_layers, channels, strict=True))


def _rotation(channels: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((channels, channels)))[0].astype(np.float32)


def _turned(features: Maps, turn: Sequence[np.ndarray]) -> Maps:
    return [np.ascontiguousarray(layer @ rotation) for layer, rotation in zip(features, turn, strict=True)]


def multiplied(model: Model, turns: Sequence[Sequence[np.ndarray]]) -> Model:
    """Return the model with all its groups in a copy for each turn, which has a rotation (c, c) for each layer."""
    copies, group_count = len(turns), len(model.banks)
    parts = embedding_layers(model.layers)
    ends = np.cumsum([turns[0][i].shape[0] for i in parts])

    def turned_embeddings(turn: Sequence[np.ndarray], embeddings: np.ndarray) -> np.ndarray:
        pieces = np.split(embeddings, ends[:-1], axis=1)
        joined = np.concatenate([piece @ turn[i] for piece, i in zip(pieces, parts, strict=True)], axis=1)
        return joined.astype(np.float16).astype(np.float32)

    def turned_looks(looks: SubLooks | None, turn: Sequence[np.ndarray]) -> SubLooks | None:
        if looks is None:
            return None
        banks = [[half(bank @ rotation) for bank, rotation in zip(of, turn, strict=True)] for of in looks.banks]
        return dataclasses.replace(looks, centres=turned_embeddings(turn, looks.centres), banks=banks)

    def half(rows: np.ndarray) -> np.ndarray:
        return rows.astype(np.float16).astype(np.float32)

    lists: dict[str, Any] = {
        field.name: list(value) * copies
        for field in dataclasses.fields(model)
        if isinstance(value := getattr(model, field.name), list) and len(value) == group_count and field.name != "means"
    }
    return dataclasses.replace(
        model,
        **lists
        | {
            "banks": [
                [half(bank @ rotation) for bank, rotation in zip(layers, turn, strict=True)]
                for turn in turns
                for layers in model.banks
            ],
            "sub_looks": [turned_looks(looks, turn) for turn in turns for looks in model.sub_looks],
            "means": [np.concatenate([m @ turn[i] for turn in turns]) for i, m in enumerate(model.means)],
            "embeddings": np.concatenate([turned_embeddings(turn, model.embeddings) for turn in turns]),
            "groups": np.concatenate([model.groups + group_count * copy for copy in range(copies)]),
            "log_scores": np.tile(model.log_scores, copies),
            "standardised": np.tile(model.standardised, copies),
            "gates": np.tile(model.gates, copies),
            "widths": np.tile(model.widths, copies),
        },
    )


def fits(settings: ScorerSettings, counts: Sequence[int]) -> dict[str, float]:
    """Return seconds and peak memory of fits of these sizes on twenty products, each in a process of its own.

    The memory of 20,000 images is extrapolated by a line through the measured peaks, unless they were fitted.
    """
    prepare(settings)  # done once on a machine, with memory of its own, so it is no part of the measured fits
    measured = []
    for count in sorted(counts):
        command = [sys.executable, "-m", "benchmarks.scorer_growth", str(count), settings.model_dump_json()]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured.append(json.loads(done.stdout.splitlines()[-1]))
    images, seconds, peaks = (np.asarray([fit[name] for fit in measured]) for name in ("images", "seconds", "peak"))
    slope, base = np.polyfit(images, peaks, 1) if len(images) > 1 else (0.0, peaks[0])
    figures = {
        f"fit_{name}_{fit['images']}_images": value
        for fit in measured
        for name, value in (("seconds", fit["seconds"]), ("peak_gb", fit["peak"] / 1e9), ("groups", fit["groups"]))
    }
    largest = int(images[-1])
    return figures | {
        "fit_seconds_per_1000_images": float(seconds[-1] / largest * 1000),
        "fit_time_growth": float((seconds[-1] / images[-1]) / (seconds[0] / images[0])),
        "fit_peak_gb_20000_images": float(max(base + slope * 20_000 if largest < 20_000 else 0, peaks.max())) / 1e9,
        "fit_peak_is_extrapolated": int(largest < 20_000),
    }


class Drawn(Sequence[np.ndarray]):
    """Simulated images of some products in turn, each drawn at each access."""

    def __init__(self, count: int, products: int = FIT_PRODUCTS, side: int = FIT_SIDE) -> None:
        self._count, self._products, self._side = count, products, side

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
        if not 0 <= index < self._count:
            raise IndexError(index)
        return drawn(index % self._products, 1, seed=index, side=self._side)[0]


def _measure_fit(count: int, settings: ScorerSettings) -> dict[str, float]:
    started, started_cpu = time.perf_counter(), time.process_time()
    shown = {"stage": ""}  # the stage that was printed last

    def progress(stage: str, done: int, total: int) -> None:
        if stage != shown["stage"] or done == total:
            shown["stage"] = stage
            print(f"{time.perf_counter() - started:8.1f} s  {stage} {done} of {total}", file=sys.stderr, flush=True)

    fitted: CoresetDetector = fit_detector(Drawn(count), settings, progress)
    seconds, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    with tempfile.TemporaryDirectory(prefix="flawline-benchmark-") as folder:
        fitted.save(Path(folder) / "model")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"images": count, "seconds": seconds, "cpu": cpu_s, "peak": peak, "groups": fitted.groups}


if __name__ == "__main__":
    print(json.dumps(_measure_fit(int(sys.argv[1]), ScorerSettings.model_validate_json(sys.argv[2]))))
