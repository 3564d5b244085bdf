"""The backbone on a CPU, by OpenVINO; imports neither torch nor timm."""

from __future__ import annotations

import queue
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flawline.errors import FlawlineError
from scorer.cache import cpu_count
from scorer.features.graph import Graph, Image, Maps, in_order_of_layers
from scorer.features.padding import Padding, squared


def openvino() -> Any:
    """Return the package openvino, imported without its telemetry, which sends reports over the network by default."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: "there is no such module"
    import openvino

    return openvino


class OpenVinoBackbone:
    """The backbone in OpenVINO: `threads` images at once, each as a request of its own on one thread.

    `graphs` hold each graph with the folder of its file, in ascending input size; `precision` is "f32" or "bf16";
    `padding`, if any, keeps the proportions of images.
    Raises FlawlineError for a precision that the CPU lacks, and for a file that OpenVINO cannot load.
    """

    runtime = "openvino"
    batch = 1
    on_gpu = False

    def __init__(
        self,
        graphs: Sequence[tuple[Graph, Path]],
        precision: str = "f32",
        threads: int | None = None,
        padding: Padding | None = None,
    ) -> None:
        core = openvino().Core()
        self.threads = threads or cpu_count()
        if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise FlawlineError("precision 'bf16': this CPU has no bf16 units: fit and score with precision 'f32'")
        self.precision = precision
        self.padding = padding
        # Without streams a request runs on the thread that asks for it. A stream is a thread of OpenVINO; to wake it
        # for each image left a CPU idle for a fifth of the time. Requests of one compiled graph would then wait for
        # each other, so each thread has compiled graphs of its own.
        options = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 0, "INFERENCE_PRECISION_HINT": precision}
        self._graphs = [graph for graph, _ in graphs]
        self._free_requests: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        for _ in range(self.threads):
            self._free_requests.put([_request(core, folder / f"{graph.stem}.xml", options) for graph, folder in graphs])
        # OpenVINO's Python binding can deadlock when its first use happens on two threads at once. So the first use of
        # every request happens here, on one thread.
        for _ in range(self.threads):
            self.features(np.zeros((1, 1, 3), dtype=np.uint8))

    @property
    def grids(self) -> list[int]:
        """The sides of the maps of all layers, in patches."""
        return [grid for graph in self._graphs for grid in graph.grids]

    def features(self, image: Image) -> Maps:
        """Return the feature maps (h, w, channels) float32 of an image, see `Backbone`."""
        requests = self._free_requests.get()
        passes: list[Maps] = []
        try:
            for graph, request in zip(self._graphs, requests, strict=True):
                request.get_input_tensor().data[0] = squared(image, graph.size, self.padding)
                request.infer()
                # Copied, because the next image overwrites the request's tensors.
                passes.append([request.get_output_tensor(i).data[0].copy() for i in range(graph.outputs)])
        finally:
            self._free_requests.put(requests)
        maps = in_order_of_layers(passes, self._graphs)
        return maps if self.padding is None else self.padding.cropped(maps, *image.shape[:2])

    def features_of(self, images: Sequence[Image]) -> list[Maps]:
        """Return the feature maps of images, one after the other."""
        return [self.features(image) for image in images]


def _request(core: Any, file: Path, options: dict[str, Any]) -> Any:
    try:
        return core.compile_model(file, "CPU", options).create_infer_request()
    except RuntimeError as error:
        raise FlawlineError(f"{file}: OpenVINO cannot load it: fit the model again") from error
