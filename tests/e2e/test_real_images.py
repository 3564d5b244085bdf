"""Real images through the whole line: what is streamed scores as it does offline."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.running import DEADLINE_S, finish, start_demo, verdict_rows

PRODUCTS = ("transistor", "magnetic_tile")
TRAIN_IMAGES = 40
TEST_IMAGES = 10  # of each kind

LINEBENCH = os.environ.get("LINEBENCH")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small part of linebench, as links."""
    if not LINEBENCH:
        pytest.skip("LINEBENCH is not set: it names the folder of the linebench images")
    root = tmp_path_factory.mktemp("data")
    for product in PRODUCTS:
        source = Path(LINEBENCH) / product
        for folder in [source / "train" / "good", *sorted((source / "test").iterdir())]:
            target = root / folder.relative_to(LINEBENCH)
            target.mkdir(parents=True)
            images = sorted(folder.iterdir())[: TRAIN_IMAGES if "train" in folder.parts else TEST_IMAGES]
            for image in images:
                (target / image.name).symlink_to(image)
    return root


@pytest.mark.timeout(320)
def test_streamed_scores_equal_offline_scores(data: Path, tmp_path: Path) -> None:
    result = finish(start_demo(tmp_path, "--data", str(data), "--rate", "10"), tmp_path)
    images = len(list(data.glob("*/test/*/*")))
    assert result["ledger"]["balanced"] and result["ledger"]["gaps"] == 0
    assert result["ledger"]["scored"] == images

    offline = tmp_path / "offline.json"
    command = [sys.executable, "-m", "station.cli", "evaluate", result["artefacts"]["model"], str(data)]
    command += ["--scores", str(offline), "--json-file", str(tmp_path / "evaluation.json")]
    subprocess.run(command, check=True, timeout=DEADLINE_S)
    expected = {Path(row["path"]).resolve(): row for row in json.loads(offline.read_text())}
    streamed = {Path(row["path"]).resolve(): row for row in verdict_rows(result)}
    assert streamed.keys() == expected.keys()
    for path, row in streamed.items():
        assert row["score"] == pytest.approx(expected[path]["aligned"], abs=1e-4), path
        assert row["decision"] == expected[path]["decision"]
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert result["quality"]["pooled_image_auroc"] == pytest.approx(evaluation["pooled"]["image_auroc"], abs=1e-6)
    shutil.rmtree(tmp_path / "run")
