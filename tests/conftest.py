"""Fixtures that every room's tests may use, and what kind of test each is: `unit`, `contract` or `system`.

The rule, so that no test is left without a kind:

- `contract`: a test in `tests/embedded_broker/contract`, which puts the same promise to two clients and two brokers;
- `system`: a test that uses a fixture of a running system (`SYSTEM_FIXTURES`), lies in a folder that does
  (`SYSTEM_FOLDERS`), or is marked `system` because it starts a process itself, fits a model or takes seconds;
- `unit`: every other test. A unit test that starts a process or listens on a port fails, so that `make test-fast`
  stays fast.
"""

from __future__ import annotations

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flawline import redaction
from tests.support.brokers import apache_kafka, embedded_broker, fresh_broker, secured_kafka
from tests.support.lines import line, line_settings, settings_file
from tests.support.mosquitto import mosquitto
from tests.support.ports import refusing_port
from tests.support.postgres import own_postgres, postgres_server
from tests.support.s3 import s3_server

__all__ = [
    "apache_kafka", "embedded_broker", "fresh_broker", "line", "line_settings", "mosquitto", "own_postgres",
    "postgres_server", "refusing_port", "s3_server", "secured_kafka", "settings_file",
]  # fmt: skip

# A test is never timed: on a busy machine an example of 50 ms takes seconds.
hypothesis.settings.register_profile("flawline", deadline=None)
hypothesis.settings.load_profile("flawline")

TESTS = Path(__file__).parent

CONTRACT_FOLDER = "embedded_broker/contract"

BROKERS_AND_DATABASES = {
    "embedded_broker",
    "fresh_broker",
    "apache_kafka",
    "secured_kafka",
    "either_broker",
    "own_postgres",
    "postgres_server",
    "postgresql",
    "mosquitto",
}

SYSTEM_FIXTURES = BROKERS_AND_DATABASES | {"ray_here", "fitted", "model_path", "filled_file", "sqlite"}
"""Fixtures, and parameters that name one, of a running system, of a fitted model or of a store with classes."""

SYSTEM_FOLDERS = ("e2e", "faults", "deploy")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its kind."""
    for item in items:
        folder = item.path.parent.relative_to(TESTS).as_posix() if item.path.is_relative_to(TESTS) else ""
        fixtures = set(getattr(item, "fixturenames", ()))
        if callspec := getattr(item, "callspec", None):
            fixtures |= {value for value in callspec.params.values() if isinstance(value, str)}
        if f"{folder}/".startswith(f"{CONTRACT_FOLDER}/"):
            item.add_marker("contract")
        elif fixtures & SYSTEM_FIXTURES or folder.split("/")[0] in SYSTEM_FOLDERS or item.get_closest_marker("system"):
            item.add_marker("system")
        else:
            item.add_marker("unit")


@pytest.fixture(autouse=True)
def _no_secret_of_another_test(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let every test know no secret at its start, and put the streams back that a command has wrapped."""
    redaction.forget()
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    yield


@pytest.fixture(autouse=True)
def _no_log_of_another_test() -> Iterator[None]:
    """Undo what a command that a test runs in this process does to the logs: their levels, and a closed stream."""
    loggers = [logging.getLogger(name) for name in ("", "faiss", "kafka", "kafka.net.selector")]
    levels, handlers = [logger.level for logger in loggers], list(loggers[0].handlers)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    loggers[0].handlers[:] = handlers


@pytest.fixture(autouse=True)
def _no_settings_of_another_test() -> None:
    """Forget the file of settings that a command which a test ran in this process has left to its children."""
    os.environ.pop("FLAWLINE_CONFIG", None)


@pytest.fixture(autouse=True)
def _unit_tests_start_nothing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let a unit test fail that starts a process or listens on a port."""
    if request.node.get_closest_marker("unit"):

        def refuse(*arguments: Any, **_: Any) -> None:
            pytest.fail(f"a unit test must not start {arguments!r:.200}: mark it `system` (see tests/conftest.py)")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(socket.socket, "listen", refuse)
    yield
