"""Anomaly maps that another detector has left in files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from flawline.errors import FlawlineError, UsageError, one_line

SUFFIXES = (".npy", ".png", ".tif", ".tiff")


def path_of(image: Path, data: Path, folder: Path) -> Path:
    """Return the path of the map of an image under `data`: the same relative path under `folder`. Raises UsageError."""
    relative = image.relative_to(data)
    for suffix in SUFFIXES:
        if (path := folder / relative.with_suffix(suffix)).is_file():
            return path
    raise UsageError(f"{folder / relative.with_suffix('.npy')}: no anomaly map for {image} (.npy, .png or .tiff)")


def read(path: Path) -> np.ndarray:
    """Read an anomaly map, float32 (h, w). Raises FlawlineError."""
    try:
        if path.suffix == ".npy":
            values = np.load(path, allow_pickle=False)
        else:
            values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    except (OSError, ValueError, cv2.error) as error:
        raise FlawlineError(f"{path}: cannot be read as an anomaly map: {one_line(error)}") from error
    if values is None or np.squeeze(values).ndim != 2 or values.dtype.kind not in "fui":
        shape = "unreadable" if values is None else f"{values.dtype} {list(values.shape)}"
        raise FlawlineError(f"{path}: {shape} is no anomaly map: it must be numbers (height, width)")
    anomaly_map = np.squeeze(values).astype(np.float32)
    if not np.isfinite(anomaly_map).all():
        raise FlawlineError(f"{path}: the anomaly map holds NaN or infinity")
    return anomaly_map
