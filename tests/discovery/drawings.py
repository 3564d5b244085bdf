"""Folders of small pictures with three kinds of defects that are easy to tell apart, and anomaly maps of them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from discovery.learned import augment
from discovery.learned.augment import Crop
from flawline import imaging
from flawline.messages import Codec

SIDE = 96
KINDS = ("blot", "scratch", "stain")


def draw(kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return a grey picture uint8 (96, 96, 3) with one defect, and the defect's mask."""
    image = np.full((SIDE, SIDE, 3), 128, np.float32) + rng.normal(0, 6, (SIDE, SIDE, 3))
    mask = np.zeros((SIDE, SIDE), np.uint8)
    x, y = (int(coordinate) for coordinate in rng.integers(30, SIDE - 30, 2))
    if kind == "blot":
        cv2.circle(mask, (x, y), 9, 255, -1)
        colour = (250, 250, 250)
    elif kind == "scratch":
        cv2.line(mask, (x - 18, y - int(rng.integers(4))), (x + 18, y + int(rng.integers(4))), 255, 2)
        colour = (10, 10, 10)
    elif kind == "stain":
        cv2.ellipse(mask, (x, y), (16, 10), float(rng.uniform(0, 90)), 0, 360, 255, -1)
        colour = (200, 60, 40)
    else:
        return np.clip(image, 0, 255).astype(np.uint8), mask > 0
    image[mask > 0] = np.float32(colour) + rng.normal(0, 6, (int((mask > 0).sum()), 3))
    return np.clip(image, 0, 255).astype(np.uint8), mask > 0


def anomaly_map(mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the map of a good detector: the blurred mask over a little noise."""
    return cv2.GaussianBlur(mask.astype(np.float32), (7, 7), 0) + rng.uniform(0, 0.05, mask.shape).astype(np.float32)


def crops(count: int, seed: int = 0) -> tuple[list[Crop], list[str]]:
    """Return crops around defects as the store holds them, and their kinds."""
    rng = np.random.default_rng(seed)
    made, kinds = [], []
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        image, mask = draw(kind, rng)
        encoded = imaging.encode(image, Codec.JPEG), imaging.encode_mask(mask)
        made.append(augment.decode(*encoded))
        kinds.append(kind)
    return made, kinds


def write_folder(root: Path, per_kind: int, good: int = 0) -> Path:
    """Write `per_kind` pictures of every kind to root/images, their maps to root/maps; return the images' folder."""
    rng = np.random.default_rng(1)
    for kind, count in [*((kind, per_kind) for kind in KINDS), ("good", good)]:
        for number in range(count):
            image, mask = draw(kind, rng)
            picture, scores = root / "images" / kind / f"{number}.png", root / "maps" / kind / f"{number}.npy"
            for path in (picture, scores):
                path.parent.mkdir(parents=True, exist_ok=True)
            picture.write_bytes(imaging.encode(image, Codec.PNG))
            np.save(scores, anomaly_map(mask, rng))
    return root / "images"
