"""Where the logs of partitions begin and end."""

from __future__ import annotations

from collections.abc import Collection

from kafka import KafkaConsumer, TopicPartition

from flawline.errors import FlawlineError


def log_bounds(
    consumer: KafkaConsumer, places: Collection[TopicPartition], ends_by: KafkaConsumer | None = None
) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
    """Return the first offset and the end of each partition; `ends_by` asks for the ends, when that is another client.

    The client leaves out a partition that has no leader. Without its records no account is true, so that is an error.
    Raises KafkaError, and FlawlineError for a partition without a leader.
    """
    places = list(places)
    ends = (ends_by or consumer).end_offsets(places)
    firsts = consumer.beginning_offsets(places)
    for place in places:
        if place not in firsts or place not in ends:
            raise FlawlineError(
                f"{place.topic}/{place.partition} has no leader: it is being made, or its broker is away: try again"
            )
    return firsts, ends
