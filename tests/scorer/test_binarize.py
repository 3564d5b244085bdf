"""MEBin against its definition, written down step by step and slowly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from scorer.regions.binarize import defect_mask, erosion_kernel, mebin, mebin_set
from scorer.regions.components import component_counts


def slow_counts(scaled: np.ndarray, kernel: int) -> list[int]:
    """Return the number of components of the eroded mask at each of the 64 thresholds 255, 251, ..., 3."""
    ones = np.ones((kernel, kernel), np.uint8)
    counts = []
    for j in range(64):
        mask = (scaled > 255 - 4 * j).astype(np.uint8)
        counts.append(ndimage.label(cv2.erode(mask, ones), structure=np.ones((3, 3)))[1])
    return counts


def slow_choice(counts: list[int]) -> tuple[int, int] | None:
    """Return the defect count and the index of the chosen threshold: the longest run of four or more equal counts."""
    runs = []  # count, length, last index
    start = 0
    for index in range(1, 65):
        if index == 64 or counts[index] != counts[start]:
            if counts[start] and index - start >= 4:
                runs.append((counts[start], index - start, index - 1))
            start = index
    if not runs:
        return None
    longest: dict[int, int] = {}
    for count, length, _ in runs:
        longest[count] = max(length, longest.get(count, 0))
    count = next(c for c in longest if longest[c] == max(longest.values()))
    return count, max(last for c, length, last in runs if c == count and length == longest[count])


def blobs(seed: int, side: int = 48, count: int = 4) -> np.ndarray:
    rng = np.random.default_rng(seed)
    canvas = rng.random((side, side)).astype(np.float32) * 0.4
    for _ in range(count):
        y, x = rng.integers(0, side, 2)
        height, width = rng.integers(2, side // 2, 2)
        canvas[y : y + height, x : x + width] += rng.random() * 3
    return cv2.GaussianBlur(canvas, (0, 0), float(rng.uniform(0.3, 3)))


@settings(max_examples=60)
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(2, 7),
    st.floats(0.1, 1.5),
    st.floats(0.2, 3),
    st.integers(0, 6),
)
def test_any_map_gives_the_mask_and_count_of_the_definition(seed, shrink, kernel, lo, extent, count):
    heatmap = blobs(seed, side=16 + 8 * shrink, count=count)
    hi = lo + extent
    binary = mebin(heatmap, lo, hi, kernel=kernel)
    scaled = (heatmap - np.float32(lo)) * np.float32(255 / (hi - lo))
    choice = slow_choice(slow_counts(scaled, kernel))
    if choice is None:
        assert (binary.count, binary.mask.any(), binary.threshold) == (0, False, np.inf)
        return
    expected_count, index = choice
    assert binary.count == expected_count
    cut = lo + (255 - 4 * index) * (hi - lo) / 255
    assert binary.threshold == pytest.approx(cut)
    mask = cv2.erode((heatmap > np.float32(cut)).astype(np.uint8), np.ones((kernel, kernel), np.uint8))
    assert np.array_equal(binary.mask, mask.astype(bool))


@settings(max_examples=30)
@given(st.integers(0, 10_000), st.integers(2, 5))
def test_set_form_on_uint8_maps_follows_the_published_steps(seed, images):
    maps = [(np.clip(blobs(seed + i), 0, 4) / 4 * 255).astype(np.uint8) for i in range(images)]
    lo, hi = min(int(m.max()) for m in maps), max(int(m.max()) for m in maps)
    for heatmap, binary in zip(maps, mebin_set(maps), strict=True):
        if lo == hi:
            assert binary.count == 0
            continue
        scaled = np.where(heatmap < lo, 0, 255 * (heatmap.astype(float) - lo) / (hi - lo))
        choice = slow_choice(slow_counts(scaled, 6))
        assert binary.count == (choice[0] if choice else 0)
        if choice:
            cut = int((255 - 4 * choice[1]) * (hi - lo) / 255 + lo)
            mask = cv2.erode((heatmap > cut).astype(np.uint8), np.ones((6, 6), np.uint8))
            assert np.array_equal(binary.mask, mask.astype(bool))
            assert binary.threshold == cut


def test_set_form_does_not_overflow_in_eight_bits():
    quiet, loud = np.full((64, 64), 100, np.uint8), np.full((64, 64), 20, np.uint8)
    loud[20:40, 20:40] = 240
    binary = mebin_set([quiet, loud])[1]
    assert binary.count == 1
    assert 100 <= binary.threshold < 240


def test_two_blobs_on_a_quiet_map_are_two_defects():
    heatmap = np.zeros((256, 256), np.float32)
    heatmap[40:80, 40:80], heatmap[150:190, 150:200] = 3, 2
    binary = mebin(heatmap, 0.5, 2.5)
    assert binary.count == 2
    assert binary.mask[60, 60]
    assert binary.mask[170, 170]
    assert not binary.mask[100, 100]


def test_good_map_below_the_range_gives_an_empty_mask():
    binary = defect_mask(np.full((64, 64), 0.4, np.float32), 0.5, 2.0)
    assert (binary.count, binary.mask.any()) == (0, False)


def test_spot_smaller_than_the_kernel_is_found_without_erosion():
    heatmap = np.zeros((256, 256), np.float32)
    heatmap[100:103, 100:103] = 3
    assert mebin(heatmap, 0.5, 2.5).count == 0
    binary = defect_mask(heatmap, 0.5, 2.5)
    assert (binary.count, binary.eroded, int(binary.mask.sum())) == (1, False, 9)


def test_erosion_kernel_grows_with_the_map():
    assert [erosion_kernel(side, side) for side in (32, 128, 256, 512, 1024)] == [2, 3, 6, 12, 24]


@pytest.mark.parametrize("bad", [np.zeros((0, 4)), np.zeros(5), np.array([[1.0, np.nan]]), np.array([[1.0, np.inf]])])
def test_map_that_is_no_finite_matrix_is_refused(bad):
    with pytest.raises(ValueError, match="anomaly map"):
        mebin(bad, 0.0, 1.0)


@pytest.mark.parametrize(("lo", "hi"), [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0), (0.0, np.inf)])
def test_range_without_extent_is_refused(lo, hi):
    with pytest.raises(ValueError, match="no extent"):
        mebin(np.zeros((8, 8)), lo, hi)


@settings(max_examples=60)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 12)), elements=st.floats(-20, 300, width=32)),
    st.integers(2, 255),
    st.sampled_from([1, 3, 4]),
)
def test_components_are_counted_as_by_labelling_each_mask(scaled, levels, step):
    thresholds = np.arange(255, 255 - levels * step, -step)
    counts = [ndimage.label(scaled > threshold, structure=np.ones((3, 3)))[1] for threshold in thresholds]
    assert component_counts(scaled, thresholds) == counts


def test_components_of_noise_and_of_thresholds_hit_exactly():
    rng = np.random.default_rng(1)
    for scaled in (rng.integers(0, 260, (97, 61)).astype(np.float32), rng.normal(100, 80, (64, 200))):
        thresholds = np.arange(255, 0, -4)
        counts = [ndimage.label(scaled > threshold, structure=np.ones((3, 3)))[1] for threshold in thresholds]
        assert component_counts(scaled, thresholds) == counts
