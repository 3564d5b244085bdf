"""The promise on real images: one model for six products, no label, one threshold."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flawline.settings.scorer import ScorerSettings
from scorer import commands

pytestmark = pytest.mark.system

ROOT = os.environ.get("LINEBENCH")


@pytest.mark.timeout(900)
@pytest.mark.skipif(not ROOT or not Path(ROOT).is_dir(), reason="LINEBENCH names no folder with the benchmark images")
def test_pooled_quality_on_linebench(tmp_path: Path) -> None:
    assert ROOT
    report = commands.fit(Path(ROOT), tmp_path / "model", ScorerSettings(alarm_rate=0.05))
    assert report["groups"] == 6
    assert report["skipped_images"] == []
    assert report["pooled"]["image_auroc"] >= 0.91
    assert report["macro"]["image_auroc"] >= 0.93
    assert min(product["image_auroc"] for product in report["per_product"].values()) >= 0.88
    assert report["macro"]["pixel_auroc"] >= 0.91
    assert report["pooled"]["aupro"] >= 0.80
    assert report["alarm_rate"]["mean"] <= 0.09
    assert report["alarm_rate"]["worst_product"] <= 0.2
