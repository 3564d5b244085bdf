"""Thresholds keep the stated rate, on any distribution of good scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import binomtest, genpareto

from scorer.calibration import Tail, fit_tail, group_widths, p_values, threshold, upper_bound

finite = st.floats(-1e3, 1e3, allow_nan=False, width=32)


@given(arrays(np.float64, st.integers(1, 60), elements=finite), arrays(np.float64, 8, elements=finite))
def test_p_values_lie_in_their_range_and_fall_with_the_score(calibration: np.ndarray, scores: np.ndarray) -> None:
    calibration = np.sort(calibration)
    p = p_values(np.sort(scores), calibration)
    assert ((p >= 1 / (len(calibration) + 1)) & (p <= 1)).all()
    assert (np.diff(p) <= 0).all()


@given(st.integers(20, 300), st.sampled_from([0.01, 0.05, 0.1]), st.integers(0, 100))
def test_conformal_threshold_alarms_exactly_when_the_p_value_says_so(n: int, rate: float, seed: int) -> None:
    scores = np.sort(np.random.default_rng(seed).normal(size=n))
    cut = threshold(scores, rate)
    if n < 1 / rate:
        assert cut.method == "generalised-pareto"
        return
    probes = np.concatenate([scores, scores + 1e-9, [scores[-1] + 1]])
    np.testing.assert_array_equal(probes > cut.value, p_values(probes, scores) <= rate + 1e-12)


def test_conformal_alarm_rate_is_kept_on_average_over_calibration_sets() -> None:
    rng = np.random.default_rng(1)
    rates = []
    for _ in range(400):
        cut = threshold(np.sort(rng.lognormal(size=200)), 0.05)
        rates.append((rng.lognormal(size=500) > cut.value).mean())
    assert 0.046 < np.mean(rates) < 0.0525  # 10 / 201, and three standard errors


@pytest.mark.parametrize("draw", ["gamma", "lognormal", "normal", "logistic"])
def test_small_calibration_sets_give_a_pareto_threshold_near_the_target(draw: str) -> None:
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
    assert abs(fit_tail(scores).shape) < 0.15


@pytest.mark.parametrize("shape", [-0.3, 0.0, 0.3])
def test_tail_has_the_shape_and_the_quantiles_that_scipy_gives_it(shape: float) -> None:
    scores = np.sort(genpareto.rvs(shape, scale=2.0, size=200_000, random_state=5))
    tail = fit_tail(scores)
    excesses = scores[scores > tail.start] - tail.start
    scipys_shape, _, scipys_scale = genpareto.fit(excesses, floc=0)
    assert tail.shape == pytest.approx(scipys_shape, abs=0.03)
    assert tail.scale == pytest.approx(scipys_scale, rel=0.05)
    for rate in (0.05, 0.01, 0.001):
        expected = tail.start + genpareto.isf(rate / tail.share, tail.shape, scale=tail.scale)
        assert tail.quantile(rate) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(("above", "n"), [(0, 20), (1, 20), (3, 300), (20, 20), (299, 300)])
def test_upper_bound_is_the_exact_one_of_scipys_binomial_test(above: int, n: int) -> None:
    interval = binomtest(above, n, alternative="less").proportion_ci(0.95, method="exact")
    assert upper_bound(above, n) == pytest.approx(float(interval.high), rel=1e-9)


@given(st.floats(-0.5, 0.5), st.floats(0.01, 10))
def test_tail_quantiles_rise_as_the_rate_falls(shape: float, scale: float) -> None:
    tail = Tail(1.0, 0.1, scale, shape)
    values = [tail.quantile(rate) for rate in (0.1, 0.05, 0.01, 0.001)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(1.0)


@given(arrays(np.float64, st.integers(8, 40), elements=finite))
def test_any_finite_scores_give_a_finite_threshold_and_an_honest_bound(scores: np.ndarray) -> None:
    cut = threshold(np.sort(scores), 0.01)
    assert np.isfinite(cut.value)
    assert 0 < cut.upper_bound <= 1


def test_upper_bound_without_exceedance_is_the_rule_of_three() -> None:
    cut = threshold(np.arange(299.0), 0.004)
    assert cut.upper_bound == pytest.approx(0.01, rel=0.01)


def test_widths_of_small_groups_are_drawn_to_the_common_width() -> None:
    rng = np.random.default_rng(4)
    scores = np.concatenate([rng.normal(0, 1, 2000), rng.normal(0, 1, 2000), rng.normal(0, 9, 10)])
    widths = group_widths(scores, np.repeat([0, 1, 2], [2000, 2000, 10]))
    assert widths[0] == pytest.approx(1.64, rel=0.15)
    assert 2 < widths[2] < 9
