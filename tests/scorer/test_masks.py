"""Where images are inspected: polygons and masks, and a scorer that is blind to the rest."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawline.errors import FlawlineError
from flawline.messages import Decision
from scorer.detector import CoresetDetector
from scorer.regions.masks import RegionOfInterest, on_grid, read_mask
from tests.scorer.conftest import SIDE, draw

LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))


def test_polygons_are_fractions_of_any_frame_and_ignore_wins() -> None:
    region = RegionOfInterest(inspect=(LEFT,), ignore=(((0, 0), (1, 0), (1, 0.25), (0, 0.25)),))
    for height, width in ((40, 80), (400, 200)):
        mask = region.of(height, width)
        share = mask.mean()
        assert abs(share - 0.5 * 0.75) < 0.03
        assert mask[height // 2, width // 8]
        assert not mask[height // 8, width // 8]
        assert not mask[height // 2, -1]


def filled_by_crossings(polygon: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """Return the pixels (height, width) whose centres are inside a polygon, from the crossings of each row."""
    ends = np.asarray(polygon) * (width, height)
    starts = np.roll(ends, 1, axis=0)
    filled = np.zeros((height, width), dtype=bool)
    for row in range(height):
        y = row + 0.5
        crossed = (starts[:, 1] <= y) != (ends[:, 1] <= y)
        (x0, y0), (x1, y1) = starts[crossed].T, ends[crossed].T
        crossings = np.sort(x0 + (y - y0) / (y1 - y0) * (x1 - x0))
        filled[row] = np.searchsorted(crossings, np.arange(width) + 0.5) % 2 == 1
    return filled


def distances_to_outline(polygon: list[tuple[float, float]], height: int, width: int) -> np.ndarray:
    """Return the distance (height, width) in pixels of each pixel's centre to the outline of a polygon."""
    ends = np.asarray(polygon) * (width, height)
    starts = np.roll(ends, 1, axis=0)
    edges = ends - starts
    y, x = np.mgrid[:height, :width] + 0.5
    centres = np.stack([x, y], axis=-1)[:, :, None]
    along = ((centres - starts) * edges).sum(axis=-1) / np.maximum((edges**2).sum(axis=-1), 1e-12)
    nearest = starts + np.clip(along, 0, 1)[..., None] * edges
    return np.linalg.norm(centres - nearest, axis=-1).min(axis=-1)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=9),
    st.integers(5, 90),
    st.integers(5, 90),
)
def test_a_polygon_holds_the_pixels_whose_centres_are_inside_but_for_its_border(
    polygon: list[tuple[float, float]], height: int, width: int
) -> None:
    """Corners are rounded to half pixels, and a drawn line is off by up to half of one: by 0.61 px in all."""
    try:
        mask = RegionOfInterest(inspect=(polygon,)).of(height, width)
    except FlawlineError:  # the polygon is so thin that no pixel is inside
        mask = np.zeros((height, width), dtype=bool)
    differs = mask != filled_by_crossings(polygon, height, width)
    assert not differs.any() or distances_to_outline(polygon, height, width)[differs].max() < 2 / 3


def test_a_polygon_along_the_borders_of_pixels_is_exact() -> None:
    polygon = ((0.2, 0.3), (0.7, 0.3), (0.7, 0.8), (0.2, 0.8))
    expected = np.zeros((10, 20), dtype=bool)
    expected[3:8, 4:14] = True
    np.testing.assert_array_equal(RegionOfInterest(inspect=(polygon,)).of(10, 20), expected)
    np.testing.assert_array_equal(RegionOfInterest(ignore=(polygon,)).of(10, 20), ~expected)


def test_a_polygon_that_crosses_itself_has_a_hole() -> None:
    star = [(0.5 + 0.5 * np.sin(a), 0.5 - 0.5 * np.cos(a)) for a in np.arange(5) * 4 * np.pi / 5]
    mask = RegionOfInterest(inspect=(star,)).of(100, 100)
    assert not mask[50, 50]
    assert mask[15, 50]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40))
def test_grid_keeps_no_cell_with_an_ignored_pixel_unless_none_is_whole(height: int, width: int, side: int) -> None:
    mask = np.random.default_rng(height * 61 + width).random((height, width)) > 0.02
    if not mask.any():
        return
    kept = on_grid(mask, side, side)
    assert kept.any()
    if height % side == 0 and width % side == 0:
        whole = mask.reshape(side, height // side, side, width // side).all(axis=(1, 3))
        np.testing.assert_array_equal(kept, whole if whole.any() else kept)


def test_mask_files_that_cannot_be_used_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(FlawlineError, match="mask cannot be read"):
        read_mask(tmp_path / "none.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(FlawlineError, match="white where frames are inspected"):
        read_mask(tmp_path / "text.png")
    cv2.imwrite(str(tmp_path / "black.png"), np.zeros((8, 8), np.uint8))
    with pytest.raises(FlawlineError, match="black everywhere"):
        read_mask(tmp_path / "black.png")
    cv2.imwrite(str(tmp_path / "half.png"), np.repeat([[255, 0]], 4, axis=0).astype(np.uint8))
    mask = read_mask(tmp_path / "half.png")
    with pytest.raises(FlawlineError, match=r"camera a: mask of 2x4 px does not fit frames of 640x480 px"):
        RegionOfInterest(mask=mask, name="camera a").of(480, 640)
    with pytest.raises(FlawlineError, match=r"camera a: nothing of a 2x4 px frame is left"):
        RegionOfInterest(ignore=(LEFT,), mask=mask, name="camera a").of(4, 2)


def test_defect_in_an_ignored_place_neither_scores_nor_heats_the_map(fitted: CoresetDetector) -> None:
    clean = draw("board", 701)
    spoiled = clean.copy()
    spoiled[4:12, 4:12] = (250, 60, 200)
    beside = clean.copy()
    beside[44:54, 50:60] = (250, 60, 200)
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[:24, :24] = False
    seen, ignored, other, plain = fitted.score([spoiled, spoiled, beside, clean], [None, mask, mask, mask])
    assert seen.decision is Decision.REJECT
    assert ignored.decision is Decision.ACCEPT
    assert ignored.heatmap[:3, :3].max() <= ignored.heatmap[3:, 3:].min() + 1e-6
    assert ignored.heatmap.max() < seen.heatmap.max() - 0.5
    assert other.decision is Decision.REJECT
    assert np.unravel_index(other.heatmap.argmax(), other.heatmap.shape)[0] >= 5
    assert plain.decision is Decision.ACCEPT


def test_mask_that_keeps_everything_changes_nothing_and_one_of_another_size_is_refused(
    fitted: CoresetDetector,
) -> None:
    image = draw("cloth", 702, defect=True)
    plain, masked = fitted.score([image, image], [None, np.ones(image.shape[:2], dtype=bool)])
    np.testing.assert_array_equal(plain.heatmap, masked.heatmap)
    assert plain.aligned == masked.aligned
    with pytest.raises(FlawlineError, match="mask of shape"):
        fitted.score([image], [np.ones((3, 3), dtype=bool)])
