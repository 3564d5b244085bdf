"""The normal level: of the neighbours where they know better, of the group where they are noise."""

from __future__ import annotations

import numpy as np
import pytest

from scorer.alignment import group_levels, neighbour_shares, normal_level, shrunk


def test_neighbours_and_group_count_alike_where_all_images_are_alike() -> None:
    scores = np.random.default_rng(0).normal(size=2000)
    groups = np.zeros(2000, dtype=np.int64)
    near = normal_level(scores, np.random.default_rng(1).integers(0, 2000, (2000, 25)))
    (share,) = neighbour_shares(scores, near, groups)
    assert share == pytest.approx(0.5, abs=0.05)


def test_neighbours_count_alone_where_a_group_holds_two_looks() -> None:
    looks = np.repeat([0, 1], 100)
    scores = np.where(looks == 1, 5.0, 0.0) + np.random.default_rng(0).normal(scale=0.1, size=200)
    neighbours = np.random.default_rng(1).integers(0, 100, (200, 25)) + 100 * looks[:, None]
    groups = np.zeros(200, dtype=np.int64)
    near = normal_level(scores, neighbours)
    shares = neighbour_shares(scores, near, groups)
    levels = shrunk(near, group_levels(scores, groups)[groups], np.asarray(shares)[groups])
    assert shares[0] > 0.99
    assert np.abs(scores - levels).max() < 0.5


def test_good_images_without_any_spread_give_a_share() -> None:
    scores, groups = np.zeros(20), np.repeat([0, 1], 10)
    assert neighbour_shares(scores, scores, groups) == [0.5, 0.5]
    np.testing.assert_array_equal(group_levels(scores, groups), [0, 0])
