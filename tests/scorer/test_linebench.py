"""The promise on real images: one model for six products, no label, one threshold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flawline.settings.scorer import ScorerSettings
from scorer import commands

pytestmark = pytest.mark.system

ROOT = os.environ.get("LINEBENCH")


def _with_fewer_tests(root: Path, target: Path) -> Path:
    """Return a folder with all good training images and every third test image, as links.

    Pooled and macro image AUROC differ by .002 at most from those of all test images, those of a product by .025.
    """
    for product in (entry for entry in root.iterdir() if entry.is_dir()):
        (target / product.name).mkdir(parents=True)
        for part in ("train", "ground_truth"):
            (target / product.name / part).symlink_to(product / part)
        for kind in (product / "test").iterdir():
            folder = target / product.name / "test" / kind.name
            folder.mkdir(parents=True)
            for image in sorted(kind.iterdir())[::3]:
                (folder / image.name).symlink_to(image)
    return target


@pytest.mark.timeout(900)
@pytest.mark.skipif(not ROOT or not Path(ROOT).is_dir(), reason="LINEBENCH names no folder with the benchmark images")
def test_pooled_quality_on_linebench(tmp_path: Path) -> None:
    assert ROOT
    data = _with_fewer_tests(Path(ROOT), tmp_path / "data")
    report = commands.fit(data, tmp_path / "model", ScorerSettings(alarm_rate=0.05))
    assert report["groups"] == 6
    assert report["skipped_images"] == []
    assert report["pooled"]["image_auroc"] >= 0.91
    assert report["macro"]["image_auroc"] >= 0.93
    assert min(product["image_auroc"] for product in report["per_product"].values()) >= 0.88
    assert report["macro"]["pixel_auroc"] >= 0.91
    assert report["pooled"]["aupro"] >= 0.80
    assert report["alarm_rate"]["mean"] <= 0.09
    assert report["alarm_rate"]["worst_product"] <= 0.2
