"""Which model plays which role: `active` decides, `shadow` scores the same frames and decides nothing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from flawline import kafka_clients, messages
from flawline.errors import FlawlineError
from flawline.messages import ModelPointer, SchemaError
from flawline.redaction import redact
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

ACTIVE = "active"
SHADOW = "shadow"
ROLES = (ACTIVE, SHADOW)
POLL_MS = 500  # a judgement, not measured
RETRY_S = 2.0  # a judgement, not measured


@dataclass(frozen=True)
class ModelRef:
    """Where a model artefact is, and the version it must have (None: any)."""

    uri: str
    version: str | None = None

    def __str__(self) -> str:
        uri = redact(self.uri)
        return f"{self.version} at {uri}" if self.version else uri


def announced(record: Any) -> ModelRef | None:
    """Return the model that a record of the topic `models` names, None for a tombstone, which ends a role.

    Raises SchemaError for a record that cannot be read.
    """
    if record.value is None:
        return None
    pointer = messages.decode(ModelPointer, record.value)
    return ModelRef(pointer.uri, pointer.version)


class ModelWatch:
    """A thread that follows the topic `models` and calls `on_change` with a role and its new model, None for none.

    The active model comes before the shadow one, since a promotion changes both.
    """

    def __init__(self, settings: Settings, on_change: Callable[[str, ModelRef | None], None]) -> None:
        self._settings = settings
        self._on_change = on_change
        self._stop = threading.Event()
        self._caught_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-watch", daemon=True)

    def start(self) -> None:
        """Start to follow."""
        self._thread.start()

    def catch_up(self, timeout_s: float) -> None:
        """Wait until all pointers in the topic are read. Raises FlawlineError after `timeout_s`."""
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
            newest: dict[str, ModelRef | None] = {}
            while not self._stop.is_set():
                for record in consumer.poll(timeout_ms=POLL_MS).get(partition, []):
                    role = (record.key or b"").decode(errors="replace")
                    try:
                        newest |= {role: announced(record)} if role in ROLES else {}
                    except SchemaError as error:
                        log.error("%s model pointer at offset %d is ignored: %s", role, record.offset, error)
                if consumer.position(partition) >= end:
                    for role in ROLES:
                        if role in newest:
                            self._on_change(role, newest.pop(role))
                    self._caught_up.set()
        finally:
            consumer.close(autocommit=False)
