"""A line for one test on the shared broker."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients
from flawline.settings.tree import Settings, load_settings
from tests.support.talking_line import TalkingLine


@pytest.fixture
def line_settings(embedded_broker: EmbeddedBroker, tmp_path: Path) -> Settings:
    """Return the settings of a line whose topics no other test uses and that do not exist yet."""
    nothing = tmp_path / "nothing.toml"
    nothing.touch()  # so that no file of the working directory is read
    return load_settings(
        nothing,
        data_dir=str(tmp_path / "data"),
        kafka={
            "bootstrap_servers": embedded_broker.bootstrap,
            "topic_prefix": f"t{uuid.uuid4().hex[:10]}-",
            "camera_partitions": 3,
        },
        metrics=dict.fromkeys(
            ("producers_port", "workers_port", "discovery_port", "ledger_port", "up_port", "notify_port"), 0
        ),
    )


@pytest.fixture
def line(line_settings: Settings) -> Iterator[TalkingLine]:
    """Return a line with its topics, where the test writes the records of cameras and workers."""
    kafka_clients.ensure_topics(line_settings)
    talking = TalkingLine(line_settings)
    yield talking
    talking.close()


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[[Settings], Path]:
    """Return a function that writes settings to a file for a command in a child process."""

    def write(settings: Settings) -> Path:
        import tomli_w

        content = settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)
        file = tmp_path / "line.toml"
        file.write_text(tomli_w.dumps(content))
        return file

    return write
