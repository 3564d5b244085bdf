"""From weights to OpenVINO's graph, once: the graph stays in the cache, and travels inside the model artefact."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

from flawline.errors import FlawlineError
from flawline.settings.scorer import ScorerSettings
from scorer.cache import cache_dir
from scorer.features import weights as weight_files
from scorer.features.graph import Graph, Outputs, passes
from scorer.features.openvino_engine import openvino
from scorer.features.weights import Weights
from scorer.search import warm

log = logging.getLogger(__name__)

# Part of the cache's key: raise it whenever the converted graph changes its meaning.
_GRAPH_FORMAT = 2


def prepare(settings: ScorerSettings, cache: Path | None = None) -> dict[int, tuple[Graph, Path]]:
    """Return the converted graphs of the settings' layers by input size, each with the folder of its files.

    `cache` is by default `scorer.cache.cache_dir()`. The first call for a backbone imports torch and converts, which
    takes seconds; later calls find the graph in the cache. Raises FlawlineError for a backbone or weights that cannot
    be had, and for a cache that cannot be written.
    """
    weights = weight_files.find(settings.backbone, settings.weights)
    key = weights.key()
    return {
        size: _cached(weights, key, size, outputs, cache or cache_dir())
        for size, outputs in passes(settings.active_layers).items()
    }


def _cached(weights: Weights, weights_key: str, size: int, outputs: Outputs, cache: Path) -> tuple[Graph, Path]:
    """Return a graph and its folder from the cache, converted first where the cache lacks it."""
    identity = json.dumps([_GRAPH_FORMAT, weights.name, weights_key, size, outputs.strides, outputs.blocks])
    folder = cache / "backbones" / hashlib.sha256(identity.encode()).hexdigest()[:24]
    description = folder / "graph.json"
    if description.is_file():
        with contextlib.suppress(ValueError, TypeError):
            return Graph.from_json(json.loads(description.read_text(encoding="utf-8"))), folder
        log.warning("%s is damaged: the backbone is converted again", description)
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder.parent))
    except OSError as error:
        raise FlawlineError(
            f"{folder.parent}: cannot be written: {error.strerror}: set FLAWLINE_CACHE to a folder that can"
        ) from error
    warm.start()  # a cache that lacks the backbone lacks the kernels too
    try:
        graph = _convert(weights, weights_key, size, outputs, partial)
        (partial / "graph.json").write_text(json.dumps(asdict(graph)), encoding="utf-8")
        # Of two processes that convert at once, the first one renames; both have the same graph.
        with contextlib.suppress(OSError):
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if not description.is_file():
        raise FlawlineError(f"{folder}: the converted backbone cannot be stored: free space or set FLAWLINE_CACHE")
    return graph, folder


def _convert(weights: Weights, weights_key: str, size: int, outputs: Outputs, folder: Path) -> Graph:
    """Write OpenVINO's graph into `folder` and return its description.

    The graph takes uint8 (1, size, size, 3), normalises inside, and gives float32 (1, h, w, channels), see `Graph`.
    """
    import torch

    from scorer.features.torch_engine import described, feature_extractor

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other at every layer where other work has the CPUs
    try:
        extractor = feature_extractor(weights, size, outputs)
        example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        graph = described(extractor, weights.name, weights_key, size, outputs)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about Python branches on constant shapes
            model = openvino().convert_model(extractor, example_input=example)
    finally:
        torch.set_num_threads(threads)
    model.reshape([1, size, size, 3])
    # Half-precision weights would halve the artefact, but move scores by up to 2 % from PyTorch's.
    openvino().save_model(model, folder / f"{graph.stem}.xml", compress_to_fp16=False)
    return graph
