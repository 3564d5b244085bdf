"""The odd ones among the good images: those whose shape, depth, colours or look leave the others by far.

One strange file says nothing about a product, and takes part in everything that a fit decides: in the banks, in a
group's spread and in the cut-offs. So each one is named, whatever their number. Many that are alike are a product of
their own: what at least ten images share is not odd.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.imaging import FileHeader
from scorer.vectors import Vectors

# As many images as the smallest group may have (scorer/groups.py) are a kind of their own.
_FEWEST_ALIKE = 10
# Two shapes belong together when width and height differ by less than this factor. A judgement: cameras and crops of
# one product differ by less, a strip and a single pixel by far more.
_SHAPE_FACTOR = 1.5
# Share of the 16-bit images that must need a depth before the data is taken to have it. A judgement, not measured.
_DEPTH_SHARE = 0.1
# An image is odd when its distance to the ninth nearest image of its group is e times the usual one, and this many
# times the spread (1.4826 median absolute deviations) of the logs beyond it. Measured on 1,859 good images of eleven
# products: one is that far out (excess 1.03; the others stay below 0.9). Copies of 1 bit, negatives, a sixteenth of the
# light and images of other products have an excess of 1.0 to 1.9 on nine of the eleven; circuit boards differ so much
# that nothing among them is odd.
_EXCESS = 1.0
# Distances below this are noise: copies of one image through a camera differ by as much. A judgement.
_NOISE = 0.02
_DEVIATIONS = 4.0
# Images that are compared with all of their group at once, to bound memory; the result is the same. A judgement.
_BLOCK = 512

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Odd:
    """An image by number, and why it is odd."""

    number: int
    reason: str


@dataclass(frozen=True)
class Survey:
    """What the files of a fit are: their depths (8 to 16 bits, at most one above 8), and the odd ones."""

    sample_bits: tuple[int, ...]
    odd: list[Odd]


def survey(paths: Sequence[Path], sample_bits: int | None = None) -> Survey:
    """Return what image files are, by their headers; of 16-bit files the data is read too.

    `sample_bits` is the depth of the 16-bit files where it is known. Files that cannot be read are passed over.
    """
    headers: dict[int, FileHeader] = {}
    for number, path in enumerate(paths):
        try:
            headers[number] = imaging.file_header(path)
        except FlawlineError:
            continue  # the fit reads it again, and names it with the error
    odd = _odd_shapes(headers) + _odd_kinds(headers)
    deep = [number for number, header in headers.items() if header.sample_bits > 8]
    depths = {8} if len(deep) < len(headers) else set()
    if deep:
        used = _bits_in_use([paths[number] for number in deep])
        depth = sample_bits or _common_depth(list(used.values()))
        depths.add(depth)
        deeper = [number for number in deep if used.get(paths[number], 0) > depth]
        odd += [Odd(number, f"uses {used[paths[number]]} bits, the others {depth}") for number in deeper]
    first = {item.number: item for item in reversed(odd)}
    return Survey(tuple(sorted(depths)) or (8,), [first[number] for number in sorted(first)])


def _bits_in_use(paths: Sequence[Path]) -> dict[Path, int]:
    used = {}
    for path in paths:
        try:
            used[path] = imaging.bits_in_use(imaging.read_samples(path))
        except FlawlineError:
            continue
    return used


def _common_depth(used: Sequence[int]) -> int:
    """Return the depth that a tenth of the images need at least; the few that need more come from elsewhere."""
    ranked = sorted(used, reverse=True)
    return ranked[max(0, math.ceil(_DEPTH_SHARE * len(ranked)) - 1)] if ranked else imaging.SAMPLE_BITS[-1]


def _odd_shapes(headers: dict[int, FileHeader]) -> list[Odd]:
    """Return the images whose width or height only few others share, however slowly sizes change between them."""
    numbers = list(headers)
    if not numbers:
        return []
    sizes = np.log([[headers[number].width, headers[number].height] for number in numbers]).reshape(-1, 2)
    labels = _linked(sizes, math.log(_SHAPE_FACTOR))
    usual = _common([(headers[number].width, headers[number].height) for number in numbers])
    return [
        Odd(number, f"is {headers[number].width}x{headers[number].height} px, {usual[0]}x{usual[1]} are usual")
        for number in _few(numbers, labels)
    ]


def _linked(points: NDArray[np.float64], reach: float) -> list[int]:
    """Return labels of points (n, 2): those joined by steps of at most `reach` along both axes have the same."""
    kinds, of_point = np.unique(points, axis=0, return_inverse=True)
    labels = np.arange(len(kinds))
    for i in range(len(kinds)):
        near = np.unique(labels[np.abs(kinds - kinds[i]).max(axis=1) <= reach])
        labels[np.isin(labels, near)] = near[0] if len(near) else i
    return [int(label) for label in labels[of_point.reshape(-1)]]


def _odd_kinds(headers: dict[int, FileHeader]) -> list[Odd]:
    """Return the images whose depth, or colour or grey, only few others share."""
    numbers = list(headers)
    depths = [headers[number].sample_bits for number in numbers]
    colours = ["grey" if headers[number].is_grey else "in colour" for number in numbers]
    odd = [
        Odd(number, f"has {headers[number].sample_bits} bits a sample, {_common(depths)} are usual")
        for number in _few(numbers, depths)
    ]
    return odd + [
        Odd(number, f"is {'grey' if headers[number].is_grey else 'in colour'}, {_common(colours)} is usual")
        for number in _few(numbers, colours)
    ]


def _few(numbers: Sequence[int], labels: Sequence[object]) -> list[int]:
    """Return the images whose label fewer than ten images have, except where it is the commonest."""
    times = Counter(labels)
    most = max(times.values(), default=0)
    return [n for n, label in zip(numbers, labels, strict=True) if times[label] < min(_FEWEST_ALIKE, most)]


def _common(values: Sequence[Kind]) -> Kind:
    return Counter(values).most_common(1)[0][0]


def odd_looks(embeddings: Vectors, groups: NDArray[np.int64], usual: Callable[[int], str] = str) -> list[Odd]:
    """Return the images (n,) whose look leaves their group by far, by unit embeddings (n, d) and groups (n,).

    The ninth nearest image counts, so that up to nine odd ones that are alike cannot stand in for each other.
    """
    odd = []
    for k in np.unique(groups):
        members = np.flatnonzero(groups == k)
        place = min(_FEWEST_ALIKE - 1, max(1, len(members) // 2))
        nearest = _similarity_of(place, embeddings[members])
        logs = np.log(np.sqrt(np.maximum(2 - 2 * nearest.astype(np.float64), _NOISE**2)))
        excess = logs - np.median(logs)
        spread = 1.4826 * float(np.median(np.abs(excess)))
        far = np.flatnonzero((excess > _EXCESS) & (excess > _DEVIATIONS * spread))
        odd += [
            Odd(int(members[i]), f"looks {np.exp(excess[i]):.1f} times as far from the others as is usual") for i in far
        ]
    return sorted(odd, key=lambda item: item.number)


def _similarity_of(place: int, embeddings: Vectors) -> Vectors:
    """Return the similarity (n,) of each of unit embeddings (n, d), n > 1, to its `place`-th nearest other, from 1."""
    result = np.empty(len(embeddings), dtype=np.float32)
    for start in range(0, len(embeddings), _BLOCK):
        similarity = embeddings[start : start + _BLOCK] @ embeddings.T
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        result[start : start + _BLOCK] = -np.partition(-similarity, place - 1, axis=1)[:, place - 1]
    return result
