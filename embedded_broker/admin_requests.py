"""Requests of administrators: topics with their settings, partitions and records, and the cluster."""

from __future__ import annotations

import logging
import shutil
import sqlite3
from collections.abc import Callable
from enum import IntEnum
from functools import partial
from typing import Any, Final

from embedded_broker import topic_config
from embedded_broker.broker import NODE_ID, Broker
from embedded_broker.log import OffsetOutOfRange
from embedded_broker.protocol import RESPONSES, ErrorCode, Request
from embedded_broker.topic_config import ConfigType
from embedded_broker.topics import TopicError
from embedded_broker.unsupported import needs_apache_kafka

log = logging.getLogger(__name__)


class _Resource(IntEnum):
    TOPIC = 2
    BROKER = 4


class _ConfigSource(IntEnum):
    TOPIC = 1
    STATIC_BROKER = 4
    DEFAULT = 5


class _Operation(IntEnum):
    SET = 0
    DELETE = 1
    APPEND = 2
    SUBTRACT = 3


_ANY_REPLICATION: Final = (-1, 1)


def _attempt(action: Callable[[], Any]) -> tuple[ErrorCode, str | None]:
    """Run a change; return its error code and message instead of raising."""
    try:
        action()
    except TopicError as error:
        return error.code, error.message
    except (OSError, sqlite3.Error) as error:
        log.error("administrative request failed: %s", error)
        return ErrorCode.KAFKA_STORAGE_ERROR, f"the disk of the broker failed: {error}"
    return ErrorCode.NONE, None


async def create_topics(broker: Broker, request: Request) -> Any:
    """Create topics."""
    body, schema = request.body, RESPONSES["CreateTopics"]
    nested = schema.CreatableTopicResult
    results = []
    for topic in body.topics:
        error, message = _attempt(partial(_create, broker, topic, validate_only=body.validate_only))
        created = broker.topics.get(topic.name) if error is ErrorCode.NONE else None
        configs = topic_config.describe(created.row.configs, broker.topics.defaults) if created is not None else []
        results.append(
            nested(
                name=topic.name,
                error_code=error,
                error_message=message,
                num_partitions=len(created.partitions) if created is not None else -1,
                replication_factor=1 if created is not None else -1,
                configs=[
                    nested.CreatableTopicConfigs(
                        name=name, value=value, read_only=False, config_source=_source(is_default), is_sensitive=False
                    )
                    for name, value, _, is_default in configs
                ],
            )
        )
    return schema(throttle_time_ms=0, topics=results)


def _create(broker: Broker, topic: Any, *, validate_only: bool) -> None:
    partitions, factor = topic.num_partitions, topic.replication_factor
    if topic.assignments:
        if any(list(assignment.broker_ids) != [NODE_ID] for assignment in topic.assignments):
            raise TopicError(ErrorCode.INVALID_REPLICA_ASSIGNMENT, needs_apache_kafka("replication"))
        partitions = len(topic.assignments)
    elif factor not in _ANY_REPLICATION:
        code = ErrorCode.INVALID_REPLICATION_FACTOR
        raise TopicError(code, f"replication factor {factor}: {needs_apache_kafka('replication')}")
    configs = {config.name: config.value for config in topic.configs}
    broker.topics.create(topic.name, partitions, configs, validate_only=validate_only)


def _source(is_default: bool) -> _ConfigSource:
    return _ConfigSource.DEFAULT if is_default else _ConfigSource.TOPIC


async def delete_topics(broker: Broker, request: Request) -> Any:
    """Delete topics."""
    schema = RESPONSES["DeleteTopics"]
    results = []
    for name in request.body.topic_names:
        error, message = _attempt(partial(broker.topics.delete, name))
        results.append(schema.DeletableTopicResult(name=name, error_code=error, error_message=message))
    return schema(throttle_time_ms=0, responses=results)


async def create_partitions(broker: Broker, request: Request) -> Any:
    """Add partitions to topics."""
    body, schema = request.body, RESPONSES["CreatePartitions"]
    results = []
    for topic in body.topics:
        error, message = _attempt(
            partial(broker.topics.add_partitions, topic.name, topic.count, validate_only=body.validate_only)
        )
        results.append(schema.CreatePartitionsTopicResult(name=topic.name, error_code=error, error_message=message))
    return schema(throttle_time_ms=0, results=results)


async def delete_records(broker: Broker, request: Request) -> Any:
    """Delete the records before an offset."""
    schema = RESPONSES["DeleteRecords"]
    nested = schema.DeleteRecordsTopicResult
    topics = []
    for topic in request.body.topics:
        results = []
        for target in topic.partitions:
            error, log_start = ErrorCode.NONE, -1
            try:
                log_start = broker.topics.delete_records(topic.name, target.partition_index, target.offset)
            except TopicError as refused:
                error = refused.code
            except OffsetOutOfRange:
                error = ErrorCode.OFFSET_OUT_OF_RANGE
            except (OSError, sqlite3.Error) as failure:
                log.error("records of %s-%d not deleted: %s", topic.name, target.partition_index, failure)
                error = ErrorCode.KAFKA_STORAGE_ERROR
            results.append(
                nested.DeleteRecordsPartitionResult(
                    partition_index=target.partition_index, low_watermark=log_start, error_code=error
                )
            )
        topics.append(nested(name=topic.name, partitions=results))
    return schema(throttle_time_ms=0, topics=topics)


async def describe_configs(broker: Broker, request: Request) -> Any:
    """Show the settings of topics, and the broker's own."""
    schema = RESPONSES["DescribeConfigs"]
    nested = schema.DescribeConfigsResult
    results = []
    for resource in request.body.resources:
        rows, error, message = _config_rows(broker, resource)
        wanted = resource.configuration_keys
        configs = [
            nested.DescribeConfigsResourceResult(
                name=name,
                value=value,
                read_only=read_only,
                config_source=source,
                is_sensitive=False,
                synonyms=[],
                config_type=kind,
                documentation=None,
            )
            for name, value, kind, source, read_only in rows
            if wanted is None or name in wanted
        ]
        results.append(
            nested(
                error_code=error,
                error_message=message,
                resource_type=resource.resource_type,
                resource_name=resource.resource_name,
                configs=configs,
            )
        )
    return schema(throttle_time_ms=0, results=results)


_ConfigRow = tuple[str, str, ConfigType, _ConfigSource, bool]


def _config_rows(broker: Broker, resource: Any) -> tuple[list[_ConfigRow], ErrorCode, str | None]:
    if resource.resource_type == _Resource.TOPIC:
        topic = broker.topics.get(resource.resource_name)
        if topic is None:
            message = f"topic {resource.resource_name[:80]!r} does not exist"
            return [], ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, message
        described = topic_config.describe(topic.row.configs, broker.topics.defaults)
        return (
            [(name, text, kind, _source(default), False) for name, text, kind, default in described],
            ErrorCode.NONE,
            None,
        )
    if resource.resource_type == _Resource.BROKER and resource.resource_name in ("", str(NODE_ID)):
        options = broker.options
        values = (
            ("broker.id", str(NODE_ID), ConfigType.INT),
            ("log.dirs", str(options.data_dir.resolve()), ConfigType.STRING),
            ("num.partitions", str(options.default_partitions), ConfigType.INT),
            ("auto.create.topics.enable", str(options.auto_create_topics).lower(), ConfigType.BOOLEAN),
            ("message.max.bytes", str(options.topic_defaults.max_message_bytes), ConfigType.INT),
            ("socket.request.max.bytes", str(options.max_request_bytes), ConfigType.INT),
        )
        return (
            [(name, text, kind, _ConfigSource.STATIC_BROKER, True) for name, text, kind in values],
            ErrorCode.NONE,
            None,
        )
    return [], ErrorCode.INVALID_REQUEST, f"no settings of resource type {resource.resource_type} here"


async def alter_configs(broker: Broker, request: Request) -> Any:
    """Replace all settings of a topic."""
    return _alter(broker, request, lambda _, resource: {config.name: config.value for config in resource.configs})


async def incremental_alter_configs(broker: Broker, request: Request) -> Any:
    """Change single settings of a topic."""
    return _alter(broker, request, _merged)


def _alter(broker: Broker, request: Request, configs_of: Callable[[Broker, Any], dict[str, str | None]]) -> Any:
    body, schema = request.body, RESPONSES[request.api.name]

    def alter(resource: Any) -> None:
        if resource.resource_type != _Resource.TOPIC:
            raise TopicError(ErrorCode.INVALID_REQUEST, needs_apache_kafka("dynamic broker config"))
        configs = configs_of(broker, resource)
        broker.topics.set_configs(resource.resource_name, configs, validate_only=body.validate_only)

    results = []
    for resource in body.resources:
        error, message = _attempt(partial(alter, resource))
        results.append(
            schema.AlterConfigsResourceResponse(
                error_code=error,
                error_message=message,
                resource_type=resource.resource_type,
                resource_name=resource.resource_name,
            )
        )
    return schema(throttle_time_ms=0, responses=results)


def _merged(broker: Broker, resource: Any) -> dict[str, str | None]:
    topic = broker.topics.get(resource.resource_name)
    configs: dict[str, str | None] = dict(topic.row.configs) if topic is not None else {}
    for change in resource.configs:
        if change.config_operation == _Operation.DELETE:
            configs.pop(change.name, None)
        elif change.config_operation == _Operation.SET:
            configs[change.name] = change.value
        elif change.config_operation in (_Operation.APPEND, _Operation.SUBTRACT):
            if change.name != "cleanup.policy":
                raise TopicError(ErrorCode.INVALID_CONFIG, f"topic config {change.name} is no list")
            words = (configs.get(change.name) or broker.topics.defaults.cleanup_policy).split(",")
            changed = (change.value or "").split(",")
            keep = [word for word in words if word not in changed]
            configs[change.name] = ",".join(keep + changed if change.config_operation == _Operation.APPEND else keep)
        else:
            raise TopicError(ErrorCode.INVALID_REQUEST, f"unknown config operation {change.config_operation}")
    return configs


async def describe_log_dirs(broker: Broker, request: Request) -> Any:
    """Show the disk space of each partition."""
    schema = RESPONSES["DescribeLogDirs"]
    nested = schema.DescribeLogDirsResult
    wanted = None
    if request.body.topics is not None:
        wanted = {(topic.topic, index) for topic in request.body.topics for index in topic.partitions}
    topics = []
    for topic in broker.topics:
        partitions = [
            nested.DescribeLogDirsTopic.DescribeLogDirsPartition(
                partition_index=index, partition_size=partition.size_bytes, offset_lag=0, is_future_key=False
            )
            for index, partition in enumerate(topic.partitions)
            if wanted is None or (topic.row.name, index) in wanted
        ]
        if partitions:
            topics.append(nested.DescribeLogDirsTopic(name=topic.row.name, partitions=partitions))
    disk = shutil.disk_usage(broker.options.data_dir)
    result = nested(
        error_code=ErrorCode.NONE,
        log_dir=str(broker.options.data_dir.resolve()),
        topics=topics,
        total_bytes=disk.total,
        usable_bytes=disk.free,
    )
    return schema(throttle_time_ms=0, error_code=ErrorCode.NONE, results=[result])


async def describe_cluster(broker: Broker, request: Request) -> Any:
    """Show the one node."""
    schema = RESPONSES["DescribeCluster"]
    node = schema.DescribeClusterBroker(broker_id=NODE_ID, host=broker.host, port=broker.port, rack=None)
    return schema(
        throttle_time_ms=0,
        error_code=ErrorCode.NONE,
        error_message=None,
        endpoint_type=1,  # brokers, not controllers
        cluster_id=broker.store.cluster_id,
        controller_id=NODE_ID,
        brokers=[node],
    )
