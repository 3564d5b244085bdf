"""Which part of each camera's frames is inspected, as line.toml says."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from flawline.settings.producers import CameraBase
from scorer.regions.masks import RegionOfInterest, read_mask

# Masks kept: frame sizes of a camera rarely change, and a mask of 12 megapixels is 12 MB.
_MASK_LIMIT = 64


class CameraMasks:
    """The masks of all cameras by frame size, each made once."""

    def __init__(self, cameras: Sequence[CameraBase]) -> None:
        """Read the mask files. Raises FlawlineError for one that is missing, no image, or black everywhere."""
        self._regions = {
            camera.name: RegionOfInterest(
                inspect=tuple(map(tuple, camera.inspect)),
                ignore=tuple(map(tuple, camera.ignore)),
                mask=read_mask(camera.mask) if camera.mask else None,
                name=f"camera {camera.name}",
            )
            for camera in cameras
            if camera.inspect or camera.ignore or camera.mask
        }
        self._masks: dict[tuple[str, int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def mask(self, camera: str, height: int, width: int) -> np.ndarray | None:
        """Return bool (height, width), False where nothing is inspected; None for a camera without regions.

        Raises FlawlineError when the camera's mask does not fit its frames, or leaves nothing to inspect.
        """
        region = self._regions.get(camera)
        if region is None:
            return None
        key = camera, height, width
        with self._lock:
            if key not in self._masks:
                if len(self._masks) >= _MASK_LIMIT:
                    self._masks.clear()
                self._masks[key] = region.of(height, width)
            return self._masks[key]
