"""The kernels of the search and of the regions, compiled by a child process while other work goes on.

Numba compiles for seconds and holds Python's lock, so that a thread would gain nothing. Where a backbone has to be
converted the cache is new, and the kernels are missing too: `start` has them compiled meanwhile, and `wait` returns
when they are ready. The child only fills numba's cache, whose files are replaced whole. So several children may run at
once, and where one fails or is ended, the kernels are compiled at their first use, as without a child.
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

from scorer.cache import cache_dir, cpu_count

log = logging.getLogger(__name__)

# A child that takes longer is ended. The kernels take 8 s on a free CPU; how busy a machine may be is a judgement.
TIMEOUT_S = 120.0
# A file beside the kernels, written when all are there: a process that is ended early leaves some of them.
COMPLETE = "complete"

_lock = threading.Lock()
_child: subprocess.Popen[bytes] | None = None


def kernel_cache() -> Path:
    """Return where numba keeps what it compiles: NUMBA_CACHE_DIR where that is set, else a part of the scorer's cache.

    Not beside the sources, as numba would by default: an installation may be read-only. Numba looks at the source of
    the function that it compiled, and not at the instructions in it, so that all sources are part of the name.
    """
    room = Path(__file__).parents[1]
    sources = [room / name for name in ("search/instructions.py", "search/kernels.py", "regions/components.py")]
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]
    return Path(os.environ.get("NUMBA_CACHE_DIR") or cache_dir() / "kernels" / digest)


def mark_complete() -> None:
    """Say that the cache holds every kernel, so that `start` starts no child."""
    (kernel_cache() / COMPLETE).touch()


def keep_in_cache() -> None:
    """Make numba keep what it compiles in `kernel_cache`. Call it before a kernel is decorated: numba reads it then."""
    import numba

    numba.config.CACHE_DIR = str(kernel_cache())  # type: ignore[attr-defined]  # numba sets its options at import


def start() -> None:
    """Start a child that compiles the kernels, unless all are in the cache, a child runs, or there is one CPU."""
    global _child
    with _lock:
        if _child is not None or (kernel_cache() / COMPLETE).exists() or cpu_count() < 2 or not sys.executable:
            return
        try:
            _child = subprocess.Popen(
                [sys.executable, "-m", "scorer.warm_kernels"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            log.debug("kernels are compiled at their first use: %s", error)


def wait() -> None:
    """Return when the child has ended; at once when there is none. A child that takes TIMEOUT_S is ended."""
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
        log.debug("kernels are compiled at their first use: the child that compiles them ended with %d", code)


@atexit.register
def _stop() -> None:
    """End the child, so that a process that ends, or that a user interrupts, leaves none behind and waits for none."""
    if _child is not None:
        _child.kill()
        _child.wait()
