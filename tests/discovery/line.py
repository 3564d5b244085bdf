"""A line as discovery sees it: topics on a broker that are filled by hand, and processes that may be killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from kafka import TopicPartition

from flawline import kafka_clients, messages, topics
from flawline.messages import ClassEvent, Defect, JudgementEvent, Verdict
from flawline.settings.tree import Settings, load_settings

TOPICS = (topics.VERDICTS, topics.DEFECTS, topics.CLASSES, topics.JUDGEMENTS)

_PROCESS = """
import json, signal, sys, threading
from pathlib import Path
from flawline.settings.tree import load_settings
from discovery import service
stop = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stop.set())
service.run(load_settings(Path(sys.argv[1])), stop)
"""


def settings_for(
    folder: Path, bootstrap: str, prefix: str, store_url: str | None = None, **discovery: object
) -> Settings:
    """Return settings of a line of its own on a shared broker, also written to a file for child processes."""
    values = {"round_regions": 40, "window_regions": 300, "class_limit": 10} | discovery
    text = "\n".join(
        [
            f"data_dir = {json.dumps(str(folder))}",
            "[kafka]",
            f'bootstrap_servers = "{bootstrap}"',
            f'topic_prefix = "{prefix}-"',
            "camera_partitions = 2",
            *(["[store]", f'url = "{store_url}"'] if store_url else []),
            "[metrics]",
            "discovery_port = 0",
            "[discovery]",
            *(f"{name} = {value}" for name, value in values.items()),
        ]
    )
    file = folder / "line.toml"
    file.write_text(text)
    settings = load_settings(file)
    kafka_clients.ensure_topics(settings, only=[topic.name for topic in TOPICS])
    return settings


def publish(settings: Settings, sent: Iterable[Verdict | Defect | tuple[str, bytes | None]]) -> None:
    """Send verdicts, defects and raw (topic, value) pairs, each camera to its own partition."""
    client = kafka_clients.producer(settings)
    try:
        futures = []
        for message in sent:
            if isinstance(message, tuple):
                futures.append(client.send(settings.topic(message[0]), key=b"cam-1", value=message[1], partition=0))
                continue
            name = topics.VERDICTS.name if isinstance(message, Verdict) else topics.DEFECTS.name
            futures.append(
                client.send(
                    settings.topic(name),
                    key=message.camera.encode(),
                    value=messages.encode(message),
                    headers=messages.headers(message),
                    partition=int(message.camera[-1]) % 2,
                )
            )
        for future in futures:
            future.get(timeout=30)
    finally:
        client.close()


def published_events(settings: Settings) -> list[ClassEvent]:
    """Return everything on the topic `classes`, in order."""
    records = _published(settings, topics.CLASSES.name)
    events = [messages.decode(ClassEvent, record.value) for record in records]
    assert [record.key for record in records] == [event.class_id.encode() for event in events]
    return events


def published_judgements(settings: Settings) -> list[JudgementEvent]:
    """Return everything on the topic `judgements`, in order."""
    records = _published(settings, topics.JUDGEMENTS.name)
    events = [messages.decode(JudgementEvent, record.value) for record in records]
    assert [record.key for record in records] == [event.frame_id.encode() for event in events]
    return events


def _published(settings: Settings, name: str) -> list[Any]:
    client = kafka_clients.consumer(settings)
    try:
        place = TopicPartition(settings.topic(name), 0)
        client.assign([place])
        client.seek_to_beginning(place)
        end = client.end_offsets([place])[place]
        records: list[Any] = []
        while client.position(place) < end:
            records += client.poll(timeout_ms=500).get(place, [])
        return records
    finally:
        client.close()


def start_process(folder: Path) -> subprocess.Popen[bytes]:
    """Start `discovery.service.run` in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    log = (folder / "discovery.log").open("ab")
    with log:
        return subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(folder / "line.toml")], stdout=log, stderr=log, env=environment
        )
