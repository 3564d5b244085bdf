"""Spherical k-means: clusters of unit vectors by the angle to their centre."""

from __future__ import annotations

import numpy as np

from scorer.search.neighbours import faiss_module
from scorer.vectors import Vectors


def settled(vectors: Vectors, centres: Vectors, rounds: int, seed: int) -> Vectors:
    """Return unit centres (k, d) after rounds of spherical k-means over `vectors` (n, d), from `centres` (k, d).

    The seed decides where faiss puts the centre of an empty cluster. Raises FlawlineError when faiss is missing.
    """
    k_means = faiss_module().Kmeans(
        vectors.shape[1],
        len(centres),
        niter=rounds,
        spherical=True,
        seed=seed,
        # By default faiss takes a sample of the vectors, and warns of small clusters.
        min_points_per_centroid=1,
        max_points_per_centroid=len(vectors),
    )
    k_means.train(vectors, init_centroids=np.ascontiguousarray(centres))
    return np.asarray(k_means.centroids)
