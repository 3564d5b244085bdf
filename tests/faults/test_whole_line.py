"""A whole line under random faults for a minute; `python -m benchmarks.faults` does it for as long as asked for."""

from __future__ import annotations

from benchmarks import faults
from benchmarks.report import missed

KINDS = ["kill-produce", "kill-actor", "kill-discover", "kill-broker", "pause-actor", "cut", "hold", "corrupt"]


def test_a_minute_of_faults_loses_no_frame_and_contradicts_nothing() -> None:
    figures, details = faults.run("embedded", minutes=1.0, seed=11, rate_hz=2.0, every_s=4.0, kinds=KINDS)
    goals = {name: goal for name, goal in faults.goals("disk").items() if name != "resumed_after_s"}  # never timed
    assert missed(figures, goals) == [], (figures, details)
    assert figures["faults"] >= 8
    assert figures["verdicts"] == figures["scored"] > 0
