"""The folder camera: replays image files with unchanged bytes, so that a streamed score equals an offline score."""

from __future__ import annotations

import logging
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flawline import imaging
from flawline.clock import UtcNs, utc_ns
from flawline.errors import UsageError
from flawline.imaging import FILE_SUFFIXES, PNG_SIGNATURE
from flawline.messages import Codec
from flawline.settings.producers import FolderCamera
from producers.camera import Capture
from producers.part_names import matched

log = logging.getLogger(__name__)


def images(path: Path) -> tuple[list[Path], bool]:
    """Return the images to replay, sorted and relative to `path`, and whether the folder has the MVTec layout.

    For a data set (`<product>/test/<kind>/*`) or one product (`test/<kind>/*`), these are the test images; for any
    other folder, all images in it and below it. Hidden files and folders are skipped. Raises UsageError when `path` is
    no folder or holds no images.
    """
    if not path.is_dir():
        what = "is no folder" if path.exists() else "does not exist"
        raise UsageError(f"image folder {path} {what}: correct the camera's path")
    for pattern in ("test/*/*", "*/test/*/*"):
        if paths := _images_of(path, path.glob(pattern)):
            return paths, True
    paths = _images_of(path, path.rglob("*"))
    if not paths:
        raise UsageError(
            f"image folder {path} holds no images ({', '.join(sorted(FILE_SUFFIXES))}): correct the camera's path"
        )
    return paths, False


def _images_of(root: Path, paths: Iterator[Path]) -> list[Path]:
    relative = (path.relative_to(root) for path in paths if path.suffix.lower() in FILE_SUFFIXES)
    return sorted(path for path in relative if not any(part.startswith(".") for part in path.parts))


def playlist(settings: FolderCamera) -> list[Path]:
    """Return the images of this camera in the order of the replay, relative to its path.

    Capture n of a camera that started once is item n modulo the length of the list; this joins a replay with its
    truth. Shards come from the sorted list, so they are disjoint for every choice of seeds. Raises UsageError when the
    folder cannot be used or the shard is empty.
    """
    paths, is_dataset = images(settings.path)
    chosen = paths[settings.shard :: settings.shards]
    if not chosen:
        raise UsageError(
            f"image folder {settings.path} has {len(paths)} images, too few for shard {settings.shard} of "
            f"{settings.shards}: use fewer shards"
        )
    seed = 0 if settings.shuffle_seed is None and is_dataset else settings.shuffle_seed
    if seed is not None:
        random.Random(seed).shuffle(chosen)
    return chosen


def _names_of(settings: FolderCamera, paths: list[Path]) -> re.Pattern[str] | None:
    """Return the pattern of the file names. Raises UsageError when no file matches, and logs how many do not."""
    if settings.file_names is None:
        return None
    pattern = re.compile(settings.file_names)
    nameless = [path.as_posix() for path in paths if not matched(pattern, path.as_posix())]
    if len(nameless) == len(paths):
        raise UsageError(
            f"camera {settings.name}: file_names matches none of {len(paths)} files, such as {nameless[0]!r}: "
            "it matches the whole path in the folder"
        )
    if nameless:
        log.warning(
            "camera %s: file_names does not match %d of %d files, such as %r, which have no names",
            settings.name, len(nameless), len(paths), nameless[0],
        )  # fmt: skip
    return pattern


class FolderReplay:
    """Replays the images of a folder once or in a loop. The constructor raises UsageError when it has no images."""

    def __init__(self, settings: FolderCamera, now_ns: UtcNs = utc_ns) -> None:
        self.name = settings.name
        self._settings = settings
        self._now_ns = now_ns
        self._playlist = playlist(settings)
        self._names = _names_of(settings, self._playlist)

    def open(self) -> None:
        """Do nothing: there is no connection."""

    def frames(self) -> Iterator[Capture]:
        """Yield each image once per round: JPEG and PNG files unchanged, other kinds as lossless PNG.

        A file that cannot be read any more becomes a capture without bytes, which the publisher counts as a drop.
        """
        while True:
            for relative in self._playlist:
                yield self._capture(relative)
            if not self._settings.loop:
                return

    def _capture(self, relative: Path) -> Capture:
        path = self._settings.path / relative
        key = relative.as_posix()
        captured_at = self._now_ns()
        try:
            data = path.read_bytes()
        except OSError:
            data = b""
        if data and data[:2] != b"\xff\xd8" and not data.startswith(PNG_SIGNATURE):
            try:
                pixels = imaging.read_samples(path)
                return Capture(captured_at, pixels=pixels, codec=Codec.PNG, replay_key=key, **self._named(key))
            except imaging.ImageError:
                pass  # the publisher cannot read the bytes either, and counts the capture as a drop
        return Capture(captured_at, data=data, replay_key=key, **self._named(key))

    def _named(self, key: str) -> dict[str, Any]:
        return matched(self._names, key) if self._names else {}

    def close(self) -> None:
        """Do nothing: no file stays open."""
