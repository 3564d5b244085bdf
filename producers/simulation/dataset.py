"""Writes parts of a simulated line as image files, in the MVTec layout."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from flawline.errors import FlawlineError
from producers.simulation.line import Part, SimulatedLine, Truth
from producers.simulation.settings import LineSettings


def write_dataset(
    folder: Path | str, settings: LineSettings, *, train: int = 50, test_good: int = 20, test_per_defect: int = 5
) -> int:
    """Write PNG files under a new or empty folder and return the number of pictures, without masks.

    Counts are per product: `<product>/train/good`, `<product>/test/<good|defect>` and
    `<product>/ground_truth/<defect>/<stem>_mask.png` (0 or 255). Raises FlawlineError when the folder holds
    something or cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FlawlineError(f"data set folder {folder} is not an empty folder: name a new one")
    written = 0
    for product, split, part in _parts(settings, train, test_good, test_per_defect):
        kind = part.defect or "good"
        directory = folder / product / split / kind
        number = sum(1 for _ in directory.iterdir()) if directory.is_dir() else 0
        _write(directory / f"{number:03d}.png", cv2.cvtColor(part.image, cv2.COLOR_RGB2BGR))
        if part.defect is not None:
            mask = part.mask.astype(np.uint8) * 255
            _write(folder / product / "ground_truth" / kind / f"{number:03d}_mask.png", mask)
        written += 1
    return written


def _parts(settings: LineSettings, train: int, test_good: int, test_per_defect: int) -> Iterator[tuple[str, str, Part]]:
    line = SimulatedLine(settings)
    for product in settings.products:
        for index in range(train):
            yield product, "train", line.part(Truth(product, None), index, f"train/{product}")
        for kind, count in [(None, test_good), *((defect, test_per_defect) for defect in settings.defects)]:
            for index in range(count):
                yield product, "test", line.part(Truth(product, kind), index, f"test/{product}/{kind}")


def _write(path: Path, pixels: np.ndarray) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    except OSError as error:
        raise FlawlineError(f"cannot write {path}: {error.strerror}: free space or name another folder") from error
