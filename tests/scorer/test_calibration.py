"""Thresholds keep the stated rate, on any distribution of good scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest

from scorer.calibration import (
    Tail,
    decision_widths,
    far_out,
    fit_tail,
    group_widths,
    p_values,
    threshold,
    upper_bound,
    vouched_rate,
)

finite = st.floats(-1e3, 1e3, allow_nan=False, width=32)


@given(arrays(np.float64, st.integers(1, 60), elements=finite), arrays(np.float64, 8, elements=finite))
def test_p_values_lie_in_their_range_and_fall_with_the_score(calibration: np.ndarray, scores: np.ndarray) -> None:
    calibration = np.sort(calibration)
    p = p_values(np.sort(scores), calibration)
    assert ((p >= 1 / (len(calibration) + 1)) & (p <= 1)).all()
    assert (np.diff(p) <= 0).all()


@given(arrays(np.float64, st.integers(8, 400), elements=finite))
def test_a_lower_rate_never_has_a_lower_threshold(scores: np.ndarray) -> None:
    values = [threshold(np.sort(scores), rate).value for rate in (0.4, 0.25, 0.2, 0.05, 0.02, 0.01, 0.005, 0.001)]
    assert values == sorted(values)


def test_alarm_rate_is_kept_on_average_over_calibration_sets() -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(400):
        cut = threshold(np.sort(rng.lognormal(size=200)), 0.05)
        rates.append((rng.lognormal(size=500) > cut.value).mean())
    assert 0.04 < np.mean(rates) < 0.06


@pytest.mark.parametrize("draw", ["gamma", "lognormal", "normal", "logistic"])
def test_small_calibration_sets_give_a_threshold_near_the_target(draw: str) -> None:
    rng = np.random.default_rng(2)

    def sample(n: int) -> np.ndarray:
        return rng.gamma(2, size=n) if draw == "gamma" else getattr(rng, draw)(size=n)

    fresh = np.sort(sample(200_000))
    rates = [1 - np.searchsorted(fresh, threshold(np.sort(sample(150)), 0.005).value) / len(fresh) for _ in range(100)]
    assert 0.001 < np.median(rates) < 0.01


def test_tail_recovers_its_own_quantiles() -> None:
    rng = np.random.default_rng(3)
    scores = np.sort(rng.exponential(size=20_000))
    assert fit_tail(scores).quantile(0.001) == pytest.approx(-np.log(0.001), rel=0.1)


def test_a_few_far_out_scores_move_the_threshold_little_and_are_named() -> None:
    scores = np.random.default_rng(7).exponential(size=1245)
    spoilt = np.concatenate([scores, np.full(6, 40.0)])
    assert threshold(np.sort(spoilt), 0.005).value == pytest.approx(threshold(np.sort(scores), 0.005).value, rel=0.15)
    assert np.flatnonzero(far_out(spoilt))[-6:].tolist() == list(range(1245, 1251))
    assert far_out(scores).sum() <= 3


@pytest.mark.parametrize(("n", "rate"), [(20, 0.05), (60, 0.05), (75, 0.02), (150, 0.01), (300, 0.005), (9000, 0.005)])
def test_images_vouch_for_the_lowest_rate_that_is_sure_to_be_less_than_doubled(n: int, rate: float) -> None:
    assert vouched_rate(n) == rate


def test_scores_that_tie_have_a_threshold_above_them_and_a_width() -> None:
    same = np.zeros(40)
    assert threshold(same, 0.05).value > 0.05
    widths, of_others = decision_widths(same, np.repeat([0, 1], 20))
    assert (widths >= 0.05).all() and (of_others >= 0.05).all()


@pytest.mark.parametrize("sizes", [(30,), (9, 25), (2, 40)])
def test_each_score_is_divided_by_the_spread_of_the_others(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(8)
    groups = np.repeat(np.arange(len(sizes)), sizes)
    scores = rng.lognormal(size=len(groups))
    _, of_others = decision_widths(scores, groups)
    for i in range(len(groups)):
        left = np.delete(np.arange(len(groups)), i)
        expected = decision_widths(scores[left], groups[left])[0][groups[i]]
        assert of_others[i] == pytest.approx(expected, rel=1e-9)


def test_thresholds_of_few_images_hold_for_images_to_come_in_groups_of_any_spread() -> None:
    rng = np.random.default_rng(9)
    rates = []
    for _ in range(200):
        groups = np.repeat(np.arange(6), 30)
        spreads = np.exp(rng.normal(0, 0.4, 6))
        scores = rng.gumbel(size=180) * spreads[groups]
        widths, of_others = decision_widths(scores, groups)
        cut = threshold(np.sort(scores / of_others), 0.01).value
        fresh = rng.gumbel(size=(6, 300)) * spreads[:, None] / widths[:, None]
        rates.append((fresh > cut).mean())
    assert 0.005 < np.mean(rates) < 0.015


@pytest.mark.parametrize(("above", "n"), [(0, 20), (1, 20), (3, 300), (20, 20), (299, 300)])
def test_upper_bound_is_the_exact_one_of_scipys_binomial_test(above: int, n: int) -> None:
    interval = binomtest(above, n, alternative="less").proportion_ci(0.95, method="exact")
    assert upper_bound(above, n) == pytest.approx(float(interval.high), rel=1e-9)


@given(st.floats(0.01, 10))
def test_tail_quantiles_rise_as_the_rate_falls_and_expect_that_rate(scale: float) -> None:
    tail = Tail(1.0, 0.1, scale)
    rates = np.array([0.1, 0.05, 0.01, 0.001])
    values = np.array([tail.quantile(rate) for rate in rates])
    assert (np.diff(values) > 0).all() and values[0] == pytest.approx(1.0)
    np.testing.assert_allclose(tail.expected_above(values), rates)


@given(arrays(np.float64, st.integers(8, 40), elements=finite))
def test_any_finite_scores_give_a_finite_threshold_and_an_honest_bound(scores: np.ndarray) -> None:
    cut = threshold(np.sort(scores), 0.01)
    assert np.isfinite(cut.value)
    assert 0 < cut.upper_bound <= 1


def test_upper_bound_without_exceedance_is_the_rule_of_three() -> None:
    cut = threshold(np.arange(299.0), 0.0005)
    assert cut.upper_bound == pytest.approx(0.01, rel=0.01)


def test_widths_of_small_groups_are_drawn_to_the_common_width() -> None:
    rng = np.random.default_rng(4)
    scores = np.concatenate([rng.normal(0, 1, 2000), rng.normal(0, 1, 2000), rng.normal(0, 9, 10)])
    widths = group_widths(scores, np.repeat([0, 1, 2], [2000, 2000, 10]))
    assert widths[0] == pytest.approx(1.64, rel=0.15)
    assert 2 < widths[2] < 9
