"""Requests of consumer groups: membership, committed offsets, and their administration."""

from __future__ import annotations

import logging
import sqlite3
from typing import Any, Final

from embedded_broker.broker import Broker
from embedded_broker.members import GroupState, JoinCall
from embedded_broker.protocol import RESPONSES, ErrorCode, Request
from embedded_broker.store import CommittedOffset

log = logging.getLogger(__name__)

_MAX_METADATA_BYTES: Final = 4096  # offset.metadata.max.bytes of Apache Kafka
_SIMPLE_CONSUMER: Final = -1  # the generation of a consumer that is no member


async def join_group(broker: Broker, request: Request, client_host: str) -> Any:
    """Add a member to its group; answer when its generation begins."""
    body, schema = request.body, RESPONSES["JoinGroup"]
    if not body.group_id:
        return schema(error_code=ErrorCode.INVALID_GROUP_ID, generation_id=-1, member_id=body.member_id, members=[])
    if body.member_id and broker.group(body.group_id) is None:  # an unknown member does not make a group
        return schema(error_code=ErrorCode.UNKNOWN_MEMBER_ID, generation_id=-1, member_id=body.member_id, members=[])
    answer = await broker.group_for_join(body.group_id).join(
        JoinCall(
            member_id=body.member_id,
            instance_id=body.group_instance_id,
            client_id=request.client_id,
            client_host=client_host,
            session_timeout_ms=body.session_timeout_ms,
            rebalance_timeout_ms=body.rebalance_timeout_ms if request.version >= 1 else body.session_timeout_ms,
            protocol_type=body.protocol_type,
            protocols={protocol.name: bytes(protocol.metadata) for protocol in body.protocols},
            needs_member_id=request.version >= 4,
            skips_assignment=request.version >= 9,
        )
    )
    members = [
        schema.JoinGroupResponseMember(member_id=member_id, group_instance_id=instance_id, metadata=metadata)
        for member_id, instance_id, metadata in answer.members
    ]
    return schema(
        throttle_time_ms=0,
        error_code=answer.error,
        generation_id=answer.generation,
        protocol_type=answer.protocol_type or None,
        protocol_name=answer.protocol,
        leader=answer.leader,
        skip_assignment=answer.skip_assignment,
        member_id=answer.member_id,
        members=members,
    )


async def sync_group(broker: Broker, request: Request) -> Any:
    """Take the assignment of the leader, and return to each member its part."""
    body, schema = request.body, RESPONSES["SyncGroup"]
    group = broker.group(body.group_id)
    if group is None:
        return schema(error_code=ErrorCode.UNKNOWN_MEMBER_ID, assignment=b"")
    plan = {row.member_id: bytes(row.assignment) for row in body.assignments}
    protocol = body.protocol_name if request.version >= 5 else None
    error, assignment = await group.sync(body.member_id, body.group_instance_id, body.generation_id, protocol, plan)
    return schema(
        throttle_time_ms=0,
        error_code=error,
        protocol_type=group.protocol_type,
        protocol_name=group.protocol,
        assignment=assignment,
    )


async def heartbeat(broker: Broker, request: Request) -> Any:
    """Take a heartbeat of a member."""
    body = request.body
    group = broker.group(body.group_id)
    error = ErrorCode.UNKNOWN_MEMBER_ID
    if group is not None:
        error = group.heartbeat(body.member_id, body.group_instance_id, body.generation_id)
    return RESPONSES["Heartbeat"](throttle_time_ms=0, error_code=error)


async def leave_group(broker: Broker, request: Request) -> Any:
    """Remove members from their group."""
    body, schema = request.body, RESPONSES["LeaveGroup"]
    group = broker.group(body.group_id)
    leaving = [(body.member_id, None)]
    if request.version >= 3:
        leaving = [(member.member_id, member.group_instance_id) for member in body.members]
    results = [
        (member_id, instance_id, group.leave(member_id, instance_id) if group else ErrorCode.UNKNOWN_MEMBER_ID)
        for member_id, instance_id in leaving
    ]
    if request.version < 3:
        return schema(throttle_time_ms=0, error_code=results[0][2])
    members = [
        schema.MemberResponse(member_id=member_id, group_instance_id=instance_id, error_code=error)
        for member_id, instance_id, error in results
    ]
    return schema(throttle_time_ms=0, error_code=ErrorCode.NONE, members=members)


async def offset_commit(broker: Broker, request: Request) -> Any:
    """Store the offsets of a member of the current generation, or of a consumer outside any group."""
    body, schema = request.body, RESPONSES["OffsetCommit"]
    refusal = _commit_refusal(broker, body)
    rows: list[CommittedOffset] = []
    errors: dict[tuple[str, int], ErrorCode] = {}
    for topic in body.topics:
        for part in topic.partitions:
            error = refusal
            if error is ErrorCode.NONE and broker.topics.partition(topic.name, part.partition_index) is None:
                error = ErrorCode.UNKNOWN_TOPIC_OR_PARTITION
            if error is ErrorCode.NONE and len((part.committed_metadata or "").encode()) > _MAX_METADATA_BYTES:
                error = ErrorCode.OFFSET_METADATA_TOO_LARGE
            if error is ErrorCode.NONE:
                epoch = part.committed_leader_epoch
                rows.append(
                    CommittedOffset(
                        topic.name, part.partition_index, part.committed_offset, epoch, part.committed_metadata
                    )
                )
            errors[topic.name, part.partition_index] = error
    try:
        if rows:
            broker.store.commit(body.group_id, rows)
    except sqlite3.Error as failure:
        log.error("offsets of group %s not stored: %s", body.group_id, failure)
        # On this error clients look the coordinator up again and retry, and by then the disk may have room.
        errors |= {(row.topic, row.partition): ErrorCode.COORDINATOR_NOT_AVAILABLE for row in rows}
    nested = schema.OffsetCommitResponseTopic
    topics = [
        nested(
            name=topic.name,
            partitions=[
                nested.OffsetCommitResponsePartition(
                    partition_index=part.partition_index, error_code=errors[topic.name, part.partition_index]
                )
                for part in topic.partitions
            ],
        )
        for topic in body.topics
    ]
    return schema(throttle_time_ms=0, topics=topics)


def _commit_refusal(broker: Broker, body: Any) -> ErrorCode:
    group = broker.group(body.group_id)
    generation = body.generation_id_or_member_epoch
    if generation <= _SIMPLE_CONSUMER:
        return ErrorCode.UNKNOWN_MEMBER_ID if broker.subscribed(body.group_id) else ErrorCode.NONE
    if group is None:
        return ErrorCode.ILLEGAL_GENERATION
    error = group.check(body.member_id, body.group_instance_id, generation)
    if error is ErrorCode.NONE and group.state is GroupState.COMPLETING:
        return ErrorCode.REBALANCE_IN_PROGRESS
    return error


async def offset_fetch(broker: Broker, request: Request) -> Any:
    """Return the committed offsets of one group, since v8 of several."""
    body, schema = request.body, RESPONSES["OffsetFetch"]
    if request.version < 8:
        topics = _committed(broker, body.group_id, body.topics, schema.OffsetFetchResponseTopic)
        return schema(throttle_time_ms=0, error_code=ErrorCode.NONE, topics=topics)
    nested = schema.OffsetFetchResponseGroup
    groups = [
        nested(
            group_id=group.group_id,
            topics=_committed(broker, group.group_id, group.topics, nested.OffsetFetchResponseTopics),
            error_code=ErrorCode.NONE,
        )
        for group in body.groups
    ]
    return schema(throttle_time_ms=0, groups=groups)


def _committed(broker: Broker, group_id: str, wanted: Any, schema: Any) -> list[Any]:
    known = {(row.topic, row.partition): row for row in broker.store.committed(group_id)}
    if wanted is None:
        names = dict.fromkeys(topic for topic, _ in known)
        places = [(name, [partition for topic, partition in known if topic == name]) for name in names]
    else:
        places = [(topic.name, topic.partition_indexes) for topic in wanted]
    partition_schema = getattr(schema, "OffsetFetchResponsePartition", None) or schema.OffsetFetchResponsePartitions
    topics = []
    for name, indexes in places:
        partitions = []
        for index in indexes:
            row = known.get((name, index), CommittedOffset(name, index, -1, -1, ""))
            partitions.append(
                partition_schema(
                    partition_index=index,
                    committed_offset=row.offset,
                    committed_leader_epoch=row.leader_epoch,
                    metadata=row.metadata,
                    error_code=ErrorCode.NONE,
                )
            )
        topics.append(schema(name=name, partitions=partitions))
    return topics


async def offset_delete(broker: Broker, request: Request) -> Any:
    """Delete committed offsets of a group without members."""
    body, schema = request.body, RESPONSES["OffsetDelete"]
    if body.group_id not in broker.group_ids():
        return schema(error_code=ErrorCode.GROUP_ID_NOT_FOUND, throttle_time_ms=0, topics=[])
    refusal = ErrorCode.GROUP_SUBSCRIBED_TO_TOPIC if broker.subscribed(body.group_id) else ErrorCode.NONE
    if refusal is ErrorCode.NONE:
        offsets = [(topic.name, part.partition_index) for topic in body.topics for part in topic.partitions]
        broker.store.delete_committed(body.group_id, offsets)
    nested = schema.OffsetDeleteResponseTopic
    topics = [
        nested(
            name=topic.name,
            partitions=[
                nested.OffsetDeleteResponsePartition(partition_index=part.partition_index, error_code=refusal)
                for part in topic.partitions
            ],
        )
        for topic in body.topics
    ]
    return schema(error_code=ErrorCode.NONE, throttle_time_ms=0, topics=topics)


def _state_name(broker: Broker, group_id: str) -> str:
    group = broker.group(group_id)
    return group.state.value if group is not None else GroupState.EMPTY.value


async def list_groups(broker: Broker, request: Request) -> Any:
    """List the groups, or those of the states and types that the client names."""
    body, schema = request.body, RESPONSES["ListGroups"]
    states = {state.lower() for state in body.states_filter or ()}
    types = {kind.lower() for kind in body.types_filter or ()}
    groups = []
    for group_id in broker.group_ids() if not types or "classic" in types else ():
        state = _state_name(broker, group_id)
        if states and state.lower() not in states:
            continue
        group = broker.group(group_id)
        protocol_type = group.protocol_type if group is not None else ""
        groups.append(
            schema.ListedGroup(group_id=group_id, protocol_type=protocol_type, group_state=state, group_type="classic")
        )
    return schema(throttle_time_ms=0, error_code=ErrorCode.NONE, groups=groups)


async def describe_groups(broker: Broker, request: Request) -> Any:
    """Return the members of groups with their assignments."""
    schema = RESPONSES["DescribeGroups"]
    known = set(broker.group_ids())
    nested = schema.DescribedGroup
    groups = []
    for group_id in request.body.groups:
        group = broker.group(group_id)
        protocol = group.protocol if group is not None else ""
        members = [
            nested.DescribedGroupMember(
                member_id=member.member_id,
                group_instance_id=member.instance_id,
                client_id=member.client_id,
                client_host=f"/{member.client_host}",
                member_metadata=member.protocols.get(protocol, b""),
                member_assignment=member.assignment,
            )
            for member in (group.members.values() if group is not None else ())
        ]
        groups.append(
            nested(
                error_code=ErrorCode.NONE,
                group_id=group_id,
                group_state=_state_name(broker, group_id) if group_id in known else "Dead",
                protocol_type=group.protocol_type if group is not None else "",
                protocol_data=protocol,
                members=members,
            )
        )
    return schema(throttle_time_ms=0, groups=groups)


async def delete_groups(broker: Broker, request: Request) -> Any:
    """Delete groups without members."""
    schema = RESPONSES["DeleteGroups"]
    known = set(broker.group_ids())
    results = []
    for group_id in request.body.groups_names:
        error = ErrorCode.NONE
        if group_id not in known:
            error = ErrorCode.GROUP_ID_NOT_FOUND
        elif broker.subscribed(group_id):
            error = ErrorCode.NON_EMPTY_GROUP
        else:
            broker.forget_group(group_id)
        results.append(schema.DeletableGroupResult(group_id=group_id, error_code=error))
    return schema(throttle_time_ms=0, results=results)
