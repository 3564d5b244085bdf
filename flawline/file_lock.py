"""A file that one process holds: the right to work in a folder, which ends with the process."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows: two processes on one folder are not kept apart there
    fcntl = None  # type: ignore[assignment]


def try_lock(path: Path) -> FileIO | None:
    """Lock the file at `path` until the returned file is closed; None when it is locked already.

    The file is made when it is missing, and holds the id of the process that holds it (see `holder`). Raises OSError.
    """
    while True:
        file = path.open("a+b", buffering=0)
        if fcntl is None:
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The last holder may have removed the file between the two calls: a lock on it locks nothing.
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                with contextlib.suppress(OSError):  # a full disk must not keep its owner out
                    file.truncate(0)
                    file.write(f"{os.getpid()}\n".encode())
                return file
        except BlockingIOError:
            file.close()
            return None
        except FileNotFoundError:
            pass
        except OSError:
            file.close()
            raise
        file.close()


def holder(path: Path) -> str:
    """Return the id of the process that last locked the file at `path`, "unknown" when that cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip() or "unknown"
    except OSError:
        return "unknown"
