from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawline import imaging
from flawline.messages import Codec
from scorer.regions import regions
from scorer.regions.regions import (
    Square,
    crop_squares,
    embed,
    extract,
    groups_of,
    peak_weights,
    sharp_mask,
)

LO, HI = 0.6, 1.6


def scene(height=120, width=200, grid=16, dimension=6, hot=((2, 3, 2.0),), seed=0):
    rng = np.random.default_rng(seed)
    heatmap = rng.random((grid, grid)).astype(np.float32) * 0.2
    for row, column, value in hot:
        heatmap[row : row + 2, column : column + 2] = value
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    patches, residuals = rng.normal(size=(2, grid, grid, dimension)).astype(np.float32)
    return image, heatmap, patches, residuals


def test_hot_spot_gives_one_region_where_it_is():
    image, heatmap, patches, residuals = scene()
    (region,) = extract(image, heatmap, patches, residuals, LO, HI)
    x, y, width, height = region.box
    assert x <= 3.5 / 16 * 200 <= x + width  # the centre of the spot, in pixels of the image
    assert y <= 3 / 16 * 120 <= y + height
    assert 0 < region.area_px <= width * height
    assert region.peak == pytest.approx(2.0, abs=0.2)


def test_mask_and_crop_have_one_size_and_can_be_read_back():
    image, heatmap, patches, residuals = scene()
    (region,) = extract(image, heatmap, patches, residuals, LO, HI)
    crop, mask = imaging.decode(region.crop, Codec.JPEG), imaging.decode_mask(region.mask)
    assert crop.shape[:2] == mask.shape
    assert mask.any()
    assert not mask.all()


def test_crop_is_limited_in_side_whatever_the_image():
    image, heatmap, patches, residuals = scene(height=1200, width=1600, hot=((0, 0, 3.0), (6, 6, 3.0), (13, 13, 3.0)))
    for region in extract(image, heatmap, patches, residuals, LO, HI, crop_side_limit_px=96):
        assert max(imaging.probe(region.crop).height, imaging.probe(region.crop).width) <= 96


def test_distant_spots_give_regions_of_their_own_with_different_embeddings():
    image, heatmap, patches, residuals = scene(hot=((1, 1, 2.0), (12, 12, 2.5)))
    first, second = extract(image, heatmap, patches, residuals, LO, HI)
    assert not np.allclose(first.embedding.array(), second.embedding.array(), atol=0.05)


def test_flat_map_gives_one_global_region_with_an_empty_mask():
    image, _, patches, residuals = scene()
    (region,) = extract(image, np.full((16, 16), -0.3, np.float32), patches, residuals, LO, HI)
    assert region.box == (0, 0, 200, 120)
    assert region.area_px == 0
    assert not imaging.decode_mask(region.mask).any()
    assert np.linalg.norm(region.embedding.array().astype(np.float32)) == pytest.approx(1, abs=1e-2)


def test_spot_below_the_range_is_still_local():
    image, heatmap, patches, residuals = scene(hot=((5, 5, 0.5),))
    (region, *_) = extract(image, heatmap, patches, residuals, LO, HI)
    assert 0 < region.area_px < 0.2 * 200 * 120


def test_strong_defect_is_cut_by_its_own_peak_and_not_by_the_range():
    fine = cv2.GaussianBlur(np.pad(np.full((20, 20), 8.0, np.float32), 118), (0, 0), 12)
    mask = sharp_mask(fine, LO, HI)
    assert mask.any()
    assert fine[mask].min() > 0.6 * fine.max()


def test_no_more_regions_than_the_limit_and_the_largest_first():
    hot = [(r, c, 2.0) for r in range(0, 16, 5) for c in range(0, 16, 5)]
    image, heatmap, patches, residuals = scene(height=400, width=400, hot=hot)
    extracted = extract(image, heatmap, patches, residuals, LO, HI, limit=3)
    assert len(extracted) == 3
    assert [r.area_px for r in extracted] == sorted((r.area_px for r in extracted), reverse=True)


def test_same_frame_gives_the_same_bytes():
    assert extract(*scene(), LO, HI) == extract(*scene(), LO, HI)


def test_embedding_halves_have_the_same_length_and_ignore_what_is_normal():
    rng = np.random.default_rng(1)
    good = rng.normal(size=(4, 4, 5)).astype(np.float32)
    residuals = np.zeros_like(good)
    residuals[1, 2] = [1, 0, 0, 0, 0]
    weights = np.zeros((4, 4), np.float32)
    weights[1, 2] = 1
    vector = embed(good + residuals, residuals, weights)
    assert np.linalg.norm(vector[:5]) == pytest.approx(np.sqrt(0.5), abs=1e-5)
    assert vector[5:] == pytest.approx(np.array([np.sqrt(0.5), 0, 0, 0, 0]), abs=1e-5)
    # A product whose features are all shifted gives the same embedding.
    assert embed(good + 3 + residuals, residuals, weights) == pytest.approx(vector, abs=1e-5)


def test_weights_are_on_the_hottest_patches_of_the_region():
    fine = np.zeros((64, 64), np.float32)
    fine[8:16, 8:16], fine[40:48, 40:48] = 2.0, 5.0
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    weights = peak_weights(fine, mask, (8, 8))
    assert np.unravel_index(weights.argmax(), weights.shape) == (1, 1)
    assert weights[5, 5] == 0


@settings(max_examples=100)
@given(st.integers(1, 500), st.integers(1, 500), st.integers(0, 10_000))
def test_crops_stay_inside_the_image_and_hold_their_box_centre(height, width, seed):
    rng = np.random.default_rng(seed)
    x0, y0 = int(rng.integers(0, width)), int(rng.integers(0, height))
    box = Square(x0, y0, int(rng.integers(x0 + 1, width + 1)), int(rng.integers(y0 + 1, height + 1)))
    (crop,) = crop_squares([box], height, width)
    assert 0 <= crop.x0 < crop.x1 <= width
    assert 0 <= crop.y0 < crop.y1 <= height
    assert crop.x0 <= (box.x0 + box.x1) // 2 <= crop.x1
    assert crop.y0 <= (box.y0 + box.y1) // 2 <= crop.y1


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 380), st.integers(0, 380)), max_size=12))
def test_every_component_belongs_to_exactly_one_region(corners):
    squares = [Square(x, y, x + 20, y + 20) for x, y in corners]
    groups = groups_of(squares, 400, 400)
    assert sorted(i for group in groups for i in group) == list(range(len(squares)))


def test_touching_squares_are_one_region_and_distant_ones_are_not():
    squares = [Square(0, 0, 20, 20), Square(22, 0, 42, 20), Square(300, 300, 320, 320)]
    assert sorted(groups_of(squares, 400, 400)) == [[0, 1], [2]]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda i, h, p, r: (i[:, :, 0], h, p, r),
        lambda i, h, p, r: (i.astype(np.float32), h, p, r),
        lambda i, h, p, r: (i, h, p[:4], r),
        lambda i, h, p, r: (i, h, p * np.nan, r),
        lambda i, h, p, r: (i, h * np.nan, p, r),
    ],
)
def test_arrays_that_do_not_fit_are_refused(spoil):
    with pytest.raises(ValueError, match=r"image|patches|anomaly map"):
        extract(*spoil(*scene()), LO, HI)


def test_embedding_version_names_both_the_features_and_the_pooling():
    assert regions.embedding_version("abc") == f"abc+{regions.EMBEDDING_VERSION}"
