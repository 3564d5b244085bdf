"""The image as a whole speaks up when something is missing or is another thing, and is silent otherwise."""

from __future__ import annotations

import numpy as np
import pytest

from scorer import whole_image
from scorer.search.bank import unit_rows
from scorer.vectors import Vectors


def wholes(count: int, seed: int, spread: float, centre_seed: int = 0) -> Vectors:
    centre = np.random.default_rng(centre_seed).standard_normal(24)
    return unit_rows(centre + spread * np.random.default_rng(seed).standard_normal((count, 24)))


def fitted(good: Vectors, sources: np.ndarray | None = None):  # type: ignore[no-untyped-def]
    numbers = np.arange(len(good))
    groups = np.zeros(len(good), dtype=np.int64)
    return whole_image.fit(good, groups, numbers if sources is None else sources, np.asarray([0.2]))


def test_good_images_hardly_ever_add_anything_and_unlike_ones_do() -> None:
    good = wholes(80, 1, 0.2)
    (usual,), added = fitted(good)
    fresh = usual.added(whole_image.log_distances(wholes(200, 2, 0.2), good))
    unlike = usual.added(whole_image.log_distances(wholes(20, 3, 0.2, centre_seed=9), good))
    assert (added > 0).mean() <= 0.1
    assert (fresh > 0).mean() <= 0.15
    assert unlike.min() > max(fresh.max(), 0.2)


def test_where_good_images_differ_as_wholes_the_same_shift_adds_less() -> None:
    shift = unit_rows(np.random.default_rng(5).standard_normal((1, 24)))
    added = []
    for spread in (0.1, 1.0):
        good = wholes(80, 1, spread)
        (usual,), _ = fitted(good)
        added.append(float(usual.added(whole_image.log_distances(unit_rows(good[:1] + 0.5 * shift), good[1:]))[0]))
    assert added[0] > 5 * max(added[1], 0.01)


def test_images_of_one_source_are_not_compared_with_each_other() -> None:
    good = wholes(40, 1, 0.2)
    twice = np.concatenate([good, good])
    (apart,), added = fitted(twice, np.tile(np.arange(40), 2))
    (plain,), alone = fitted(good)
    assert apart.median == pytest.approx(plain.median, abs=0.15)
    (together,), _ = fitted(twice)
    assert together.median < apart.median
    assert np.isfinite(added).all() and np.isfinite(alone).all()


@pytest.mark.parametrize("good", [np.tile(unit_rows(np.ones((1, 24))), (12, 1)), wholes(8, 1, 0.2)])
def test_images_that_are_all_alike_or_few_give_finite_figures(good: Vectors) -> None:
    (usual,), added = fitted(good)
    assert np.isfinite(added).all()
    assert np.isfinite(usual.added(whole_image.log_distances(wholes(5, 3, 0.5, centre_seed=9), good))).all()
    assert whole_image.log_distances(good[:1], good[:1]).shape == (1,)
