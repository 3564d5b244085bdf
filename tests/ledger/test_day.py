"""A day of a small line in simulated time: limits hold, what went is counted, and the ledger balances."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import day, report

pytestmark = pytest.mark.system

TIMED = ("ledger_start_s", "store_start_s", "broker_start_s")


def test_day_of_a_small_line_stays_within_its_limits_and_loses_no_count(tmp_path: Path) -> None:
    plan = day.Plan(cameras=2, rate_hz=0.05, defect_share=0.05, near_miss_share=0.05, report_s=600, step_s=600,
                    watch_s=6 * day.HOUR_S)  # fmt: skip
    figures = day.run(plan, tmp_path)
    goals = {name: goal for name, goal in day.GOALS.items() if name not in TIMED}  # a test is never timed
    assert report.missed(figures, goals) == []
    assert figures["captures"] == 8640 and figures["left_out"] == 0
    assert figures["forgotten_pictures_NEAR_MISS_age"] and figures["forgotten_pictures_DEFECT_age"]
    assert figures["forgotten_defects"] and figures["minutes"] < 0.75 * figures["scored"]
