"""Starts the demo as a user does, in a process of its own, and reads what it leaves behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaException, TopicPartition

from flawline.settings.tree import load_settings

DEADLINE_S = 280.0
ANSWER_S = 5.0


def start_demo(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start `flawline demo` with its run, JSON and output in `folder`; `environment` is added to this process's own."""
    command = [sys.executable, "-m", "station.cli", "demo", "--no-open", "--out", str(folder / "run")]
    command += ["--json-file", str(folder / "result.json"), *arguments]
    with (folder / "stdout.txt").open("w") as out, (folder / "stderr.txt").open("w") as err:
        return subprocess.Popen(command, stdout=out, stderr=err, text=True, env=os.environ | environment)


def finish(process: subprocess.Popen[str], folder: Path) -> dict[str, Any]:
    """Wait for a demo that ends well and return its JSON."""
    code = process.wait(DEADLINE_S)
    assert code == 0, (folder / "stderr.txt").read_text()[-2000:]
    return json.loads((folder / "result.json").read_text())


def verdict_rows(result: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of the run's `verdicts.jsonl`."""
    return [json.loads(line) for line in Path(result["artefacts"]["verdicts"]).read_text().splitlines()]


def verdicts_so_far(file: Path) -> int:
    """Return how many records the line's topic `verdicts` holds; 0 while nobody can ask its broker.

    confluent-kafka asks: each of its questions ends in time, also when the broker has only just begun to listen.
    """
    if not file.exists() or not file.stat().st_size:
        return 0
    settings = load_settings(file)
    consumer = Consumer({"bootstrap.servers": settings.bootstrap_servers, "group.id": "watch", "log_level": 0})
    try:
        topic = consumer.list_topics(timeout=ANSWER_S).topics.get(settings.topic("verdicts"))
        places = [TopicPartition(topic.topic, number) for number in topic.partitions] if topic else []
        return sum(consumer.get_watermark_offsets(place, timeout=ANSWER_S)[1] for place in places)
    except KafkaException:
        return 0
    finally:
        consumer.close()
