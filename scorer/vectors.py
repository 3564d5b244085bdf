"""Vectors of unit length, float32, one a row: the one kind of vector that scorer and discovery compare."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

# A vector shorter than this has no direction: its numbers are rounding. A judgement.
_SHORTEST = 1e-12


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Return the vectors (..., d) scaled to unit length, float32; a zero vector stays zero, and is like no other.

    For the few vectors that describe regions. `scorer.search.bank.unit_rows` is for patches, which are many.
    """
    values = np.asarray(vectors, dtype=np.float32)
    lengths = np.linalg.norm(values, axis=-1, keepdims=True)
    return np.asarray(values / np.maximum(lengths, _SHORTEST), dtype=np.float32)
