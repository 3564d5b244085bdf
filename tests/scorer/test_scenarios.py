"""Labels known or not, at fit and at test: one command, four cells."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from flawline.errors import FlawlineError, UsageError
from flawline.settings.scorer import ScorerSettings
from scorer import commands
from scorer.detector import CoresetDetector
from scorer.evaluate import scenarios
from scorer.features import dataset
from scorer.features.dataset import Sample
from station.cli.main import app
from tests.scorer.conftest import draw

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenarios")
    for product in ("cloth", "board"):
        for kind, first, count in (("train/good", 0, 30), ("test/good", 100, 8), ("test/blot", 200, 8)):
            (root / product / kind).mkdir(parents=True)
            for i in range(count):
                image = draw(product, first + i, defect=kind.endswith("blot"))
                cv2.imwrite(str(root / product / kind / f"{i:03}.png"), image[:, :, ::-1])
    return root


def test_all_four_cells_come_from_one_command(data: Path, model_path: Path, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    result = CliRunner().invoke(
        app, ["evaluate", str(model_path), str(data), "--scenarios", "--json-file", str(target)], catch_exceptions=False
    )
    assert result.exit_code == 0
    report = json.loads(target.read_text())
    assert tuple(report["scenarios"]) == scenarios.NAMES
    assert (report["groups"], report["group_purity"], report["images"]) == (2, 1.0, 32)
    for cell in report["scenarios"].values():
        assert cell["pooled"]["image_auroc"] == cell["macro"]["image_auroc"] == cell["worst_product"] == 1.0
        assert cell["pooled_minus_macro"] == cell["std_over_products"] == 0.0
        assert cell["recall_at_alarm_rate"] == 1.0
        assert cell["alarm_rate"]["mean"] <= cell["alarm_rate"]["worst_product"] <= 0.25
    assert report["routed_to_own_product"] == {"good": 1.0, "defective": 1.0}
    # Groups found without labels are the products here, so labels can change thresholds only.
    cells = report["scenarios"]
    assert cells["known-unknown"]["pooled"] == cells["unknown-unknown"]["pooled"]


def test_shuffled_labels_change_no_bit_of_what_is_said_without_labels(
    data: Path, settings: ScorerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[scenarios.Scored] = []
    plain = scenarios.Scored
    monkeypatch.setattr(scenarios, "Scored", lambda *fields: seen.append(plain(*fields)) or seen[-1])
    train, test = dataset.train_samples(data), dataset.test_samples(data)
    names = np.random.default_rng(0).permutation([sample.product for sample in train])
    shuffled = [replace(sample, product=str(name)) for sample, name in zip(train, names, strict=True)]
    report, shuffled_report = (scenarios.compare(samples, test, settings) for samples in (train, shuffled))
    assert len(seen) == 2 * len(scenarios.NAMES)
    for name, first, second in zip(scenarios.NAMES, seen[:4], seen[4:], strict=True):
        same = first.margin.tobytes() == second.margin.tobytes()
        assert same == (name == "unknown-unknown"), name
    assert report["group_purity"] == 1.0 > shuffled_report["group_purity"]


def test_groups_given_as_labels_keep_an_image_among_its_own(fitted: CoresetDetector) -> None:
    features = fitted.features(draw("board", 5))
    routed = fitted.score_features(features)
    forced = fitted.score_features(features, group=1 - routed.group)
    same = fitted.score_features(features, group=routed.group)
    assert forced.group != routed.group
    assert forced.raw > 2 * routed.raw
    np.testing.assert_array_equal(same.heatmap, routed.heatmap)


def test_pooled_margin_counts_each_products_own_threshold() -> None:
    margin = np.asarray([-1.0, 2.0, -0.5, 0.5])
    cell = scenarios.Scored(margin, np.asarray(["a", "a", "b", "b"]), np.asarray([False, True, False, True])).report()
    assert cell["pooled"]["image_auroc"] == 1.0
    assert cell["alarm_rate"] == {"mean": 0.0, "worst_product": 0.0}
    worse = scenarios.Scored(
        margin + np.asarray([0, 0, 4, 0]), np.asarray(["a", "a", "b", "b"]), np.asarray([False, True] * 2)
    )
    assert worse.report()["per_product"]["b"]["alarm_rate"] == 1.0
    assert worse.report()["worst_product"] == 0.0


def test_product_that_was_never_fitted_or_is_too_small_is_one_line(data: Path, settings: ScorerSettings) -> None:
    train = [Sample(path, "cloth", "good") for path in sorted((data / "cloth/train/good").iterdir())]
    test = [Sample(path, "board", "good") for path in sorted((data / "board/test/good").iterdir())]
    with pytest.raises(UsageError, match="board: is tested without training images"):
        scenarios.compare(train, test, settings)
    few = [Sample(path, "board", "good") for path in sorted((data / "board/train/good").iterdir())[:3]]
    with pytest.raises(UsageError, match="board: 3 good images"):
        scenarios.compare(train + few, test, settings)


def test_model_that_does_not_say_how_it_was_fitted_is_one_line(
    fitted: CoresetDetector, data: Path, tmp_path: Path
) -> None:
    bare = CoresetDetector(fitted.model, fitted._graphs, fitted._backbone)
    bare.save(tmp_path / "model")
    with pytest.raises(FlawlineError, match="does not say how it was fitted"):
        commands.compare_scenarios(tmp_path / "model", data)
