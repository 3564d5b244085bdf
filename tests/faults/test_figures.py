"""What the benchmarks of faults and load compute from what they saw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import clocks, faults, outages, soak
from benchmarks.running_line import Arrivals
from benchmarks.small_disk import SmallDisk
from ledger.accounting import Account, Report, SequenceRange

HOUR_S = 3600


def test_slope_of_noise_has_zero_in_its_interval_and_that_of_a_leak_has_not() -> None:
    at_s = np.arange(0, 1800, 2.0)
    noise = np.random.default_rng(1).normal(100, 1, len(at_s))
    _, low, high = soak.slope(at_s, noise)
    assert low < 0 < high
    middle, low, high = soak.slope(at_s, noise + 0.1 * at_s / 60)
    assert 0 < low < 0.1 < high
    assert middle == pytest.approx(0.1, abs=0.02)


def test_line_is_live_again_when_half_of_five_seconds_of_verdicts_come_within_twice_the_usual_latency() -> None:
    arrivals = Arrivals()
    for second in range(100):
        arrivals.at_s.append(float(second))
        arrivals.latency_s.append(0.1 if second < 40 or second > 60 else 20.0)
    arrivals.latency_s[45] = 0.1  # one of the frames behind the outage came early
    assert outages.usual_latency(arrivals, 40) == 0.1
    assert outages.live_again(arrivals, 40, 0.1, 62) is None
    assert outages.live_again(arrivals, 40, 0.1, 70) == 59 - 40
    assert outages.live_again(arrivals, 40, 30.0, 70) == 0


def test_line_at_a_quarter_of_its_load_can_be_live_again_after_a_third_of_the_outage() -> None:
    away_s, per_s, load = 180.0, 80.0, 0.25
    backlog, seconds = away_s * per_s * load, 0
    while backlog > 0:
        backlog, seconds = backlog + per_s * load - per_s, seconds + 1
    assert outages.soonest_live_s(away_s, load) == seconds == 60
    assert outages.soonest_live_s(away_s, 1.0) == float("inf")


def test_pace_of_a_backlog_is_that_of_the_verdicts_until_the_line_is_live() -> None:
    arrivals = Arrivals(at_s=[9.0, *np.arange(12.0, 20.0, 0.1), 30.0])
    assert outages.catch_up_per_s(arrivals, 10.0, 10.0) == pytest.approx(10, rel=0.02)
    assert outages.catch_up_per_s(arrivals, 40.0, 10.0) == 0


def test_only_gaps_since_the_disk_of_a_killed_producer_was_full_are_told_apart() -> None:
    spans = (SequenceRange(7, 4, 4), SequenceRange(7, 9, 11), SequenceRange(8, 9, 9))
    report = Report({"a": Account(gaps=5, gap_ranges=spans), "b": Account(gaps=1, gap_ranges=spans[2:])})
    assert faults.gaps_without_disk(report, [faults.UnsafeCaptures("a", 7, 7, 10)]) == 2
    both = [faults.UnsafeCaptures("a", 7, 8, 0), faults.UnsafeCaptures("b", 6, 7, 0)]
    assert faults.gaps_without_disk(report, both) == 5
    assert faults.gaps_without_disk(report, [*both, *both]) == 5
    assert faults.gaps_without_disk(report, []) == 0


@pytest.mark.system
@pytest.mark.skipif(clocks.compiler() is None, reason="install a C compiler to run this")
def test_clock_of_a_role_and_of_its_children_jumps_and_other_clocks_do_not(tmp_path: Path) -> None:
    wrong = clocks.Clocks(tmp_path / "clocks")
    child = "import time; print(time.time())"
    program = f"import subprocess, sys, time; print(time.time()); subprocess.run([sys.executable, '-c', {child!r}])"
    wrong.jump("produce", -2 * HOUR_S)
    wrong.jump("up", 1 * HOUR_S)
    with wrong.of("up"):
        of_produce, of_up = (
            subprocess.run([sys.executable, "-uc", program, *role], capture_output=True, check=True, text=True).stdout
            for role in (["station.cli", "produce"], [])
        )
    now_s = float(subprocess.run([sys.executable, "-c", child], capture_output=True, check=True, text=True).stdout)
    assert [round((float(text) - now_s) / HOUR_S) for text in of_produce.split()] == [-2, -2]
    assert [round((float(text) - now_s) / HOUR_S) for text in of_up.split()] == [1, 1]


@pytest.mark.system
def test_full_disk_takes_no_byte_until_it_is_relieved(tmp_path: Path) -> None:
    try:
        disk = SmallDisk(tmp_path / "disk", 4 << 20).__enter__()
    except OSError as error:
        pytest.skip(str(error))
    try:
        disk.fill()
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "file").write_bytes(b"more")
        disk.relieve()
        (disk.folder / "file").write_bytes(b"more")
    finally:
        disk.__exit__(None, None, None)
