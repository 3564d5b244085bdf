"""A disk that can be filled: a file system in memory with a size of its own. Mounting it takes root."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Final

FILLER: Final = "filler"
CHUNK: Final = bytes(1 << 20)


class SmallDisk:
    """A file system at `folder` for as long as it is entered. Raises OSError when it cannot be mounted."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.folder = folder
        self._size_bytes = size_bytes

    def __enter__(self) -> SmallDisk:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._size_bytes}", "tmpfs", str(self.folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{self.folder} cannot be mounted, which takes root: {done.stderr.strip()}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        subprocess.run(["umount", "--lazy", str(self.folder)], check=False, capture_output=True)

    def fill(self) -> None:
        """Leave no byte free."""
        with (self.folder / FILLER).open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(CHUNK[: max(1, min(len(CHUNK), self.free_bytes))])

    def relieve(self) -> None:
        """Give the space back."""
        (self.folder / FILLER).unlink(missing_ok=True)

    @property
    def free_bytes(self) -> int:
        """The bytes that are free."""
        status = os.statvfs(self.folder)
        return status.f_bavail * status.f_frsize
