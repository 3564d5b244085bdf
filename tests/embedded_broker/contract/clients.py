"""kafka-python and confluent-kafka behind one interface, so that every contract is tested with both."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import confluent_kafka
import confluent_kafka.admin
import kafka
import kafka.admin
import kafka.errors
from kafka.coordinator.assignors.range import RangePartitionAssignor

from embedded_broker.protocol import ErrorCode
from flawline.kafka_clients import PatientCooperativeSticky, require_metadata

Headers = list[tuple[str, bytes]]
PATIENCE_S = 30.0


class Refused(Exception):
    """The broker answered an error; `code` is the protocol's number, `text` the message of the client."""

    def __init__(self, code: int, text: str = "") -> None:
        super().__init__(f"{code} {text}")
        self.code = code


@dataclass(frozen=True)
class Record:
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


def wait_until(done: Callable[[], Any], what: str, patience_s: float = PATIENCE_S) -> Any:
    """Call `done` until it returns something true and return that; it waits 20 ms between calls."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        result = done()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"not within {patience_s:g} s: {what}")


class Producer(ABC):
    @abstractmethod
    def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int = 0,
        headers: Headers | None = None,
        timestamp: int | None = None,
    ) -> Callable[[], int]:
        """Send; the returned function waits for the acknowledgement and returns the offset, or raises `Refused`."""

    @abstractmethod
    def close(self) -> None: ...

    def send_all(self, topic: str, values: Sequence[bytes], partition: int = 0) -> list[int]:
        """Send in order and return the offsets."""
        return [confirm() for confirm in [self.send(topic, value, partition=partition) for value in values]]

    def __enter__(self) -> Producer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Consumer(ABC):
    @abstractmethod
    def subscribe(self, topic: str) -> None: ...
    @abstractmethod
    def assign(self, topic: str, partitions: Sequence[int], offset: int | None = None) -> None: ...
    @abstractmethod
    def poll(self, timeout_s: float = 0.1) -> list[Record]: ...
    @abstractmethod
    def seek(self, topic: str, partition: int, offset: int) -> None: ...
    @abstractmethod
    def assigned(self) -> set[int]: ...
    @abstractmethod
    def commit(self, topic: str, offsets: dict[int, int], metadata: str = "") -> None: ...
    @abstractmethod
    def committed(self, topic: str, partition: int) -> int | None: ...
    @abstractmethod
    def committed_metadata(self, topic: str, partition: int) -> str:
        """Return the text that was committed with the offset, "" when there is none."""

    @abstractmethod
    def bounds(self, topic: str, partition: int) -> tuple[int, int]: ...
    @abstractmethod
    def offset_at(self, topic: str, partition: int, timestamp: int) -> int | None: ...
    @abstractmethod
    def close(self) -> None: ...

    def read(self, count: int, patience_s: float = PATIENCE_S) -> list[Record]:
        """Poll until `count` records have come."""
        records: list[Record] = []
        deadline = time.monotonic() + patience_s
        while len(records) < count and time.monotonic() < deadline:
            records += self.poll()
        assert len(records) >= count, f"{len(records)} of {count} records within {patience_s:g} s"
        return records

    def __enter__(self) -> Consumer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Client(ABC):
    name: str

    def __init__(self, bootstrap: str) -> None:
        self.bootstrap = bootstrap

    @abstractmethod
    def create_topic(self, topic: str, partitions: int = 1, configs: dict[str, str] | None = None) -> None: ...
    @abstractmethod
    def delete_topic(self, topic: str) -> None: ...
    @abstractmethod
    def topics(self) -> dict[str, int]:
        """Return the partition count of each topic."""

    @abstractmethod
    def add_partitions(self, topic: str, count: int) -> None: ...
    @abstractmethod
    def configs(self, topic: str) -> dict[str, str]: ...
    @abstractmethod
    def set_configs(self, topic: str, configs: dict[str, str]) -> None: ...
    @abstractmethod
    def delete_records(self, topic: str, partition: int, before: int) -> int: ...
    @abstractmethod
    def group_state(self, group: str) -> tuple[str, int]:
        """Return the state in lower case letters only, and the number of members."""

    @abstractmethod
    def groups(self) -> set[str]: ...
    @abstractmethod
    def delete_group(self, group: str) -> None: ...
    @abstractmethod
    def alter_offset(self, group: str, topic: str, partition: int, offset: int) -> None: ...
    @abstractmethod
    def producer(self, **options: Any) -> Producer:
        """Options: `linger_ms`, `idempotent`, `compression`, `transactional_id`, `max_request_bytes`."""

    @abstractmethod
    def consumer(self, **options: Any) -> Consumer:
        """Options: `group`, `instance`, `session_ms`, `cooperative`, `reset`, `max_partition_bytes`, `wait_ms`."""

    @abstractmethod
    def close(self) -> None: ...


class _PatientRange(RangePartitionAssignor):
    def assign(self, cluster, members):
        require_metadata(cluster, members)
        return super().assign(cluster, members)


class _KafkaPythonProducer(Producer):
    def __init__(self, client: kafka.KafkaProducer) -> None:
        self.client = client

    def send(self, topic, value, *, key=None, partition=0, headers=None, timestamp=None):
        future = self.client.send(
            topic, value, key=key, partition=partition, headers=headers or [], timestamp_ms=timestamp
        )

        def confirm() -> int:
            try:
                return future.get(PATIENCE_S).offset
            except kafka.errors.BrokerResponseError as error:
                raise Refused(error.errno, str(error)) from error

        return confirm

    def close(self) -> None:
        self.client.close(timeout=5)


class _KafkaPythonConsumer(Consumer):
    def __init__(self, client: kafka.KafkaConsumer) -> None:
        self.client = client

    def subscribe(self, topic):
        self.client.subscribe([topic])

    def assign(self, topic, partitions, offset=None):
        self.client.assign([kafka.TopicPartition(topic, index) for index in partitions])
        for index in partitions if offset is not None else ():
            self.client.seek(kafka.TopicPartition(topic, index), offset)

    def poll(self, timeout_s=0.1):
        try:
            polled = self.client.poll(timeout_ms=int(timeout_s * 1000))
        except kafka.errors.RetriableError as error:
            raise Refused(getattr(error, "errno", -1), str(error)) from error
        return [
            Record(row.partition, row.offset, row.timestamp, row.key, row.value, list(row.headers))
            for records in polled.values()
            for row in records
        ]

    def seek(self, topic, partition, offset):
        self.client.seek(kafka.TopicPartition(topic, partition), offset)

    def assigned(self):
        return {place.partition for place in self.client.assignment()}

    def commit(self, topic, offsets, metadata=""):
        rows = {
            kafka.TopicPartition(topic, index): kafka.OffsetAndMetadata(offset, metadata, -1)
            for index, offset in offsets.items()
        }
        try:
            self.client.commit(rows)
        except kafka.errors.CommitFailedError as error:
            raise Refused(ErrorCode.ILLEGAL_GENERATION, str(error)) from error
        except kafka.errors.BrokerResponseError as error:
            raise Refused(error.errno, str(error)) from error
        except kafka.errors.KafkaError as error:  # the broker is away: kafka-python does not try again by itself
            raise Refused(ErrorCode.COORDINATOR_NOT_AVAILABLE, str(error)) from error

    def committed(self, topic, partition):
        return self.client.committed(kafka.TopicPartition(topic, partition))

    def committed_metadata(self, topic, partition):
        row = self.client.committed(kafka.TopicPartition(topic, partition), metadata=True)
        return row.metadata if row is not None else ""

    def bounds(self, topic, partition):
        where = kafka.TopicPartition(topic, partition)
        return self.client.beginning_offsets([where])[where], self.client.end_offsets([where])[where]

    def offset_at(self, topic, partition, timestamp):
        where = kafka.TopicPartition(topic, partition)
        record = self.client.offsets_for_times({where: timestamp})[where]
        return record.offset if record is not None else None

    def close(self):
        self.client.close()


class KafkaPython(Client):
    name = "kafka-python"

    def __init__(self, bootstrap: str) -> None:
        super().__init__(bootstrap)
        self._admin = kafka.KafkaAdminClient(bootstrap_servers=bootstrap)

    @staticmethod
    def _ask(call, *args, **kwargs):
        try:
            return call(*args, **kwargs)
        except kafka.errors.BrokerResponseError as error:
            raise Refused(error.errno, str(error)) from error

    def create_topic(self, topic, partitions=1, configs=None):
        spec = {"num_partitions": partitions, "replication_factor": 1, "configs": configs or {}}
        self._ask(self._admin.create_topics, {topic: spec}, wait_for_metadata=True)

    def delete_topic(self, topic):
        self._ask(self._admin.delete_topics, [topic])

    def topics(self):
        return {row["name"]: len(row["partitions"]) for row in self._admin.describe_topics() if not row["is_internal"]}

    def add_partitions(self, topic, count):
        self._ask(self._admin.create_partitions, {topic: count})

    def _resource(self, topic, configs=None):
        return kafka.admin.ConfigResource(kafka.admin.ConfigResourceType.TOPIC, topic, configs)

    def configs(self, topic):
        answer = self._ask(self._admin.describe_configs, [self._resource(topic)], config_filter="all")
        return {name: entry["value"] for name, entry in answer["topic"][topic].items()}

    def set_configs(self, topic, configs):
        answer = self._ask(self._admin.alter_configs, [self._resource(topic, configs)], raise_on_unknown=False)
        text = str(answer["topic"][topic])  # "OK" or "[Error 40] InvalidConfigurationError: ..."
        if text != "OK":
            raise Refused(int(text.removeprefix("[Error ").partition("]")[0]), text)

    def delete_records(self, topic, partition, before):
        where = kafka.TopicPartition(topic, partition)
        return self._ask(self._admin.delete_records, {where: before})[where]["low_watermark"]

    def group_state(self, group):
        described = self._admin.describe_groups([group])[group]
        return described["group_state"].lower(), len(described["members"])

    def groups(self):
        return {row["group_id"] for row in self._admin.list_groups()}

    def delete_group(self, group):
        text = str(self._ask(self._admin.delete_groups, [group])[group])
        if text != "OK":
            raise Refused(getattr(kafka.errors, text).errno, text)

    def alter_offset(self, group, topic, partition, offset):
        where = kafka.TopicPartition(topic, partition)
        answer = self._ask(self._admin.alter_group_offsets, group, {where: kafka.OffsetAndMetadata(offset, "", -1)})
        if answer[where] is not kafka.errors.NoError:
            raise Refused(getattr(answer[where], "errno", -1), str(answer[where]))

    def producer(self, **options):
        settings = {
            "linger_ms": options.get("linger_ms", 0),
            "enable_idempotence": options.get("idempotent", True),
            "compression_type": options.get("compression"),
            "max_request_size": options.get("max_request_bytes", 1 << 20),
            "delivery_timeout_ms": options.get("delivery_timeout_ms", 30_000),
            "request_timeout_ms": 10_000,
        }
        if "transactional_id" in options:
            settings["transactional_id"] = options["transactional_id"]
        if "batch_bytes" in options:
            settings["batch_size"] = options["batch_bytes"]
        return _KafkaPythonProducer(kafka.KafkaProducer(bootstrap_servers=self.bootstrap, **settings))

    def consumer(self, **options):
        group = options.get("group")
        settings: dict[str, Any] = {
            "group_id": group,
            "enable_auto_commit": False,
            "auto_offset_reset": options.get("reset", "earliest"),
            "fetch_max_wait_ms": options.get("wait_ms", 100),
            "metadata_max_age_ms": 500 if group is None else 5_000,
        }
        if group is not None:
            assignor = PatientCooperativeSticky() if options.get("cooperative") else _PatientRange()
            session_ms = options.get("session_ms", 6_000)
            settings |= {
                "session_timeout_ms": session_ms,
                "heartbeat_interval_ms": min(500, session_ms // 4),
                "group_instance_id": options.get("instance"),
                "partition_assignment_strategy": [assignor],
            }
        if "max_partition_bytes" in options:
            settings["max_partition_fetch_bytes"] = options["max_partition_bytes"]
        return _KafkaPythonConsumer(kafka.KafkaConsumer(bootstrap_servers=self.bootstrap, **settings))

    def close(self):
        self._admin.close()


class _ConfluentProducer(Producer):
    def __init__(self, client: confluent_kafka.Producer) -> None:
        self.client = client

    def send(self, topic, value, *, key=None, partition=0, headers=None, timestamp=None):
        done: list[tuple[Any, Any]] = []
        self.client.produce(
            topic,
            value,
            key=key,
            partition=partition,
            headers=headers or [],
            timestamp=timestamp or 0,
            on_delivery=lambda error, message: done.append((error, message)),
        )
        self.client.poll(0)

        def confirm() -> int:
            deadline = time.monotonic() + PATIENCE_S
            while not done and time.monotonic() < deadline:
                self.client.poll(0.05)
            assert done, "no delivery report"
            error, message = done[0]
            if error is not None:
                raise Refused(error.code(), error.str())
            return message.offset()

        return confirm

    def close(self):
        self.client.flush(5)


class _ConfluentConsumer(Consumer):
    def __init__(self, client: confluent_kafka.Consumer) -> None:
        self.client = client

    def subscribe(self, topic):
        self.client.subscribe([topic])

    def assign(self, topic, partitions, offset=None):
        where = confluent_kafka.OFFSET_BEGINNING if offset is None else offset
        self.client.assign([confluent_kafka.TopicPartition(topic, index, where) for index in partitions])

    def poll(self, timeout_s=0.1):
        messages = self.client.consume(500, timeout_s) if timeout_s else []
        records = []
        for message in messages:
            error = message.error()
            if error is not None:
                if error.code() in (confluent_kafka.KafkaError._PARTITION_EOF, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION):
                    continue
                raise Refused(error.code(), error.str())
            headers = list(message.headers() or [])
            timestamp = message.timestamp()[1]
            records.append(
                Record(message.partition(), message.offset(), timestamp, message.key(), message.value(), headers)
            )
        return records

    def seek(self, topic, partition, offset):
        # librdkafka refuses a seek before the fetcher of a new assignment runs.
        def attempt() -> bool:
            try:
                self.client.seek(confluent_kafka.TopicPartition(topic, partition, offset))
            except confluent_kafka.KafkaException:
                self.client.poll(0.05)
                return False
            return True

        wait_until(attempt, "seek")

    def assigned(self):
        return {place.partition for place in self.client.assignment()}

    def commit(self, topic, offsets, metadata=""):
        rows = [confluent_kafka.TopicPartition(topic, index, offset, metadata) for index, offset in offsets.items()]
        try:
            committed = self.client.commit(offsets=rows, asynchronous=False)
        except confluent_kafka.KafkaException as error:
            raise Refused(error.args[0].code(), error.args[0].str()) from error
        for row in committed or ():
            if row.error is not None:
                raise Refused(row.error.code(), row.error.str())

    def committed(self, topic, partition):
        (row,) = self.client.committed([confluent_kafka.TopicPartition(topic, partition)], timeout=10)
        return row.offset if row.offset >= 0 else None

    def committed_metadata(self, topic, partition):
        (row,) = self.client.committed([confluent_kafka.TopicPartition(topic, partition)], timeout=10)
        return row.metadata or ""

    def bounds(self, topic, partition):
        return self.client.get_watermark_offsets(confluent_kafka.TopicPartition(topic, partition), timeout=10)

    def offset_at(self, topic, partition, timestamp):
        (row,) = self.client.offsets_for_times(
            [confluent_kafka.TopicPartition(topic, partition, timestamp)], timeout=10
        )
        return row.offset if row.offset >= 0 else None

    def close(self):
        self.client.close()


class Confluent(Client):
    name = "confluent-kafka"

    def __init__(self, bootstrap: str) -> None:
        super().__init__(bootstrap)
        self._admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": bootstrap})

    @staticmethod
    def _result(futures: dict[Any, Any]) -> Any:
        (future,) = futures.values()
        try:
            return future.result(PATIENCE_S)
        except confluent_kafka.KafkaException as error:
            raise Refused(error.args[0].code(), error.args[0].str()) from error

    def create_topic(self, topic, partitions=1, configs=None):
        new = confluent_kafka.admin.NewTopic(topic, partitions, 1, config=configs or {})
        self._result(self._admin.create_topics([new]))
        wait_until(lambda: self.topics().get(topic) == partitions, f"topic {topic} in the metadata")

    def delete_topic(self, topic):
        self._result(self._admin.delete_topics([topic]))

    def topics(self):
        listed = self._admin.list_topics(timeout=10).topics
        return {name: len(topic.partitions) for name, topic in listed.items() if not name.startswith("__")}

    def add_partitions(self, topic, count):
        self._result(self._admin.create_partitions([confluent_kafka.admin.NewPartitions(topic, count)]))

    def _resource(self, topic, **options):
        return confluent_kafka.admin.ConfigResource(confluent_kafka.admin.ResourceType.TOPIC, topic, **options)

    def configs(self, topic):
        answer = self._result(self._admin.describe_configs([self._resource(topic)]))
        return {name: entry.value for name, entry in answer.items()}

    def set_configs(self, topic, configs):
        operation = confluent_kafka.admin.AlterConfigOpType.SET
        entries = [
            confluent_kafka.admin.ConfigEntry(name, value, incremental_operation=operation)
            for name, value in configs.items()
        ]
        resource = self._resource(topic, incremental_configs=entries)
        self._result(self._admin.incremental_alter_configs([resource]))

    def delete_records(self, topic, partition, before):
        where = confluent_kafka.TopicPartition(topic, partition, before)
        return self._result(self._admin.delete_records([where])).low_watermark

    def group_state(self, group):
        described = self._result(self._admin.describe_consumer_groups([group]))
        return described.state.name.lower().replace("_", ""), len(described.members)

    def groups(self):
        return {row.group_id for row in self._admin.list_consumer_groups().result(PATIENCE_S).valid}

    def delete_group(self, group):
        self._result(self._admin.delete_consumer_groups([group]))

    def alter_offset(self, group, topic, partition, offset):
        where = confluent_kafka.TopicPartition(topic, partition, offset)
        request = confluent_kafka.ConsumerGroupTopicPartitions(group, [where])
        answer = self._result(self._admin.alter_consumer_group_offsets([request]))
        for row in answer.topic_partitions:
            if row.error is not None:
                raise Refused(row.error.code(), row.error.str())

    def producer(self, **options):
        settings = {
            "bootstrap.servers": self.bootstrap,
            "linger.ms": options.get("linger_ms", 0),
            "enable.idempotence": options.get("idempotent", True),
            "compression.type": options.get("compression") or "none",
            "message.max.bytes": options.get("max_request_bytes", 1 << 20),
            "delivery.timeout.ms": options.get("delivery_timeout_ms", 30_000),
            "log_level": 0,
        }
        if "transactional_id" in options:
            settings["transactional.id"] = options["transactional_id"]
        if "batch_bytes" in options:
            settings["batch.size"] = options["batch_bytes"]
        return _ConfluentProducer(confluent_kafka.Producer(settings))

    def consumer(self, **options):
        session_ms = options.get("session_ms", 6_000)
        settings = {
            "bootstrap.servers": self.bootstrap,
            "group.id": options.get("group") or "unused",
            "enable.auto.commit": False,
            "auto.offset.reset": options.get("reset", "earliest"),
            "fetch.wait.max.ms": options.get("wait_ms", 100),
            "fetch.message.max.bytes": options.get("max_partition_bytes", 1 << 20),
            "session.timeout.ms": session_ms,
            "heartbeat.interval.ms": min(500, session_ms // 4),
            "partition.assignment.strategy": "cooperative-sticky" if options.get("cooperative") else "range",
            "topic.metadata.refresh.interval.ms": 500 if options.get("group") is None else 5_000,
            "allow.auto.create.topics": False,
            "log_level": 0,
        }
        if options.get("instance"):
            settings["group.instance.id"] = options["instance"]
        return _ConfluentConsumer(confluent_kafka.Consumer(settings))

    def close(self):
        pass


CLIENTS: dict[str, type[Client]] = {client.name: client for client in (KafkaPython, Confluent)}
