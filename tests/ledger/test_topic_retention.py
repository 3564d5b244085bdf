"""Topics that exist get the retention of the settings, and keep their other settings."""

from __future__ import annotations

import pytest
from kafka.admin import ConfigResource, ConfigResourceType

from flawline import kafka_clients, topics
from flawline.settings.tree import Settings
from ledger import topic_retention

pytestmark = pytest.mark.system


def test_topics_that_exist_get_the_retention_of_the_settings(line_settings: Settings) -> None:
    kafka_clients.ensure_topics(line_settings)
    assert topic_retention.change(line_settings) == []
    retention = line_settings.retention.model_copy(update={"frames_hours": 2.0, "defects_limit_bytes": 1 << 30})
    changed = line_settings.model_copy(update={"retention": retention})
    wanted = sorted(map(changed.topic, ("defects", "frames")))
    assert topic_retention.differences(changed).keys() == set(wanted)
    assert sorted(topic_retention.change(changed)) == wanted
    assert topic_retention.differences(changed) == {}
    admin = kafka_clients.admin(changed)
    frames = ConfigResource(ConfigResourceType.TOPIC, changed.topic("frames"))
    configs = admin.describe_configs([frames], config_filter="all")["topic"][changed.topic("frames")]
    admin.close()
    assert str(configs["retention.ms"]["value"]) == "7200000"
    assert int(configs["max.message.bytes"]["value"]) == changed.frames.limit_bytes + topics.ENVELOPE_BYTES
