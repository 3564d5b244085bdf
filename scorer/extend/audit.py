"""The audit of a changed model: what it decides on good parts, and on defects that it has never seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flawline import imaging
from flawline.messages import Codec, Decision
from scorer.detector import CoresetDetector
from scorer.evidence import Evidence
from scorer.features.graph import Image
from scorer.tiles import worst

# The sides of the pasted defects, as shares of the picture's shorter side: from hardly to plainly visible. A judgement,
# not measured.
_SIDES = (0.06, 0.12)
# Bounds the time of an audit of many groups. A judgement, not measured.
_MOST_PICTURES = 240
# With fewer pictures each is used several times, so that one defect more or less is no 4 % of all. A judgement.
_FEWEST_DEFECTS = 120


@dataclass(frozen=True)
class Audit:
    """The alarm rate of the frozen good images by their cross-fitted scores, and the share of pasted defects found.

    `images` and `defects` are the numbers of both.
    """

    alarm_rate: float
    found_rate: float
    images: int
    defects: int


def audit(detector: CoresetDetector, evidence: Evidence, first: int) -> Audit:
    """Return the audit of a detector on its first `first` good images (or tiles) and the pictures kept of them."""
    scores, tiles = detector.model.standardised[:first], detector.model.tiles
    if tiles is not None:
        scores = worst(scores, tiles.sources[:first])
    is_alarmed = scores > detector.cut_offs[0].value
    is_found = [result.decision is not Decision.ACCEPT for result in detector.score(defective(evidence, first))]
    found_rate = float(np.mean(is_found)) if is_found else 0.0
    return Audit(float(is_alarmed.mean()), found_rate, len(is_alarmed), len(is_found))


def defective(evidence: Evidence, first: int) -> list[Image]:
    """Return the defective images of an audit: kept pictures of the first `first` good images, with foreign texture."""
    numbers = sorted(number for number in evidence.pictures if number < first)
    step = max(1, -(-len(numbers) // _MOST_PICTURES))
    pictures = [
        np.asarray(imaging.decode(evidence.pictures[number], Codec.JPEG), dtype=np.uint8) for number in numbers[::step]
    ]
    count = len(pictures)
    rounds = -(-_FEWEST_DEFECTS // max(1, count * len(_SIDES)))
    return [
        pasted(picture, pictures[(i + 1 + count // 2) % count], side, seed=i + count * repeat)
        for repeat in range(rounds)
        for i, picture in enumerate(pictures)
        for side in _SIDES
    ]


def pasted(image: Image, other: Image, side: float, seed: int) -> Image:
    """Return the image with a rectangle of another one in it, brightness inverted: texture that no good part has.

    `side` is the rectangle's side as a share of the image's shorter side; each side may be doubled.
    """
    rng = np.random.default_rng(seed)
    result = image.copy()
    side_px = max(3, round(side * min(image.shape[:2])))
    height, width = (min(side_px * int(rng.integers(1, 3)), length // 2 or 1) for length in image.shape[:2])
    y, x = (
        int(rng.integers(0, length - extent + 1))
        for length, extent in zip(image.shape[:2], (height, width), strict=True)
    )
    rows = rng.integers(0, other.shape[0]) + np.arange(height)
    columns = rng.integers(0, other.shape[1]) + np.arange(width)
    piece = 255 - np.take(np.take(other, rows, axis=0, mode="wrap"), columns, axis=1, mode="wrap")
    result[y : y + height, x : x + width] = piece
    return result
