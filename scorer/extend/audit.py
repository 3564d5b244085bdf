"""The audit of a changed model: what it does to good parts and to defects that it was never shown."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flawline import imaging
from flawline.messages import Codec, Decision
from scorer.detector import CoresetDetector
from scorer.evidence import Evidence
from scorer.features.graph import Image
from scorer.tiles import worst

# Defects pasted into each picture, and their sides as shares of the picture's: from hardly to plainly visible.
_SIDES = (0.06, 0.12)
_MOST_PICTURES = 240
# Fewer pictures than that are used more than once, so that one defect more or less is no 4 % of all.
_FEWEST_DEFECTS = 120


@dataclass(frozen=True)
class Audit:
    """Alarm rate of the frozen good images by their cross-fitted scores, and the share of pasted defects found."""

    alarm_rate: float
    found_rate: float
    images: int
    defects: int


def audit(detector: CoresetDetector, evidence: Evidence, first: int) -> Audit:
    """Audit a detector on its first `first` good images (or tiles of some) and the pictures that are kept of them."""
    scores, tiles = detector.model.standardised[:first], detector.model.tiles
    if tiles is not None:
        scores = worst(scores, tiles.sources[:first])
    alarmed = scores > detector.cut_offs[0].value
    found = [scores.decision is not Decision.ACCEPT for scores in detector.score(defective(evidence, first))]
    return Audit(float(alarmed.mean()), float(np.mean(found)) if found else 0.0, len(alarmed), len(found))


def defective(evidence: Evidence, first: int) -> list[Image]:
    """The audit's defective images: kept pictures of the first good images, with foreign texture in them."""
    numbers = sorted(number for number in evidence.pictures if number < first)
    chosen = numbers[:: max(1, -(-len(numbers) // _MOST_PICTURES))]
    pictures = [np.asarray(imaging.decode(evidence.pictures[i], Codec.JPEG), dtype=np.uint8) for i in chosen]
    times = -(-_FEWEST_DEFECTS // max(1, len(pictures) * len(_SIDES)))
    return [
        pasted(picture, pictures[(i + 1 + len(pictures) // 2) % len(pictures)], side, seed=i + len(pictures) * time)
        for time in range(times)
        for i, picture in enumerate(pictures)
        for side in _SIDES
    ]


def pasted(image: Image, other: Image, side: float, seed: int) -> Image:
    """The image with a rectangle of another one, brightness turned round, in it: foreign texture that is no part of it.

    `side` is the share of the image's shorter side.
    """
    rng = np.random.default_rng(seed)
    result = image.copy()
    size = max(3, round(side * min(image.shape[:2])))
    height, width = (min(size * int(rng.integers(1, 3)), each // 2 or 1) for each in image.shape[:2])
    y, x = (int(rng.integers(0, each - own + 1)) for each, own in zip(image.shape[:2], (height, width), strict=True))
    rows = rng.integers(0, other.shape[0]) + np.arange(height)
    columns = rng.integers(0, other.shape[1]) + np.arange(width)
    piece = 255 - np.take(np.take(other, rows, axis=0, mode="wrap"), columns, axis=1, mode="wrap")
    result[y : y + height, x : x + width] = piece
    return result
