"""The kernels of `scorer.kernels` and `scorer.loops`, compiled by a child process beside other work.

Numba compiles for seconds with Python's lock held, so a thread would gain nothing. Where a backbone has to be converted
the cache is new, and the kernels are missing from it too: `start` has them compiled meanwhile, and whoever wants to use
one waits for that with `wait`. The child only ever fills numba's cache, whose files are replaced whole. So several may
run at once, and when one fails, or is ended, the kernels are compiled where they are first used, as without it.
"""

from __future__ import annotations

import atexit
import hashlib
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from scorer import backbone  # which imports this in turn

log = logging.getLogger(__name__)

# A child that takes this long is ended.
TIMEOUT_S = 120.0

_lock = threading.Lock()
_child: subprocess.Popen[bytes] | None = None


def folder() -> Path:
    """Where numba keeps what it compiles: as set by NUMBA_CACHE_DIR, else a part of the cache.

    An installation that cannot be written to has no place beside the sources. Numba looks at the source of the function
    that it compiled, not at the instructions in it: so all sources are part of the place.
    """
    sources = (Path(__file__).with_name(f"{name}.py") for name in ("instructions", "kernels", "loops"))
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]
    return Path(os.environ.get("NUMBA_CACHE_DIR") or backbone.cache_dir() / "kernels" / digest)


def start() -> None:
    """Have the kernels compiled by a child process, unless there are some, one is at it, or there is no CPU for it."""
    global _child
    with _lock:
        if _child is not None or any(folder().rglob("*.nbi")) or backbone.cpu_count() < 2 or not sys.executable:
            return
        try:
            _child = subprocess.Popen(
                [sys.executable, "-m", "scorer.compiling"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            log.debug("kernels are compiled when they are used: %s", error)


def wait() -> None:
    """Return when the child that `start` started has ended; at once when there is none."""
    global _child
    with _lock:
        if _child is None:
            return
        try:
            code = _child.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired:
            _child.kill()
            code = _child.wait()
        _child = None
    if code:
        log.debug("kernels are compiled when they are used: the process that was to do so ended with %d", code)


# A process that ends leaves none behind; what is nearly compiled is there for the next one.
atexit.register(wait)


def compile_all() -> None:
    """Use every kernel once, as an image does."""
    import numpy as np

    from scorer import loops, maps, whole_image
    from scorer.coreset import unit
    from scorer.search import Bank

    rows = unit(np.eye(32, 16))
    mean = np.empty(rows.shape[1], dtype=np.float32)
    loops.mean_of_rows(rows, mean)
    distances, _ = Bank(rows).project(rows[:4], 5)
    of_layer = maps.LayerUnit(median=1.0, width=1.0)
    maps.log_score(maps.combined([distances.reshape(2, 2), np.ones((4, 4), dtype=np.float32)], [of_layer, of_layer]))
    whole_image.log_distances(rows[:1], rows)


if __name__ == "__main__":
    compile_all()
