"""Why a place of an image is hot: the good patch nearest to it, the image and place it came from, and its distance.

Distances are those of scoring, to the same bank rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from scorer.detector import CoresetDetector
from scorer.evidence import Evidence
from scorer.features.graph import Image
from scorer.model import picture_layers
from scorer.search.bank import unit_rows
from scorer.tiles import TiledCoreset

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class GoodPatch:
    """The good patch nearest to a place: number and file of its image, its place there, and its distance.

    `box` (x, y, width, height) is in fractions of that image's sides, `distance` is between unit vectors (0 to 2),
    `ratio` is it over the usual distance of the group's good patches. `picture` is the whole good image, if there is
    one.
    """

    image: int
    name: str
    box: Box
    distance: float
    ratio: float
    picture: Image | None


@dataclass(frozen=True)
class Reason:
    """Why one place is hot: the layer in which it is most unusual, and the nearest good patch in that layer.

    The score comes from `nearest`. `shown` is the same patch, or the nearest one of which there is a picture.
    """

    size_px: int
    stride_px: int
    box: Box
    nearest: GoodPatch
    shown: GoodPatch


def reasons(detector: CoresetDetector, image: Image, places: Sequence[tuple[float, float]]) -> list[Reason]:
    """Return the reason for each place (x, y), in fractions of the sides of a uint8 RGB image.

    Raises FlawlineError for a model that was saved without evidence.
    """
    evidence = detector.evidence
    if evidence is None:
        raise FlawlineError(f"model {detector.version}: does not know where its patches came from: fit it again")
    if isinstance(detector, TiledCoreset):
        return [_tile_reason(detector, evidence, image, place) for place in places]
    features = detector.features(image)
    group = detector.route(features).group
    return [_reason(detector, evidence, features, group, place) for place in places]


def _tile_reason(detector: TiledCoreset, evidence: Evidence, image: Image, place: tuple[float, float]) -> Reason:
    """Return the reason for a place of a large image, from the tile whose centre is nearest, with good tiles."""
    height, width = image.shape[:2]
    x, y = place[0] * width, place[1] * height
    box = min(
        detector.boxes(image), key=lambda tile: (tile.x0 + tile.x1 - 2 * x) ** 2 + (tile.y0 + tile.y1 - 2 * y) ** 2
    )
    high, wide = box.y1 - box.y0, box.x1 - box.x0
    features = detector.features(np.ascontiguousarray(box.of(image)))
    within = (x - box.x0) / wide, (y - box.y0) / high
    reason = _reason(detector, evidence, features, detector.route(features).group, within)
    left, top, across, down = reason.box
    whole = (box.x0 + left * wide) / width, (box.y0 + top * high) / height, across * wide / width, down * high / height
    return dataclasses.replace(reason, box=whole)


def _reason(
    detector: CoresetDetector,
    evidence: Evidence,
    features: Sequence[NDArray[np.float32]],
    group: int,
    place: tuple[float, float],
) -> Reason:
    model = detector.model
    best: tuple[float, int, NDArray[np.float32], tuple[int, int]] | None = None
    for i in picture_layers(model.layers):
        grid, usual = features[i].shape[0], model.units[group][i]
        row, column = (min(int(share * grid), grid - 1) for share in place[::-1])
        distances = _distances(unit_rows(features[i][row, column]), model.banks[group][i])
        unusual = float(np.log(max(float(distances.min()), 1e-6) / usual.median) / usual.width)
        if best is None or unusual > best[0]:
            best = unusual, i, distances, (row, column)
    assert best is not None
    _, i, distances, cell = best
    sources, grid = evidence.sources[group][i], features[i].shape[0]
    usual_distance = model.units[group][i].median

    def patch(bank_row: int, picture: Image | None) -> GoodPatch:
        number, where = (int(value) for value in sources[bank_row])
        name = evidence.names[number] if 0 <= number < len(evidence.names) else f"good image {number}"
        distance = float(distances[bank_row])
        return GoodPatch(number, name, _box(divmod(where, grid), grid), distance, distance / usual_distance, picture)

    order = np.argsort(distances, kind="stable")
    nearest = patch(int(order[0]), evidence.picture(int(sources[order[0], 0])))
    shown = nearest
    if nearest.picture is None:
        pictured = next((row for row in order.tolist() if int(sources[row, 0]) in evidence.pictures), None)
        if pictured is not None:
            shown = patch(pictured, evidence.picture(int(sources[pictured, 0])))
    layer = model.layers[i]
    return Reason(layer.size, layer.size // grid, _box(cell, grid), nearest, shown)


def _distances(vector: NDArray[np.float32], bank: NDArray[np.float32]) -> NDArray[np.float32]:
    difference = bank - vector
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", difference, difference)), dtype=np.float32)


def _box(cell: tuple[int, int], grid: int) -> Box:
    return cell[1] / grid, cell[0] / grid, 1 / grid, 1 / grid
