"""Images that are to be added to a model, as the model sees them: whole or as tiles, and their patches that are new."""

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
from scorer.vectors import Vectors


@dataclass(frozen=True)
class NovelPatches:
    """The patches of a part that its group's bank does not cover: their numbers (m,) and unit vectors (m, c)."""

    patches: NDArray[np.intp]
    vectors: NDArray[np.float16]


@dataclass(frozen=True)
class Candidate:
    """An image that is to be added, and what the model says of its t parts: its tiles, or the image as a whole (t = 1).

    `number` is the image's among all images; `names` and `groups` (t,), `embeddings` (t, d); `novel[t][l]` for each
    part and layer, empty for an image of an unknown product. `contents` (t, 2) as for `model.Model`.
    """

    number: int
    decision: Decision
    names: list[str]
    groups: NDArray[np.int64]
    embeddings: NDArray[np.float32]
    novel: list[list[NovelPatches]]
    contents: NDArray[np.int64] | None

    def novel_by_group(self) -> Iterator[tuple[int, list[NovelPatches]]]:
        """Yield the group of each part and its novel patches of each layer."""
        return zip(self.groups.tolist(), self.novel, strict=True)


def parts_of(detector: CoresetDetector, image: Image, name: str) -> tuple[list[Image], list[str]]:
    """Return the tiles of an image and their names or, for a model of whole images, the image and its name."""
    if not isinstance(detector, TiledCoreset):
        return [image], [name]
    boxes = detector.boxes(image)
    return [np.ascontiguousarray(box.of(image)) for box in boxes], [box.name(name) for box in boxes]


def map_in_order(
    work: Callable[[int], Any], count: int, threads: int, stage: str = "", progress: Progress | None = None
) -> Iterator[Any]:
    """Yield work(0) .. work(count - 1) in order, computed on `threads` threads; report progress of `stage`."""
    with ThreadPoolExecutor(threads) as pool:
        for done, result in enumerate(in_order(work, count, pool), 1):
            yield result
            if progress:
                progress(stage, done, count)


def examine(
    detector: CoresetDetector,
    images: Sequence[Image],
    names: Sequence[str],
    progress: Progress | None,
    on_unreadable: OnUnreadable | None,
) -> list[Candidate]:
    """Return what the model says of each readable image; `on_unreadable` gets the others, see `extend_model`.

    Raises FlawlineError when no image can be read.
    """

    def candidate(number: int) -> Candidate | FlawlineError:
        try:
            parts, part_names = parts_of(detector, images[number], names[number])
        except FlawlineError as error:
            if on_unreadable is None:
                raise
            return error
        features = [detector.features(part) for part in parts]
        scores = [detector.score_features(maps) for maps in features]
        groups = np.asarray([score.group for score in scores], dtype=np.int64)
        decision = detector.decided(scores) if isinstance(detector, TiledCoreset) else scores[0].decision
        is_unknown = decision is Decision.UNKNOWN_PRODUCT
        embeddings = detector.embeddings(features)
        novel = [] if is_unknown else _novel(detector, features, groups, embeddings)
        padding, contents = detector.backbone.padding, None
        if padding is not None:
            contents = np.asarray([padding.content(*part.shape[:2]) for part in parts], dtype=np.int64)
        return Candidate(number, decision, part_names, groups, embeddings, novel, contents)

    candidates: list[Candidate] = []
    results = map_in_order(candidate, len(images), detector.threads, "looking", progress)
    for number, result in enumerate(results):
        if isinstance(result, Candidate):
            candidates.append(result)
        elif on_unreadable is not None:
            on_unreadable(number, result)
    if not candidates:
        raise FlawlineError("none of the images can be read: give images that can")
    return candidates


def _novel(
    detector: CoresetDetector, features: Sequence[Maps], groups: NDArray[np.int64], embeddings: Vectors
) -> list[list[NovelPatches]]:
    """Return for each part of one image, and each layer, the patches that are farther than usual from the banks.

    In a group with sub-looks, the banks are those of the part's own sub-look: a patch that is known elsewhere only may
    be why the image was alarmed. All parts of a group together give at most as many patches as a fit takes of a whole
    image.
    """
    novel: list[list[NovelPatches]] = [[] for _ in features]
    for layer in range(len(detector.model.layers)):
        vectors = [_in_half_precision(maps[layer]) for maps in features]
        for group in np.unique(groups).tolist():
            parts = np.flatnonzero(groups == group).tolist()
            far = [np.flatnonzero(_is_far(vectors[part], detector, group, layer, embeddings[part])) for part in parts]
            pool = np.concatenate([vectors[part][patches] for part, patches in zip(parts, far, strict=True)])
            limit = max(1, round(_rows_per_image(detector, group, layer)))
            chosen = greedy_k_centre(pool, limit) if len(pool) else np.empty(0, dtype=np.intp)
            start = 0
            for part, patches in zip(parts, far, strict=True):
                places = chosen[(chosen >= start) & (chosen < start + len(patches))] - start
                start += len(patches)
                novel[part].append(NovelPatches(patches[places], vectors[part][patches[places]].astype(np.float16)))
    return novel


def _rows_per_image(detector: CoresetDetector, group: int, layer: int) -> float:
    """Return the rows that a fit takes of one image; of one in tiles, at least what the bank holds of each image."""
    model = detector.model
    rows = model.layers[layer].rows_per_image
    if model.tiles is None:
        return rows
    images_in_group = len(np.unique(model.tiles.sources[model.groups == group]))
    return max(rows, len(model.banks[group][layer]) / images_in_group)


def _is_far(
    vectors: Vectors, detector: CoresetDetector, group: int, layer: int, embedding: Vectors
) -> NDArray[np.bool_]:
    """Return which patches (m,) are farther from a bank than usual; of a tile, than one good patch in a hundred.

    Most tiles of an image that was alarmed are like those in the bank. So for tiles the bound is higher, and the rows
    go to the few tiles that are not.
    """
    model, sub_looks = detector.model, detector.model.sub_looks[group]
    banks = detector.banks(group) if sub_looks is None else detector.banks_of_looks(group)[int(sub_looks.of(embedding))]
    bank = banks[layer]
    usual = model.units[group][layer]
    if model.tiles is None:
        similarity, _ = nearest_neighbours(vectors, bank)
        return np.asarray(np.sqrt(np.maximum(0, 2 - 2 * similarity[:, 0])) > usual.median)
    distances, _ = projected(vectors, bank, model.layers[layer].neighbours)
    return np.asarray(distances > usual.median * np.exp(usual.width))


def _in_half_precision(features: NDArray[np.float32]) -> Vectors:
    """Return the unit patch vectors (h * w, c) of a map, rounded as the artefact will store them."""
    return unit_rows(features.reshape(-1, features.shape[-1])).astype(np.float16).astype(np.float32)
