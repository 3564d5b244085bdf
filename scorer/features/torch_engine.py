"""The backbone in PyTorch: on CUDA, on CPUs that OpenVINO does not serve, and as the source of OpenVINO's graph.

To import this module imports torch; the OpenVINO engine never does.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from flawline.errors import FlawlineError
from scorer.cache import cpu_count
from scorer.features import weights as weight_files
from scorer.features.graph import Graph, Image, Maps, resized
from scorer.features.weights import Weights

log = logging.getLogger(__name__)

# What a backbone without a configuration of its own is taken to be trained with: the statistics of ImageNet.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


class TorchBackbone:
    """The backbone in PyTorch, float32: on "cuda", or on "cpu" with `threads` images at once.

    Raises FlawlineError when the weights are not those of the graphs.
    """

    runtime = "torch"
    precision = "f32"

    def __init__(self, weights: Weights, graphs: Sequence[Graph], device: str, threads: int | None = None):
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
        self._extractors = [(g.size, feature_extractor(weights, g.size, g.strides).to(self.device)) for g in graphs]

    def features(self, image: Image) -> Maps:
        """Return the feature maps (h, w, channels) float32 of an image, in ascending input size and stride."""
        maps: Maps = []
        with torch.inference_mode():
            for size, extractor in self._extractors:
                pixels = torch.from_numpy(resized(image, size)[None]).to(self.device)
                maps += [layer[0].cpu().numpy() for layer in extractor(pixels)]
        return maps


class FeatureExtractor(torch.nn.Module):
    """A module from pixels uint8 (n, size, size, 3) to a float32 map (n, h, w, channels) for each of some strides.

    `body` gives the last map of each stride, in order. `earlier` names the places, among all `count` maps, of those
    that the body does not give: each with the block inside `body` whose output it is, or None where the map after it
    serves for both. `mean` and `std` (3,) normalise pixels of 0 to 255.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(
        self,
        body: torch.nn.Module,
        earlier: Mapping[int, torch.nn.Module | None],
        count: int,
        mean: torch.Tensor,
        std: torch.Tensor,
    ) -> None:
        super().__init__()
        self.body = body
        self._count = count
        self._earlier = {place: block is not None for place, block in earlier.items()}
        self._block_outputs = threading.local()  # several threads pass images through at once
        for place, block in earlier.items():
            if block is not None:
                block.register_forward_hook(functools.partial(self._keep, place))
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / std.view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of a batch of pixels."""
        normalised = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        last = iter(self.body(normalised))
        maps: dict[int, torch.Tensor] = {k: next(last) for k in range(self._count) if k not in self._earlier}
        for place, has_block in self._earlier.items():
            maps[place] = getattr(self._block_outputs, str(place)) if has_block else maps[place + 1]
        return tuple(maps[k].permute(0, 2, 3, 1).contiguous() for k in range(self._count))

    def _keep(self, place: int, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        setattr(self._block_outputs, str(place), output)


def feature_extractor(weights: Weights, size: int, strides: Sequence[int]) -> FeatureExtractor:
    """Return the extractor of a backbone's maps at these strides, for inputs of `size` pixels.

    Raises FlawlineError, see `weights.create`.
    """
    whole = weight_files.create(weights, size, None)
    info: Any = whole.feature_info
    outputs = outputs_for(list(info.reduction()), strides)
    body = weight_files.create(weights, size, [output for output in outputs if output is not None])
    earlier = {k: halfway_block(body, size, strides[k]) for k, output in enumerate(outputs) if output is None}
    config = _configuration(whole, weights.name)
    mean = torch.tensor(config.get("mean", _IMAGENET_MEAN), dtype=torch.float32) * 255
    std = torch.tensor(config.get("std", _IMAGENET_STD), dtype=torch.float32) * 255
    extractor = FeatureExtractor(body, earlier, len(strides), mean, std)
    extractor.eval()
    return extractor


def _configuration(module: Any, name: str) -> dict[str, Any]:
    """Return what timm knows of a backbone, its normalisation among it; empty for a backbone of which it knows none."""
    config: dict[str, Any] | None = getattr(module, "default_cfg", None) or getattr(module, "pretrained_cfg", None)
    if config:
        return config
    import timm

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return known.to_dict() if known else {}


def outputs_for(reductions: list[int], strides: Sequence[int]) -> list[int | None]:
    """Return, for each stride, the number of the backbone output that serves it; `reductions` are the outputs' strides.

    The deepest output of the stride serves. The first of two equal strides gets an output halfway through that stride,
    or None where the backbone has one output of that stride only. A backbone that lacks one of the strides (a vision
    transformer has the same stride everywhere, its outputs differ in depth only) gives outputs at even steps through
    its last two thirds.
    """
    if not all(stride in reductions for stride in strides):
        first = len(reductions) // 3
        return [int(i) for i in np.linspace(first, len(reductions) - 1, len(strides)).round()]
    numbers: list[int | None] = []
    for place, stride in enumerate(strides):
        candidates = [i for i, reduction in enumerate(reductions) if reduction == stride]
        is_earlier = stride in strides[place + 1 :]
        halfway = candidates[(len(candidates) - 1) // 2] if len(candidates) > 1 else None
        numbers.append(halfway if is_earlier else candidates[-1])
    return numbers


def halfway_block(body: torch.nn.Module, size: int, stride: int) -> torch.nn.Module | None:
    """Return the module of `body` that ends halfway through the blocks of a stride; None where it has one block only.

    The blocks are the members of the outermost sequences whose maps (1, c, h, w) have that stride, for an input of
    `size` pixels.
    """
    modules = dict(body.named_modules())
    members = {
        name: module
        for name, module in modules.items()
        if name and isinstance(modules[name.rpartition(".")[0]], torch.nn.Sequential)
    }
    side = size // stride
    names: list[str] = []

    def note(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and tuple(output.shape[2:]) == (side, side):
            names.append(name)

    hooks = [module.register_forward_hook(functools.partial(note, name)) for name, module in members.items()]
    with torch.inference_mode():
        body(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    for depth in sorted({name.count(".") for name in names}):
        blocks = [name for name in names if name.count(".") == depth]
        if len(blocks) > 1:
            return members[blocks[(len(blocks) - 1) // 2]]
    log.warning("the backbone has one map of stride %d only: it serves as the earlier map too", stride)
    return None
