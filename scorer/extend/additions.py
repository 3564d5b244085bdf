"""Images that are to be added to a model, as the model sees them: whole or as tiles, and what of them is new to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.messages import Decision
from scorer.coreset import greedy_k_centre, nearest_neighbours, projected
from scorer.detector import CoresetDetector
from scorer.features.graph import Image, Maps
from scorer.features.store import OnUnreadable, Progress, in_order
from scorer.search.bank import unit_rows
from scorer.tiles import TiledCoreset


@dataclass(frozen=True)
class Novel:
    """Patches of an image, or tile, that a bank does not cover: which they are, and their unit vectors (m, c)."""

    patches: NDArray[np.intp]
    vectors: NDArray[np.float16]


@dataclass(frozen=True)
class Shown:
    """What the model says of one image, and of its t tiles: of one that is not tiled, t is 1.

    `number` is the image's among all that were given; `names` and `groups` (t,), `embeddings` (t, d); `novel[t][l]`.
    """

    number: int
    decision: Decision
    names: list[str]
    groups: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    novel: list[list[Novel]]


def parts_of(detector: CoresetDetector, image: Image, name: str) -> tuple[list[Image], list[str]]:
    """The tiles of an image and their names or, for a model of whole images, the image itself."""
    if not isinstance(detector, TiledCoreset):
        return [image], [name]
    cut = detector.boxes(image)
    return [np.ascontiguousarray(box.of(image)) for box in cut], [box.name(name) for box in cut]


def for_each(
    work: Callable[[int], Any], count: int, threads: int, stage: str = "", progress: Progress | None = None
) -> Iterator[Any]:
    """Results of work(0) .. work(count - 1) in order, on so many threads, with progress."""
    with ThreadPoolExecutor(threads) as pool:
        for done, result in enumerate(in_order(work, count, pool), 1):
            yield result
            if progress:
                progress(stage, done, count)


def look_at(
    detector: CoresetDetector,
    images: Sequence[Image],
    names: Sequence[str],
    progress: Progress | None,
    on_unreadable: OnUnreadable | None,
) -> list[Shown]:
    """What the model says of each image that can be read; see `extend.extend` for the others."""

    def look(number: int) -> Shown | FlawlineError:
        try:
            parts, part_names = parts_of(detector, images[number], names[number])
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            return error
        features = [detector.features(part) for part in parts]
        scores = [detector.score_features(each) for each in features]
        groups = np.asarray([each.group for each in scores], dtype=np.int64)
        decision = detector.decided(scores) if isinstance(detector, TiledCoreset) else scores[0].decision
        unknown = decision is Decision.UNKNOWN_PRODUCT
        novel = [] if unknown else _novel(detector, features, groups)
        return Shown(number, decision, part_names, groups, detector.embeddings(features), novel)

    shown: list[Shown] = []
    for number, each in enumerate(for_each(look, len(images), detector.threads, "looking", progress)):
        if isinstance(each, Shown):
            shown.append(each)
        elif on_unreadable is not None:
            on_unreadable(number, each)
    if not shown:
        raise FlawlineError("none of the images can be read: give images that can")
    return shown


def _novel(detector: CoresetDetector, features: Sequence[Maps], groups: NDArray[np.int64]) -> list[list[Novel]]:
    """For each tile of one image, per layer, the patches that the banks do not cover, being farther than usual.

    Of all tiles in a group together no more are taken than a fit takes of a whole image.
    """
    model = detector.model
    result: list[list[Novel]] = [[] for _ in features]
    for i, layer in enumerate(model.layers):
        vectors = [_kept(each[i]) for each in features]
        for k in np.unique(groups):
            own = np.flatnonzero(groups == k)
            most = layer.rows_per_image
            if model.tiles is not None:  # as many as the bank holds of each whole image that it was fitted on
                most = max(most, len(model.banks[k][i]) / len(np.unique(model.tiles.sources[model.groups == k])))
            far = [np.flatnonzero(_is_far(vectors[j], detector, int(k), i)) for j in own]
            pool = np.concatenate([vectors[j][each] for j, each in zip(own, far, strict=True)])
            chosen = greedy_k_centre(pool, max(1, round(most))) if len(pool) else np.empty(0, dtype=np.intp)
            ends = np.cumsum([len(each) for each in far])
            for j, each, end in zip(own, far, ends, strict=True):
                picked = chosen[(chosen >= end - len(each)) & (chosen < end)] - (end - len(each))
                result[j].append(Novel(each[picked], vectors[j][each[picked]].astype(np.float16)))
    return result


def _is_far(vectors: NDArray[np.float32], detector: CoresetDetector, group: int, layer: int) -> NDArray[np.bool_]:
    """Which patches (m,) of an image are farther from a bank than usual; of a tile, than one good patch in a hundred.

    Most tiles of an image that was alarmed are like those that the bank is made of; what it takes goes to the others.
    """
    model, bank = detector.model, detector.banks(group)[layer]
    usual = model.units[group][layer]
    if model.tiles is None:
        similarity, _ = nearest_neighbours(vectors, bank)
        return np.asarray(np.sqrt(np.maximum(0, 2 - 2 * similarity[:, 0])) > usual.median)
    distances, _ = projected(vectors, bank, model.layers[layer].neighbours)
    return np.asarray(distances > usual.median * np.exp(usual.width))


def _kept(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Unit patch vectors (h * w, c) as the artefact will keep them, in half precision."""
    return unit_rows(features.reshape(-1, features.shape[-1])).astype(np.float16).astype(np.float32)
