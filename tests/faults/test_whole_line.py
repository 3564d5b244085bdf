"""A whole line under random faults for less than a minute; `python -m benchmarks.faults` goes on as long as asked."""

from __future__ import annotations

from benchmarks import faults
from benchmarks.report import missed

KINDS = ["kill-produce", "kill-actor", "kill-discover", "kill-broker", "pause-actor", "cut", "hold", "corrupt"]
KINDS += ["duplicate", "clock-produce", "clock-work"]

TIMED = {"resumed_after_s"} | {name for name in faults.goals("disk", "at-least-once") if name.endswith("_growth")}
"""What depends on the speed of the machine: when the line resumes, and how far its processes are after two seconds."""


def test_most_of_a_minute_of_faults_loses_no_frame_and_contradicts_nothing() -> None:
    kinds = [kind for kind in KINDS if kind in faults.possible("embedded")]
    figures, details = faults.run(
        "embedded", 0.7, 11, rate_hz=2.0, every_s=3.5, kinds=kinds, quiet_s=2.0, settle_s=120.0
    )
    goals = {name: goal for name, goal in faults.goals("disk", "at-least-once").items() if name not in TIMED}
    assert missed(figures, goals) == [], (figures, details)
    assert figures["faults"] >= 8
    assert figures["verdicts"] == figures["scored"] > 0
