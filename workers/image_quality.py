"""How sharp and how bright the frames of a camera are: what tells a lens that slips from a product that changes.

A frame of each camera is measured once a second, after its verdict has left, so it costs no frame its time.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flawline import clock
from workers import metrics

INTERVAL_S = 1.0
SIDE_PX = 512
"""The middle of a frame is looked at for sharpness at full resolution: smaller pictures of it hide what is blurred."""
STEP_TARGET = 256
"""Brightness is that of every n-th pixel, some 256 x 256 of them."""
_BLACK, _WHITE = 0.01, 0.99


@dataclass(frozen=True)
class ImageQuality:
    """`sharpness` is the variance of the Laplacian in 8-bit grey levels (Pech-Pacheco et al. 2000), the others 0 to 1.

    `clipped` is the share of pixels that are black or white: what they showed is lost.
    """

    sharpness: float
    brightness: float
    clipped: float


def measure(pixels: np.ndarray) -> ImageQuality:
    """Return the quality of an image (h, w, 3) of 8 or 16 bits; its green channel stands for its brightness."""
    green, full = pixels[:, :, 1], float(np.iinfo(pixels.dtype).max)
    height, width = green.shape
    top, left = max(0, (height - SIDE_PX) // 2), max(0, (width - SIDE_PX) // 2)
    middle = np.ascontiguousarray(green[top : top + SIDE_PX, left : left + SIDE_PX])
    edges = cv2.Laplacian(middle, cv2.CV_32F)
    step = max(1, min(height, width) // STEP_TARGET)
    sample = green[::step, ::step].astype(np.float32) / full
    return ImageQuality(
        sharpness=float(edges.var()) * (255 / full) ** 2,
        brightness=float(sample.mean()),
        clipped=float(((sample <= _BLACK) | (sample >= _WHITE)).mean()),
    )


class QualityWatch:
    """Measures frames of each camera at intervals. For one thread."""

    def __init__(self, now: clock.Monotonic = clock.monotonic) -> None:
        self._now = now
        self._due: dict[str, float] = {}

    def look(self, camera: str, pixels: np.ndarray) -> None:
        """Measure the frame when one of its camera is due."""
        now = self._now()
        if now < self._due.get(camera, now):
            return
        self._due[camera] = now + INTERVAL_S
        quality = measure(pixels)
        metrics.SHARPNESS.labels(camera).observe(quality.sharpness)
        metrics.BRIGHTNESS.labels(camera).observe(quality.brightness)
        metrics.CLIPPED.labels(camera).observe(quality.clipped)
