"""The kernels of `scorer.search.kernels`, compiled by a child process beside other work.

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

from scorer.cache import cache_dir, cpu_count

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
    sources = (Path(__file__).with_name(f"{name}.py") for name in ("instructions", "kernels"))
    digest = hashlib.sha256(b"".join(each.read_bytes() for each in sources)).hexdigest()[:12]
    return Path(os.environ.get("NUMBA_CACHE_DIR") or cache_dir() / "kernels" / digest)


def keep_in_cache() -> None:
    """Make numba keep what it compiles in `folder`; numba reads that when a kernel is decorated, so call it before."""
    import numba

    numba.config.CACHE_DIR = str(folder())  # type: ignore[attr-defined]  # numba makes its settings when it is imported


def start() -> None:
    """Have the kernels compiled by a child process, unless there are some, one is at it, or there is no CPU for it."""
    global _child
    with _lock:
        if _child is not None or any(folder().rglob("*.nbi")) or cpu_count() < 2 or not sys.executable:
            return
        try:
            _child = subprocess.Popen(
                [sys.executable, "-m", "scorer.warm_kernels"],
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
