"""faiss comes with an extra: without it scoring goes on, and what needs it says so in one line before any work."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from discovery import service
from discovery.offline import discover_folder
from flawline.errors import FlawlineError
from flawline.settings.discovery import DiscoverySettings
from flawline.settings.scorer import ScorerSettings
from flawline.settings.tree import Settings
from scorer import spherical_k_means
from scorer.fit import fit_detector
from scorer.groups import find_groups
from scorer.vectors import unit

MISSING = r"faiss is not installed: install flawline\[cpu\]"


@pytest.fixture
def without_faiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # an import then fails as if there were no such module


def test_no_module_imports_faiss_at_its_top() -> None:
    root = Path(__file__).parents[2]
    rooms = ("flawline", "scorer", "workers", "discovery", "station", "benchmarks")
    files = [file for room in rooms for file in (root / room).rglob("*.py")]
    assert len(files) > 100
    assert [str(file) for file in files if re.search(r"^(import|from) faiss", file.read_text(), re.MULTILINE)] == []


@pytest.mark.usefixtures("without_faiss")
def test_fit_and_discovery_without_faiss_end_before_any_work(tmp_path: Path) -> None:
    images = [np.zeros((32, 32, 3), np.uint8)] * 40
    with pytest.raises(FlawlineError, match=MISSING):
        fit_detector(images, ScorerSettings())
    with pytest.raises(FlawlineError, match=MISSING):
        service.run(Settings(data_dir=tmp_path), threading.Event())
    with pytest.raises(FlawlineError, match=MISSING):
        discover_folder.run(tmp_path, DiscoverySettings(), maps=tmp_path)


@pytest.mark.usefixtures("without_faiss")
def test_modules_that_group_import_without_faiss() -> None:
    with pytest.raises(FlawlineError, match=MISSING):
        find_groups(unit(np.random.default_rng(0).normal(size=(60, 4))), 3, 0)


def test_k_means_moves_centres_to_the_directions_of_their_members() -> None:
    rng = np.random.default_rng(3)
    axes = np.eye(8, dtype=np.float32)[:3]
    vectors = unit(np.repeat(axes, 50, axis=0) + 0.05 * rng.normal(size=(150, 8)))
    centres = spherical_k_means.settled(vectors, vectors[[0, 50, 100]], rounds=10, seed=1)
    assert np.linalg.norm(centres, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    assert (centres * axes).sum(axis=1).min() > 0.999
