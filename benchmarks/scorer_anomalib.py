"""anomalib's PatchCore beside ours: same backbone, weights, images, resolution and number of bank rows, in one run.

anomalib is installed once, into its own environment below the cache; Flawline does not depend on it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from flawline.imaging import encode, read_image
from flawline.messages import Codec
from flawline.settings.scorer import ScorerSettings
from scorer.cache import cache_dir, cpu_count
from scorer.coreset import greedy_k_centre
from scorer.evaluate.accuracy import image_accuracy
from scorer.features import weights as weight_files
from scorer.features.graph import Outputs, resized
from scorer.fit import fit_detector
from scorer.search.bank import unit_rows

VERSION = "2.7.0"
RATIO = 0.02
# The maps that PatchCore takes of this backbone, and the names of their layers in timm.
STRIDES, LAYERS = (8, 16), ("blocks.2", "blocks.4")
SIDE = 256
# Tensors of timm's whole model that its feature extractor, which anomalib makes, does not have.
HEAD = ("conv_head", "bn2", "classifier")
BATCH = 8
ROUNDS = 3


def compare(
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    products: Sequence[str],
    is_defect: Sequence[bool],
    settings: ScorerSettings,
    coreset_share: float = 0.1,
) -> dict[str, float]:
    """Return the figures of both on the images; `products` and `is_defect` (len(test)) are for AUROC only.

    Of the steps of anomalib's coreset a share `coreset_share` is timed: a whole one takes minutes, and all steps take
    the same time. Its bank then has the rows that our selection, by the same greedy rule, chooses from its vectors.

    `times_anomalib_images_per_second` compares scoring with the forward pass of anomalib's model on prepared batches,
    which is the fastest that anomalib can be. `most_times_...` is the bare backbone over anomalib: the ratio if search
    took no time. `times_anomalib_engine_...` compares what users of both run on a folder of PNG files, decoding
    included; anomalib's `Engine.predict` takes them one by one, unless it gets batches.
    """
    train, test = ([resized(image, SIDE, SIDE) for image in images] for images in (train, test))
    vectors = _joined(weight_files.find(settings.backbone, settings.weights), train)
    rows = int(len(vectors) * RATIO)
    with threadpool_limits(limits=cpu_count(), user_api="blas"):
        started = time.perf_counter()
        chosen = greedy_k_centre(vectors, rows)
        coreset_s = time.perf_counter() - started
    del vectors
    with tempfile.TemporaryDirectory(prefix="flawline-pictures-") as folder:
        pictures = [Path(folder) / f"{i:06}.png" for i in range(len(test))]
        for picture, image in zip(pictures, test, strict=True):
            picture.write_bytes(encode(image, Codec.PNG))
        result = anomalib(train, test, Path(folder), chosen, coreset_share)
        speed, scores = ours(train, test, pictures, settings, rows)
    our_ranking, patchcore = (ranking(products, is_defect, values) for values in (scores, result["scores"]))
    anomalib_speed = len(test) / result["inference_s"]
    engine, engine_batched = (len(test) / result["engine_s"][batch] for batch in ("1", str(BATCH)))
    return {
        "times_anomalib_images_per_second": speed["scoring"] / anomalib_speed,
        "most_times_anomalib_images_per_second": speed["backbone"] / anomalib_speed,
        "times_anomalib_engine_images_per_second": speed["files"] / engine,
        f"times_anomalib_engine_batch_{BATCH}_images_per_second": speed["files"] / engine_batched,
        "times_anomalib_coreset": result["coreset_s"] / coreset_s,
        "auroc_over_anomalib": our_ranking["pooled"] - patchcore["pooled"],
        "anomalib_images_per_second": anomalib_speed,
        "anomalib_engine_images_per_second": engine,
        f"anomalib_engine_batch_{BATCH}_images_per_second": engine_batched,
        "anomalib_coreset_s": result["coreset_s"],
        "anomalib_coreset_share_timed": coreset_share,
        **{f"anomalib_{name}_image_auroc": value for name, value in patchcore.items()},
        "beside_anomalib_images_per_second": speed["scoring"],
        "beside_anomalib_files_per_second": speed["files"],
        "beside_anomalib_backbone_images_per_second": speed["backbone"],
        "beside_anomalib_coreset_s": coreset_s,
        **{f"beside_anomalib_{name}_image_auroc": value for name, value in our_ranking.items()},
        "beside_anomalib_bank_rows": rows,
        "beside_anomalib_training_images": len(train),
    }


def ranking(products: Sequence[str], is_defect: Sequence[bool], scores: Sequence[float]) -> dict[str, float]:
    """Return pooled, macro and the worst product's image AUROC, without those that have no meaning."""
    names, defective, values = np.asarray(products), np.asarray(is_defect), np.asarray(scores, dtype=np.float64)
    of_products = [names == name for name in np.unique(names)]
    aurocs = [image_accuracy(defective[members], values[members])["image_auroc"] for members in of_products]
    known = [auroc for auroc in aurocs if auroc is not None]
    figures = {
        "pooled": image_accuracy(defective, values)["image_auroc"],
        "macro": float(np.mean(known)) if known else None,
        "worst_product": min(known, default=None),
    }
    return {name: value for name, value in figures.items() if value is not None}


def ours(
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    pictures: Sequence[Path],
    settings: ScorerSettings,
    rows: int,
) -> tuple[dict[str, float], list[float]]:
    """Return speeds and scores of our detector, with `rows` rows for each layer in all banks together.

    The speeds are images per second of scoring, of reading files and scoring, and of the backbone alone.
    """
    layers = tuple(
        layer.model_copy(update={"rows": rows, "rows_per_image": rows / len(train)}) for layer in settings.active_layers
    )
    fitted = fit_detector(train, settings.model_copy(update={"layers": layers}))
    scores = fitted.score(test)
    with ThreadPoolExecutor(fitted.threads) as pool:
        tasks: dict[str, Callable[[], object]] = {
            "scoring": lambda: fitted.score(test),
            "files": lambda: fitted.score(list(pool.map(read_image, pictures))),
            "backbone": lambda: list(pool.map(fitted.features, test)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in tasks}
        for _ in range(ROUNDS):
            for name, task in tasks.items():
                started = time.perf_counter()
                task()
                seconds[name].append(time.perf_counter() - started)
    return {name: len(test) / min(values) for name, values in seconds.items()}, [score.aligned for score in scores]


def _joined(weights: weight_files.Weights, images: Sequence[np.ndarray]) -> np.ndarray:
    """Return the patch vectors of all images as PatchCore makes them: averaged over 3 x 3, on one grid, joined."""
    import torch

    from scorer.features.torch_engine import feature_extractor

    module = feature_extractor(weights, SIDE, Outputs(STRIDES))
    vectors = []
    with torch.inference_mode():
        for image in images:
            maps = [
                torch.nn.functional.avg_pool2d(layer.permute(0, 3, 1, 2), 3, 1, 1)
                for layer in module(torch.from_numpy(image[None]))
            ]
            maps = [torch.nn.functional.interpolate(layer, maps[0].shape[2:], mode="bilinear") for layer in maps]
            vectors.append(torch.cat(maps, dim=1)[0].flatten(1).T.numpy())
    return unit_rows(np.concatenate(vectors))


def anomalib(
    train: Sequence[np.ndarray], test: Sequence[np.ndarray], pictures: Path, chosen: np.ndarray, coreset_share: float
) -> dict[str, Any]:
    """Return the times and scores of anomalib's PatchCore; see `anomalib_worker`."""
    options = {"ratio": RATIO, "share": coreset_share, "chosen": chosen}
    return run_worker("anomalib_worker.py", train, test, options, [str(pictures)])


def run_worker(
    script: str,
    train: Sequence[np.ndarray],
    test: Sequence[np.ndarray],
    options: Mapping[str, Any],
    arguments: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the result of a worker in anomalib's environment on the images, with our weights and its own options."""
    from scorer.features.torch_engine import feature_extractor

    settings = ScorerSettings()
    weights = weight_files.find(settings.backbone, settings.weights)
    module = feature_extractor(weights, SIDE, Outputs(STRIDES))
    state = weight_files.create(weights, SIDE).state_dict()
    with tempfile.TemporaryDirectory(prefix="flawline-anomalib-") as folder:
        inputs, output = Path(folder) / "in.npz", Path(folder) / "out.json"
        np.savez(
            inputs,
            train=np.stack(train),
            test=np.stack(test),
            mean=module.mean.flatten().numpy() / 255,
            std=1 / module.scale.flatten().numpy() / 255,
            layers=np.asarray(LAYERS),
            backbone=np.asarray(settings.backbone),
            threads=cpu_count(),
            batch=BATCH,
            **options,
            **{f"weights/{name}": value.numpy() for name, value in state.items() if not name.startswith(HEAD)},
        )
        command = [str(environment()), str(Path(__file__).with_name(script)), str(inputs), *arguments, str(output)]
        subprocess.run(command, check=True, stdout=sys.stderr)
        return dict(json.loads(output.read_text()))


def environment() -> Path:
    """Return the Python of an environment with anomalib; the first call makes it, which needs the network.

    The packages of this environment, torch above all, are visible there and not fetched again.
    """
    folder = cache_dir() / f"anomalib-{VERSION}"
    python = folder / "bin" / "python"
    ready = folder / "ready"
    if not ready.is_file():
        print(f"installing anomalib {VERSION} into {folder}", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        (packages,) = folder.glob("lib/python*/site-packages")
        (packages / "host.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
        command = [str(python), "-m", "pip", "install", "--quiet", f"anomalib=={VERSION}"]
        subprocess.run(command, check=True, stdout=sys.stderr)
        ready.touch()
    return python
