"""Small procedural images of two products, and a scorer that is quick to fit on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from flawline.settings.scorer import LayerSettings, ScorerSettings
from scorer.detector import CoresetDetector
from scorer.fit import fit_detector

SIDE = 64


def draw(product: str, seed: int, defect: bool = False) -> np.ndarray:
    """Return a grey woven cloth or a coloured board with holes, which vary a little; a defect is a bright blot."""
    rng = np.random.default_rng([seed, sum(product.encode())])
    y, x = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    shift = rng.uniform(0, 2)
    if product == "cloth":
        wave = 110 + 40 * np.sin((x + shift) * 0.9) + 40 * np.sin((y + shift) * 0.9)
        image = np.repeat(wave[:, :, None], 3, axis=2)
    else:
        image = np.stack([60 + 0.8 * y, 140 - 0.5 * x, 90 + 0 * x], axis=2)
        for centre in ((16, 16), (48, 16), (32, 46)):
            cv2.circle(image, (int(centre[0] + shift), int(centre[1] + shift)), 6, (20, 20, 25), -1)
    image += rng.normal(0, 3, image.shape)
    if defect:
        place = rng.integers(14, SIDE - 14, 2)
        cv2.circle(image, (int(place[0]), int(place[1])), 7, (250, 60, 200), -1)
    return np.clip(image, 0, 255).astype(np.uint8)


def good_images(count: int = 30, first: int = 0) -> list[np.ndarray]:
    """Return good images of both products in turn."""
    return [draw(product, first + i) for i in range(count) for product in ("cloth", "board")]


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLAWLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def settings() -> ScorerSettings:
    layers = (
        LayerSettings(size=SIDE, stride=8, rows=300, rows_per_image=20),
        LayerSettings(size=SIDE, stride=16, rows=200, rows_per_image=10, neighbours=5),
    )
    return ScorerSettings(layers=layers, threads=2, runtime="openvino", alarm_rate=0.05)


@pytest.fixture(scope="session")
def fitted(settings: ScorerSettings) -> CoresetDetector:
    return fit_detector(good_images(), settings)


@pytest.fixture(scope="session")
def model_path(fitted: CoresetDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "model"
    fitted.save(path)
    return path
