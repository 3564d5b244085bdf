"""Verdicts and defects as the workers send them, with embeddings drawn around a few directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np

from flawline import imaging, messages
from flawline.messages import Codec, Decision, Defect, DefectRegion, Frame, Tensor, Timings, Verdict

MINUTE_NS = 60_000_000_000
START_NS = 1_700_000_040_000_000_000  # a full minute
VERSION = "lite0+pooled-1"
DIMENSION = 24

_CROP = imaging.encode(np.full((8, 8, 3), 90, np.uint8), Codec.JPEG)
_MASK = imaging.encode_mask(np.eye(8, dtype=bool))


def directions(count: int, dimension: int = DIMENSION, seed: int = 5) -> np.ndarray:
    """Return unit vectors at right angles, one for each kind of defect."""
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))[0][:count].astype(np.float32)


def near(direction: np.ndarray, rng: np.random.Generator, spread: float = 0.25) -> np.ndarray:
    """Return a unit vector around a direction."""
    noise = rng.normal(size=direction.shape)
    vector = direction + spread * noise / np.linalg.norm(noise)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def verdict(
    sequence: int,
    camera: str = "cam-1",
    decision: Decision = Decision.ACCEPT,
    captured_at: int | None = None,
    score: float = 1.0,
    group: int = 0,
    model_version: str = "m1",
) -> Verdict:
    at = START_NS + sequence * 1_000_000_000 if captured_at is None else captured_at
    return Verdict(
        camera=camera,
        epoch=1,
        sequence=sequence,
        captured_at=at,
        decided_at=at + 5_000_000,
        model_version=model_version,
        group=group,
        raw_score=score,
        score=score,
        p_value=0.5,
        decision=decision,
        regions=(),
        timings=Timings(0.001, 0.001, 0.001, 0.01),
    )


def region(vector: np.ndarray, peak: float = 2.5) -> DefectRegion:
    return DefectRegion((10, 12, 8, 8), 64, peak, (8, 8, 12, 12), _MASK, _CROP, Tensor.of(vector, "float16"))


def defect(
    sequence: int,
    *vectors: np.ndarray,
    camera: str = "cam-1",
    captured_at: int | None = None,
    version: str = VERSION,
    group: int = 0,
    peaks: tuple[float, ...] = (),
    model_version: str = "m1",
) -> Defect:
    at = START_NS + sequence * 1_000_000_000 if captured_at is None else captured_at
    heights = peaks or (2.5,) * len(vectors)
    return Defect(
        camera=camera,
        epoch=1,
        sequence=sequence,
        captured_at=at,
        model_version=model_version,
        group=group,
        score=3.0,
        p_value=0.001,
        decision=Decision.REJECT,
        height=64,
        width=64,
        embedding_version=version,
        heatmap=Tensor.of(cv2.GaussianBlur(np.eye(8, dtype=np.float32), (3, 3), 0), "float16"),
        regions=tuple(region(vector, peak) for vector, peak in zip(vectors, heights, strict=True)),
    )


def frame(sequence: int, codec: Codec = Codec.JPEG, **changes: Any) -> tuple[Frame, bytes]:
    """Return a frame of one grey, and the bytes that its camera gave."""
    pixels = np.full((16, 24, 3), (10 * sequence + 20) % 256, np.uint8)
    data = imaging.encode(pixels, codec)
    made = Frame(
        camera="cam-1",
        epoch=1,
        sequence=sequence,
        captured_at=START_NS + sequence * 1_000_000_000,
        codec=codec,
        height=16,
        width=24,
        channels=3,
        data=data,
        checksum=messages.checksum(data),
        size_bytes=len(data),
    )
    return replace(made, **changes), data
