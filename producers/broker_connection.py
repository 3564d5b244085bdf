"""The connection to the broker. A background thread makes it, so that a camera never waits for Kafka."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kafka.errors import KafkaError

from flawline import kafka_clients, topics
from flawline.backoff import Backoff
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.settings.tree import Settings
from producers.partitions import Partitions

log = logging.getLogger(__name__)


TOPICS = (topics.FRAMES.name, topics.LEDGER.name, topics.PARTITIONS.name)
"""The topics that producers write, and create where they are missing."""

REPAIR_PAUSE_S = 2.0
"""Pause between two looks for lost topics while the broker acknowledges nothing. A judgement, not measured."""


def restore_topics(settings: Settings) -> bool:
    """Create the producers' topics that the broker has lost; return whether there were any. Raises FlawlineError."""
    created = kafka_clients.ensure_topics(settings, TOPICS)
    if created:
        log.error("the broker had lost its topics %s: they are made again", ", ".join(created))
    return bool(created)


def connect(settings: Settings, partitions: Partitions) -> Any:
    """Create the topics, update `partitions`, and return a Kafka client for frames and ledger entries.

    Raises FlawlineError when the broker cannot be reached or refuses.
    """
    kafka_clients.ensure_topics(settings, TOPICS)
    client = kafka_clients.producer(settings, topics.FRAMES.name, topics.LEDGER.name)
    try:
        client.partitions_for(settings.topic(topics.LEDGER.name))  # so that `send` never waits for metadata
        partitions.update(client)
    except KafkaError as error:
        kafka_clients.close_producer(client)
        raise FlawlineError(f"broker {settings.bootstrap_servers}: {one_line(error, with_type=True)}") from error
    except BaseException:
        kafka_clients.close_producer(client)
        raise
    return client


class Link:
    """Makes the Kafka client, holds it, and makes a new one when it is broken. Thread-safe.

    `restore` makes topics again that the broker has lost, and returns whether there were any; it is tried while
    `is_away` says that the broker acknowledges nothing.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        backoff: Backoff,
        restore: Callable[[], bool] = lambda: False,
        is_away: Callable[[], bool] = lambda: False,
    ) -> None:
        self._make = make
        self._restore = restore
        self._is_away = is_away
        self._backoff = backoff
        self._client: Any = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._failure: UsageError | None = None
        self._refusal: FlawlineError | None = None
        self._tried = self._connected = False
        self._thread = threading.Thread(target=self._run, name="broker-link", daemon=True)

    def start(self) -> None:
        """Start the thread that connects."""
        self._thread.start()

    @property
    def client(self) -> Any:
        """Return the client, or None while there is no connection."""
        return self._client

    @property
    def failure(self) -> UsageError | None:
        """Return the error of a configuration that can never connect, or None."""
        return self._failure

    @property
    def refusal(self) -> FlawlineError | None:
        """Return why the broker refuses this client now, None when it does not, or when it is away."""
        return self._refusal

    def wait(self, timeout_s: float) -> bool:
        """Wait at most `timeout_s` for the end of the first attempt; return whether there is a client."""
        with self._changed:
            self._changed.wait_for(lambda: self._tried, timeout_s)
            return self._client is not None

    def renew(self, client: Any) -> bool:
        """Drop a broken client, so that a new one is made; return True for the first report of that client.

        The frames that the client still holds fail; their lanes send them again.
        """
        with self._changed:
            if self._client is not client or client is None:
                return False
            self._client = None
            self._changed.notify_all()
        log.warning("the Kafka client is broken after an error: a new one is made")
        threading.Thread(
            target=kafka_clients.close_producer, args=(client,), name="broker-link-close", daemon=True
        ).start()
        return True

    def close(self, timeout_s: float) -> None:
        """Stop the attempts to connect, and close the client within `timeout_s`."""
        self._closed.set()
        with self._changed:
            client, self._client = self._client, None
            self._changed.notify_all()
        if client is not None:
            kafka_clients.close_producer(client, timeout_s)
        self._thread.join(0.1)  # an attempt to connect can last longer; the thread ends by itself after it

    def _look_after(self, client: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._client is not client or self._closed.is_set(), 1.0)
        if self._closed.is_set() or not self._is_away():
            return
        try:
            if self._restore():
                self.renew(client)
        except FlawlineError as error:
            log.debug("the broker is away: %s", error)
        self._closed.wait(REPAIR_PAUSE_S)

    def _run(self) -> None:
        while not self._closed.is_set():
            if (client := self._client) is not None:
                self._look_after(client)
                continue
            try:
                client = self._make()
            except UsageError as error:
                if self._connected:  # a configuration that worked once is not wrong
                    self._closed.wait(self._backoff.next_s())
                    continue
                with self._changed:
                    self._failure, self._tried = error, True
                    self._changed.notify_all()
                return
            except FlawlineError as error:
                delay_s = self._backoff.next_s()
                self._refusal = error if kafka_clients.is_refusal(error) else None
                log.warning("%s; captures wait, next attempt in %.1f s", error, delay_s)
                with self._changed:
                    self._tried = True
                    self._changed.notify_all()
                self._closed.wait(delay_s)
                continue
            self._backoff.reset()
            self._refusal = None
            self._connected = True
            with self._changed:
                if not self._closed.is_set():
                    self._client, self._tried, client = client, True, None
                    self._changed.notify_all()
            if client is not None:  # `close` was called during the attempt
                kafka_clients.close_producer(client)
