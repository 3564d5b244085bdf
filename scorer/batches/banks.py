"""The banks of a model as batches of images search them: on a GPU by matrix products, on a CPU in integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from scorer.search.bank import Int8Index
from scorer.search.torch_index import StackedBanks, fused_kernels
from scorer.vectors import Vectors


class LayerBanks(Protocol):
    """The banks of all groups of one layer."""

    def distances(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
        """Return distances float32 (b, p) to what the `count` nearest rows know; see `coreset.projected`.

        `queries` float32 (b, p, c) are the patches of b images, unit vectors; `groups` int64 (b,).
        """

    def project(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        """Return the same distances, and what the nearest rows know (b, p, c)."""

    @property
    def size_bytes(self) -> int:
        """The memory of the banks."""


class Int8Banks:
    """The banks (m, c) of all groups of one layer on a CPU, where the search in integers is the fastest."""

    def __init__(self, banks: Sequence[Int8Index]) -> None:
        self._banks = banks

    def distances(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> torch.Tensor:
        """Return distances to what the nearest rows know, see `LayerBanks`."""
        return self.project(queries, groups, count)[0]

    def project(self, queries: torch.Tensor, groups: torch.Tensor, count: int) -> tuple[torch.Tensor, ...]:
        """Return distances and what the nearest rows know, see `LayerBanks`."""
        distances = torch.empty(queries.shape[:2])
        vectors = torch.empty(queries.shape)
        for i, group in enumerate(groups.tolist()):
            bank = self._banks[group]
            distance, known = bank.project(np.ascontiguousarray(queries[i].numpy()), min(count, len(bank)))
            distances[i], vectors[i] = torch.from_numpy(distance), torch.from_numpy(known)
        return distances, vectors

    @property
    def size_bytes(self) -> int:
        """The memory of the banks."""
        return sum(bank.rows.nbytes + bank.size_bytes for bank in self._banks)


def layer_banks(banks: Sequence[Vectors], device: torch.device) -> LayerBanks:
    """Return the banks of all groups of one layer, as they are searched on a device."""
    if device.type == "cuda":
        return StackedBanks(banks, device, half=True, kernels=fused_kernels())
    return Int8Banks([Int8Index(rows) for rows in banks])
