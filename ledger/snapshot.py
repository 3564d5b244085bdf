"""Snapshots of the ledger in the topic `ledger-snapshots`, so that nobody reads a week of verdicts at each start.

They stand in a topic, and not in a file or in the store, because every role on every machine reaches it, and because a
broker that loses the line's topics loses their snapshots with them. A snapshot is one record that holds the whole
state, which is small: intervals, not frames. The newest one counts, so several writers do no harm; a watcher writes
only when nobody has for SNAPSHOT_INTERVAL_S.

A snapshot is used only when it fits the topics: each read position is within its log, and the last record before it is
still the one that was read.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import msgpack
import numpy as np
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError

from flawline import kafka_clients, messages, topics
from flawline.errors import FlawlineError, one_line
from flawline.intervals import IntervalSet
from flawline.messages import LedgerSnapshot, ReadPosition, SchemaError
from flawline.settings.tree import Settings
from ledger.accounting import Epoch, LedgerState, VerdictContent
from ledger.log_bounds import log_bounds

SNAPSHOT_INTERVAL_S = 60.0
"""A start reads the records of this time at least; a judgement, not measured."""

STATE_VERSION = 1
"""Version of the state in a snapshot; one of another version is not used."""

STATE_LIMIT_BYTES = 256 << 20
"""No state is larger when it is decompressed, so that a forged snapshot takes no more memory. Ten cameras with 100,000
holes each take 34 MB (`benchmarks.ledger`)."""

TIMEOUT_S = 15.0  # a judgement, not measured


class UnusableSnapshotError(FlawlineError):
    """A snapshot that cannot be used; the message says why."""


# The state as bytes


def encode_state(state: LedgerState) -> bytes:
    """Return the state of a ledger as compressed bytes."""
    plain = {
        "version": STATE_VERSION,
        "horizon_ns": state.horizon_ns,
        "epochs": [[camera, number, _plain_epoch(epoch)] for (camera, number), epoch in state.epochs.items()],
        "compared": [
            [camera, [[*place, *content] for place, content in verdicts.items()]]
            for camera, verdicts in state.compared.items()
        ],
        "expired_from": [
            [camera, [[*place, at] for place, at in reports.items()]]
            for camera, reports in state.expired_from.items()
            if reports
        ],
        "unidentified": [[*place, _packed(offsets)] for place, offsets in state.unidentified.items()],
        "unreadable": list(state.unreadable),
    }
    return zlib.compress(msgpack.packb(plain), 1)


def decode_state(data: bytes) -> LedgerState:
    """Return the state in `data`. Raises UnusableSnapshotError for bytes that no ledger of this version wrote."""
    try:
        unpacking = zlib.decompressobj()
        content = unpacking.decompress(data, STATE_LIMIT_BYTES)
        if not unpacking.eof:
            raise UnusableSnapshotError(f"its state is cut off or larger than {STATE_LIMIT_BYTES} bytes")
        plain = msgpack.unpackb(content, use_list=False)
        if plain["version"] != STATE_VERSION:
            raise UnusableSnapshotError(
                f"its state has version {plain['version']}, version {STATE_VERSION} is read here"
            )
        state = LedgerState(int(plain["horizon_ns"]))
        for camera, number, epoch in plain["epochs"]:
            state.epochs[str(camera), int(number)] = _epoch_of(epoch)
        for camera, verdicts in plain["compared"]:
            for epoch, sequence, version, decision, score in verdicts:
                state.compared[camera][epoch, sequence] = VerdictContent(version, decision, score)
        for camera, reports in plain["expired_from"]:
            state.expired_from[camera] = {(int(epoch), int(sequence)): int(at) for epoch, sequence, at in reports}
        for topic, partition, reason, offsets in plain["unidentified"]:
            state.unidentified[topic, partition, reason] = _unpacked(offsets)
        state.unreadable = [(int(at), str(text)) for at, text in plain["unreadable"]]
    except (zlib.error, ValueError, KeyError, TypeError, AttributeError, msgpack.UnpackException) as error:
        raise UnusableSnapshotError(f"its state cannot be read ({one_line(error, with_type=True)})") from error
    return state


def _plain_epoch(epoch: Epoch) -> dict[str, Any]:
    plain: dict[str, Any] = {}
    for item in fields(Epoch):
        value = getattr(epoch, item.name)
        if isinstance(value, IntervalSet):
            value = _packed(value)
        elif isinstance(value, dict):
            value = {str(reason): _packed(sequences) for reason, sequences in value.items() if sequences}
        plain[item.name] = value
    return plain


def _epoch_of(plain: Mapping[str, Any]) -> Epoch:
    epoch = Epoch(int(plain["captured"]), bool(plain["closed"]), int(plain["heard_at"]), plain["first"])
    epoch.has_exact_end = bool(plain.get("has_exact_end", epoch.closed))  # older versions have no such field
    epoch.marks = [(int(at), int(captured)) for at, captured in plain["marks"]]
    for name in ("scored", "conflicting", "missed", "expired"):
        setattr(epoch, name, _unpacked(plain[name]))
    for name in ("dropped", "dead"):
        getattr(epoch, name).update({reason: _unpacked(sequences) for reason, sequences in plain[name].items()})
    return epoch


def _packed(numbers: IntervalSet) -> bytes:
    """Return a set as the differences of its bounds, which are small and compress well."""
    return np.diff(numbers.bounds(), prepend=np.uint64(0)).astype("<u8").tobytes()


def _unpacked(data: bytes) -> IntervalSet:
    return IntervalSet.of_bounds(np.frombuffer(data, "<u8").cumsum(dtype=np.uint64))


# The topic


def write(settings: Settings, at_ns: int, positions: tuple[ReadPosition, ...], state: LedgerState) -> int:
    """Write a snapshot and return its size in bytes. Raises FlawlineError when the broker does not take it."""
    data = encode_state(state)
    snapshot = LedgerSnapshot(at_ns, positions, data, messages.checksum(data))
    value = messages.encode(snapshot)
    name = settings.topic(topics.LEDGER_SNAPSHOTS.name)
    kafka_clients.ensure_topics(settings, [topics.LEDGER_SNAPSHOTS.name])
    client = kafka_clients.producer(settings)
    try:
        client.send(name, value=value, headers=messages.headers(snapshot), partition=0).get(timeout=TIMEOUT_S)
    except (KafkaError, ValueError, AssertionError) as error:
        raise FlawlineError(
            f"no snapshot of the ledger can be written to topic {name} ({one_line(error, with_type=True)}): "
            "grant WRITE on it to the ledger's and the console's user; until then each start reads all verdicts"
        ) from error
    finally:
        kafka_clients.close_producer(client, TIMEOUT_S)
    return len(value)


def was_written_since(settings: Settings, consumer: KafkaConsumer, at_ns: int) -> bool:
    """Tell whether a snapshot was written at `at_ns` (UTC) or later. Raises KafkaError."""
    place = _place(settings)
    if place.topic not in consumer.topics():
        return False
    return consumer.offsets_for_times({place: at_ns // 1_000_000})[place] is not None


def newest(settings: Settings, consumer: KafkaConsumer) -> LedgerSnapshot | None:
    """Return the newest snapshot, None when there is none.

    Raises UnusableSnapshotError when it cannot be read, KafkaError when the broker is away.
    """
    place = _place(settings)
    if place.topic not in consumer.topics():
        return None
    firsts, ends = log_bounds(consumer, [place])
    if firsts[place] >= ends[place]:
        return None
    record = records_at(consumer, {place: ends[place] - 1}).get(place)
    if record is None:
        raise UnusableSnapshotError(f"{place.topic} gives no record at offset {ends[place] - 1}")
    try:
        snapshot = messages.decode(LedgerSnapshot, record.value or b"")
    except SchemaError as error:
        raise UnusableSnapshotError(str(error)) from error
    if messages.checksum(snapshot.state) != snapshot.checksum:
        raise UnusableSnapshotError("its checksum is wrong")
    return snapshot


def require_fit(snapshot: LedgerSnapshot, consumer: KafkaConsumer) -> None:
    """Raise UnusableSnapshotError unless the topics are those that the snapshot was made of, and hold all since then.

    Raises KafkaError when the broker is away.
    """
    positions = {TopicPartition(item.topic, item.partition): item for item in snapshot.positions}
    present = consumer.topics()
    for place in positions:
        if place.topic not in present or place.partition not in (consumer.partitions_for_topic(place.topic) or ()):
            raise UnusableSnapshotError(f"{place.topic}/{place.partition} is not there any more")
    first_offsets, ends = log_bounds(consumer, positions)
    for place, item in positions.items():
        if not first_offsets[place] <= item.offset <= ends[place]:
            raise UnusableSnapshotError(
                f"{place.topic}/{place.partition} holds offsets {first_offsets[place]} to {ends[place] - 1} and was "
                f"read to {item.offset - 1}"
            )
    # A topic that was made again has other records at the same offsets.
    offsets = {place: item.last_offset for place, item in positions.items() if item.last_offset >= first_offsets[place]}
    records = records_at(consumer, offsets)
    for place, offset in offsets.items():
        item, record = positions[place], records.get(place)
        if record is None or last_read(record, item.offset) != item:
            raise UnusableSnapshotError(f"{place.topic}/{place.partition} has another record at offset {offset}")


def last_read(record: Any, offset: int) -> ReadPosition:
    """Return the position of a partition that is read to before `offset`, with `record` as the last one."""
    checksum = messages.checksum(record.value or b"")
    return ReadPosition(record.topic, record.partition, offset, record.offset, record.timestamp, checksum)


def _place(settings: Settings) -> TopicPartition:
    return TopicPartition(settings.topic(topics.LEDGER_SNAPSHOTS.name), 0)


def records_at(consumer: KafkaConsumer, offsets: Mapping[TopicPartition, int]) -> dict[TopicPartition, Any]:
    """Return the records at `offsets`; one that does not come within TIMEOUT_S, or is not there, is left out."""
    if not offsets:
        return {}
    consumer.assign(sorted(offsets))
    consumer.resume(*offsets)
    for place, offset in offsets.items():
        consumer.seek(place, offset)
    records_by_place: dict[TopicPartition, Any] = {}
    waiting = set(offsets)
    for _ in range(math.ceil(TIMEOUT_S / 0.5)):
        for place, records in consumer.poll(timeout_ms=500).items():
            if place in waiting:
                waiting.discard(place)
                consumer.pause(place)
                if records[0].offset == offsets[place]:
                    records_by_place[place] = records[0]
        if not waiting:
            break
    return records_by_place
