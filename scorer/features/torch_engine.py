"""The backbone in PyTorch: on CUDA, on CPUs that OpenVINO does not serve, and as the source of OpenVINO's graph.

To import this module imports torch; the OpenVINO engine never does.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from typing import Any

import torch

from flawline.errors import FlawlineError
from scorer.cache import cpu_count
from scorer.features import weights as weight_files
from scorer.features.folding import fold_batch_norms
from scorer.features.graph import Graph, Image, Maps, Outputs, in_order_of_layers
from scorer.features.padding import Padding, squared
from scorer.features.weights import Weights

log = logging.getLogger(__name__)

# What a backbone without a configuration of its own is taken to be trained with: the statistics of ImageNet.
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)


# A batch of fewer images is filled up to one of these sizes: so a few shapes serve all, and a CUDA graph each.
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Images at once by default, by device: docs/scoring.md has the speed by size of the batch.
_DEFAULT_BATCH = {"cuda": 64, "cpu": 16}
_TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


class TorchBackbone:
    """The backbone in PyTorch: on "cuda", or on "cpu" with `threads` batches at once.

    `precision` is "f32", "f16" or "bf16"; `batch` the most images at once; `padding`, if any, keeps the proportions of
    images. Raises FlawlineError when the weights are not those of the graphs.
    """

    runtime = "torch"

    def __init__(
        self,
        weights: Weights,
        graphs: Sequence[Graph],
        device: str,
        threads: int | None = None,
        precision: str = "f32",
        batch: int | None = None,
        padding: Padding | None = None,
    ) -> None:
        if weights.key() != graphs[0].weights:
            raise FlawlineError(
                f"weights of {weights.name!r} differ from those the model was fitted with: give the same scorer.weights"
            )
        self.threads = threads or cpu_count()
        self.precision = precision
        self.padding = padding
        self.device = torch.device(device)
        self.batch = batch or _DEFAULT_BATCH[self.device.type]
        if self.device.type == "cpu":
            torch.set_num_threads(1)  # parallelism comes from images, and sums must not depend on the thread count
        else:
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.deterministic = True
        self._graphs = list(graphs)
        self._extractors = [_folded(weights, graph).to_device(self.device, _TYPES[precision]) for graph in graphs]

    @property
    def on_gpu(self) -> bool:
        """Whether the backbone runs on a GPU."""
        return self.device.type == "cuda"

    @property
    def sizes(self) -> list[int]:
        """The sides of the inputs of all passes, in pixels."""
        return [graph.size for graph in self._graphs]

    @property
    def grids(self) -> list[int]:
        """The sides of the maps of all layers, in patches."""
        return [grid for graph in self._graphs for grid in graph.grids]

    def features(self, image: Image) -> Maps:
        """Return the feature maps (h, w, channels) float32 of an image, see `Backbone`."""
        return self.features_of([image])[0]

    def features_of(self, images: Sequence[Image]) -> list[Maps]:
        """Return the feature maps (h, w, channels) float32 of at most `batch` images, see `Backbone`."""
        with torch.inference_mode():
            layers = [layer.float().cpu().numpy() for layer in self.features_batch(images)]
        maps = [[layer[i] for layer in layers] for i in range(len(images))]
        if self.padding is None:
            return maps
        return [self.padding.cropped(of_image, *image.shape[:2]) for of_image, image in zip(maps, images, strict=True)]

    def features_batch(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """Return the feature maps (b, h, w, channels) of images with their padding, on the device.

        b is a size of `BATCH_SIZES`.
        """
        count = batch_size(len(images))
        pixels = []
        for size in self.sizes:
            batch = torch.zeros(count, size, size, 3, dtype=torch.uint8)
            for place, image in zip(batch.numpy(), images, strict=False):
                place[:] = squared(image, size, self.padding)
            pixels.append(batch.to(self.device))
        return self.forward(pixels)

    def forward(self, pixels: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the feature maps (b, h, w, channels) of pixels uint8 (b, size, size, 3), one tensor for each pass."""
        passes = [list(extractor(batch)) for extractor, batch in zip(self._extractors, pixels, strict=True)]
        return in_order_of_layers(passes, self._graphs)


def batch_size(images: int) -> int:
    """Return the size of the batch that this number of images is filled up to."""
    return next((size for size in BATCH_SIZES if size >= images), images)


def _folded(weights: Weights, graph: Graph) -> FeatureExtractor:
    """Return the extractor of a graph, with its batch normalisations folded into convolutions."""
    extractor = feature_extractor(weights, graph.size, Outputs(graph.strides, graph.blocks))
    rng = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (1, graph.size, graph.size, 3), generator=rng, dtype=torch.uint8)
    fold_batch_norms(extractor, example)
    return extractor


class FeatureExtractor(torch.nn.Module):
    """A module from pixels uint8 (n, size, size, 3) to maps (n, h, w, channels), those of `maps`, in its number type.

    `maps` takes normalised pixels (n, 3, size, size) and gives maps (n, channels, h, w). `mean` and `std` (3,)
    normalise pixels of 0 to 255.
    """

    mean: torch.Tensor
    scale: torch.Tensor

    def __init__(self, maps: torch.nn.Module, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.maps = maps
        self.register_buffer("mean", mean.view(1, 3, 1, 1))
        self.register_buffer("scale", 1 / std.view(1, 3, 1, 1))
        self._type = torch.float32

    def to_device(self, device: torch.device, number_type: torch.dtype) -> FeatureExtractor:
        """Move to a device, with the backbone in a number type and its channels last, and return itself."""
        self.to(device)
        self.maps.to(dtype=number_type, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._type = number_type
        return self

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the maps of a batch of pixels."""
        normalised = (pixels.permute(0, 3, 1, 2).float() - self.mean) * self.scale
        return tuple(layer.permute(0, 2, 3, 1).contiguous() for layer in self.maps(normalised.to(self._type)))


class MapsOf(torch.nn.Module):
    """Some maps of a backbone, by their number in rising order, without what is deeper than the last of them."""

    def __init__(self, backbone: Any, numbers: Sequence[int]) -> None:
        super().__init__()
        self._numbers: list[int] = list(
            backbone.prune_intermediate_layers(list(numbers), prune_norm=True, prune_head=True)
        )
        self.backbone = backbone

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps (n, channels, h, w) of normalised pixels (n, 3, size, size)."""
        return list(self.backbone.forward_intermediates(pixels, indices=self._numbers, intermediates_only=True))


class PyramidMaps(torch.nn.Module):
    """The maps of some strides of a convolutional network, or of a transformer that merges its patches step by step.

    A stride that is named twice gives the output of the block halfway through it, then the last one. Cuts off what is
    deeper than the last map. Raises FlawlineError for a stride that the backbone lacks.
    """

    def __init__(self, backbone: Any, size: int, strides: Sequence[int]) -> None:
        super().__init__()
        places = outputs_for([info["reduction"] for info in backbone.feature_info], strides)
        taken = sorted({place for place in places if place is not None})
        self.last_maps = MapsOf(backbone, taken)
        self._places = [None if place is None else taken.index(place) for place in places]
        self._is_last: dict[int, bool] = {}
        self._block_outputs = threading.local()  # several threads pass images through at once
        for k, place in enumerate(places):
            if place is None and (halfway := halfway_block(self.last_maps, size, strides[k])):
                block, self._is_last[k] = halfway
                block.register_forward_hook(functools.partial(self._keep, str(k)))

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps (n, channels, h, w) of normalised pixels (n, 3, size, size), one for each stride."""
        last = self.last_maps(pixels)
        maps: list[torch.Tensor] = []
        for k, place in enumerate(self._places):
            if place is not None:
                maps.append(last[place])
            elif k in self._is_last:
                block_output = getattr(self._block_outputs, str(k))
                maps.append(block_output.permute(0, 3, 1, 2) if self._is_last[k] else block_output)
            else:  # one map of this stride only
                following = self._places[k + 1]
                assert following is not None
                maps.append(last[following])
        return maps

    def _keep(self, place: str, _module: Any, _inputs: Any, output: torch.Tensor) -> None:
        setattr(self._block_outputs, place, output)


class TransformerMaps(torch.nn.Module):
    """The patches of some blocks of a vision transformer as maps, and what its last block used says of the image.

    That is the class token, or the mean of the patches where there is none. Cuts off the blocks after it.
    """

    def __init__(self, backbone: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        indices = [block - 1 for block in blocks]
        self._indices: list[int] = list(backbone.prune_intermediate_layers(indices, prune_norm=True, prune_head=True))
        self._has_class_token = bool(getattr(backbone, "cls_token", None) is not None)
        self.backbone = backbone

    def forward(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """Return the maps (n, c, h, w) of normalised pixels (n, 3, size, size), then the vectors (n, c, 1, 1)."""
        options = {"indices": self._indices, "intermediates_only": True}
        if not self._has_class_token:
            maps = list(self.backbone.forward_intermediates(pixels, **options))
            return [*maps, maps[-1].mean(dim=(2, 3), keepdim=True)]
        pairs = self.backbone.forward_intermediates(pixels, return_prefix_tokens=True, **options)
        return [*(patches for patches, _ in pairs), pairs[-1][1][:, 0, :, None, None]]


def feature_extractor(weights: Weights, size: int, outputs: Outputs) -> FeatureExtractor:
    """Return the extractor of a backbone's maps for inputs of `size` pixels.

    Raises FlawlineError, see `weights.create`, and for a backbone that does not give what is asked for.
    """
    backbone: Any = weight_files.create(weights, size)
    config = configuration(backbone, weights.name)
    mean = torch.tensor(config.get("mean", _IMAGENET_MEAN), dtype=torch.float32) * 255
    std = torch.tensor(config.get("std", _IMAGENET_STD), dtype=torch.float32) * 255
    if outputs.blocks:
        maps: torch.nn.Module = TransformerMaps(backbone, outputs.blocks)
    else:
        maps = PyramidMaps(backbone, size, outputs.strides)
    return FeatureExtractor(maps, mean, std).eval()


def described(extractor: FeatureExtractor, backbone: str, weights_key: str, size: int, outputs: Outputs) -> Graph:
    """Return the description of an extractor on a CPU, for inputs of `size` pixels; it passes an image through."""
    with torch.inference_mode():
        shapes = [tuple(output.shape) for output in extractor(torch.zeros(1, size, size, 3, dtype=torch.uint8))]
    maps = shapes[: len(outputs.strides or outputs.blocks)]
    return Graph(
        backbone=backbone,
        weights=weights_key,
        size=size,
        strides=outputs.strides or tuple(size // shape[1] for shape in maps),
        channels=tuple(shape[3] for shape in maps),
        grids=tuple(shape[1] for shape in maps),
        blocks=outputs.blocks,
    )


def configuration(module: Any, name: str) -> dict[str, Any]:
    """Return what timm knows of a backbone, its normalisation among it; empty for a backbone of which it knows none."""
    config: dict[str, Any] | None = getattr(module, "default_cfg", None) or getattr(module, "pretrained_cfg", None)
    if config:
        return config
    import timm

    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return known.to_dict() if known else {}


def outputs_for(reductions: Sequence[int], strides: Sequence[int]) -> list[int | None]:
    """Return, for each stride, the number of the backbone output that serves it; `reductions` are the outputs' strides.

    The deepest output of the stride serves. The first of two equal strides gets an output halfway through that stride,
    or None where the backbone has one output of that stride only. Raises FlawlineError for a stride that it lacks.
    """
    if missing := [stride for stride in strides if stride not in reductions]:
        raise FlawlineError(f"the backbone has no map of stride {missing[0]}, but of {', '.join(map(str, reductions))}")
    numbers: list[int | None] = []
    for place, stride in enumerate(strides):
        candidates = [i for i, reduction in enumerate(reductions) if reduction == stride]
        is_earlier = stride in strides[place + 1 :]
        halfway = candidates[(len(candidates) - 1) // 2] if len(candidates) > 1 else None
        numbers.append(halfway if is_earlier else candidates[-1])
    return numbers


def halfway_block(body: torch.nn.Module, size: int, stride: int) -> tuple[torch.nn.Module, bool] | None:
    """Return the module of `body` that ends halfway through the blocks of a stride, and whether its channels are last.

    The blocks are the members of the outermost sequences whose maps (1, c, h, w), or (1, h, w, c), have that stride,
    for an input of `size` pixels. None where there is one block only.
    """
    modules = dict(body.named_modules())
    members = {
        name: module
        for name, module in modules.items()
        if name and isinstance(modules[name.rpartition(".")[0]], torch.nn.Sequential)
    }
    side = size // stride
    channels_last: dict[str, bool] = {}

    def note(name: str, _module: Any, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            if tuple(output.shape[2:]) == (side, side):
                channels_last[name] = False
            elif tuple(output.shape[1:3]) == (side, side):
                channels_last[name] = True

    hooks = [module.register_forward_hook(functools.partial(note, name)) for name, module in members.items()]
    with torch.inference_mode():
        body(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    names = list(channels_last)
    for depth in sorted({name.count(".") for name in names}):
        blocks = [name for name in names if name.count(".") == depth]
        if len(blocks) > 1:
            halfway = blocks[(len(blocks) - 1) // 2]
            return members[halfway], channels_last[halfway]
    log.warning("the backbone has one map of stride %d only: it serves as the earlier map too", stride)
    return None
