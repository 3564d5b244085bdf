"""Every index gives the rows that brute force gives."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.errors import FlawlineError
from scorer.search import neighbours
from scorer.search.bank import Int8Index, unit_rows
from scorer.search.neighbours import FaissIndex, NeighbourIndex, index_of_many
from scorer.vectors import Vectors
from tests.support.later import Later

torch, torch_index = Later("torch"), Later("scorer.search.torch_index")


INDEXES: dict[str, Callable[[Vectors], NeighbourIndex]] = {
    "int8": Int8Index,
    "faiss": FaissIndex,
    "torch": lambda rows: torch_index.TorchIndex(rows),
    "torch in half precision": lambda rows: torch_index.TorchIndex(rows, half=True),
}


def clustered(count: int, seed: int, channels: int = 40) -> Vectors:
    """Return vectors around twelve centres, in half precision as the rows of a model are."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((12, channels))
    vectors = unit_rows(centres[rng.integers(12, size=count)] + 0.2 * rng.standard_normal((count, channels)))
    return vectors.astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize(("rows", "queries", "count"), [(3000, 700, 5), (3000, 300, 1), (17, 40, 17), (1, 3, 1)])
def test_an_index_finds_what_brute_force_finds(name: str, rows: int, queries: int, count: int) -> None:
    bank, asked = clustered(rows, 1), unit_rows(clustered(queries, 2))
    index = INDEXES[name](bank)
    similarity, nearest = index.nearest(asked, count)
    exact = asked @ bank.T
    np.testing.assert_allclose(similarity, -np.sort(-exact, axis=1)[:, :count], atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, nearest.astype(int), axis=1), similarity, atol=2e-6)
    assert nearest.dtype == np.int32
    assert all(len(set(row)) == count for row in nearest.tolist())
    assert len(index) == rows


@pytest.mark.parametrize("name", INDEXES)
@pytest.mark.parametrize("count", [1, 5])
def test_an_index_knows_the_same_near_a_query_as_the_others(name: str, count: int) -> None:
    bank, asked = clustered(2000, 3), clustered(300, 4)
    distance, vectors = INDEXES[name](bank).project(asked, count)
    expected_distance, expected = Int8Index(bank).project(asked, count)
    np.testing.assert_allclose(distance, expected_distance, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(vectors, expected, atol=2e-3)
    assert distance.shape == (300,)
    assert vectors.shape == asked.shape


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 4), st.booleans(), st.integers(0, 9999))
def test_banks_side_by_side_give_each_image_the_rows_of_its_group(
    rows: int, channels: int, count: int, half: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    # No row comes twice, as in a coreset: of many as near, half precision may choose others than the nearest.
    banks = [
        np.unique(unit_rows(rng.integers(-2, 3, (n, channels))).astype(np.float16), axis=0).astype("f4")
        for n in (rows, 1, 33)
    ]
    groups = rng.integers(0, 3, 5)
    queries = unit_rows(rng.standard_normal((5, 6, channels)))
    stacked = torch_index.StackedBanks(banks, "cpu", half)
    similarity, numbers, vectors = stacked.nearest(torch.from_numpy(queries), torch.from_numpy(groups), count)
    for i, group in enumerate(groups):
        exact = queries[i] @ banks[group].T
        wanted = min(count, len(banks[group]))
        np.testing.assert_allclose(similarity[i, :, :wanted], -np.sort(-exact, axis=1)[:, :wanted], atol=2e-6)
        assert torch.isneginf(similarity[i, :, wanted:]).all()
        row_numbers = numbers[i, :, :wanted].numpy()
        assert (row_numbers < len(banks[group])).all()
        np.testing.assert_array_equal(vectors[i, :, :wanted], banks[group][row_numbers])
        distance, known = stacked.project(torch.from_numpy(queries), torch.from_numpy(groups), count)
        expected, expected_known = Int8Index(banks[group]).project(queries[i], wanted)
        np.testing.assert_allclose(distance[i], expected, atol=1e-3)
        np.testing.assert_allclose(known[i] @ known[i].T, expected_known @ expected_known.T, atol=1e-2)


def test_images_searched_one_after_the_other_find_the_same_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    banks = [clustered(300, seed) for seed in range(4)]
    queries, groups = torch.from_numpy(clustered(4 * 20, 9).reshape(4, 20, 40)), torch.tensor([3, 1, 0, 1])
    stacked = torch_index.StackedBanks(banks, "cpu", half=False)
    together = stacked.project(queries, groups, 3)
    monkeypatch.setitem(torch_index._BLOCK_BYTES, "cpu", 1)
    one_by_one = stacked.project(queries, groups, 3)
    for a, b in zip(together, one_by_one, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


INTERPRETED = """
import numpy as np, torch
from scorer.search import fused
from scorer.search.bank import Int8Index, unit_rows
from scorer.search.torch_index import StackedBanks

rng = np.random.default_rng(0)
for channels, rows, count in ((24, 150, 1), (200, 40, 5), (9, 3, 5)):
    banks = [unit_rows(rng.standard_normal((n, channels))).astype(np.float16).astype("f4") for n in (rows, 1, 33)]
    queries, groups = unit_rows(rng.standard_normal((3, 4, channels))), np.asarray([0, 2, 1])
    stacked = StackedBanks(banks, "cpu", half=True, kernels=fused)
    distances = stacked.distances(torch.from_numpy(queries), torch.from_numpy(groups), count)
    for i, group in enumerate(groups):
        expected, _ = Int8Index(banks[group]).project(queries[i], min(count, len(banks[group])))
        np.testing.assert_allclose(distances[i], expected, atol=1e-5)
"""


@pytest.mark.system
@pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="triton is not installed")
def test_the_kernels_of_a_gpu_find_the_same_when_they_are_interpreted_on_a_cpu() -> None:
    """A process of its own, since triton reads the variable when it is imported."""
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    run = subprocess.run(
        [sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-2000:]


def test_rows_that_lose_digits_in_half_precision_are_kept_beside_it() -> None:
    rows = unit_rows(np.random.default_rng(0).standard_normal((500, 12)))
    similarity, _ = torch_index.TorchIndex(rows, half=True).nearest(rows, 1)
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-6)
    exact, lossy = (torch_index.StackedBanks([bank], "cpu", half=True) for bank in (clustered(500, 0, 12), rows))
    assert lossy.size_bytes == exact.size_bytes + 504 * 12 * 4


def test_a_missing_faiss_is_one_line_and_the_search_goes_on_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    monkeypatch.setattr(neighbours.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FlawlineError, match=r"faiss is not installed: install flawline\[cpu\]"):
        FaissIndex(clustered(5, 0))
    assert isinstance(index_of_many(clustered(5, 0)), torch_index.TorchIndex)


def test_faiss_without_a_gpu_build_says_what_to_install() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(FlawlineError, match=r"without GPU support: install flawline\[gpu\]"):
        FaissIndex(clustered(5, 0), "cuda")
