"""The connection to the broker, made in the background: a camera never waits for Kafka."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kafka.errors import KafkaError

from flawline import kafka_clients, topics
from flawline.backoff import Backoff
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from producers.partitions import Partitions

log = logging.getLogger(__name__)


# While a broker is away these print six lines at every attempt, each second; the lane says it once, in one line.
for _name in ("kafka.net", "kafka.cluster"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def connect(settings: Settings, partitions: Partitions) -> Any:
    """Make a client for frames and ledger entries, the topics, and the map `partitions`. Raises FlawlineError."""
    kafka_clients.ensure_topics(settings, [topics.FRAMES.name, topics.LEDGER.name, topics.PARTITIONS.name])
    client = kafka_clients.producer(settings)
    try:
        client.partitions_for(settings.topic(topics.LEDGER.name))  # fills the client's cache, so that send never waits
        partitions.update(client)
    except KafkaError as error:
        kafka_clients.close_producer(client)
        raise FlawlineError(f"broker {settings.bootstrap_servers}: {type(error).__name__}: {error}") from error
    except BaseException:
        kafka_clients.close_producer(client)
        raise
    return client


class Link:
    """Holds the client, makes it, and makes a new one when it is lost. Thread-safe."""

    def __init__(self, make: Callable[[], Any], backoff: Backoff) -> None:
        self._make = make
        self._backoff = backoff
        self._client: Any = None
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._failure: UsageError | None = None
        self._tried = self._connected = False
        self._thread = threading.Thread(target=self._run, name="broker-link", daemon=True)

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    @property
    def client(self) -> Any:
        """The client, None while there is no connection."""
        return self._client

    @property
    def failure(self) -> UsageError | None:
        """Why there will never be a connection: the configuration is wrong."""
        return self._failure

    def wait(self, timeout_s: float) -> bool:
        """Wait for the first connection, or for its failure; whether there is a client."""
        with self._changed:
            self._changed.wait_for(lambda: self._tried, timeout_s)
            return self._client is not None

    def renew(self, client: Any) -> bool:
        """Replace a client that is broken; whether that is news. What it holds fails, and its senders send it again."""
        with self._changed:
            if self._client is not client or client is None:
                return False
            self._client = None
            self._changed.notify_all()
        log.warning("the client is of no more use after an error: making a new one")
        threading.Thread(
            target=kafka_clients.close_producer, args=(client,), name="broker-link-close", daemon=True
        ).start()
        return True

    def close(self, timeout_s: float) -> None:
        """Stop connecting, and close the client."""
        self._closed.set()
        with self._changed:
            client, self._client = self._client, None
            self._changed.notify_all()
        if client is not None:
            kafka_clients.close_producer(client, timeout_s)
        self._thread.join(0.1)  # it may be within a connection attempt; it ends by itself

    def _run(self) -> None:
        while not self._closed.is_set():
            with self._changed:
                if self._client is not None:
                    self._changed.wait(1.0)
                    continue
            try:
                client = self._make()
            except UsageError as error:
                if self._connected:  # what worked once was no mistake in the configuration
                    self._closed.wait(self._backoff.next_s())
                    continue
                with self._changed:
                    self._failure, self._tried = error, True
                    self._changed.notify_all()
                return
            except FlawlineError as error:
                delay_s = self._backoff.next_s()
                log.warning("%s; captures wait meanwhile, next try in %.1f s", error, delay_s)
                with self._changed:
                    self._tried = True
                    self._changed.notify_all()
                self._closed.wait(delay_s)
                continue
            self._backoff.reset()
            self._connected = True
            with self._changed:
                if not self._closed.is_set():
                    self._client, self._tried, client = client, True, None
                    self._changed.notify_all()
            if client is not None:  # closed meanwhile
                kafka_clients.close_producer(client)
