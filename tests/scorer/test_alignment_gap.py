"""The benchmark of alignment: what is drawn, and what the gap says."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.alignment_gap import FEWEST, HELD_OUT, MOST, PRODUCTS, draws, figures, ranks_among_own

GOOD = np.repeat(np.asarray(list("abcdef")), [40, 300, 48, 100, 210, 90])


def test_draws_are_seeded_and_no_held_out_image_is_fitted() -> None:
    drawn = draws(GOOD, 8)
    again = draws(GOOD, 8)
    assert [list(draw.fitted) for draw in drawn] == [list(draw.fitted) for draw in again]
    assert [list(draw.fitted) for draw in drawn] != [list(draw.fitted) for draw in draws(GOOD, 8, seed=1)]
    for draw in drawn:
        assert len(set(draw.products)) == PRODUCTS
        assert not set(draw.fitted) & set(draw.held_out)
        sizes = [int((GOOD[draw.fitted] == name).sum()) for name in draw.products]
        assert min(sizes) >= FEWEST and max(sizes) <= MOST
        assert set(GOOD[draw.fitted]) == set(draw.products)
        assert all((GOOD[draw.held_out] == name).sum() <= HELD_OUT for name in draw.products)


def test_ranks_among_own_good_images_align_what_levels_and_spreads_set_apart() -> None:
    rng = np.random.default_rng(0)
    products = np.repeat(np.asarray(["a", "b"]), 200)
    is_defect = np.tile(np.repeat([False, True], 100), 2)
    margin = rng.normal(size=400) + 4 * is_defect
    scores = np.where(products == "a", margin, 10 + 5 * margin)
    ranks = ranks_among_own(scores, is_defect, products)
    assert roc_auc_score(is_defect, scores) < 0.9
    assert roc_auc_score(is_defect, ranks) > 0.99


def test_figures_hold_the_worst_and_mean_gap_and_the_worst_products_alarms() -> None:
    def result(pooled: float, alarms: int) -> dict[str, object]:
        aurocs = {"pooled": pooled, "macro": 0.95, "pooled_standardised": pooled - 0.01, "macro_standardised": 0.95}
        rates = {
            f"alarms_{name}": {"a": [alarms, 10], "b": [0, 40]} for name in ("5_percent", "1_percent", "half_percent")
        }
        recalls = {f"recall_{name}": 0.5 for name in ("5_percent", "1_percent", "half_percent")}
        groups = {"images": {"a": 30, "b": 60}, "groups": [{"a": 30}, {"b": 60}]}
        return {**aurocs, **rates, **recalls, **groups, "pooled_by_own_tests": 0.945}

    summary = figures([result(0.94, 1), result(0.92, 3)])
    assert summary["worst_gap"] == pytest.approx(0.03)
    assert summary["mean_gap"] == pytest.approx(0.02)
    assert summary["worst_gap_standardised"] == pytest.approx(0.04)
    assert summary["mean_gap_by_own_tests"] == pytest.approx(0.005)
    assert summary["worst_product_held_out_alarm_rate_at_5_percent"] == pytest.approx(0.2)
    assert summary["held_out_alarm_rate_at_5_percent"] == pytest.approx(0.04)
    assert summary["images_of_smallest_group"] == 30
    assert summary["share_in_group_of_own_product"] == 1
