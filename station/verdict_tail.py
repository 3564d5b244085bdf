"""The end of the topic `verdicts`, for those who look at the line as it is now."""

from __future__ import annotations

from typing import Any

from kafka import TopicPartition

from flawline import kafka_clients, topics
from flawline.settings.tree import Settings

FETCH_BYTES = 1 << 20


def consumer(settings: Settings, back: int) -> Any:
    """Return a consumer that begins `back` verdicts before the end of each partition, None without the topic.

    Raises FlawlineError and KafkaError when the broker cannot be used.
    """
    client = kafka_clients.consumer(
        settings, max_poll_records=500, fetch_max_bytes=FETCH_BYTES, max_partition_fetch_bytes=FETCH_BYTES
    )
    name = settings.topic(topics.VERDICTS.name)
    places = [TopicPartition(name, number) for number in sorted(client.partitions_for_topic(name) or ())]
    if not places:
        client.close()
        return None
    client.assign(places)
    firsts = client.beginning_offsets(places)
    for place, end in client.end_offsets(places).items():
        client.seek(place, max(firsts[place], end - back))
    return client
