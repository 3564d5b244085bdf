"""Vectors scaled to unit length, with a rule for vectors that have no direction."""

from __future__ import annotations

import numpy as np
import pytest

from scorer.search.bank import unit_rows
from scorer.vectors import unit


@pytest.mark.parametrize("scale", [unit, unit_rows])
@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 7)])
def test_vectors_of_any_shape_get_length_one_and_keep_their_direction(scale, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    vectors = np.random.default_rng(0).standard_normal(shape) * 50
    scaled = scale(vectors)
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=-1), np.ones(shape[:-1]), rtol=1e-6)
    np.testing.assert_allclose(scaled * np.linalg.norm(vectors, axis=-1, keepdims=True), vectors, rtol=1e-5)


def test_zero_vector_stays_zero_for_regions_and_becomes_the_first_axis_for_the_search() -> None:
    np.testing.assert_array_equal(unit(np.zeros((2, 3))), np.zeros((2, 3)))
    np.testing.assert_array_equal(unit_rows(np.zeros((2, 3))), [[1, 0, 0]] * 2)
