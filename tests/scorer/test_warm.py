"""A child process compiles the kernels: all of them, once, and without changing a score."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scorer.cache import cpu_count
from scorer.search import warm

pytestmark = pytest.mark.system

SCORE = """
import sys
import numpy as np
from scorer.load import load_detector
from scorer.regions import binarize, components
from scorer.search import kernels, warm
from scorer.search.bank import trusted_kind
if sys.argv[2] == "child":
    warm.start()
    warm.wait()
    warm.start()
    assert warm._child is None, "all kernels are there, and they are compiled again"
detector = load_detector(sys.argv[1])
kernels_of_image = [kernel for kernel in (*vars(kernels).values(), components._counts) if hasattr(kernel, "stats")]
kernels_of_image.append(kernels.make_search(trusted_kind()))
ready = {kernel: list(kernel.signatures) for kernel in kernels_of_image}
scores = detector.score([np.full((64, 64, 3), 90, dtype=np.uint8)])
binarize.defect_mask(np.eye(64, dtype=np.float32), 0.0, 1.0)
for kernel, signatures in ready.items():
    assert signatures == kernel.signatures, f"the first image compiles {kernel.__name__}"
misses = {kernel.__name__: sum(kernel.stats.cache_misses.values()) for kernel in kernels_of_image}
if sys.argv[2] == "child":
    assert sum(kernels.make_search(trusted_kind()).stats.cache_hits.values()) > 0, "numba does not keep the search"
print(sum(misses.values()), float(scores[0].aligned).hex(), misses)
"""


def _score(model: Path, cache: Path, how: str) -> tuple[int, str]:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(model), how],
        env=environment | {"FLAWLINE_CACHE": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    misses, aligned, _ = done.stdout.split(maxsplit=2)
    return int(misses), aligned


def test_a_child_compiles_all_that_an_image_needs(model_path: Path, tmp_path: Path) -> None:
    if cpu_count() < 2:
        pytest.skip("one CPU: the kernels are compiled where they are used")
    misses, aligned = _score(model_path, tmp_path / "child", "child")
    assert misses == 0
    misses, again = _score(model_path, tmp_path / "own", "own")
    assert misses > 0
    assert aligned == again


def test_a_child_that_dies_or_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setattr(warm, "cpu_count", lambda: 2)
    monkeypatch.setattr(warm, "TIMEOUT_S", 0.2)
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    for executable in ("/bin/false", str(sleeper), str(tmp_path / "missing")):
        monkeypatch.setattr(sys, "executable", executable)
        warm.start()
        child = warm._child
        started = time.monotonic()
        warm.wait()
        assert time.monotonic() - started < 60
        assert warm._child is None
        assert child is None or child.returncode is not None


INTERRUPTED = """
import signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from scorer.search import warm

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with it ignored

def tell():
    while not warm._lock.locked():
        time.sleep(0.01)
    print(warm._child.pid, flush=True)

warm.cpu_count = lambda: 2
sys.executable = sys.argv[1]
warm.start()
threading.Thread(target=tell).start()
if sys.argv[2] == "pool":
    with ThreadPoolExecutor(1) as pool:
        pool.submit(warm.wait).result()
else:
    warm.wait()
"""


@pytest.mark.parametrize("waits", ["main thread", "pool"])
def test_a_process_that_is_interrupted_ends_its_child_and_does_not_wait_for_it(waits: str, tmp_path: Path) -> None:
    sleeper = tmp_path / "python"
    sleeper.write_text("#!/bin/sh\nexec sleep 600\n")
    sleeper.chmod(0o755)
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(sleeper), waits],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "empty")},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())  # comes when the process waits
    if waits == "pool":
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    else:
        process.send_signal(signal.SIGINT)
    assert process.wait(30) != 0
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)


def test_nothing_is_started_where_kernels_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(warm, "cpu_count", lambda: 2)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    warm.mark_complete()
    warm.start()
    assert warm._child is None


def test_a_cache_that_lacks_a_kernel_starts_a_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(warm, "cpu_count", lambda: 2)
    (tmp_path / "scorer_1").mkdir()
    (tmp_path / "scorer_1" / "kernels.search-1.py311.nbi").touch()
    warm.start()
    child = warm._child
    assert child is not None
    child.kill()
    warm.wait()
