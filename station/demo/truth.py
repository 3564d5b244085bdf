"""What passed the demo's cameras, from the simulator or from the folder of an image; never part of a frame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flawline import imaging
from flawline.errors import FlawlineError
from flawline.messages import Verdict
from flawline.settings.producers import FolderCamera, SimulatedCamera
from flawline.settings.tree import Settings
from producers.folder import playlist
from producers.simulated import line_settings
from producers.simulation import SimulatedLine
from station.demo.figures import Truth

TruthOf = Callable[[Verdict], Truth]
FileOf = Callable[[Verdict], Path]
PixelsOf = Callable[[Verdict], np.ndarray]


def simulated_line(camera: Any) -> SimulatedLine:
    """Return the line that a simulated camera looks at."""
    return SimulatedLine(line_settings(camera))


def expected_frames(settings: Settings) -> int:
    """Return how many frames the cameras will show."""
    return sum(
        len(playlist(camera)) if isinstance(camera, FolderCamera) else getattr(camera, "frames", None) or 0
        for camera in settings.cameras
    )


def of_cameras(settings: Settings) -> tuple[TruthOf, FileOf | None]:
    """Return functions for a frame's truth and, for folders `<product>/test/<good|defect>/`, its image file."""
    if all(isinstance(camera, SimulatedCamera) for camera in settings.cameras):
        lines = {camera.name: simulated_line(camera) for camera in settings.cameras}

        def rendered(verdict: Verdict) -> Truth:
            part = lines[verdict.camera].truth(verdict.camera, verdict.sequence)
            return Truth(part.product, part.defect)

        return rendered, None

    shown = {
        camera.name: [camera.path / relative for relative in playlist(camera)]
        for camera in settings.cameras
        if isinstance(camera, FolderCamera)
    }

    def file_of(verdict: Verdict) -> Path:
        files = shown[verdict.camera]
        if verdict.sequence >= len(files):
            raise FlawlineError(f"{verdict.frame_id}: its camera has only {len(files)} images")
        return files[verdict.sequence]

    def by_folder(verdict: Verdict) -> Truth:
        *_, product, _, label, _ = file_of(verdict).parts
        return Truth(product, None if label == "good" else label)

    return by_folder, file_of


def pixels_of_cameras(settings: Settings, sample_bits: tuple[int, ...]) -> PixelsOf:
    """Return a function for a frame's pixels, uint8 (H, W, 3) RGB, as its camera delivers them.

    Raises ImageError for a file that cannot be read any more.
    """
    _, file_of = of_cameras(settings)
    cameras = {camera.name: camera for camera in settings.cameras}
    if file_of is not None:
        files = file_of
        return lambda verdict: imaging.at_depth(imaging.read_samples(files(verdict)), sample_bits)
    lines = {name: simulated_line(camera) for name, camera in cameras.items()}

    def rendered(verdict: Verdict) -> np.ndarray:
        camera = cameras[verdict.camera]
        image = lines[verdict.camera].render(verdict.camera, verdict.sequence).image
        return imaging.decode(
            imaging.encode(image, camera.codec, quality=camera.jpeg_quality), camera.codec, shape=image.shape
        )

    return rendered
