"""How sharp and bright a camera's frames are, and how often that is measured."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flawline import telemetry
from workers.image_quality import INTERVAL_S, QualityWatch, measure


@pytest.fixture
def picture():
    noise = np.random.default_rng(0).integers(40, 200, (600, 900), np.uint8)
    return np.repeat(cv2.GaussianBlur(noise, (0, 0), 1.5)[:, :, None], 3, axis=2)


def test_a_blurred_picture_is_less_sharp_and_as_bright(picture):
    blurred = cv2.GaussianBlur(picture, (0, 0), 4)
    assert measure(blurred).sharpness < 0.1 * measure(picture).sharpness
    assert measure(blurred).brightness == pytest.approx(measure(picture).brightness, abs=0.01)


def test_a_darker_picture_is_darker_and_a_clipped_one_says_how_much_is_lost(picture):
    assert measure(picture // 2).brightness == pytest.approx(measure(picture).brightness / 2, abs=0.01)
    assert measure(picture).clipped == 0
    half = picture.copy()
    half[:300] = 255
    half[300:450] = 0
    assert measure(half).clipped == pytest.approx(0.75, abs=0.01)


def test_sixteen_bits_say_the_same_as_eight(picture):
    deep = picture.astype(np.uint16) * 257
    assert vars(measure(deep)) == pytest.approx(vars(measure(picture)), rel=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 3), (3, 2000, 3), (5000, 7, 3)])
def test_a_picture_of_any_shape_is_measured(shape):
    assert all(np.isfinite(value) for value in vars(measure(np.full(shape, 9, np.uint8))).values())


def test_each_camera_is_measured_once_an_interval(picture):
    now_s = [100.0]
    watch = QualityWatch(lambda: now_s[0])

    def count(camera):
        return telemetry.REGISTRY.get_sample_value("flawline_image_sharpness_count", {"camera": camera}) or 0

    for _ in range(50):
        watch.look("quality-a", picture)
        watch.look("quality-b", picture)
        now_s[0] += INTERVAL_S / 10
    assert count("quality-a") == count("quality-b") == 5
