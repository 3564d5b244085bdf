"""Exact nearest neighbours among unit vectors: what every index gives, and which index serves where.

Three indexes give the same rows: `Int8Index` on a CPU (`scorer.search.bank`), `TorchIndex` on a device of PyTorch
(`scorer.search.torch_index`), and `FaissIndex`, faiss's flat index on a CPU or a GPU.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError, one_line
from scorer.search import kernels
from scorer.vectors import Vectors


class NeighbourIndex(Protocol):
    """Exact search among rows (m, channels) of unit length; rows and queries are float32."""

    def __len__(self) -> int: ...

    def nearest(self, queries: Vectors, count: int = 1) -> tuple[Vectors, NDArray[np.int32]]:
        """Return the `count` most similar rows of each unit query (n, channels): similarities (n, count) and rows.

        The most similar row comes first. `count` is at most the number of rows. Exact in float32; of two rows that are
        equally similar either may come first.
        """

    def project(self, queries: Vectors, count: int) -> tuple[NDArray[np.float32], Vectors]:
        """Return distances (n,) to, and (n, channels), what the `count` nearest rows know; see `coreset.projected`."""


class FaissIndex:
    """faiss's flat index of inner products: on a CPU, or with `device` "cuda" on the GPU, by a build of faiss for it.

    On a GPU the rows stay there as a tensor of PyTorch, which faiss reads in place; queries and results are copied.
    Raises FlawlineError where faiss, or its GPU build, is missing.
    """

    def __init__(self, rows: Vectors, device: str = "cpu") -> None:
        self._faiss = faiss_module()
        self.rows = np.ascontiguousarray(rows, dtype=np.float32)
        self._device = device
        self._on_device: Any = None
        if device == "cpu":
            self._index = self._faiss.IndexFlatIP(self.rows.shape[1])
            self._index.add(self.rows)
            return
        if not hasattr(self._faiss, "StandardGpuResources"):
            raise FlawlineError("faiss is installed without GPU support: install flawline[gpu] instead")
        import faiss.contrib.torch_utils  # noqa: F401  # lets faiss read the memory of tensors
        import torch

        self._resources = self._faiss.StandardGpuResources()
        self._on_device = torch.from_numpy(self.rows).to(device)

    def __len__(self) -> int:
        return len(self.rows)

    def nearest(self, queries: Vectors, count: int = 1) -> tuple[Vectors, NDArray[np.int32]]:
        """Return the `count` most similar rows of each query, see `NeighbourIndex`."""
        values = np.ascontiguousarray(queries, dtype=np.float32)
        if self._on_device is None:
            self._faiss.omp_set_num_threads(1)  # images are the unit of parallelism
            similarity, rows = self._index.search(values, count)
            return similarity, rows.astype(np.int32)
        import torch

        similarity, rows = self._faiss.knn_gpu(
            self._resources,
            torch.from_numpy(values).to(self._device),
            self._on_device,
            count,
            metric=self._faiss.METRIC_INNER_PRODUCT,
        )
        return similarity.cpu().numpy(), rows.cpu().numpy().astype(np.int32)

    def project(self, queries: Vectors, count: int) -> tuple[NDArray[np.float32], Vectors]:
        """Return distances to, and, what the `count` nearest rows know, see `NeighbourIndex`."""
        return known(np.ascontiguousarray(queries, dtype=np.float32), self.rows, *self.nearest(queries, count))


def known(
    queries: Vectors, rows: Vectors, similarity: Vectors, nearest: NDArray[np.int32]
) -> tuple[NDArray[np.float32], Vectors]:
    """Return distances (n,) to, and (n, channels), what the nearest rows know: see `coreset.projected`."""
    vectors = np.empty(queries.shape, dtype=np.float32)
    distance = np.empty(len(queries), dtype=np.float32)
    kernels.known_vectors(queries, rows, similarity, nearest, vectors, distance)
    return distance, vectors


def index_of_many(rows: Vectors) -> NeighbourIndex:
    """Return the index for a search of many neighbours at once on a CPU: faiss's, or PyTorch's where it is missing."""
    if importlib.util.find_spec("faiss"):
        return FaissIndex(rows)
    from scorer.search.torch_index import TorchIndex

    return TorchIndex(rows)


def use_one_faiss_thread() -> None:
    """Keep searches of faiss on the thread that asks for them, where faiss is in use."""
    if faiss := sys.modules.get("faiss"):
        faiss.omp_set_num_threads(1)


def faiss_module() -> Any:
    """Return the module faiss. Raises FlawlineError where no build of it is installed."""
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise FlawlineError("faiss is not installed: install flawline[cpu], or flawline[gpu] on a GPU") from error
    except ImportError as error:
        raise FlawlineError(f"faiss cannot be loaded ({one_line(error)}): install its package again") from error
    return faiss
