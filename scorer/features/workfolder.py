"""The folder that a fit works in: patch vectors streamed to disk, and finished steps, for a fit that is stopped.

A key over its images and settings identifies a fit. The next fit with the same key goes on in the folder of the first;
any other fit begins with an empty one. The folder is in the cache, belongs to one process at a time, and is removed
when the fit is done.
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

# The folder of a stopped fit is removed after this time: long enough to start the fit again on Monday. A judgement.
_KEPT_S = 4 * 24 * 3600
# Left free beyond what the features take, for the model and all else that writes to this disk. A judgement: a model
# of 75 groups in the fast profile (3.3 MB each) fits into it.
_SPARE_BYTES = 256 << 20
_JOURNAL = "done.jsonl"


class PatchFile:
    """Patch vectors of n images, float16 (n, patches, channels), in a file that is read image by image.

    Reads do not map the file: mapped pages count as the process's memory until the system takes them back.
    """

    def __init__(self, path: Path, patches: int, channels: int) -> None:
        self.path = path
        self._image_shape = (patches, channels)
        self._image_bytes = 2 * patches * channels
        self._file: IO[bytes] = path.open("a+b", buffering=0)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return the number of whole images, of patches in each, and of channels."""
        return (os.fstat(self._file.fileno()).st_size // self._image_bytes, *self._image_shape)

    def append(self, vectors: NDArray[np.float16]) -> None:
        """Add the vectors (patches, channels) of one image."""
        self._file.write(np.ascontiguousarray(vectors, dtype=np.float16).tobytes())

    def cut(self, images: int) -> None:
        """Remove everything after the first `images` images."""
        self._file.truncate(images * self._image_bytes)

    def __getitem__(self, images: NDArray[np.integer]) -> NDArray[np.float16]:
        """Return the vectors (images, patches, channels) of some images. Raises FlawlineError beyond the last one."""
        vectors = np.empty((len(images), *self._image_shape), dtype=np.float16)
        for place, image in enumerate(images):
            offset = int(image) * self._image_bytes
            count = os.preadv(self._file.fileno(), [memoryview(vectors[place]).cast("B")], offset)
            if count != self._image_bytes:
                raise FlawlineError(f"{self.path}: ends early, something has cut it: start the fit again")
        return vectors

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class WorkFolder:
    """The working folder of one fit below `root`, locked; `key` is anything that JSON can write.

    With `key` None the folder is private: no other fit goes on in it. So it is when another process holds the folder of
    the same key. Raises FlawlineError when `root` cannot be written.
    """

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
        """Return the folder of the key, locked; None without a key, or when another process holds the folder."""
        if key is None:
            return None
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self._lock = try_lock(root / f"{name}.lock")
        if self._lock is None:
            log.warning("the same fit is running already: this one works alone, and begins anew if it is stopped")
            return None
        folder = root / name
        folder.mkdir(exist_ok=True)
        os.utime(folder)
        return folder

    def require(self, size_bytes: int) -> None:
        """Raise FlawlineError, in one line, when the disk has no room for `size_bytes` more."""
        free = shutil.disk_usage(self.path).free
        needed = size_bytes + _SPARE_BYTES
        if free < needed:
            raise FlawlineError(
                f"{self.path.parent}: {free / 1e9:.1f} GB are free, the fit needs {needed / 1e9:.1f} GB for features: "
                "free space, or set FLAWLINE_CACHE to a folder on a larger disk"
            )

    def patch_files(self, shapes: Sequence[tuple[int, ...]]) -> list[PatchFile]:
        """Open a file for each layer, of images with (patches, channels) vectors, with the images that it holds."""
        self._files = [PatchFile(self.path / f"{i}.f16", *shape) for i, shape in enumerate(shapes)]
        return self._files

    def journal(self) -> list[Any]:
        """Return the entries of the journal in order, without a last line that a crash cut off."""
        entries = []
        with contextlib.suppress(FileNotFoundError), (self.path / _JOURNAL).open(encoding="utf-8") as lines:
            for line in lines:
                try:
                    entries.append(json.loads(line))
                except ValueError:
                    break
        return entries

    def note(self, entries: Sequence[Any]) -> None:
        """Replace the journal by these entries, whole or not at all."""
        partial = self.path / f".{_JOURNAL}"
        partial.write_text("".join(json.dumps(entry) + "\n" for entry in entries), encoding="utf-8")
        partial.replace(self.path / _JOURNAL)

    def append(self, entry: Any) -> None:
        """Add one entry to the journal."""
        with (self.path / _JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def put(self, name: str, **arrays: NDArray[Any]) -> None:
        """Store the result of a step, whole or not at all."""
        with (self.path / f".{name}").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its own keyword is a bool
        (self.path / f".{name}").replace(self.path / f"{name}.npz")

    def get(self, name: str) -> dict[str, NDArray[Any]] | None:
        """Return the stored result of a step; None where there is none, or none that can be read."""
        try:
            with np.load(self.path / f"{name}.npz", allow_pickle=False) as stored:
                return dict(stored)
        except FileNotFoundError:
            return None
        except (ValueError, OSError, EOFError) as error:
            log.warning("%s: cannot be read and is made again: %s", self.path / f"{name}.npz", error)
            return None

    def clear(self) -> None:
        """Close and remove all files in the folder."""
        self._close_files()
        for path in self.path.iterdir():
            path.unlink()

    def close(self, remove: bool = True) -> None:
        """Release the folder: removed with `remove`, else left for the next fit of the same key."""
        self._close_files()
        if remove or self._lock is None:
            shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            if remove:
                Path(str(self._lock.name)).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def _close_files(self) -> None:
        for file in self._files:
            file.close()
        self._files = []


def _sweep(root: Path) -> None:
    """Remove the folders of fits that were stopped days ago and were not started again."""
    for folder in root.iterdir():
        if not folder.is_dir() or time.time() - folder.stat().st_mtime < _KEPT_S:
            continue
        lock = try_lock(root / f"{folder.name}.lock")
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            Path(str(lock.name)).unlink(missing_ok=True)
            lock.close()
