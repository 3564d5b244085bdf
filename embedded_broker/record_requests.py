"""Requests of producers and consumers: Produce, Fetch, ListOffsets, and those that clients send before them."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from typing import Any

from embedded_broker.batch import BatchError
from embedded_broker.broker import NODE_ID, Broker
from embedded_broker.log import OffsetOutOfRange, PartitionLog
from embedded_broker.protocol import RESPONSES, CloseConnection, ErrorCode, FetchedPartition, Request, encode_fetch
from embedded_broker.topics import TopicError
from embedded_broker.unsupported import needs_apache_kafka

log = logging.getLogger(__name__)

_EARLIEST = -2
_LATEST = -1
_MAX_TIMESTAMP = -3
# Clients allocate a response at once, and refuse one of more than 100 MB.
_MAX_FETCH_BYTES = 64 << 20
LEADER_EPOCH = 0  # the only node is always the leader
_GROUP_KEY, _TRANSACTION_KEY = 0, 1


async def produce(broker: Broker, request: Request) -> Any:
    """Append records; return None when the producer asked for no answer (acks=0)."""
    body, schema = request.body, RESPONSES["Produce"]
    refused = body.acks not in (-1, 0, 1)
    message: str | None
    written: list[PartitionLog] = []
    topics = []
    for topic in body.topic_data:
        results = []
        for data in topic.partition_data:
            partition = broker.topics.partition(topic.name, data.index)
            if refused:
                error, offset, message = ErrorCode.INVALID_REQUIRED_ACKS, -1, f"acks={body.acks}"
            else:
                error, offset, message = _append(partition, data.records, f"{topic.name}-{data.index}")
            if partition is not None and error is ErrorCode.NONE:
                written.append(partition)
            results.append(
                schema.TopicProduceResponse.PartitionProduceResponse(
                    index=data.index,
                    error_code=error,
                    base_offset=offset,
                    log_append_time_ms=-1,
                    log_start_offset=partition.log_start if partition is not None else -1,
                    record_errors=[],
                    error_message=message,
                )
            )
        topics.append(schema.TopicProduceResponse(name=topic.name, partition_responses=results))
    try:
        await broker.make_durable(written)
    except OSError as failure:
        log.error("records not forced to the disk: %s", failure)
        for response in topics:
            for result in response.partition_responses:
                if result.error_code == ErrorCode.NONE:
                    result.error_code, result.error_message = ErrorCode.KAFKA_STORAGE_ERROR, str(failure)
    if body.acks != 0:
        return schema(responses=topics, throttle_time_ms=0)
    failed = [result for topic in topics for result in topic.partition_responses if result.error_code]
    if failed:
        # A producer without acknowledgements notices nothing else, and Apache Kafka does the same.
        raise CloseConnection(f"records sent with acks=0 were not stored ({failed[0].error_message})")
    return None


def _append(partition: PartitionLog | None, records: bytes | None, name: str) -> tuple[ErrorCode, int, str | None]:
    if partition is None:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1, f"partition {name} does not exist"
    try:
        offset = partition.append(memoryview(records or b""))
    except BatchError as error:
        log.warning("%s: batch refused, %s: %s", name, error.code.name, error.message)
        return error.code, -1, error.message
    except OSError as error:
        # Producers retry ten times a second: log it once, and once more when it is over.
        if not partition.refused_by_disk:
            log.error("%s: records not written, producers are told to retry: %s", name, error)
        partition.refused_by_disk = True
        return ErrorCode.KAFKA_STORAGE_ERROR, -1, f"records not written: {error.strerror}"
    if partition.refused_by_disk:
        log.warning("%s: records are written again", name)
        partition.refused_by_disk = False
    return ErrorCode.NONE, offset, None


async def fetch(broker: Broker, request: Request) -> list[Any]:
    """Return records at once when there are `min_bytes`, else when they arrive or after `max_wait_ms`."""
    body = request.body
    loop = asyncio.get_running_loop()
    deadline = loop.time() + max(body.max_wait_ms, 0) / 1000
    changed: asyncio.Event | None = None
    watched: list[PartitionLog] = []
    try:
        while True:
            topics, size_bytes, failed = _collect(broker, body)
            if size_bytes >= body.min_bytes or failed or loop.time() >= deadline:
                return encode_fetch(request, topics)
            if changed is None:
                # No await between looking and registering, so nothing can be appended unseen.
                changed = asyncio.Event()
                watched = _watched(broker, body)
                for partition in watched:
                    partition.wake_on_change(changed.set)
            try:
                async with asyncio.timeout_at(deadline):
                    await changed.wait()
            except TimeoutError:
                continue
            changed.clear()
    finally:
        if changed is not None:
            for partition in watched:
                partition.forget_waiter(changed.set)


def _watched(broker: Broker, body: Any) -> list[PartitionLog]:
    logs = (
        broker.topics.partition(topic.topic, target.partition) for topic in body.topics for target in topic.partitions
    )
    return [partition for partition in logs if partition is not None]


def _collect(broker: Broker, body: Any) -> tuple[list[tuple[str, list[FetchedPartition]]], int, bool]:
    """Return the answer as of now, its size in bytes, and whether a partition has an error."""
    room = min(body.max_bytes, _MAX_FETCH_BYTES)
    total, failed = 0, False
    topics = []
    for topic in body.topics:
        partitions = []
        for target in topic.partitions:
            limit = min(target.partition_max_bytes, room - total)
            part = _read(broker.topics.partition(topic.topic, target.partition), target, limit, at_least_one=total == 0)
            failed = failed or part.error is not ErrorCode.NONE
            total += part.size_bytes
            partitions.append(part)
        topics.append((topic.topic, partitions))
    return topics, total, failed


def _read(partition: PartitionLog | None, target: Any, limit_bytes: int, *, at_least_one: bool) -> FetchedPartition:
    if partition is None:
        return FetchedPartition(target.partition, ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1, -1)
    end, start = partition.next_offset, partition.log_start
    if target.current_leader_epoch > LEADER_EPOCH:
        return FetchedPartition(target.partition, ErrorCode.UNKNOWN_LEADER_EPOCH, end, start)
    try:
        if target.fetch_offset == end or (limit_bytes <= 0 and not at_least_one):
            return FetchedPartition(target.partition, ErrorCode.NONE, end, start)
        chunks, size_bytes = partition.read(target.fetch_offset, limit_bytes, at_least_one=at_least_one)
    except OffsetOutOfRange:
        return FetchedPartition(target.partition, ErrorCode.OFFSET_OUT_OF_RANGE, end, start)
    except OSError as error:
        log.error("%s cannot be read: %s", partition.folder, error)
        return FetchedPartition(target.partition, ErrorCode.KAFKA_STORAGE_ERROR, end, start)
    return FetchedPartition(target.partition, ErrorCode.NONE, end, start, tuple(chunks), size_bytes)


async def list_offsets(broker: Broker, request: Request) -> Any:
    """Return first offsets, end offsets, or the offsets at a time."""
    schema = RESPONSES["ListOffsets"]
    topics = []
    for topic in request.body.topics:
        results = []
        for target in topic.partitions:
            error, offset, timestamp = _look_up(
                broker.topics.partition(topic.name, target.partition_index), target.timestamp
            )
            results.append(
                schema.ListOffsetsTopicResponse.ListOffsetsPartitionResponse(
                    partition_index=target.partition_index,
                    error_code=error,
                    timestamp=timestamp,
                    offset=offset,
                    leader_epoch=LEADER_EPOCH if offset >= 0 else -1,
                )
            )
        topics.append(schema.ListOffsetsTopicResponse(name=topic.name, partitions=results))
    return schema(throttle_time_ms=0, topics=topics)


def _look_up(partition: PartitionLog | None, timestamp: int) -> tuple[ErrorCode, int, int]:
    if partition is None:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, -1, -1
    if timestamp == _LATEST:
        return ErrorCode.NONE, partition.next_offset, -1
    if timestamp == _EARLIEST:
        return ErrorCode.NONE, partition.log_start, -1
    try:
        record = partition.newest() if timestamp == _MAX_TIMESTAMP else partition.offset_since(max(timestamp, 0))
    except OSError as error:
        log.error("%s cannot be read: %s", partition.folder, error)
        return ErrorCode.KAFKA_STORAGE_ERROR, -1, -1
    return (ErrorCode.NONE, *record) if record is not None else (ErrorCode.NONE, -1, -1)


async def offset_for_leader_epoch(broker: Broker, request: Request) -> Any:
    """Return where a leader epoch ends: the only one goes up to the end of the log."""
    schema = RESPONSES["OffsetForLeaderEpoch"]
    topics = []
    for topic in request.body.topics:
        results = []
        for target in topic.partitions:
            partition = broker.topics.partition(topic.topic, target.partition)
            error, epoch, end = ErrorCode.NONE, -1, -1
            if partition is None:
                error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            elif target.current_leader_epoch > LEADER_EPOCH:
                error = ErrorCode.UNKNOWN_LEADER_EPOCH
            elif target.leader_epoch == LEADER_EPOCH:
                epoch, end = LEADER_EPOCH, partition.next_offset
            results.append(
                schema.OffsetForLeaderTopicResult.EpochEndOffset(
                    error_code=error, partition=target.partition, leader_epoch=epoch, end_offset=end
                )
            )
        topics.append(schema.OffsetForLeaderTopicResult(topic=topic.topic, partitions=results))
    return schema(throttle_time_ms=0, topics=topics)


async def init_producer_id(broker: Broker, request: Request) -> Any:
    """Give a new id to an idempotent producer; refuse a transactional one."""
    schema = RESPONSES["InitProducerId"]
    if request.body.transactional_id is not None:
        log.error("transactional id %r refused: %s", request.body.transactional_id, needs_apache_kafka("transactions"))
        refusal = ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        return schema(throttle_time_ms=0, error_code=refusal, producer_id=-1, producer_epoch=-1)
    try:
        producer_id = broker.store.next_producer_id()
    except sqlite3.Error as error:
        log.error("no producer id: %s", error)
        unavailable = ErrorCode.COORDINATOR_NOT_AVAILABLE
        return schema(throttle_time_ms=0, error_code=unavailable, producer_id=-1, producer_epoch=-1)
    return schema(throttle_time_ms=0, error_code=ErrorCode.NONE, producer_id=producer_id, producer_epoch=0)


async def find_coordinator(broker: Broker, request: Request) -> Any:
    """Return this node as coordinator of groups, and none for transactions."""
    body, schema = request.body, RESPONSES["FindCoordinator"]
    answer = {"node_id": NODE_ID, "host": broker.host, "port": broker.port}
    answer |= {"error_code": ErrorCode.NONE, "error_message": None}
    if request.version > 0 and body.key_type != _GROUP_KEY:
        message = needs_apache_kafka("transactions" if body.key_type == _TRANSACTION_KEY else "next-generation groups")
        log.error("coordinator for %r refused: %s", body.key or body.coordinator_keys, message)
        refusal = ErrorCode.TRANSACTIONAL_ID_AUTHORIZATION_FAILED
        answer = {"node_id": -1, "host": "", "port": -1, "error_code": refusal, "error_message": message}
    if request.version < 4:
        return schema(throttle_time_ms=0, **answer)
    return schema(
        throttle_time_ms=0, coordinators=[schema.Coordinator(key=key, **answer) for key in body.coordinator_keys]
    )


async def metadata(broker: Broker, request: Request) -> Any:
    """Return topics and brokers; create unknown topics when the client and the broker allow it."""
    body, schema = request.body, RESPONSES["Metadata"]
    all_topics = body.topics is None or (request.version == 0 and not body.topics)
    names = [topic.row.name for topic in broker.topics] if all_topics else [topic.name for topic in body.topics]
    may_create = broker.options.auto_create_topics and (request.version < 4 or body.allow_auto_topic_creation)
    nested = schema.MetadataResponseTopic
    topics = []
    for name in names:
        error = _ensure_topic(broker, name, may_create)
        topic = broker.topics.get(name)
        partitions = [
            nested.MetadataResponsePartition(
                error_code=ErrorCode.NONE,
                partition_index=index,
                leader_id=NODE_ID,
                leader_epoch=LEADER_EPOCH,
                replica_nodes=[NODE_ID],
                isr_nodes=[NODE_ID],
                offline_replicas=[],
            )
            for index in range(len(topic.partitions) if topic is not None else 0)
        ]
        topics.append(nested(error_code=error, name=name, is_internal=False, partitions=partitions))
    node = schema.MetadataResponseBroker(node_id=NODE_ID, host=broker.host, port=broker.port, rack=None)
    return schema(
        throttle_time_ms=0,
        brokers=[node],
        cluster_id=broker.store.cluster_id,
        controller_id=NODE_ID,
        topics=topics,
    )


def _ensure_topic(broker: Broker, name: str, may_create: bool) -> ErrorCode:
    if broker.topics.get(name) is not None:
        return ErrorCode.NONE
    if not may_create:
        return ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
    try:
        broker.topics.create(name, -1, {})
    except TopicError as error:
        return error.code
    except (OSError, sqlite3.Error) as error:
        log.error("topic %s not created: %s", name, error)
        return ErrorCode.KAFKA_STORAGE_ERROR
    return ErrorCode.NONE
