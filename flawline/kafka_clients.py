"""Kafka clients made from the settings, and the topics they need.

The options are measured. With its defaults a client holds 325 MB in one poll of frames and waits 120 s for a broker
that is away. Since kafka-python 3 it also queues without a limit, so callers limit their own unacknowledged bytes.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    RetriableError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
)
from kafka.net.compat import KafkaNetClient
from kafka.protocol.producer import EndTxnRequest
from kafka.record import util as record_util
from kafka.structs import TopicPartition

from flawline import kafka_refusal, telemetry, topics
from flawline.checked_producer import CheckedProducer
from flawline.clock import monotonic
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.kafka_connections import mend_connections
from flawline.outage import Outage
from flawline.record_headers import read_any_names
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

read_any_names()
mend_connections()

BOOTSTRAP_TIMEOUT_MS = 10_000  # a judgement, not measured

FIRST_TRY_MS = 1_500
"""After this time without a connection the cause is looked for. A judgement: it took 0.1 s where all was well."""

NEVER_MS = 2**31 - 1
"""A producer never gives a batch up by its age: callers bound what they have in flight and how long they wait.

kafka-python 3.0.12 gives its producer id up when a batch that was sent before expires, and does not ask for another:
Apache Kafka killed for 60 s under 100 records/s, and with a limit of 30 s no record was acknowledged in the minute
after its return; without a limit the first was acknowledged 0.7 s after it, and none was lost.
"""

METADATA_MAX_AGE_MS = 30_000
"""How long a client may take to notice that a topic was deleted and made again; by default 5 minutes."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 5.0
"""Pauses between attempts of a role that starts while the broker is away. Judgements, not measured: a line is to run
within 10 s of the broker's return, and an attempt itself can take 10 s."""

RECONNECT_BACKOFF_MAX_MS = 1_000
"""By default a client ends up asking every 30 s only, so a line would stand still long after its broker is back."""

# Below WARNING this logger writes the bytes of every frame. A level above, set before the import, stays.
if logging.getLogger("kafka").level < logging.WARNING:
    logging.getLogger("kafka").setLevel(logging.WARNING)


def require_fast_checksum() -> None:
    """Raise FlawlineError when the C library for CRC-32C is missing."""
    if getattr(record_util, "crc32c_c", None) is None:
        raise FlawlineError("the C library crc32c is missing, without it a frame costs 23 ms: pip install crc32c")


def client_options(settings: Settings) -> dict[str, Any]:
    """Return the address and security options of every client. Raises UsageError for what is missing."""
    kafka = settings.kafka
    for key in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"):
        # With a missing file the client tries until its time-out, and then reports that the broker is away.
        if (file := getattr(kafka, key)) is not None and not file.is_file():
            raise UsageError(f"kafka.{key} {file}: no such file: correct the path or leave it out")
    for key in ("sasl_mechanism", "sasl_username", "sasl_password"):
        if kafka.security_protocol.startswith("SASL") and getattr(kafka, key) is None:
            raise UsageError(
                f"kafka.{key} is not set, and security_protocol {kafka.security_protocol} needs it: set it"
            )
    password = kafka.sasl_password.get_secret_value() if kafka.sasl_password else None
    options = {
        "bootstrap_servers": settings.bootstrap_servers.split(","),
        "security_protocol": kafka.security_protocol,
        "sasl_mechanism": kafka.sasl_mechanism,
        "sasl_plain_username": kafka.sasl_username,
        "sasl_plain_password": password,
        "ssl_cafile": str(kafka.ssl_cafile) if kafka.ssl_cafile else None,
        "ssl_certfile": str(kafka.ssl_certfile) if kafka.ssl_certfile else None,
        "ssl_keyfile": str(kafka.ssl_keyfile) if kafka.ssl_keyfile else None,
    }
    return {key: value for key, value in options.items() if value is not None}


def _connect(kind: type, settings: Settings, options: dict[str, Any]) -> Any:
    """Return a client of a kind. Raises FlawlineError with the reason: the broker is away, or refuses and why."""
    require_fast_checksum()
    options = client_options(settings) | options
    started = monotonic()
    try:
        try:
            # A broker that refuses does so at once, and the client would go on trying to the end of its time.
            return _made(kind, options | {"bootstrap_timeout_ms": min(FIRST_TRY_MS, BOOTSTRAP_TIMEOUT_MS)})
        except KafkaError:
            with contextlib.suppress(OSError):
                kafka_refusal.check(settings.kafka, settings.bootstrap_servers)
        left_ms = BOOTSTRAP_TIMEOUT_MS - int(1000 * (monotonic() - started))
        return _made(kind, options | {"bootstrap_timeout_ms": max(1, left_ms)})
    except kafka_refusal.Refusal as refusal:
        raise FlawlineError(f"broker {settings.bootstrap_servers} cannot be used: {refusal}") from refusal
    except KafkaError as error:
        raise FlawlineError(f"broker {settings.bootstrap_servers} cannot be used: {_away(settings, error)}") from error
    except (OSError, AssertionError, ValueError) as error:  # contradicting security options, or a wrong address
        raise UsageError(f"kafka settings do not work: {one_line(error)}: correct [kafka] in the settings") from error


def _away(settings: Settings, error: KafkaError) -> str:
    """Return why a client cannot be made although no setting is refused, with the remedy."""
    try:
        kafka_refusal.first_that_answers(settings.bootstrap_servers)
    except OSError as away:
        return f"it is away ({one_line(away)}): start it with `flawline broker`, or correct kafka.bootstrap_servers"
    return f"{one_line(error)}: see the broker's log, or correct kafka.bootstrap_servers and its security settings"


def is_refusal(error: BaseException | None) -> bool:
    """Return whether an error, or what it comes from, is the broker's refusal of this client: waiting is no remedy."""
    if error is None:
        return False
    # The error of a producer id is a bare KafkaError with the name of the reason.
    named = isinstance(error, KafkaError) and "AuthorizationFailedError" in str(error)
    kinds = (kafka_refusal.Refusal, AuthorizationError, SaslAuthenticationFailedError)
    return named or isinstance(error, kinds) or is_refusal(error.__cause__)


def is_away(error: BaseException) -> bool:
    """Return whether an error of this module says that the broker does not answer: waiting is a remedy."""
    return isinstance(error.__cause__, KafkaError) and not is_refusal(error)


def await_broker(ask: Callable[[], object], outage: Outage, stop: threading.Event) -> bool:
    """Call `ask` until the broker answers it, with the pauses of `outage`; return False when `stop` came first.

    The log tells the first failure and then one now and again. Raises what `ask` raises for another reason.
    """
    while not stop.is_set():
        try:
            ask()
        except FlawlineError as error:
            if not is_away(error):
                raise
            wait_for_broker(error, outage, stop)
            continue
        if outage.is_on:
            log.info("the broker answers, after %.0f s", outage.age_s())
            outage.ended()
        return True
    return False


def wait_for_broker(error: FlawlineError, outage: Outage, stop: threading.Event) -> None:
    """Wait the next pause of `outage` after an error that says that the broker is away, and log it now and then."""
    failure = outage.failed()
    if failure.is_reported:
        log.error("%s; trying again with growing pauses", error)
    stop.wait(failure.pause_s)


def broker_outage() -> Outage:
    """Return a new outage of the broker, whose age is the metric `flawline_broker_wait_seconds` from now on."""
    outage = Outage(FIRST_PAUSE_S, LONGEST_PAUSE_S)
    telemetry.BROKER_WAIT_SECONDS.set_function(outage.age_s)
    return outage


def _made(kind: type, options: dict[str, Any]) -> Any:
    """Return a client, or leave nothing of it: kafka-python 3.0.12 keeps a thread and four files of each failure."""
    opened = []

    def open_net(**configs: Any) -> KafkaNetClient:
        opened.append(KafkaNetClient(**configs))
        return opened[-1]

    try:
        client = kind(kafka_client=open_net, **options)
        # A topic that the broker lost must not come back with one partition and without limits. kafka-python 3.0.12
        # takes `allow_auto_create_topics` and does not hand it on.
        opened[0].cluster.config["allow_auto_create_topics"] = False
        return client
    except BaseException:
        for net in opened:
            net.close()
        raise


def producer(
    settings: Settings, *names: str, kind: type[CheckedProducer] = CheckedProducer, **overrides: Any
) -> CheckedProducer:
    """Return an idempotent producer for the topics `names`, without prefix.

    The caller limits its unacknowledged bytes. Raises FlawlineError.
    """
    limit = largest_message_bytes(settings)
    options = {
        "ends": log_ends(settings, names) if names else {},
        "acks": "all",
        "enable_idempotence": True,
        "linger_ms": 0,  # a frame is larger than a batch anyway
        "batch_size": 1 << 20,
        "compression_type": None,  # coded images do not compress
        "max_request_size": limit,
        "request_timeout_ms": 15_000,
        "delivery_timeout_ms": NEVER_MS,
        "max_block_ms": 15_000,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
    }
    client: CheckedProducer = _connect(kind, settings, options | overrides)
    return client


def close_producer(client: KafkaProducer, timeout_s: float = 0.0) -> None:
    """Close a producer in bounded time; what it still holds after `timeout_s` fails."""
    try:
        client.close(timeout=timeout_s)
    except KafkaError:
        # kafka-python 3.0 raises when its flush runs out of time, and leaves its thread running.
        client._sender.force_close()
        client._sender.join(1.0)


class _Consumer(KafkaConsumer):
    """A consumer whose partitions go on when they are resumed.

    kafka-python 3.0.12 sets the records of a partition aside that is paused between two polls, and takes them up again
    only when it has no others at hand; it believes to have some as long as it holds what is left of the last ones,
    which is nothing. Until then it does not fetch the partition either: on a quiet line for ever.
    """

    def poll(self, *arguments: Any, **options: Any) -> Any:
        fetcher = self._fetcher
        if not fetcher._next_partition_records:
            fetcher._next_partition_records = None
        return super().poll(*arguments, **options)


def consumer(settings: Settings, *names: str, group: str | None = None, **overrides: Any) -> KafkaConsumer:
    """Return a consumer, subscribed to the topics `names` (without prefix) when it belongs to a `group`.

    It never commits by itself; partitions are shared by the cooperative-sticky protocol. With exactly-once delivery it
    sees no record of a transaction that is not committed. Raises FlawlineError.
    """
    limit = largest_message_bytes(settings)
    options = {
        "group_id": f"{settings.kafka.topic_prefix}{group}" if group else None,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "partition_assignment_strategy": [PatientCooperativeSticky()],
        "isolation_level": "read_committed" if settings.kafka.exactly_once else "read_uncommitted",
        "fetch_max_wait_ms": 100,
        "fetch_max_bytes": max(32 << 20, limit),
        "max_partition_fetch_bytes": max(8 << 20, limit // 2),
        "receive_message_max_bytes": max(100_000_000, 2 * max(32 << 20, limit)),
        "max_poll_records": 50,
        "session_timeout_ms": 10_000,
        "heartbeat_interval_ms": 3_000,
        "max_poll_interval_ms": 60_000,
        "metadata_max_age_ms": METADATA_MAX_AGE_MS,
        "reconnect_backoff_max_ms": RECONNECT_BACKOFF_MAX_MS,
    }
    if group is None:
        del options["partition_assignment_strategy"]
    client = _connect(_Consumer, settings, options | overrides)
    if names and group:
        client.subscribe([settings.topic(name) for name in names])
    return client


def resume_rebalance(client: KafkaConsumer) -> None:
    """Let a member of a group go on with a rebalance that the client has begun and forgotten; call it before each poll.

    kafka-python 3.0.12 joins again when the metadata of a topic changes, and asks with each poll whether that is still
    so. When the metadata is as before while the join is under way (a topic that was deleted and made again), nobody
    waits for it any more: the member sends no heartbeats, and all its commits fail, for ever.
    """
    coordinator = client._coordinator
    if coordinator.rejoining and not coordinator.need_rejoin():
        coordinator.request_rejoin()


def log_ends(settings: Settings, names: Iterable[str]) -> dict[TopicPartition, int]:
    """Return the end offset of each partition of the topics `names`; nothing of topics that do not exist.

    Raises FlawlineError.
    """
    client = consumer(settings)
    try:
        places = [
            TopicPartition(topic, partition)
            for topic in map(settings.topic, names)
            for partition in client.partitions_for_topic(topic) or ()
        ]
        return {place: int(offset) for place, offset in client.end_offsets(places).items()} if places else {}
    except KafkaError as error:
        raise FlawlineError(
            f"the ends of topics cannot be read from {settings.bootstrap_servers} ({one_line(error)}): "
            "start the broker, or grant DESCRIBE on the topics"
        ) from error
    finally:
        client.close(autocommit=False)


def newest_values(settings: Settings, topic: str) -> dict[str, bytes]:
    """Return the newest value of each key of a compacted topic of one partition; empty when it does not exist.

    `topic` is the name without prefix. A key without a value (a tombstone) is left out. Raises FlawlineError.
    """
    place = TopicPartition(settings.topic(topic), 0)
    client = consumer(settings)
    newest: dict[str, bytes | None] = {}
    try:
        if place.topic not in client.topics():
            return {}
        client.assign([place])
        client.seek_to_beginning(place)
        end = client.end_offsets([place])[place]
        while client.position(place) < end:
            for record in client.poll(timeout_ms=1000).get(place, []):
                if record.key is not None:
                    newest[record.key.decode(errors="replace")] = record.value
    except KafkaError as error:
        raise FlawlineError(
            f"topic {place.topic} cannot be read from {settings.bootstrap_servers} ({one_line(error)}): "
            "start the broker, or grant READ on the topic"
        ) from error
    finally:
        client.close(autocommit=False)
    return {key: value for key, value in newest.items() if value is not None}


def admin(settings: Settings) -> KafkaAdminClient:
    """Return an admin client. Raises FlawlineError."""
    return _connect(KafkaAdminClient, settings, {})


def require_transactions(settings: Settings) -> None:
    """Raise UsageError when delivery is exactly-once and the broker has no transactions; FlawlineError when it is away.

    The embedded broker has none, and may stand behind any address.
    """
    if not settings.kafka.exactly_once:
        return
    client = admin(settings)
    try:
        requests = client._manager.broker_version_data.api_versions
    finally:
        client.close()
    if EndTxnRequest.API_KEY not in requests:
        raise UsageError(
            f"broker {settings.bootstrap_servers} has no transactions, which kafka.delivery = exactly-once needs: "
            "name an Apache Kafka in kafka.bootstrap_servers, or set kafka.delivery to at-least-once"
        )


def largest_message_bytes(settings: Settings) -> int:
    """Return the size limit of the topic with the largest records."""
    return max(topic.message_limit_bytes(settings.frames.limit_bytes) for topic in topics.ALL)


def topic_specs(settings: Settings, only: Iterable[str] | None = None) -> dict[str, dict[str, Any]]:
    """Return what the admin client needs to create the topics of the line, or of those in `only`, by name."""
    specs = {}
    replication = settings.kafka.replication_factor
    for name, topic in topics.named(settings.kafka.topic_prefix):
        configs = topic.configs(settings)
        if replication > 1:
            configs["min.insync.replicas"] = str(settings.kafka.min_insync_replicas)
        if only is None or topic.name in only:
            specs[name] = {
                "num_partitions": topic.partitions(settings),
                "replication_factor": replication,
                "configs": configs,
            }
    return specs


def ensure_topics(settings: Settings, only: Iterable[str] | None = None) -> list[str]:
    """Create the missing topics of the line, or of those in `only`; return their names. Raises FlawlineError.

    A topic that exists stays as it is; `flawline doctor` compares it with the table.
    """
    wanted = topic_specs(settings, only)
    client = admin(settings)
    created: list[str] = []
    missing: dict[str, dict[str, Any]] = {}
    try:
        existing = set(client.list_topics())
        missing = {name: spec for name, spec in wanted.items() if name not in existing}
        for name, spec in missing.items():
            try:
                # Apache Kafka acknowledges a topic before every broker lists it.
                client.create_topics({name: spec}, wait_for_metadata=True)
                created.append(name)
            except TopicAlreadyExistsError:  # another role was faster
                log.debug("topic %s was created by another role", name)
    except AuthorizationError as error:
        raise FlawlineError(
            f"topics {', '.join(missing)} on {settings.bootstrap_servers} do not exist, or this user may not see them: "
            "grant DESCRIBE on them, and run `flawline topics create` as a user who may CREATE them"
        ) from error
    except KafkaError as error:
        raise FlawlineError(
            f"topics cannot be created on {settings.bootstrap_servers} ({one_line(error)}): see the broker's log, or "
            "create them by hand as `flawline doctor` lists them"
        ) from error
    finally:
        client.close()
    return created


class TopicNotKnownYetError(RetriableError):
    """The leader of a group has no metadata yet of a topic that it must divide."""


class PatientCooperativeSticky(CooperativeStickyAssignor):
    """The cooperative-sticky assignor (KIP-429), whose leader waits until it knows every topic of the group.

    kafka-python 3.0.12 lets a leader divide partitions before it has the metadata of the topic: a response to a request
    before subscribe() ends the wait for the response to the one after it. Then no member gets a partition until the
    next rebalance.
    """

    def assign(self, cluster: Any, members: Any) -> Any:
        """Divide the partitions among the members.

        Raises TopicNotKnownYetError while a topic is unknown. It is a retriable error: the client joins again after
        `retry_backoff_ms`, and by then it has the metadata that it has just asked for.
        """
        require_metadata(cluster, members)
        return super().assign(cluster, members)


def require_metadata(cluster: Any, members: Any) -> None:
    """Raise TopicNotKnownYetError unless the metadata of the cluster has all topics of the members."""
    names = {name for member in members for name in member.metadata.topics}
    if unknown := sorted(name for name in names if not cluster.partitions_for_topic(name)):
        raise TopicNotKnownYetError(f"no metadata yet of {', '.join(unknown)}")
