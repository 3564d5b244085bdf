"""Greedy k-centre selection of patch vectors, and what a bank of vectors knows near a query.

All vectors have unit length: an inner product s stands for the distance sqrt(2 - 2 s), and matrix products are all that
the selection needs. `scorer.search.bank` does the search.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scorer.search.bank import Int8Index
from scorer.vectors import Vectors

# Candidates in one round of the selection, as a share of all vectors, and the most. More candidates save passes over
# all vectors, but their Gram matrix then costs more than the passes. The result does not depend on it; the
# numbers are a judgement.
_SHARE_OF_CANDIDATES = 1 / 12
_MOST_CANDIDATES = 1024
# Two unit vectors this similar are the same vector: the second would add nothing. A
# judgement.
_SAME = 1.0 - 1e-6


def greedy_k_centre(vectors: Vectors, count: int) -> NDArray[np.intp]:
    """Return the numbers of at most `count` of the unit `vectors` (n, d), each the farthest from all chosen before it.

    The exact greedy choice (Gonzalez 1985; the first is the vector nearest to the mean), found lazily. Distances to the
    chosen set only shrink. So as long as the farthest candidate of a round is farther than every other vector was when
    the round began, it is the farthest of all, and only the candidates need fresh distances. All others catch up in one
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
    """Return the greedy choice among the candidates, as far as no other vector can be farther."""
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
    """Update `nearest` (n,) in place for newly chosen vectors, block by block, which stay in the CPU's cache."""
    block = max(1024, 2**20 // max(len(added), 1))
    for start in range(0, len(vectors), block):
        part = slice(start, start + block)
        np.maximum(nearest[part], (added @ vectors[part].T).max(axis=0), out=nearest[part])


def merged(parts: Sequence[Vectors], count: int) -> Vectors:
    """Return a coreset of at most `count` vectors from coresets of parts of the data.

    Coresets for k-centre compose: the greedy selection from the union of the parts' selections stays within a constant
    factor of the optimum (Malkomes et al. 2015), and no more than one part has to be in memory.
    """
    union = np.concatenate(parts)
    return union[greedy_k_centre(union, count)]


def nearest_neighbours(
    queries: Vectors, bank: Vectors | Int8Index, count: int = 1
) -> tuple[Vectors, NDArray[np.int32]]:
    """Return the `count` most similar bank rows of each query: similarities (n, count), the largest first, and rows.

    Exact. Queries (n, d) and bank (m, d) hold unit vectors, m >= count. For rows that are searched often, make an
    `Int8Index` once.
    """
    return (bank if isinstance(bank, Int8Index) else Int8Index(bank)).nearest(queries, count)


def projected(queries: Vectors, bank: Vectors | Int8Index, neighbours: int) -> tuple[NDArray[np.float32], Vectors]:
    """Return distances (n,) of the queries to what the bank knows near them, and these known vectors (n, d).

    With one neighbour the known vector is the nearest row. With more it is their mean with the weights
    softmax(-3 d^2 / d1^2), d1 the distance of the nearest (soft projection, after ProCon), which jumps less between
    sparse rows. The distance is computed from the difference itself, which loses no digits where it is small.
    """
    searched = bank if isinstance(bank, Int8Index) else Int8Index(bank)
    return searched.project(queries, min(neighbours, len(searched)))
