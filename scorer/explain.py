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
from scorer.features.graph import Image, Maps
from scorer.model import picture_layers
from scorer.search.bank import unit_rows
from scorer.sub_looks import InLook
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
class SubLook:
    """A part of a group whose images look alike as wholes: its number from 1 of `count`, and its good images."""

    number: int
    count: int
    images: int


@dataclass(frozen=True)
class Reason:
    """Why one place is hot: the layer in which it is most unusual, and the nearest good patch in that layer.

    The score comes from `nearest`. `shown` is the same patch, or the nearest one of which there is a picture. With a
    `sub_look` the place is unusual among the good images of that sub-look, whatever the others of the group show there,
    and `nearest` is of one of them.
    """

    size_px: int
    stride_px: int
    box: Box
    nearest: GoodPatch
    shown: GoodPatch
    sub_look: SubLook | None = None


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
    return _reasons(detector, evidence, features, places)


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
    (reason,) = _reasons(detector, evidence, features, [within])
    left, top, across, down = reason.box
    whole = (box.x0 + left * wide) / width, (box.y0 + top * high) / height, across * wide / width, down * high / height
    return dataclasses.replace(reason, box=whole)


def _reasons(
    detector: CoresetDetector,
    evidence: Evidence,
    features: Maps,
    places: Sequence[tuple[float, float]],
) -> list[Reason]:
    group, in_look = detector.route(features).group, detector.in_look(features)
    return [_reason(detector, evidence, features, group, place, in_look) for place in places]


def _reason(
    detector: CoresetDetector,
    evidence: Evidence,
    features: Maps,
    group: int,
    place: tuple[float, float],
    in_look: InLook | None,
) -> Reason:
    model, sub_looks = detector.model, detector.model.sub_looks[group]
    if in_look is not None and not _at(in_look.heat, place):
        in_look = None  # what is hot here is hot among all images of the group
    if in_look is None or sub_looks is None:
        banks, all_sources = model.banks[group], evidence.sources[group]
    else:
        banks, all_sources = sub_looks.banks[in_look.look], evidence.look_sources[group][in_look.look]
    best: tuple[float, int, NDArray[np.float32], tuple[int, int]] | None = None
    for i in picture_layers(model.layers):
        shape, usual = features[i].shape[:2], model.units[group][i]
        row, column = (min(int(share * cells), cells - 1) for share, cells in zip(place[::-1], shape, strict=True))
        distances = _distances(unit_rows(features[i][row, column]), banks[i])
        unusual = float(np.log(max(float(distances.min()), 1e-6) / usual.median) / usual.width)
        if best is None or unusual > best[0]:
            best = unusual, i, distances, (row, column)
    assert best is not None
    _, i, distances, cell = best
    sources, shape = all_sources[i], features[i].shape[:2]
    usual_distance = model.units[group][i].median

    def patch(bank_row: int, picture: Image | None) -> GoodPatch:
        number, where = (int(value) for value in sources[bank_row])
        name = evidence.names[number] if 0 <= number < len(evidence.names) else f"good image {number}"
        distance = float(distances[bank_row])
        good = _shape_of_good(detector, i, number)
        box = _box(divmod(where, good[1]), good)
        return GoodPatch(number, name, box, distance, distance / usual_distance, picture)

    order = np.argsort(distances, kind="stable")
    nearest = patch(int(order[0]), evidence.picture(int(sources[order[0], 0])))
    shown = nearest
    if nearest.picture is None:
        pictured = next((row for row in order.tolist() if int(sources[row, 0]) in evidence.pictures), None)
        if pictured is not None:
            shown = patch(pictured, evidence.picture(int(sources[pictured, 0])))
    layer = model.layers[i]
    sub_look = None
    if in_look is not None and sub_looks is not None:
        looks = sub_looks.of(model.embeddings[model.groups == group])
        images = int((looks == in_look.look).sum())
        sub_look = SubLook(in_look.look + 1, len(sub_looks.centres), images)
    return Reason(layer.size, layer.size // detector.backbone.grids[i], _box(cell, shape), nearest, shown, sub_look)


def _at(heat: NDArray[np.float32], place: tuple[float, float]) -> float:
    row, column = (min(int(share * side), side - 1) for share, side in zip(place[::-1], heat.shape, strict=True))
    return float(heat[row, column])


def _shape_of_good(detector: CoresetDetector, layer: int, image: int) -> tuple[int, int]:
    """Return the rows and columns of patches of a good image's map; of the whole input where it is not known."""
    grid, padding, contents = detector.backbone.grids[layer], detector.backbone.padding, detector.model.contents
    if padding is None or contents is None or not 0 <= image < len(contents):
        return grid, grid
    rows, columns = contents[image].tolist()
    return padding.extent((rows, columns), grid)


def _distances(vector: NDArray[np.float32], bank: NDArray[np.float32]) -> NDArray[np.float32]:
    difference = bank - vector
    return np.asarray(np.sqrt(np.einsum("nd,nd->n", difference, difference)), dtype=np.float32)


def _box(cell: tuple[int, int], shape: tuple[int, ...]) -> Box:
    return cell[1] / shape[1], cell[0] / shape[0], 1 / shape[1], 1 / shape[0]
