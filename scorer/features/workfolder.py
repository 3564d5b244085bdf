"""The folder that a fit works in: patch vectors streamed to disk, and finished steps kept for a fit that was killed.

A fit is known by a key over its images and settings. The folder of the same key is taken up again where it was left;
anything else starts afresh. It lies in the cache, is held by one process at a time, and is removed when all is done.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from io import FileIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from flawline.errors import FlawlineError
from flawline.file_lock import try_lock

log = logging.getLogger(__name__)

# What another, killed fit left behind is removed after this time: long enough to start it again on Monday.
_KEPT_S = 4 * 24 * 3600
# Left free beyond what the features take, for the model and everything else that writes to this disk.
_SPARE_BYTES = 256 << 20
_DONE = "done.jsonl"


class PatchFile:
    """Patch vectors of n images, float16 (n, patches, channels), in a file that is read piece by piece.

    Reads do not map the file: mapped pages count as the process's memory until the system takes them back.
    """

    def __init__(self, path: Path, patches: int, channels: int) -> None:
        self.path = path
        self._each = (patches, channels)
        self._bytes = 2 * patches * channels
        self._file: IO[bytes] = path.open("a+b", buffering=0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of whole images, patches of each, channels of each patch."""
        return (os.fstat(self._file.fileno()).st_size // self._bytes, *self._each)

    def append(self, vectors: NDArray[np.float16]) -> None:
        """Add one image's (patches, channels)."""
        self._file.write(np.ascontiguousarray(vectors, dtype=np.float16).tobytes())

    def cut(self, images: int) -> None:
        """Forget everything after so many images."""
        self._file.truncate(images * self._bytes)

    def __getitem__(self, images: NDArray[np.integer]) -> NDArray[np.float16]:
        """The vectors (images, patches, channels) of some images."""
        result = np.empty((len(images), *self._each), dtype=np.float16)
        for place, image in enumerate(images):
            read = os.preadv(self._file.fileno(), [memoryview(result[place]).cast("B")], int(image) * self._bytes)
            if read != self._bytes:
                raise FlawlineError(f"{self.path}: ends early, something has cut it: start the fit again")
        return result

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WorkFolder:
    """The working folder of one fit, see the module; `key` None gives a private one that is never taken up again."""

    def __init__(self, root: Path, key: object | None) -> None:
        self._lock: FileIO | None = None
        self._files: list[PatchFile] = []
        try:
            root.mkdir(parents=True, exist_ok=True)
            _sweep(root)
            self.path = self._claimed(root, key) or Path(tempfile.mkdtemp(prefix="private-", dir=root))
        except OSError as error:
            raise FlawlineError(
                f"{root}: cannot be written: {error.strerror}: set FLAWLINE_CACHE to a folder that can"
            ) from error

    def _claimed(self, root: Path, key: object | None) -> Path | None:
        if key is None:
            return None
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self._lock = try_lock(root / f"{name}.lock")
        if self._lock is None:
            log.warning("the same fit is running already: this one works on its own, and cannot be taken up again")
            return None
        folder = root / name
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        return folder

    def require(self, size_bytes: int) -> None:
        """Raise FlawlineError, in one line, when the disk has no room for so much more."""
        free = shutil.disk_usage(self.path).free
        needed = size_bytes + _SPARE_BYTES
        if free < needed:
            raise FlawlineError(
                f"{self.path.parent}: {free / 1e9:.1f} GB are free, the fit needs {needed / 1e9:.1f} GB for features: "
                "free space, or set FLAWLINE_CACHE to a folder on a larger disk"
            )

    def patch_files(self, shapes: Sequence[tuple[int, int]]) -> list[PatchFile]:
        """One file per layer for images of (patches, channels), with what was kept of them."""
        self._files = [PatchFile(self.path / f"{i}.f16", *shape) for i, shape in enumerate(shapes)]
        return self._files

    def journal(self) -> list[Any]:
        """What `note` was given, in order; a last line that was cut off by a crash is left out."""
        entries = []
        with contextlib.suppress(FileNotFoundError), (self.path / _DONE).open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    entries.append(json.loads(line))
                except ValueError:
                    break
        return entries

    def note(self, entries: Sequence[Any]) -> None:
        """Replace the journal by these entries, whole or not at all."""
        self._replace(_DONE, "".join(json.dumps(each) + "\n" for each in entries).encode())

    def append(self, entry: Any) -> None:
        """Add one entry to the journal."""
        with (self.path / _DONE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def put(self, name: str, **arrays: NDArray[Any]) -> None:
        """Keep the result of a step."""
        with (self.path / f".{name}").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its own keyword is a bool
        (self.path / f".{name}").replace(self.path / f"{name}.npz")

    def get(self, name: str) -> dict[str, NDArray[Any]] | None:
        """The result of a step that was kept, or None."""
        try:
            with np.load(self.path / f"{name}.npz", allow_pickle=False) as stored:
                return dict(stored)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError) as error:
            log.warning("%s: cannot be read and is made again: %s", self.path / f"{name}.npz", error)
            return None

    def clear(self) -> None:
        """Remove everything in the folder: it belongs to another state of affairs."""
        for file in self._files:
            file.close()
        self._files = []
        for path in self.path.iterdir():
            path.unlink()

    def _replace(self, name: str, content: bytes) -> None:
        partial = self.path / f".{name}"
        partial.write_bytes(content)
        partial.replace(self.path / name)

    def close(self, remove: bool = True) -> None:
        """Let go of the folder; with `remove` it is gone, else the same fit can be taken up again."""
        for file in self._files:
            file.close()
        self._files = []
        if remove or self._lock is None:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            if remove:
                Path(str(self._lock.name)).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None


def _sweep(root: Path) -> None:
    """Remove what fits left here that were killed days ago."""
    for folder in root.iterdir():
        if not folder.is_dir() or time.time() - folder.stat().st_mtime < _KEPT_S:
            continue
        lock = try_lock(root / f"{folder.name}.lock")
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            Path(str(lock.name)).unlink(missing_ok=True)
            lock.close()
