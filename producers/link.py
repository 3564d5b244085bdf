"""The connection to the broker, made in the background: a camera never waits for Kafka."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

from kafka.errors import KafkaError

from flawline import kafka_clients, topics
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from producers.watch import Backoff

log = logging.getLogger(__name__)

# The client must not give a frame up while the broker is away: it retries what it holds in order and without
# duplicates, as no later delivery from the spool could, and the lanes bound what it holds.
NO_DELIVERY_TIMEOUT_MS = 2**31 - 1
# By default the client ends up asking every 30 s only, so a line would stand still long after its broker is back.
RECONNECT_BACKOFF_MAX_MS = 1_000


# While a broker is away these print six lines at every attempt, each second; the lane says it once, in one line.
for _name in ("kafka.net", "kafka.cluster"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)


def connect(settings: Settings) -> Any:
    """A client for frames and ledger entries, the topics being there. Raises FlawlineError."""
    kafka_clients.ensure_topics(settings, [topics.FRAMES.name, topics.LEDGER.name])
    client = kafka_clients.producer(
        settings, delivery_timeout_ms=NO_DELIVERY_TIMEOUT_MS, reconnect_backoff_max_ms=RECONNECT_BACKOFF_MAX_MS
    )
    try:
        wanted = [settings.partition(camera.name) or 0 for camera in settings.cameras]
        there = client.partitions_for(settings.topic(topics.FRAMES.name))
        client.partitions_for(settings.topic(topics.LEDGER.name))  # fills the client's cache, so that send never waits
        if wanted and max(wanted) not in there:
            raise UsageError(
                f"topic {settings.topic(topics.FRAMES.name)} has {len(there)} partitions and kafka.camera_partitions "
                f"is {settings.kafka.camera_partitions}: set it to {len(there)} or add partitions to the topic"
            )
    except KafkaError as error:
        close(client)
        raise FlawlineError(f"broker {settings.bootstrap_servers}: {type(error).__name__}: {error}") from error
    except BaseException:
        close(client)
        raise
    return client


def close(client: Any, timeout_s: float = 0.0) -> None:
    """Close a client in bounded time; what it still holds fails."""
    try:
        client.close(timeout=timeout_s)
    except KafkaError:
        # kafka-python 3.0 raises when its flush runs out of time, and leaves its thread running.
        client._sender.force_close()
        client._sender.join(1.0)


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
        threading.Thread(target=close, args=(client,), name="broker-link-close", daemon=True).start()
        return True

    def close(self, timeout_s: float) -> None:
        """Stop connecting, and close the client."""
        self._closed.set()
        with self._changed:
            client, self._client = self._client, None
            self._changed.notify_all()
        if client is not None:
            close(client, timeout_s)
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
                close(client)
