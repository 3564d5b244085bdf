"""Exactly-once delivery on a real Apache Kafka: whatever happens, who reads what is committed sees each frame once."""

from __future__ import annotations

from pathlib import Path

from flawline.messages import DeadLetter, Defect, Verdict
from tests.support.brokers import ApacheKafka
from tests.workers.line import (
    FULL,
    POISON,
    committed,
    feeding,
    frame,
    inspecting,
    line_settings,
    read,
    wait_until,
)

CAMERAS = 4


def test_every_frame_has_one_outcome_and_offsets_move_with_it(apache_kafka: ApacheKafka, tmp_path: Path) -> None:
    settings = line_settings(apache_kafka.bootstrap, tmp_path, delivery="exactly-once")
    with feeding(settings) as feeder, inspecting(settings):
        for s in range(30):
            feeder.send(*(frame(f"cam-{i}", s, level=FULL if s % 10 == 0 else 20) for i in range(CAMERAS)))
        feeder.send(frame("cam-0", 30, first_pixel=POISON))
        verdicts = read(settings, "verdicts", Verdict, 120)
        letters = read(settings, "dead-letters", DeadLetter, 1)
        defects = read(settings, "defects", Defect, 12)
        wait_until(lambda: [committed(settings, i) for i in range(CAMERAS)] == [31, 30, 30, 30])
    assert (len(verdicts), len(letters), len(defects)) == (120, 1, 12)
