"""Give the topics of a line the retention of its settings, which a topic that exists does not get by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from flawline import kafka_clients, topics
from flawline.errors import FlawlineError, one_line
from flawline.settings.tree import Settings

RETENTION_CONFIGS = ("retention.ms", "retention.bytes", "segment.bytes")


def differences(settings: Settings) -> dict[str, dict[str, str]]:
    """Return the settings of retention that existing topics do not have yet, by topic. Raises FlawlineError."""
    with _changing_topics(settings) as client:
        return _differences(client, settings)


def change(settings: Settings) -> list[str]:
    """Give the topics that exist the retention of the settings; return the names of those that had another.

    Raises FlawlineError.
    """
    with _changing_topics(settings) as client:
        changes = _differences(client, settings)
        if changes:
            client.alter_configs([ConfigResource(ConfigResourceType.TOPIC, *item) for item in changes.items()])
        return list(changes)


@contextlib.contextmanager
def _changing_topics(settings: Settings) -> Iterator[KafkaAdminClient]:
    """Give an admin client, and turn what goes wrong with it into a FlawlineError."""
    client = kafka_clients.admin(settings)
    try:
        yield client
    except KafkaError as error:
        raise FlawlineError(
            f"the retention of topics on {settings.bootstrap_servers} cannot be read or changed ({one_line(error)}): "
            "grant DESCRIBE_CONFIGS and ALTER_CONFIGS on them, or change them by hand as `flawline doctor` lists them"
        ) from error
    finally:
        client.close()


def _differences(client: KafkaAdminClient, settings: Settings) -> dict[str, dict[str, str]]:
    existing = set(client.list_topics())
    wanted = {
        name: {key: value for key, value in topic.configs(settings).items() if key in RETENTION_CONFIGS}
        for name, topic in topics.named(settings.kafka.topic_prefix)
        if topic.retention is not None and name in existing
    }
    if not wanted:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name, dict.fromkeys(RETENTION_CONFIGS)) for name in wanted]
    differences = {}
    for name, present in client.describe_configs(resources, config_filter="all")["topic"].items():
        other = {key: value for key, value in wanted[name].items() if str(_value_of(present[key])) != value}
        if other:
            differences[name] = other
    return differences


def _value_of(config: Any) -> Any:
    return config["value"] if isinstance(config, dict) else config
