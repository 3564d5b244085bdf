"""Greedy k-centre selection of patch vectors, and what a bank of them knows near a query.

All vectors have unit length, so an inner product s stands for the distance sqrt(2 - 2 s), and selection is a matter of
matrix products. The search is `scorer.search.bank`'s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scorer.search.bank import Bank
from scorer.vectors import Vectors

# Candidates that one round of the selection looks at, as a share of all vectors and at most: more means fewer passes
# over all vectors, but a Gram matrix of the candidates that costs more than the passes.
_SHARE_OF_CANDIDATES = 1 / 12
_MOST_CANDIDATES = 1024
# Two unit vectors this close are the same vector: selecting the second would add nothing.
_SAME = 1.0 - 1e-6


def greedy_k_centre(vectors: Vectors, count: int) -> NDArray[np.intp]:
    """Indices of at most `count` of the unit `vectors` (n, d): each next one is the farthest from all chosen before.

    The exact greedy choice (Gonzalez 1985; first the vector nearest to the mean), found lazily: distances to the chosen
    set only ever shrink, so as long as the farthest of a round's candidates is farther than every other vector was when
    the round began, it is the farthest of all, and only candidates need fresh distances. All others catch up in one
    matrix product a round. Stops early when only duplicates of chosen vectors are left.
    """
    n = len(vectors)
    count = min(count, n)
    if count == 0:
        return np.empty(0, dtype=np.intp)
    width = min(n, max(64, min(_MOST_CANDIDATES, int(n * _SHARE_OF_CANDIDATES))))
    chosen = [int(np.argmax(vectors @ vectors.mean(axis=0)))]
    nearest = vectors @ vectors[chosen[0]]  # similarity to the nearest chosen vector
    while len(chosen) < count:
        candidates = np.argpartition(nearest, width - 1)[:width]
        bound = nearest[candidates].max() if width < n else np.inf
        picked = _pick(vectors[candidates], nearest[candidates], float(bound), count - len(chosen))
        if not picked:
            break
        chosen += candidates[picked].tolist()
        _catch_up(nearest, vectors, vectors[candidates[picked]])
    return np.asarray(chosen, dtype=np.intp)


def _pick(candidates: Vectors, nearest: NDArray[np.float32], bound: float, most: int) -> list[int]:
    """Greedy choice among the candidates while it is certain that no other vector is farther."""
    gram = candidates @ candidates.T
    nearest = nearest.copy()
    picked: list[int] = []
    while len(picked) < most:
        farthest = int(nearest.argmin())
        similarity = nearest[farthest]
        if similarity >= _SAME or (picked and similarity > bound):
            break
        picked.append(farthest)
        np.maximum(nearest, gram[farthest], out=nearest)
        nearest[farthest] = 2.0  # never again, whatever rounding says
    return picked


def _catch_up(nearest: NDArray[np.float32], vectors: Vectors, added: Vectors) -> None:
    """Update `nearest` (n,) in place for newly chosen vectors, block by block to stay in the cache."""
    block = max(1024, 2**20 // max(len(added), 1))
    for start in range(0, len(vectors), block):
        part = slice(start, start + block)
        np.maximum(nearest[part], (added @ vectors[part].T).max(axis=0), out=nearest[part])


def merged(parts: Sequence[Vectors], count: int) -> Vectors:
    """A coreset of at most `count` vectors from coresets of parts of the data.

    Coresets for k-centre compose: greedy selection from the union of the parts' own selections stays within a constant
    factor of the optimum (Malkomes et al. 2015), and no more than a part need be in memory.
    """
    union = np.concatenate(parts)
    return union[greedy_k_centre(union, count)]


def nearest_neighbours(queries: Vectors, bank: Vectors | Bank, count: int = 1) -> tuple[Vectors, NDArray[np.int32]]:
    """Exact `count` most similar bank rows of each query: similarities (n, count) in falling order, and their rows.

    Queries (n, d) and bank (m, d) hold unit vectors, m >= count. Rows that are searched often want to be a `Bank`,
    which is made once.
    """
    return (bank if isinstance(bank, Bank) else Bank(bank)).nearest(queries, count)


def projected(queries: Vectors, bank: Vectors | Bank, neighbours: int) -> tuple[NDArray[np.float32], Vectors]:
    """Distances (n,) of the queries to what the bank knows near them, and those known vectors (n, d).

    With one neighbour the known vector is the nearest row. With more it is their mean under the weights
    softmax(-3 d^2 / d1^2), d1 the nearest one's distance (soft projection, after ProCon): less jumpy between sparse
    rows. The distance is computed from the difference itself, which loses no digits where it is small.
    """
    searched = bank if isinstance(bank, Bank) else Bank(bank)
    return searched.project(queries, min(neighbours, len(searched)))
