"""The wire protocol: the requests that the embedded broker answers, their versions, decoding and encoding.

The schemas of requests and responses come from kafka-python. Only the Fetch response is encoded here, because its
records go from the file to the socket without an encoder.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from typing import Any, Final, NamedTuple

import kafka.protocol.admin as admin_schemas
import kafka.protocol.consumer as consumer_schemas
import kafka.protocol.metadata as metadata_schemas
import kafka.protocol.producer as producer_schemas


class ErrorCode(IntEnum):
    """The protocol's error codes that this broker answers; https://kafka.apache.org/protocol#protocol_error_codes."""

    UNKNOWN_SERVER_ERROR = -1
    NONE = 0
    OFFSET_OUT_OF_RANGE = 1
    CORRUPT_MESSAGE = 2
    UNKNOWN_TOPIC_OR_PARTITION = 3
    MESSAGE_TOO_LARGE = 10
    OFFSET_METADATA_TOO_LARGE = 12
    COORDINATOR_NOT_AVAILABLE = 15
    INVALID_TOPIC_EXCEPTION = 17
    INVALID_REQUIRED_ACKS = 21
    ILLEGAL_GENERATION = 22
    INCONSISTENT_GROUP_PROTOCOL = 23
    INVALID_GROUP_ID = 24
    UNKNOWN_MEMBER_ID = 25
    INVALID_SESSION_TIMEOUT = 26
    REBALANCE_IN_PROGRESS = 27
    UNSUPPORTED_VERSION = 35
    TOPIC_ALREADY_EXISTS = 36
    INVALID_PARTITIONS = 37
    INVALID_REPLICATION_FACTOR = 38
    INVALID_REPLICA_ASSIGNMENT = 39
    INVALID_CONFIG = 40
    INVALID_REQUEST = 42
    UNSUPPORTED_FOR_MESSAGE_FORMAT = 43
    POLICY_VIOLATION = 44
    OUT_OF_ORDER_SEQUENCE_NUMBER = 45
    DUPLICATE_SEQUENCE_NUMBER = 46
    INVALID_PRODUCER_EPOCH = 47
    TRANSACTIONAL_ID_AUTHORIZATION_FAILED = 53
    KAFKA_STORAGE_ERROR = 56
    NON_EMPTY_GROUP = 68
    GROUP_ID_NOT_FOUND = 69
    UNKNOWN_LEADER_EPOCH = 75
    UNSUPPORTED_COMPRESSION_TYPE = 76
    MEMBER_ID_REQUIRED = 79
    FENCED_INSTANCE_ID = 82
    GROUP_SUBSCRIBED_TO_TOPIC = 86
    INVALID_RECORD = 87


class Api(NamedTuple):
    """One request kind: its key, name and the first and last version answered here."""

    key: int
    name: str
    first_version: int
    last_version: int


PRODUCE: Final = 0
FETCH: Final = 1
API_VERSIONS: Final = 18

APIS: Final[dict[int, Api]] = {
    api.key: api
    for api in (
        Api(PRODUCE, "Produce", 3, 8),
        # 12 and later put tagged fields around the records, 13 and later name topics by id.
        Api(FETCH, "Fetch", 4, 11),
        Api(2, "ListOffsets", 1, 7),
        # 9 is so compact that librdkafka 2 expects more bytes for a few topics with short names, and refuses it.
        Api(3, "Metadata", 0, 8),
        Api(8, "OffsetCommit", 2, 8),
        Api(9, "OffsetFetch", 1, 8),
        Api(10, "FindCoordinator", 0, 4),
        Api(11, "JoinGroup", 0, 9),
        Api(12, "Heartbeat", 0, 4),
        Api(13, "LeaveGroup", 0, 5),
        Api(14, "SyncGroup", 0, 5),
        Api(15, "DescribeGroups", 0, 5),
        Api(16, "ListGroups", 0, 5),
        Api(API_VERSIONS, "ApiVersions", 0, 3),
        Api(19, "CreateTopics", 2, 6),
        Api(20, "DeleteTopics", 1, 5),
        Api(21, "DeleteRecords", 0, 2),
        Api(22, "InitProducerId", 0, 4),
        Api(23, "OffsetForLeaderEpoch", 2, 4),
        Api(32, "DescribeConfigs", 1, 4),
        Api(33, "AlterConfigs", 0, 2),
        Api(35, "DescribeLogDirs", 1, 4),
        Api(37, "CreatePartitions", 0, 3),
        Api(42, "DeleteGroups", 0, 2),
        Api(44, "IncrementalAlterConfigs", 0, 1),
        Api(47, "OffsetDelete", 0, 0),
        Api(60, "DescribeCluster", 0, 1),
    )
}


def _schema(name: str) -> Any:
    for module in (consumer_schemas, admin_schemas, metadata_schemas, producer_schemas):
        if hasattr(module, name):
            return getattr(module, name)
    raise ImportError(f"kafka-python has no schema {name}: install kafka-python>=3.0.12,<4")


_REQUESTS: Final = {api.key: _schema(f"{api.name}Request") for api in APIS.values()}
RESPONSES: Final[dict[str, Any]] = {api.name: _schema(f"{api.name}Response") for api in APIS.values()}

_FIXED_HEADER: Final = struct.Struct(">hhih")  # api key, version, correlation id, length of the client id
_INT32: Final = struct.Struct(">i")
_MAX_CLIENT_ID_BYTES: Final = 1024
# kafka-python reads a varint as long as its bytes have the high bit set, and the integer grows with each: a megabyte of
# 0xff would keep the broker busy for minutes. No valid field holds so many such bytes in a row.
_ENDLESS_VARINT: Final = re.compile(rb"[\x80-\xff]{1024}")


class CloseConnection(Exception):
    """The connection must be closed, because nothing can be answered."""


class MalformedRequest(CloseConnection):
    """The bytes are no request of a kind that this broker answers."""


@dataclass(frozen=True, slots=True)
class Request:
    """A decoded request; `body` is None when its version is not supported."""

    api: Api
    version: int
    correlation_id: int
    client_id: str
    body: Any


def peek_api_key(frame: bytes | bytearray | memoryview) -> int:
    """Return the api key of a frame of which at least two bytes have arrived."""
    return int.from_bytes(frame[:2], "big", signed=True)


def decode_request(frame: memoryview) -> Request:
    """Decode one frame, without its length prefix; raises `MalformedRequest`."""
    if len(frame) < _FIXED_HEADER.size:
        raise MalformedRequest(f"a frame of {len(frame)} bytes is shorter than a request header")
    key, version, correlation_id, client_id_bytes = _FIXED_HEADER.unpack_from(frame)
    position = _FIXED_HEADER.size + max(client_id_bytes, 0)
    if client_id_bytes > _MAX_CLIENT_ID_BYTES or position > len(frame):
        raise MalformedRequest(f"a client id of {client_id_bytes} bytes")
    api = APIS.get(key)
    if api is None:
        raise MalformedRequest(f"request kind {key} is not supported")
    client_id = str(frame[_FIXED_HEADER.size : position], "utf-8", "replace")
    if not api.first_version <= version <= api.last_version:
        return Request(api, version, correlation_id, client_id, None)
    schema = _REQUESTS[key]
    try:
        if schema.flexible_version_q(version):
            if _ENDLESS_VARINT.search(frame):
                raise MalformedRequest(f"{api.name} v{version}: endless varint")
            position = _skip_tags(frame, position)
        body = schema.decode(frame[position:], version=version)
        _reject_nulls(body, _request_fields(key, version))
    except (ValueError, IndexError, TypeError, OverflowError, struct.error, MemoryError) as error:
        raise MalformedRequest(f"{api.name} v{version}: {type(error).__name__} {error}") from error
    return Request(api, version, correlation_id, client_id, body)


class _Field(NamedTuple):
    """A field of a request that can be null: whether it may be, and the same of its elements and their fields."""

    name: str
    may_be_null: bool
    elements_are_text: bool
    nested: tuple[_Field, ...]


@cache  # as many as there are kinds and versions
def _request_fields(api_key: int, version: int) -> tuple[_Field, ...]:
    return _fields_to_check(_REQUESTS[api_key], version)


def _fields_to_check(struct: Any, version: int) -> tuple[_Field, ...]:
    fields = []
    for field in struct.fields.values():
        sized = field.is_array() or field.is_struct_array() or field.type_str in ("string", "bytes")
        if not sized or not field.for_version_q(version) or field.tag is not None:
            continue
        nested = _fields_to_check(field, version) if field.is_struct_array() else ()
        text = field.is_array() and field.array_of.type_str == "string"
        fields.append(_Field(field.name, field.nullable_for_version_q(version), text, nested))
    return tuple(fields)


def _reject_nulls(body: Any, fields: tuple[_Field, ...]) -> None:
    """Raise `ValueError` for a null where the protocol has none; kafka-python's decoder lets it pass."""
    pending = [(body, fields)]
    while pending:
        container, fields = pending.pop()
        for field in fields:
            value = getattr(container, field.name)
            if value is None:
                if not field.may_be_null:
                    raise ValueError(f"{field.name} is null")
            elif field.nested:
                pending += [(element, field.nested) for element in value]
            elif field.elements_are_text and None in value:
                raise ValueError(f"{field.name} has a null element")


def _skip_tags(frame: memoryview, position: int) -> int:
    """Return the position after the tagged fields of a request header; the broker knows none of them."""
    count, position = _unsigned_varint(frame, position)
    for _ in range(count):
        _, position = _unsigned_varint(frame, position)
        size, position = _unsigned_varint(frame, position)
        position += size
    return position


def _unsigned_varint(frame: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 35, 7):
        byte = frame[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, position
    raise ValueError("varint of more than five bytes")


def encode_response(request: Request, response: Any) -> bytes:
    """Encode a schema response with its frame length and header."""
    flexible = response.flexible_version_q(request.version)
    # The answer to ApiVersions always has the old header, so that a client can read it before it knows the broker.
    tags = b"\0" if flexible and request.api.key != API_VERSIONS else b""
    body = bytes(response.encode(version=request.version))
    return _INT32.pack(4 + len(tags) + len(body)) + _INT32.pack(request.correlation_id) + tags + body


def unsupported_api_versions(request: Request) -> bytes:
    """Return the answer to ApiVersions of an unknown version: in version 0, after which clients try a lower one."""
    response = api_versions_response(ErrorCode.UNSUPPORTED_VERSION)
    return encode_response(Request(request.api, 0, request.correlation_id, request.client_id, None), response)


def api_versions_response(error: ErrorCode = ErrorCode.NONE) -> Any:
    """Return the requests and versions that this broker answers."""
    schema = RESPONSES["ApiVersions"]
    keys = [
        schema.ApiVersion(api_key=api.key, min_version=api.first_version, max_version=api.last_version)
        for api in APIS.values()
    ]
    return schema(error_code=error, api_keys=keys, throttle_time_ms=0)


@dataclass(frozen=True, slots=True)
class FetchedPartition:
    """The part of a Fetch response for one partition; `chunks` are the slices of files with its record batches."""

    index: int
    error: ErrorCode
    high_watermark: int
    log_start: int
    chunks: tuple[Any, ...] = ()
    size_bytes: int = 0


_FETCH_PARTITION: Final = struct.Struct(">ihqq")


def encode_fetch(request: Request, topics: list[tuple[str, list[FetchedPartition]]]) -> list[Any]:
    """Return the parts of a Fetch response (v4 to v11) in order: bytes, and slices of log files."""
    version = request.version
    parts: list[Any] = []
    text = bytearray(_INT32.pack(request.correlation_id) + _INT32.pack(0))
    if version >= 7:
        text += struct.pack(">hi", ErrorCode.NONE, 0)  # session id 0: no fetch session, ask in full each time
    text += _INT32.pack(len(topics))
    size_bytes = 0
    for name, partitions in topics:
        encoded = name.encode()
        text += struct.pack(">h", len(encoded)) + encoded + _INT32.pack(len(partitions))
        for part in partitions:
            # Without transactions the last stable offset is the high watermark.
            text += _FETCH_PARTITION.pack(part.index, part.error, part.high_watermark, part.high_watermark)
            if version >= 5:
                text += struct.pack(">q", part.log_start)
            text += _INT32.pack(-1)  # aborted transactions: null
            if version >= 11:
                text += _INT32.pack(-1)  # preferred read replica: none
            text += _INT32.pack(part.size_bytes)
            if part.chunks:
                parts += [bytes(text), *part.chunks]
                size_bytes += len(text) + part.size_bytes
                text.clear()
    size_bytes += len(text)
    parts.append(bytes(text))
    return [_INT32.pack(size_bytes), *parts]
