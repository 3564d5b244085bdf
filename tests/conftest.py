"""Fixtures that every room's tests may use, and what kind of test each is: `unit`, `contract` or `system`.

The rule, so that no test is left without a kind:

- `contract`: a test in `tests/embedded_broker/contract`, which puts the same promise to two clients and two brokers;
- `system`: a test that uses a fixture of a running system (`SYSTEM_FIXTURES`), lies in a folder that does
  (`SYSTEM_FOLDERS`), or is marked `system` because it starts a process itself, fits a model or takes seconds;
- `unit`: every other test. A unit test that starts a process or listens on a port fails, so that `make test-fast`
  stays fast.

A file whose place or whose own mark says that it holds no unit test is not even imported for `-m unit`.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from flawline import redaction
from tests.support.brokers import apache_kafka, embedded_broker, fresh_broker, secured_kafka
from tests.support.later import Later, imported
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

MARK_OF_A_SYSTEM_FILE = re.compile(r"^pytestmark = \[?pytest\.mark\.system\b", re.MULTILINE)


def holds_no_unit_test(folder: str, text: str) -> bool:
    """Tell from the folder of a test file, relative to `tests`, and from its text that no test in it is a unit test.

    It reads the two things that give every test of a file its kind; fixtures, which give it to single tests, need the
    import. So a file that it does not name may hold no unit test either.
    """
    if f"{folder}/".startswith(f"{CONTRACT_FOLDER}/") or folder.split("/")[0] in SYSTEM_FOLDERS:
        return True
    return MARK_OF_A_SYSTEM_FILE.search(text) is not None


def folder_of(path: Path) -> str:
    """Return the folder of a test file, relative to `tests`."""
    return path.parent.relative_to(TESTS).as_posix() if path.is_relative_to(TESTS) else ""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out of `-m unit` what holds no unit test: the imports of such files take longer than many tests."""
    if config.option.markexpr != "unit" or collection_path.suffix != ".py" or collection_path.name == "conftest.py":
        return None
    if config.args_source is pytest.Config.ArgsSource.ARGS and named(collection_path, config.args):
        return None  # a file that the command names is collected, or pytest would say that it is not there
    return True if holds_no_unit_test(folder_of(collection_path), text_of(collection_path)) else None


@cache
def text_of(path: Path) -> str:
    """Return the text of a test file."""
    return path.read_text(encoding="utf-8")


def named(path: Path, arguments: list[str]) -> bool:
    """Tell whether an argument of pytest names this file, or a test in it."""
    return any(Path(argument.split("::")[0]).resolve() == path for argument in arguments)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark every test with its kind."""
    for item in items:
        folder = folder_of(item.path)
        fixtures = set(getattr(item, "fixturenames", ()))
        if callspec := getattr(item, "callspec", None):
            fixtures |= {value for value in callspec.params.values() if isinstance(value, str)}
        if f"{folder}/".startswith(f"{CONTRACT_FOLDER}/"):
            item.add_marker("contract")
        elif fixtures & SYSTEM_FIXTURES or folder.split("/")[0] in SYSTEM_FOLDERS or item.get_closest_marker("system"):
            item.add_marker("system")
        else:
            if holds_no_unit_test(folder, text_of(item.path)):
                raise pytest.UsageError(f"{item.nodeid} is a unit test in a file that `-m unit` leaves out")
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
    """Let a unit test fail that starts a process or listens on a port.

    What its file imports later is imported before: torch starts `ldconfig` then.
    """
    if request.node.get_closest_marker("unit"):
        for value in vars(request.module).values():
            if isinstance(value, Later):
                imported(value)

        def refuse(*arguments: Any, **_: Any) -> None:
            pytest.fail(f"a unit test must not start {arguments!r:.200}: mark it `system` (see tests/conftest.py)")

        monkeypatch.setattr(subprocess.Popen, "__init__", refuse)
        monkeypatch.setattr(socket.socket, "listen", refuse)
    yield
