"""What one camera's way to the broker costs: frames/s, MB/s and processor time per frame.

    python -m benchmarks.producers [--frames N] [--json FILE]

Three cameras, one after the other, each alone with an embedded broker on the same machine: a folder of JPEG files of
200 kB (forwarded untouched), the same through the disk spool, and pixels of 1024x1024 that are encoded here.
"""

from __future__ import annotations

import argparse
import logging
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks import report
from embedded_broker import EmbeddedBroker
from flawline import imaging
from flawline.messages import Codec
from flawline.settings.tree import Settings
from producers import service
from producers.camera import Camera, Capture
from producers.journal import Journal


def picture(side: int, noise: float) -> np.ndarray:
    """Return a smooth picture with sensor noise, uint8 (side, side, 3)."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:side, 0:side] / side
    smooth = 128 + 90 * np.sin(7 * x)[..., None] * np.cos(np.array([5, 6, 7]) * y[..., None])
    return np.clip(smooth + rng.normal(0, noise, (side, side, 3)), 0, 255).astype(np.uint8)


class PixelCamera:
    """Gives the same pixels over and over, as a device of unlimited speed would."""

    def __init__(self, name: str, pixels: np.ndarray, count: int) -> None:
        self.name = name
        self._pixels = pixels
        self._count = count

    def open(self) -> None:
        """Do nothing: there is no device."""

    def frames(self) -> Iterator[Capture]:
        """Yield the captures."""
        for _ in range(self._count):
            yield Capture(time.time_ns(), pixels=self._pixels)

    def close(self) -> None:
        """Do nothing: there is no device."""


def cpu_s() -> float:
    """Return the processor seconds that this process has used, the broker's not among them."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(settings: Settings, cameras: list[str | Camera] | None, size_bytes: int, label: str) -> dict[str, float]:
    """Run to the end; figures of this run. Connecting and closing are part of it."""
    started, used = time.perf_counter(), cpu_s()
    count = service.run(settings, threading.Event(), cameras)
    seconds, cpu = time.perf_counter() - started, cpu_s() - used
    return {
        f"{label}_frames_per_second": count / seconds,
        f"{label}_megabytes_per_second": count * size_bytes / seconds / 1e6,
        f"{label}_cpu_ms_per_frame": 1000 * cpu / count,
    }


def journal_figures(folder: Path, count: int) -> dict[str, float]:
    """Return what the account on disk costs a capture: the mean, and the longest of `count` captures (a checkpoint)."""
    folder.mkdir()
    journal = Journal(folder, "cam", 1, {})
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        journal.capture()
        seconds.append(time.perf_counter() - started)
    journal.close()
    return {"journal_us_per_capture": 1e6 * sum(seconds) / count, "journal_longest_ms": 1e3 * max(seconds)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=1000)
    report.add_json_option(parser)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(Path(folder) / "broker") as broker:
        root = Path(folder)
        jpeg = imaging.encode(picture(448, 20), Codec.JPEG, quality=92)
        (root / "images").mkdir()
        first = root / "images" / "000000.jpg"
        first.write_bytes(jpeg)
        for number in range(1, arguments.frames):
            (root / "images" / f"{number:06d}.jpg").hardlink_to(first)

        def line(prefix: str, **camera: object) -> Settings:
            kafka = {"bootstrap_servers": broker.bootstrap, "topic_prefix": prefix}
            cameras = [{"kind": "folder", "name": "cam", "path": root / "images", **camera}]
            # So small a bound sends nearly every frame by way of the disk.
            bound = {"in_flight_limit_bytes": 1 << 20, "replay_limit_bytes_per_s": 1 << 30}
            return Settings.model_validate(
                {
                    "data_dir": root / "data",
                    "metrics": {"producers_port": 0},
                    "kafka": kafka,
                    "cameras": cameras,
                    "producer": bound if "when_full" in camera else {},
                }
            )

        figures: dict[str, float] = {"frame_bytes": len(jpeg)}
        figures |= measure(line("inline."), None, len(jpeg), "folder")
        figures |= measure(line("spool.", when_full="spool"), None, len(jpeg), "spool")
        pixels = picture(1024, 12)
        size = len(imaging.encode(pixels, Codec.JPEG))
        figures["encoded_bytes"] = size
        figures |= measure(line("pixels."), [PixelCamera("cam", pixels, arguments.frames // 4)], size, "encoding")
        figures |= journal_figures(root / "journal", 20 * arguments.frames)
    report.emit("producers", figures, {"folder_megabytes_per_second": (">=", 100)}, arguments.json)


if __name__ == "__main__":
    main()
