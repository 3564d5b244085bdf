"""Selection and search against their brute-force definitions."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer import coreset
from scorer.coreset import greedy_k_centre, merged, nearest_neighbours, projected
from scorer.search import kernels
from scorer.search.bank import Int8Index, trusted_kind, unit_rows
from scorer.search.instructions import Kind, supported


def vectors(n: int, d: int = 16, seed: int = 0) -> np.ndarray:
    return unit_rows(np.random.default_rng(seed).standard_normal((n, d)))


def greedy_by_definition(points: np.ndarray, count: int) -> list[int]:
    chosen = [int(np.argmax(points @ points.mean(axis=0)))]
    while len(chosen) < count:
        similarity = (points @ points[chosen].T).max(axis=1)
        chosen.append(int(similarity.argmin()))
    return chosen


@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 1.0])
@pytest.mark.parametrize("n", [30, 600])
def test_lazy_selection_is_the_greedy_one_whatever_the_batch(
    share: float, n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coreset, "_SHARE_OF_CANDIDATES", share)
    points = vectors(n)
    assert greedy_k_centre(points, n // 5).tolist() == greedy_by_definition(points, n // 5)


def test_selection_stops_when_only_duplicates_are_left() -> None:
    points = np.repeat(vectors(5), 20, axis=0)
    assert len({tuple(points[i]) for i in greedy_k_centre(points, 50)}) == len(greedy_k_centre(points, 50)) == 5


def test_selection_of_more_than_there_are_takes_all() -> None:
    assert sorted(greedy_k_centre(vectors(9), 20).tolist()) == list(range(9))


def test_merged_selection_covers_nearly_as_well_as_the_whole() -> None:
    points = vectors(2000, 6)

    def radius(bank: np.ndarray) -> float:
        return float(np.sqrt(np.maximum(0, 2 - 2 * (points @ bank.T).max(axis=1))).max())

    parts = [points[i::4][greedy_k_centre(points[i::4], 150)] for i in range(4)]
    assert radius(merged(parts, 150)) < 2 * radius(points[greedy_k_centre(points, 150)])


@pytest.mark.parametrize("count", [1, 5])
def test_neighbours_equal_those_of_faiss_on_a_thousand_queries(count: int) -> None:
    queries, bank = vectors(1000, 40, seed=1), vectors(3000, 40, seed=2)
    index = faiss.IndexFlatIP(40)
    index.add(bank)
    expected, rows = index.search(queries, count)
    similarity, nearest = nearest_neighbours(queries, bank, count)
    np.testing.assert_allclose(similarity, expected, atol=1e-5)
    assert (nearest == rows).mean() > 0.999  # ties may fall either way


def test_distance_of_a_known_vector_is_zero_and_small_ones_keep_their_digits() -> None:
    bank = vectors(50)
    distance, known = projected(bank[:3], bank, 1)
    assert distance.tolist() == [0, 0, 0]
    np.testing.assert_array_equal(known, bank[:3])
    step = np.zeros_like(bank[:1])
    step[0, 0] = 1e-4
    assert projected(bank[:1] + step, bank, 1)[0][0] == pytest.approx(1e-4, rel=1e-2)


def test_soft_projection_lies_nearer_than_the_nearest_row_between_two_rows() -> None:
    bank = unit_rows(np.asarray([[1, 0.2, 0], [1, -0.2, 0], [0, 0, 1]]))
    query = unit_rows(np.asarray([[1.0, 0, 0]]))
    assert projected(query, bank, 2)[0] < projected(query, bank, 1)[0]


def test_more_neighbours_than_rows_use_the_rows_there_are() -> None:
    distance, _ = projected(vectors(4, seed=3), vectors(2), 5)
    assert np.isfinite(distance).all()


@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 1000))
def test_selection_has_no_repeats_and_the_asked_size(n: int, count: int, seed: int) -> None:
    chosen = greedy_k_centre(vectors(n, 8, seed), count)
    assert len(set(chosen.tolist())) == len(chosen) == min(n, count)


def test_unit_of_a_zero_vector_is_finite() -> None:
    assert np.isfinite(unit_rows(np.zeros((2, 4)))).all()
    np.testing.assert_allclose(np.linalg.norm(unit_rows(np.zeros((2, 4))), axis=1), 1)


@pytest.mark.parametrize("kind", supported(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("half", [True, False])
def test_search_is_exact_on_every_kind_of_cpu(kind: Kind, half: bool) -> None:
    """Clustered vectors, whose nearest rows lie closer together than eight bits can tell apart."""
    rng = np.random.default_rng(3)
    for count, n, m, d in ((1, 100, 700, 40), (5, 97, 515, 13), (3, 7, 3, 4), (2, 1, 300, 100), (64, 20, 200, 8)):
        centres = vectors(12, d, seed=m)
        bank = unit_rows(centres[rng.integers(12, size=m)] + 0.03 * rng.standard_normal((m, d)).astype(np.float32))
        queries = unit_rows(centres[rng.integers(12, size=n)] + 0.03 * rng.standard_normal((n, d)).astype(np.float32))
        bank = bank.astype(np.float16).astype(np.float32) if half else bank
        similarity, rows = Int8Index(bank, kind).nearest(queries, min(count, m))
        every = queries @ bank.T
        np.testing.assert_allclose(similarity, -np.sort(-every, axis=1)[:, :count], atol=1e-6)
        np.testing.assert_allclose(np.take_along_axis(every, rows.astype(int), axis=1), similarity, atol=1e-6)
        assert all(len(set(row)) == len(row) for row in rows.tolist())


def test_one_query_finds_the_same_whatever_it_comes_with() -> None:
    queries, bank = vectors(333, 40, seed=5), Int8Index(vectors(2000, 40, seed=6))
    similarity, rows = bank.nearest(queries, 5)
    for i in (0, 95, 96, 332):
        alone, row = bank.nearest(queries[i : i + 1], 5)
        np.testing.assert_array_equal(alone[0], similarity[i])
        np.testing.assert_array_equal(row[0], rows[i])


@given(st.integers(1, 60), st.integers(1, 90), st.integers(1, 9), st.integers(1, 6), st.integers(0, 1000))
def test_search_is_exact_on_small_and_repeated_rows(n: int, m: int, d: int, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Few different values: ties and duplicates in plenty.
    bank = unit_rows(rng.integers(-1, 2, (m, d)).astype(np.float32))
    queries = unit_rows(rng.integers(-1, 2, (n, d)).astype(np.float32))
    similarity, rows = Int8Index(bank).nearest(queries, min(count, m))
    every = queries @ bank.T
    np.testing.assert_allclose(similarity, -np.sort(-every, axis=1)[:, :count], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(every, rows.astype(int), axis=1), similarity, atol=1e-6)


def test_soft_projection_is_that_of_its_definition() -> None:
    queries, bank = vectors(50, 24, seed=7), vectors(400, 24, seed=8)
    distance, known = projected(queries, bank, 5)
    every = queries @ bank.T
    order = np.argsort(-every, axis=1)[:, :5]
    squared = 2 - 2 * np.take_along_axis(every, order, axis=1)
    weights = np.exp(-3 * squared / squared[:, :1])
    expected = np.einsum("nk,nkd->nd", weights / weights.sum(axis=1, keepdims=True), bank[order])
    np.testing.assert_allclose(known, expected, atol=1e-5)
    np.testing.assert_allclose(distance, np.linalg.norm(queries - expected, axis=1), atol=1e-5)


def test_a_kernel_that_is_wrong_on_this_machine_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fastest, make_search = supported()[0], kernels.make_search

    def make_wrong_search(kind: Kind):  # type: ignore[no-untyped-def]
        def search(queries, bank, similarity, nearest) -> None:  # type: ignore[no-untyped-def]
            make_search(kind)(queries, bank, similarity, nearest)
            if kind == fastest:
                nearest[:] = 0

        return search

    monkeypatch.setattr(kernels, "make_search", make_wrong_search)
    assert trusted_kind.__wrapped__() != fastest
    assert fastest.name in caplog.text
