"""Rates from judgements: exact where they are known, and intervals that hold."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from discovery.quality_rates import Estimate, Judged, rates, share_of_real, total_of_real


def stratum(name: str, is_alarm: bool, frames: int, real: int, false: int, weight: float = 1.0) -> Judged:
    return Judged(name, is_alarm, frames, ((weight, real),) if real else (), ((weight, false),) if false else ())


def line(rejects=(100, 90, 10), accepted=(10_000, 1, 499)) -> list[Judged]:
    return [stratum("reject", True, *rejects), stratum("accepted", False, *accepted)]


counts = st.integers(0, 60)
strata = st.builds(
    lambda is_alarm, real, false, more: stratum("s", is_alarm, real + false + more, real, false),
    st.booleans(), counts, counts, st.integers(0, 5000),
)  # fmt: skip


def holds(estimate: Estimate, upper: float = 1.0) -> bool:
    value = estimate.value
    is_inside = value is None or estimate.low - 1e-9 <= value <= estimate.high + 1e-9
    return is_inside and 0 <= estimate.low <= estimate.high + 1e-9 and estimate.high <= upper + 1e-9


def test_the_rates_of_a_judged_line_are_those_of_its_strata() -> None:
    estimates = rates(line())
    assert estimates.caught.value == 90
    assert estimates.false_alarms.value == pytest.approx(10)
    assert estimates.escapes.value == 20
    assert estimates.escape.value == pytest.approx(20 / 110)
    assert estimates.overkill.value == pytest.approx(10 / (10 + 9980))
    assert estimates.false_alarm_share.value == pytest.approx(0.1)
    assert estimates.escapes_per_accepted.value == pytest.approx(0.002)


def test_a_stratum_with_equal_weights_has_the_exact_interval_of_clopper_and_pearson() -> None:
    # 2 of 20: the published limits are 1.23 % and 31.70 %.
    share = share_of_real(stratum("s", True, 1000, 2, 18, weight=37.5))
    assert (share.value, share.low, share.high) == pytest.approx((0.1, 0.0123, 0.3170), abs=1e-4)


def test_no_escape_in_an_audit_does_not_mean_that_there_is_none() -> None:
    estimates = rates(line(accepted=(10_000, 0, 300)))
    assert estimates.escapes.value == 0
    assert estimates.escapes_per_accepted.high == pytest.approx(1 - 0.025 ** (1 / 300), rel=1e-6)


def test_frames_drawn_with_a_low_probability_stand_for_more() -> None:
    rare = Judged("accepted", False, 1100, real=((100.0, 1),), false=((1.0, 100), (100.0, 9)))
    assert share_of_real(rare).value == pytest.approx(100 / 1100)
    even = stratum("accepted", False, 1100, 10, 100)
    assert share_of_real(rare).high - share_of_real(rare).low > share_of_real(even).high - share_of_real(even).low


def test_without_judgements_everything_is_possible() -> None:
    estimates = rates([Judged("reject", True, 5), Judged("accepted", False, 100)])
    assert estimates.overkill.value is estimates.escape.value is estimates.caught.value is None
    assert (estimates.false_alarms.low, estimates.false_alarms.high) == (0, 5)
    assert (estimates.escape.low, estimates.escape.high) == (0, 1)
    assert rates([]).escape == Estimate(None, 0.0, 1.0)


def test_a_stratum_that_nobody_judged_widens_the_interval_of_its_side() -> None:
    judged = stratum("reject", True, 100, 50, 50)
    total = total_of_real([judged, Judged("unknown-product", True, 100)])
    alone = total_of_real([judged])
    assert total.value == pytest.approx(100)
    assert total.high - total.low > 100
    assert alone.high - alone.low < 25


@given(st.lists(strata, max_size=5))
def test_every_estimate_lies_in_its_interval_and_every_rate_between_0_and_1(parts: list[Judged]) -> None:
    estimates = rates(parts)
    frames = sum(part.frames for part in parts)
    for estimate in (estimates.overkill, estimates.escape, estimates.false_alarm_share, estimates.escapes_per_accepted):
        assert holds(estimate)
    for estimate in (estimates.false_alarms, estimates.caught, estimates.escapes):
        assert holds(estimate, frames)


@given(real=st.integers(1, 40), false=st.integers(1, 40), frames=st.integers(100, 10_000), more=st.integers(1, 20))
def test_one_more_escape_never_lowers_the_escape_rate(real: int, false: int, frames: int, more: int) -> None:
    before = rates(line(accepted=(frames, real, false))).escape
    after = rates(line(accepted=(frames, real + more, false))).escape
    assert before.value is not None
    assert after.value is not None
    assert after.value > before.value
    assert after.high >= before.high
    assert after.low >= before.low


@given(strata, st.floats(0.01, 1000))
def test_a_common_weight_changes_nothing(part: Judged, weight: float) -> None:
    weighted = Judged(part.stratum, part.is_alarm, part.frames, tuple((weight, n) for _, n in part.real),
                      tuple((weight, n) for _, n in part.false))  # fmt: skip
    before, after = share_of_real(part), share_of_real(weighted)
    assert (after.low, after.high) == pytest.approx((before.low, before.high), rel=1e-6, abs=1e-9)


@given(st.integers(1, 30), st.integers(1, 30))
def test_more_judgements_of_the_same_share_narrow_the_interval(real: int, false: int) -> None:
    few = share_of_real(stratum("s", True, 1000, real, false))
    many = share_of_real(stratum("s", True, 1000, 10 * real, 10 * false))
    assert many.high - many.low < few.high - few.low


def test_the_intervals_hold_for_a_line_that_is_judged_in_part() -> None:
    """Draw 1,000 lines with known truth: each interval holds it in 95 % of them, less three standard errors."""
    rng = np.random.default_rng(7)
    runs, hit = 1000, {"escape": 0, "overkill": 0, "escapes": 0}
    for _ in range(runs):
        # Frames of three strata, some of them judged; the accepted ones come from two minutes of unequal weight.
        rejects, near, busy, quiet = (
            rng.random(n) < p for n, p in ((80, 0.8), (200, 0.05), (9000, 0.002), (600, 0.002))
        )
        judged = [
            _sampled("reject", True, [(rejects, 40)], rng),
            _sampled("near-miss", False, [(near, 60)], rng),
            _sampled("accepted", False, [(busy, 90), (quiet, 60)], rng),
        ]
        escapes = near.sum() + busy.sum() + quiet.sum()
        truth = {
            "escape": escapes / (escapes + rejects.sum()),
            "overkill": (~rejects).sum() / ((~rejects).sum() + 9800 - escapes),
            "escapes": escapes,
        }
        estimates = rates(judged)
        for name, value in truth.items():
            interval: Estimate = getattr(estimates, name)
            hit[name] += interval.low <= value <= interval.high
    least = 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)
    assert all(count / runs >= least for count in hit.values()), hit


def _sampled(name: str, is_alarm: bool, parts: list[tuple[np.ndarray, int]], rng: np.random.Generator) -> Judged:
    real, false = [], []
    for frames, count in parts:
        drawn = rng.choice(frames, count, replace=False)
        real.append((len(frames) / count, int(drawn.sum())))
        false.append((len(frames) / count, int(count - drawn.sum())))
    total = sum(len(frames) for frames, _ in parts)
    return Judged(
        name, is_alarm, total, tuple(pair for pair in real if pair[1]), tuple(pair for pair in false if pair[1])
    )
