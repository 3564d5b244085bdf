"""A frozen backbone: an image in, one feature map per layer out, by OpenVINO (CPU) or PyTorch (CUDA, CPU).

With OpenVINO the features of an image never depend on what else is computed: every image is a request of its own on
one thread, and the speed comes from as many requests at once as there are threads. PyTorch takes images in batches of a
few fixed sizes, where they depend on the size of the batch by rounding, and on nothing else.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from flawline.errors import FlawlineError
from scorer.features import weights as weight_files
from scorer.features.conversion import prepare
from scorer.features.graph import Graph, Image, Maps
from scorer.features.openvino_engine import OpenVinoBackbone
from scorer.features.padding import Padding

if TYPE_CHECKING:
    from flawline.settings.scorer import ScorerSettings

PRECISIONS = {"openvino": ("f32", "bf16"), "torch": ("f32", "f16", "bf16")}
"""The number formats that each runtime computes in."""


class DeviceLost(FlawlineError):
    """The GPU is gone for this process: none of the frames is to blame, and no other would do better."""


class Backbone(Protocol):
    """Turns images into feature maps, on `threads` threads at once, each with up to `batch` images.

    Images are squeezed to the input or, with `padding`, keep their proportions.
    """

    runtime: str
    precision: str
    threads: int
    batch: int
    padding: Padding | None

    @property
    def on_gpu(self) -> bool:
        """Whether it runs on a GPU."""

    @property
    def grids(self) -> list[int]:
        """The sides of the maps of all layers, in patches, with their padding."""

    def features(self, image: Image) -> Maps:
        """Return the feature maps (h, w, channels) float32 of a uint8 RGB image of any size, in the order of layers.

        They hold no patch of a padding. The last one of a transformer is the vector (1, 1, channels) of the image. Up
        to `threads` threads may call it at once.
        """

    def features_of(self, images: Sequence[Image]) -> list[Maps]:
        """Return the feature maps of up to `batch` images."""


def load(
    graphs: Sequence[tuple[Graph, Path]],
    *,
    runtime: str = "auto",
    precision: str = "f32",
    device: str = "auto",
    threads: int | None = None,
    weights: Path | None = None,
    batch: int | None = None,
    device_share: float = 1.0,
    pads: bool = False,
) -> Backbone:
    """Return the backbone of converted graphs, on a runtime; `weights` is a local file, for PyTorch only.

    `threads` is by default the number of CPUs; `batch` is the most images that PyTorch takes at once, and
    `device_share` the share of the GPU's memory that this process may take. `pads` keeps the proportions of images.
    Raises FlawlineError where this machine, or the runtime, does not serve the device or the precision.
    """
    runtime, device = choose(runtime, device)
    if precision not in PRECISIONS[runtime]:
        others = " and ".join(PRECISIONS[runtime])
        raise FlawlineError(f"precision {precision!r} is not served by runtime {runtime!r}, which has {others}")
    padding = Padding.of([grid for graph, _ in graphs for grid in graph.grids]) if pads else None
    if runtime == "openvino":
        return OpenVinoBackbone(graphs, precision, threads, padding)
    import torch  # here: it takes seconds to import

    from scorer.features.torch_engine import TorchBackbone

    if device == "cuda" and device_share < 1:
        torch.cuda.set_per_process_memory_fraction(device_share)
    of_backbone = weight_files.find(graphs[0][0].backbone, weights)
    return TorchBackbone(of_backbone, [graph for graph, _ in graphs], device, threads, precision, batch, padding)


def of_settings(settings: ScorerSettings) -> tuple[list[tuple[Graph, Path]], Backbone]:
    """Return the converted graphs of a fit's settings with their folders, and the backbone that runs them."""
    graphs = list(prepare(settings).values())
    return graphs, load(
        graphs,
        runtime=settings.runtime,
        precision=settings.precision,
        device=settings.device,
        threads=settings.threads,
        weights=settings.weights,
        pads=settings.shape == "pad",
    )


def choose(runtime: str, device: str) -> tuple[str, str]:
    """Return the runtime and device that "auto" stands for: PyTorch where CUDA is, OpenVINO elsewhere.

    Raises FlawlineError for CUDA with OpenVINO or on a machine without it.
    """
    if runtime == "openvino" and device == "cuda":
        raise FlawlineError("runtime 'openvino' serves CPUs only: choose runtime 'torch' for device 'cuda'")
    if device == "cuda" and not cuda_available():
        raise FlawlineError("device 'cuda' is not available on this machine: choose 'cpu' or 'auto'")
    if device == "auto":
        device = "cuda" if runtime != "openvino" and cuda_available() else "cpu"
    if runtime == "auto":
        runtime = "torch" if device == "cuda" else "openvino"
    return runtime, device


def cuda_available() -> bool:
    """Return whether PyTorch sees a CUDA device; torch is imported only where there is an NVIDIA driver."""
    if not (Path("/proc/driver/nvidia").exists() or os.name == "nt" or shutil.which("nvidia-smi")):
        return False
    import torch

    return torch.cuda.is_available()
