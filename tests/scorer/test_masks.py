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


@given(st.integers(1, 60), st.integers(1, 60), st.integers(2, 40))
def test_grid_keeps_no_cell_with_an_ignored_pixel_unless_none_is_whole(height: int, width: int, side: int) -> None:
    mask = np.random.default_rng(height * 61 + width).random((height, width)) > 0.02
    if not mask.any():
        return
    kept = on_grid(mask, side)
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
