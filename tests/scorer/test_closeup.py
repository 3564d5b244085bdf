from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scorer.regions import closeup, regions
from scorer.regions.closeup import rooted, weights_of


def colours(parts):
    """Return a backbone that sees nothing but how colours differ from grey: maps of 8x8 and 4x4 patches."""
    return [
        [np.dstack([blocks(part, side) - 90, np.full((side, side), 20, np.float32)]) for side in (8, 4)]
        for part in parts
    ]


def describe(image, heat, closer, field_px=None):
    """Return the description of one place."""
    return closeup.describe(image, [heat], closer, field_px)[0]


def blocks(part, side):
    rows = np.linspace(0, part.shape[0], side + 1).astype(int)
    columns = np.linspace(0, part.shape[1], side + 1).astype(int)
    cells = [
        part[y : max(y + 1, yy), x : max(x + 1, xx)].mean(axis=(0, 1))
        for y, yy in pairwise(rows)
        for x, xx in pairwise(columns)
    ]
    return np.reshape(cells, (side, side, 3)).astype(np.float32)


def spotted(colour, row=60, column=140, height=160, width=240):
    """Return a grey part with a spot, and its map: warm far around the spot, as maps are."""
    image = np.full((height, width, 3), 90, np.uint8)
    image[row - 4 : row + 4, column - 4 : column + 4] = colour
    y, x = np.mgrid[:80, :120].astype(np.float32)
    heat = 2 - ((y * height / 80 - row) ** 2 + (x * width / 120 - column) ** 2) / 2000
    return image, heat


def cosine(a, b):
    return float(a @ b)


def test_weights_lie_on_what_is_unlike_its_surroundings_within_the_warm_place():
    features = np.ones((16, 16, 4), np.float32)
    features[7, 9] = [1, -1, 0, 0]
    heat = np.zeros((16, 16), np.float32)
    heat[4:12, 4:12] = 1
    weights = weights_of(features, heat)
    row, column = np.unravel_index(weights.argmax(), weights.shape)
    assert (row // 2, column // 2) == (7, 9)
    assert weights[:8].sum() < 0.01 * weights.sum()


def test_place_without_contrast_is_weighed_by_its_heat():
    heat = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    weights = weights_of(np.ones((8, 8, 3), np.float32), heat)
    assert weights.max() == pytest.approx(1)
    assert weights[31, 31] > weights[16, 16] > weights[0, 0] > 0


def test_look_tells_defects_apart_that_are_small_in_the_image():
    red, again = (describe(*spotted((250, 20, 20), column=c), colours) for c in (140, 60))
    blue = describe(*spotted((20, 20, 250)), colours)
    assert cosine(red, again) > 0.99
    assert cosine(red, blue) < 0.9


def test_region_with_a_closer_look_has_a_longer_embedding_of_another_version():
    image, heat = spotted((250, 20, 20))
    patches, residuals = np.random.default_rng(0).normal(size=(2, 8, 8, 5)).astype(np.float32)
    (plain,) = regions.extract(image, heat, patches, residuals, 0.5, 1.5)
    (closer,) = regions.extract(image, heat, patches, residuals, 0.5, 1.5, closer=colours)
    assert plain.box == closer.box
    assert len(plain.embedding.array()) == 10
    assert len(closer.embedding.array()) == 10 + 8
    assert np.linalg.norm(closer.embedding.array().astype(np.float32)) == pytest.approx(1, abs=1e-2)
    assert regions.embedding_version("m", closer=True) != regions.embedding_version("m")


def test_each_of_two_regions_is_looked_at_in_its_own_place():
    image, near = spotted((250, 20, 20), column=50)
    image[56:64, 196:204] = (20, 20, 250)
    heat = np.maximum(near, spotted((0, 0, 0), column=200)[1] + 0.5)
    patches, residuals = np.ones((2, 8, 8, 2), np.float32)
    extracted = regions.extract(image, heat, patches, residuals, 0.5, 1.5, closer=colours)
    assert len(extracted) == 2
    by_column = sorted(extracted, key=lambda region: region.box[0])
    looks = [region.embedding.array()[4:].astype(np.float32) for region in by_column]
    alone = [describe(*spotted(colour), colours) for colour in ((250, 20, 20), (20, 20, 250))]
    for number in range(2):
        assert cosine(looks[number], alone[number]) > cosine(looks[number], alone[1 - number])


def test_looks_into_a_large_image_are_shares_of_what_the_detector_sees_at_once():
    image, heat = spotted((250, 20, 20), height=640, width=960, row=300, column=500)
    sides = []
    describe(image, heat, lambda parts: sides.extend(part.shape[:2] for part in parts) or colours(parts), field_px=200)
    assert sides == [(50, 50), (80, 80)]


@settings(max_examples=50)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.integers(1, 40), st.integers(0, 9999))
def test_any_image_and_map_give_a_finite_unit_vector(height, width, rows, columns, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    vector = describe(image, rng.normal(size=(rows, columns)).astype(np.float32), colours)
    assert vector.shape == (8,)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-4) or not vector.any()


def test_roots_keep_signs_and_zeros():
    assert rooted(np.array([4.0, 0.0, -4.0])) == pytest.approx([2**-0.5, 0, -(2**-0.5)])
    assert closeup.rooted(np.zeros(3)).tolist() == [0, 0, 0]
