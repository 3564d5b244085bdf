"""The table of operating points, and a model of a still scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flawline.errors import UsageError
from flawline.messages import Decision
from flawline.settings.scorer import ScorerSettings
from scorer import calibration, commands, operating_points
from scorer.fit import fit_detector
from station import fit_report
from tests.scorer.conftest import draw
from tests.scorer.test_odd_images import write


def test_points_say_for_each_rate_what_it_costs_finds_and_whether_the_images_vouch_for_it() -> None:
    good = np.sort(np.random.default_rng(0).exponential(size=160))
    points = operating_points.operating_points(good, calibration.RATES, np.array([0.0, 4.0, 20.0, np.inf]))
    assert [point.rate for point in points] == list(calibration.RATES)
    assert [point.vouched for point in points] == [False, False, True, True, True]
    for point in points:
        assert point.above == (good > point.threshold).sum() and point.images == 160
        assert point.above / 160 < point.upper_bound
        assert point.recall in (0.5, 0.75)
    recalls = [point.recall for point in points]
    assert recalls[0] == 0.5 and recalls[-1] == 0.75
    assert operating_points.operating_points(good, (0.05,), np.array([]))[0].recall is None


def test_unknown_products_are_beyond_every_cut_off() -> None:
    scores = operating_points.standardised([1.0, 2.0], [1, 0], [False, True], np.array([1.0, 4.0]))
    assert scores.tolist() == [0.25, np.inf]


def report(**changes: Any) -> dict[str, Any]:
    cut = {"threshold": 1.0, "rate": 0.005, "method": "exponential-tail", "upper_bound": 0.2}
    point = operating_points.OperatingPoint(0.005, 1.0, 0, 40, 0.07, False, 0.01)
    return {
        "version": "v", "groups": 1, "model_bytes": 1, "thresholds": {"review": cut, "reject": cut},
        "per_group": [{"group": 0, "good_images": 40, "finest_p_value": 0.02}], "finest_p_value": 0.02,
        "good_images": 40, "distinct_images": 40,
        "left_out": [], "suspects": [], "far_out": ["a/far.png"], "odd": [], "odd_left_out": False,
        "small_parts": [], "sample_bits": [8], "alarm_rate_asked": 0.005, "vouched_rate": 0.05, "found": 0.01,
        "defects": {"kind": "pasted", "count": 120}, "operating_points": [point.report()],
    } | changes  # fmt: skip


def test_report_names_what_the_images_vouch_for_and_what_lies_far_out(capsys: pytest.CaptureFixture[str]) -> None:
    fit_report.show(report(), "model m")
    shown = " ".join(capsys.readouterr().out.split())
    assert "too few" in shown and "pasted into good images" in shown
    assert "vouch for 5.00 %, not for the 0.50 % asked for" in shown
    assert "a/far.png" in shown and "--is-defect" in shown
    assert "finds 1% of 120 defects" in shown
    assert "sub-looks" not in shown
    group = {"group": 0, "good_images": 40, "finest_p_value": 0.02, "sub_looks": 3}
    fit_report.show(report(per_group=[group]), "model m")
    assert "group 0 falls into 3 sub-looks" in " ".join(capsys.readouterr().out.split())
    assert fit_report.finds_nothing(report()) and not fit_report.finds_nothing(report(found=0.4))
    fit_report.show(report(alarm_rate_asked="auto"), "model m")
    assert 'alarm_rate = "auto" is 0.50 %' in capsys.readouterr().out


@pytest.mark.system
def test_a_model_of_a_still_scene_accepts_the_scene_and_finds_what_is_new_in_it(settings: ScorerSettings) -> None:
    scene = draw("cloth", 0)
    for noise in (0, 1):
        rng = np.random.default_rng(3)

        def shot(noise: int = noise, rng: np.random.Generator = rng) -> np.ndarray:
            return np.clip(scene + rng.normal(0, noise, scene.shape), 0, 255).astype(np.uint8)

        fitted = fit_detector([shot() for _ in range(24)], settings.model_copy(update={"alarm_rate": "auto"}))
        assert fitted.alarm_rate == 0.05
        decisions = [scores.decision for scores in fitted.score([shot() for _ in range(12)])]
        # 24 images vouch for 5 %: without noise every shot is the scene, with noise a few may be alarms.
        assert decisions.count(Decision.ACCEPT) >= (9 if noise else 12)
        spoilt = scene.copy()
        spoilt[20:34, 20:34] = (250, 60, 200)
        assert fitted.score([spoilt])[0].decision is not Decision.ACCEPT


@pytest.mark.system
def test_image_that_is_said_to_be_a_defect_takes_no_part_in_the_fit(tmp_path: Path, settings: ScorerSettings) -> None:
    paths = write(tmp_path / "data", 24)
    fitted = commands.fit(tmp_path / "data", tmp_path / "model", settings, defects=[paths[3]])
    assert fitted["good_images"] == 23
    assert fitted["defects"]["kind"] == "pasted" and len(fitted["operating_points"]) == 5
    with pytest.raises(UsageError, match="is none of the training images"):
        commands.fit(tmp_path / "data", tmp_path / "model", settings, defects=[tmp_path / "other.png"])
