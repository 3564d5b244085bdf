"""The scorer's neighbour search beside faiss, on the same banks and patches, one thread each, in one run.

faiss has the same task in two ways: `IndexFlatIP` compares float32 (exact, as ours), `IndexScalarQuantizer` 8-bit
integers (`QT_8bit`, which is not exact). Making an index is not timed: a line does it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.report import Goal
from scorer.detector import CoresetDetector, one_thread_per_image
from scorer.search.bank import Int8Index, unit_rows
from scorer.search.neighbours import faiss_module
from scorer.vectors import Vectors

ROUNDS = 7
NAMES = ("ours", "faiss_flat", "faiss_8bit")
# An exact search in other orders of addition: float32 sums of unit vectors differ by less, see `scorer.search.bank`.
TOLERANCE = 1e-5
GOALS: dict[str, Goal] = {
    "search_times_faiss_flat": (">=", 1),
    "search_times_faiss_8bit": (">=", 1),
    "search_exact_share_ours": (">=", 1),
}

Search = Callable[[Vectors, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Query:
    """The patches (n, channels) of an image in one layer, with the bank (m, channels) and the number of neighbours."""

    bank: tuple[int, int]
    patches: Vectors
    neighbours: int


def compare(fitted: CoresetDetector, images: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the time of each search on the patches of some images, its ratios, and how exact each search is.

    `search_times_NAME` is how many times as fast as that index ours is. `search_exact_share_NAME` is the share of
    patches whose nearest row is as near, within 1e-5 of cosine, as the nearest row of all; `search_worst_loss_NAME` is
    the largest cosine that a search loses.
    """
    one_thread_per_image()
    queries = [query for image in images for query in queries_of(fitted, image)]
    searches = {key: _searches(fitted.banks(key[0])[key[1]]) for key in {query.bank for query in queries}}
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for round_number in range(ROUNDS + 1):
        for name in NAMES:
            started = time.perf_counter()
            for query in queries:
                searches[query.bank][name](query.patches, query.neighbours)
            if round_number:  # the first round warms the caches, and compiles
                seconds[name].append(time.perf_counter() - started)
    best = {name: min(values) for name, values in seconds.items()}
    figures = {f"search_ms_per_image_{name}": 1e3 * best[name] / len(images) for name in NAMES}
    figures |= {f"search_times_{name}": best[name] / best["ours"] for name in NAMES[1:]}
    for name in NAMES:
        loss = np.concatenate([_loss(fitted, query, searches[query.bank][name]) for query in queries])
        figures[f"search_exact_share_{name}"] = float((loss <= TOLERANCE).mean())
        figures[f"search_worst_loss_{name}"] = float(loss.max())
    return figures | {"search_patches_per_image": sum(len(query.patches) for query in queries) / len(images)}


def queries_of(fitted: CoresetDetector, image: np.ndarray) -> list[Query]:
    """Return what the detector searches for an image: the patches of each layer, in the bank of the image's group."""
    maps = fitted.features(image)
    group = fitted.route(maps).group
    return [
        Query((group, i), unit_rows(layer.reshape(-1, layer.shape[2])), min(settings.neighbours, len(bank)))
        for i, (layer, settings, bank) in enumerate(zip(maps, fitted.model.layers, fitted.banks(group), strict=True))
    ]


def _searches(bank: Int8Index) -> dict[str, Search]:
    faiss, channels = faiss_module(), bank.rows.shape[1]
    indices: dict[str, Any] = {
        "faiss_flat": faiss.IndexFlatIP(channels),
        "faiss_8bit": faiss.IndexScalarQuantizer(channels, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT),
    }
    for index in indices.values():
        index.train(bank.rows)
        index.add(bank.rows)
    return {"ours": bank.nearest} | {name: index.search for name, index in indices.items()}


def _loss(fitted: CoresetDetector, query: Query, search: Search) -> np.ndarray:
    """Return how much cosine the first row that a search finds has less than the nearest row, for each patch (n,)."""
    group, layer = query.bank
    rows = fitted.banks(group)[layer].rows.astype(np.float64)
    similarity = query.patches.astype(np.float64) @ rows.T
    _, nearest = search(query.patches, query.neighbours)
    return np.asarray(similarity.max(axis=1) - similarity[np.arange(len(similarity)), nearest[:, 0]])


def table(figures: Mapping[str, float]) -> str:
    """Return the searches as a Markdown table."""
    names = {"ours": "ours", "faiss_flat": "faiss `IndexFlatIP`", "faiss_8bit": "faiss `IndexScalarQuantizer`, 8 bit"}
    lines = ["| | ms an image | time, ours = 1 | exact share | worst loss of cosine |", "|---|---|---|---|---|"]
    for name, title in names.items():
        ratio = figures.get(f"search_times_{name}", 1.0)
        exact, loss = figures[f"search_exact_share_{name}"], figures[f"search_worst_loss_{name}"]
        lines.append(
            f"| {title} | {figures[f'search_ms_per_image_{name}']:.2f} | {ratio:.1f} | {exact:.4f} | {loss:.1e} |"
        )
    return "\n".join(lines)
