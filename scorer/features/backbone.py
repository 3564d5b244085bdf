"""A frozen backbone: one image in, one feature map per layer out, on OpenVINO (CPU) or PyTorch (CUDA, CPU).

Results never depend on what else is being computed: every image is its own request on one thread, and speed comes from
as many requests at once as there are threads. The OpenVINO path imports neither torch nor timm; the graph is converted
once, kept in a cache, and travels inside the model artefact.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import queue
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer.cache import cache_dir, cpu_count
from scorer.features import weights as weight_files
from scorer.search import warm

log = logging.getLogger(__name__)

Image = NDArray[np.uint8]
Maps = list[NDArray[np.float32]]

# Part of the cache's key: raise it whenever the converted graph changes its meaning.
_GRAPH_FORMAT = 2


@dataclass(frozen=True)
class Graph:
    """One backbone at one input size: what is needed to run it, and to know it again.

    `strides` and `channels` describe its outputs, each float32 (1, h, w, channels). Of a stride that is named twice,
    the first output comes from halfway through the blocks of that stride, the second from the last one.
    """

    backbone: str
    weights: str
    size: int
    strides: tuple[int, ...]
    channels: tuple[int, ...]
    grids: tuple[int, ...]

    @property
    def stem(self) -> str:
        """File name of the graph, without suffix."""
        return f"backbone-{self.size}"

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Graph:
        """The graph that `asdict` wrote."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return cls(**values)


class Backbone(Protocol):
    """Turns an image into feature maps."""

    runtime: str
    precision: str
    threads: int

    def features(self, image: Image) -> Maps:
        """Feature maps (h, w, channels) float32 of one uint8 RGB image of any size, in the order of the layers.

        Safe to call from `threads` threads at once.
        """


def resized(image: Image, size: int) -> Image:
    """The image squeezed to a square of `size` pixels (area mean when it shrinks, so that nothing aliases)."""
    height, width = image.shape[:2]
    if height == width == size:
        return image
    shrinks = height >= size and width >= size
    return np.asarray(
        cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), dtype=np.uint8
    )


def passes(layers: Sequence[LayerSettings]) -> dict[int, tuple[int, ...]]:
    """The input sizes that a set of layers needs, each with its strides in ascending order, one for each layer."""
    sizes = sorted({layer.size for layer in layers})
    return {size: tuple(sorted(layer.stride for layer in layers if layer.size == size)) for size in sizes}


def prepare(settings: ScorerSettings, cache: Path | None = None) -> dict[int, tuple[Graph, Path]]:
    """The converted graphs of the settings' layers by input size, each with the folder that holds its files.

    The first call for a backbone imports torch and converts (seconds); later ones find the graph in the cache.
    """
    weights = weight_files.find(settings.backbone, settings.weights)
    identity = weights.key()
    return {
        size: _prepare_one(weights, identity, size, strides, cache or cache_dir())
        for size, strides in passes(settings.active_layers).items()
    }


def _prepare_one(
    weights: weight_files.Weights, identity: str, size: int, strides: tuple[int, ...], cache: Path
) -> tuple[Graph, Path]:
    key = json.dumps([_GRAPH_FORMAT, weights.name, identity, size, strides])
    folder = cache / "backbones" / hashlib.sha256(key.encode()).hexdigest()[:24]
    note = folder / "graph.json"
    if note.is_file():
        with contextlib.suppress(ValueError, TypeError):
            return Graph.from_json(json.loads(note.read_text(encoding="utf-8"))), folder
        log.warning("%s is damaged: the backbone is converted again", note)
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
        graph = _convert(weights, identity, size, strides, partial)
        (partial / "graph.json").write_text(json.dumps(asdict(graph)), encoding="utf-8")
        # Whoever renames first wins; both hold the same graph.
        with contextlib.suppress(OSError):
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    if not note.is_file():
        raise FlawlineError(f"{folder}: the converted backbone could not be kept: free space or set FLAWLINE_CACHE")
    return graph, folder


def _convert(weights: weight_files.Weights, identity: str, size: int, strides: tuple[int, ...], folder: Path) -> Graph:
    """Write the OpenVINO graph (uint8 NHWC in, float32 NHWC maps out, normalisation inside) into `folder`."""
    import warnings

    import torch

    openvino = _openvino()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # several would wait for each other at every layer where other work has the CPUs
    try:
        module = torch_module(weights, size, strides)
        example = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer warns about Python branches on constant shapes
            shapes = [tuple(output.shape) for output in module(example)]
            model = openvino.convert_model(module, example_input=example)
    finally:
        torch.set_num_threads(threads)
    model.reshape([1, size, size, 3])
    graph = Graph(
        backbone=weights.name,
        weights=identity,
        size=size,
        strides=strides,
        channels=tuple(shape[3] for shape in shapes),
        grids=tuple(shape[1] for shape in shapes),
    )
    # Half-precision weights would halve the artefact, but move scores by up to 2 % from PyTorch's.
    openvino.save_model(model, folder / f"{graph.stem}.xml", compress_to_fp16=False)
    return graph


def _openvino() -> Any:
    """The package openvino, kept from reporting its use over the network, which it does at import by default."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: "there is no such module"
    import openvino

    return openvino


def torch_module(weights: weight_files.Weights, size: int, strides: Sequence[int]) -> Any:
    """A torch module from uint8 (n, size, size, 3) to one float32 (n, h, w, channels) map per stride."""
    import torch

    whole = weight_files.create(weights, size, None)
    info: Any = whole.feature_info
    indices = _indices(list(info.reduction()), strides)
    # What the backbone itself does not give out is caught on its way.
    caught = [place for place, index in enumerate(indices) if index is None]
    body = weight_files.create(weights, size, [index for index in indices if index is not None])
    sources = {place: _halfway(body, size, strides[place]) for place in caught}
    config: dict[str, Any] = getattr(whole, "default_cfg", None) or getattr(whole, "pretrained_cfg", None) or {}
    if not config:
        import timm

        known = timm.get_pretrained_cfg(weights.name) if timm.is_model(weights.name) else None
        config = known.to_dict() if known else {}

    class Extractor(torch.nn.Module):
        mean: torch.Tensor
        scale: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            mean = torch.tensor(config.get("mean", (0.485, 0.456, 0.406)), dtype=torch.float32) * 255
            std = torch.tensor(config.get("std", (0.229, 0.224, 0.225)), dtype=torch.float32) * 255
            self.body = body
            self.caught = threading.local()  # images are worked on by several threads at once
            for place, module in sources.items():
                if module is not None:
                    module.register_forward_hook(functools.partial(self._catch, place))
            self.register_buffer("mean", mean.view(1, 3, 1, 1))
            self.register_buffer("scale", 1 / std.view(1, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            normalised = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.scale
            given = iter(self.body(normalised))
            maps = [None if place in caught else next(given) for place in range(len(strides))]
            for place in caught:
                maps[place] = maps[place + 1] if sources[place] is None else getattr(self.caught, str(place))
            return tuple(each.permute(0, 2, 3, 1).contiguous() for each in maps if each is not None)

        def _catch(self, place: int, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
            setattr(self.caught, str(place), output)

    return Extractor().eval()


def _indices(reductions: list[int], strides: Sequence[int]) -> list[int | None]:
    """Which of the backbone's outputs serve the strides: the deepest of each stride, else even steps through the depth.

    A vision transformer has the same stride everywhere; its outputs differ in depth only. The earlier map of a stride
    that is named twice is an output halfway, or None when the backbone gives out one map of that stride only.
    """
    if all(stride in reductions for stride in strides):
        found: list[int | None] = []
        for place, stride in enumerate(strides):
            outputs = [i for i, each in enumerate(reductions) if each == stride]
            earlier = stride in strides[place + 1 :]
            halfway = outputs[(len(outputs) - 1) // 2] if len(outputs) > 1 else None
            found.append(halfway if earlier else outputs[-1])
        return found
    first = len(reductions) // 3
    return [int(i) for i in np.linspace(first, len(reductions) - 1, len(strides)).round()]


def _halfway(body: Any, size: int, stride: int) -> Any | None:
    """The module of `body` whose map (1, c, h, w) lies halfway through the blocks of a stride, if there are several.

    Blocks are what the outermost sequences hold whose maps have that stride.
    """
    import torch

    modules = dict(body.named_modules())
    blocks = {
        name: module
        for name, module in modules.items()
        if name and isinstance(modules[name.rpartition(".")[0]], torch.nn.Sequential)
    }
    side, seen, hooks = size // stride, [], []

    def see(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and tuple(output.shape[2:]) == (side, side):
            seen.append(name)

    for name, module in blocks.items():
        hooks.append(module.register_forward_hook(functools.partial(see, name)))
    with torch.inference_mode():
        body(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    for depth in sorted({name.count(".") for name in seen}):
        level = [name for name in seen if name.count(".") == depth]
        if len(level) > 1:
            return blocks[level[(len(level) - 1) // 2]]
    log.warning("the backbone has one map of stride %d only: it serves as the earlier one too", stride)
    return None


class OpenVinoBackbone:
    """The backbone on a CPU through OpenVINO: one image a request, one thread a request."""

    runtime = "openvino"

    def __init__(self, graphs: Sequence[tuple[Graph, Path]], precision: str = "f32", threads: int | None = None):
        core = _openvino().Core()
        self.threads = threads or cpu_count()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise FlawlineError(
                "precision 'bf16' needs a CPU with bf16 units, which this one lacks: fit and score in f32"
            )
        self.precision = precision
        # Without streams a request runs on the thread that asks for it. A stream is a thread of OpenVINO's, and waking
        # it for each image left a CPU idle for a fifth of the time. Requests of one compiled graph would then wait for
        # each other, so that each thread has its own.
        options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 0, "INFERENCE_PRECISION_HINT": precision}
        self._graphs = [graph for graph, _ in graphs]
        self._free: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        for _ in range(self.threads):
            requests = []
            for graph, folder in graphs:
                try:
                    compiled = core.compile_model(folder / f"{graph.stem}.xml", "CPU", options)
                except RuntimeError as error:
                    raise FlawlineError(f"{folder / graph.stem}.xml: OpenVINO cannot load it: fit again") from error
                requests.append(compiled.create_infer_request())
            self._free.put(requests)
        # OpenVINO's Python binding can deadlock when its first use happens on two threads at once; so all first uses
        # happen here, on one.
        for _ in range(self.threads):
            self.features(np.zeros((1, 1, 3), dtype=np.uint8))

    def features(self, image: Image) -> Maps:
        """Feature maps (h, w, channels) float32 of one image, in ascending input size and stride."""
        requests = self._free.get()
        maps: Maps = []
        try:
            for graph, request in zip(self._graphs, requests, strict=True):
                request.get_input_tensor().data[0] = resized(image, graph.size)
                request.infer()
                # The tensors are the request's own memory, overwritten by the next image.
                maps += [request.get_output_tensor(i).data[0].copy() for i in range(len(graph.strides))]
        finally:
            self._free.put(requests)
        return maps


class TorchBackbone:
    """The backbone on PyTorch, for CUDA and for CPUs that OpenVINO does not serve; float32."""

    runtime = "torch"
    precision = "f32"

    def __init__(self, weights: weight_files.Weights, graphs: Sequence[Graph], device: str, threads: int | None = None):
        import torch

        if weights.key() != graphs[0].weights:
            raise FlawlineError(
                f"weights of {weights.name!r} differ from those the model was fitted with: give the same scorer.weights"
            )
        self.threads = threads or cpu_count()
        self.device = torch.device(device)
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # parallelism comes from images, and sums must not depend on the thread count
        else:
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.deterministic = True
        self._modules = [(g.size, torch_module(weights, g.size, g.strides).to(self.device)) for g in graphs]

    def features(self, image: Image) -> Maps:
        """Feature maps (h, w, channels) float32 of one image, in ascending input size and stride."""
        import torch

        maps: Maps = []
        with torch.inference_mode():
            for size, module in self._modules:
                pixels = torch.from_numpy(resized(image, size)[None]).to(self.device)
                maps += [each[0].cpu().numpy() for each in module(pixels)]
        return maps


def cuda_available() -> bool:
    """Whether PyTorch sees a CUDA device; False without importing torch on machines that have no NVIDIA driver."""
    if not (Path("/proc/driver/nvidia").exists() or os.name == "nt" or shutil.which("nvidia-smi")):
        return False
    import torch

    return torch.cuda.is_available()


def choose(runtime: str, device: str) -> tuple[str, str]:
    """Runtime and device for "auto": torch where CUDA is, OpenVINO elsewhere."""
    if runtime == "openvino" and device == "cuda":
        raise FlawlineError("runtime 'openvino' serves CPUs only: choose runtime 'torch' for device 'cuda'")
    if device == "cuda" and not cuda_available():
        raise FlawlineError("device 'cuda' is not available on this machine: choose 'cpu' or 'auto'")
    if device == "auto":
        device = "cuda" if runtime != "openvino" and cuda_available() else "cpu"
    if runtime == "auto":
        runtime = "torch" if device == "cuda" else "openvino"
    return runtime, device


def load(
    graphs: Sequence[tuple[Graph, Path]],
    *,
    runtime: str = "auto",
    precision: str = "f32",
    device: str = "auto",
    threads: int | None = None,
    weights: Path | None = None,
) -> Backbone:
    """The backbone of converted graphs, on the runtime asked for; `weights` matters to PyTorch only."""
    runtime, device = choose(runtime, device)
    if precision == "bf16" and runtime == "torch":
        raise FlawlineError("precision 'bf16' is served by runtime 'openvino' only: choose that, or fit in 'f32'")
    if runtime == "openvino":
        return OpenVinoBackbone(graphs, precision, threads)
    found = weight_files.find(graphs[0][0].backbone, weights)
    return TorchBackbone(found, [graph for graph, _ in graphs], device, threads)


def of_settings(settings: ScorerSettings) -> tuple[list[tuple[Graph, Path]], Backbone]:
    """The converted graphs of a fit's settings, and the backbone that runs them as the settings say."""
    graphs = list(prepare(settings).values())
    return graphs, load(
        graphs,
        runtime=settings.runtime,
        precision=settings.precision,
        device=settings.device,
        threads=settings.threads,
        weights=settings.weights,
    )
