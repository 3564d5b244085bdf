"""The verdicts of a run, read from their topic and written as JSON lines beside the other artefacts."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from flawline import kafka_clients, topics
from flawline.messages import Verdict, decode
from flawline.settings.tree import Settings

POLL_MS = 500


def read_verdicts(settings: Settings) -> list[Verdict]:
    """Return every verdict of the line in capture order, each frame once (a redelivered frame has the same verdict)."""
    from kafka import TopicPartition

    name = settings.topic(topics.VERDICTS.name)
    consumer = kafka_clients.consumer(settings, isolation_level="read_committed", max_poll_records=2000)
    try:
        partitions = [TopicPartition(name, number) for number in sorted(consumer.partitions_for_topic(name) or ())]
        consumer.assign(partitions)
        consumer.seek_to_beginning(*partitions)
        ends = consumer.end_offsets(partitions)
        verdicts: dict[str, Verdict] = {}
        while any(consumer.position(partition) < end for partition, end in ends.items()):
            for records in consumer.poll(POLL_MS).values():
                for record in records:
                    verdict = decode(Verdict, record.value)
                    verdicts.setdefault(verdict.frame_id, verdict)
        return sorted(verdicts.values(), key=lambda v: (v.captured_at, v.camera, v.sequence))
    finally:
        consumer.close()


def write_verdicts(path: Path, verdicts: Iterable[Verdict], file_of: Callable[[Verdict], Path] | None) -> None:
    """Write one JSON object a line: identity, scores and decision; for replayed folders also the image's path."""
    with path.open("w", encoding="utf-8") as out:
        for verdict in verdicts:
            row = {
                "frame_id": verdict.frame_id,
                "camera": verdict.camera,
                "sequence": verdict.sequence,
                "captured_at": verdict.captured_at,
                "model_version": verdict.model_version,
                "group": verdict.group,
                "raw": verdict.raw_score,
                "score": verdict.score,
                "p_value": verdict.p_value,
                "decision": verdict.decision.value,
                "regions": [{"box": r.box, "area_px": r.area_px, "peak": r.peak} for r in verdict.regions],
            }
            if file_of is not None:
                row["path"] = str(file_of(verdict))
            out.write(json.dumps(row) + "\n")
