"""Which model is active, and its artefact as a folder on this machine."""

from __future__ import annotations

import hashlib
import logging
import shutil
import threading
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from flawline import kafka_clients, messages
from flawline.errors import FlawlineError
from flawline.messages import ModelPointer, SchemaError
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

ACTIVE = "active"
POLL_MS = 500
RETRY_S = 2.0


@dataclass(frozen=True)
class ModelRef:
    """Where a model artefact is, and the version it must have (None: any)."""

    uri: str
    version: str | None = None

    def __str__(self) -> str:
        return f"{self.version} at {self.uri}" if self.version else self.uri


def local_folder(uri: str, cache: Path) -> Path:
    """Return the artefact at `uri` (a path or an fsspec URL) as a local folder; a remote one is copied to `cache` once.

    Raises FlawlineError when it cannot be fetched. What is in the folder is verified when it is loaded.
    """
    try:
        filesystem, root = fsspec.core.url_to_fs(uri)
        if "file" in (filesystem.protocol if isinstance(filesystem.protocol, tuple) else (filesystem.protocol,)):
            return Path(root)
        target = cache / hashlib.sha256(uri.encode()).hexdigest()[:16]
        if not target.is_dir():
            part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
            try:
                filesystem.get(root.rstrip("/") + "/", str(part) + "/", recursive=True)
                part.rename(target)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except (ImportError, ValueError, OSError) as error:
        raise FlawlineError(f"model {uri} cannot be fetched: {error}") from error
    return target


def pointer_of(record: Any) -> ModelRef | None:
    """Return the active model that a record of the topic `models` names; None for other and for unreadable records."""
    if record.key != ACTIVE.encode() or record.value is None:
        return None
    try:
        pointer = messages.decode(ModelPointer, record.value)
    except SchemaError as error:
        log.error("model pointer at offset %d is ignored: %s", record.offset, error)
        return None
    return ModelRef(pointer.uri, pointer.version)


class ModelWatch:
    """A thread that follows the topic `models` and calls `on_change` with each newly active model."""

    def __init__(self, settings: Settings, on_change: Callable[[ModelRef], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._stop = threading.Event()
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watch", daemon=True)

    def start(self, timeout_s: float) -> None:
        """Start, and wait until all pointers in the topic are read. Raises FlawlineError after `timeout_s`."""
        self._thread.start()
        if not self._caught_up.wait(timeout_s):
            raise FlawlineError(f"topic {self._settings.topic('models')} could not be read within {timeout_s:g} s")

    def stop(self) -> None:
        """Stop and wait for the thread."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except (KafkaError, FlawlineError) as error:
                log.warning("model pointers cannot be read, trying again: %s", error)
                self._stop.wait(RETRY_S)

    def _follow(self) -> None:
        consumer = kafka_clients.consumer(self._settings)
        try:
            partition = TopicPartition(self._settings.topic("models"), 0)
            consumer.assign([partition])
            consumer.seek_to_beginning(partition)
            end = consumer.end_offsets([partition])[partition]
            newest: ModelRef | None = None
            while not self._stop.is_set():
                for record in consumer.poll(timeout_ms=POLL_MS).get(partition, []):
                    newest = pointer_of(record) or newest
                if consumer.position(partition) >= end:
                    if newest:
                        self._on_change(newest)
                        newest = None
                    self._caught_up.set()
        finally:
            consumer.close(autocommit=False)
