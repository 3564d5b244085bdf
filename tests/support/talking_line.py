"""Writes the records that producers and workers would write to the topics of a line."""

from __future__ import annotations

import time
from typing import Any

from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from flawline import kafka_clients, messages
from flawline.messages import (
    Codec,
    DeadLetter,
    DeadLetterReason,
    Decision,
    DroppedRange,
    Frame,
    LedgerEntry,
    Message,
    Timings,
    Verdict,
)
from flawline.settings.tree import Settings
from flawline.topics import WORKERS_GROUP

CONFIRM_S = 20


class TalkingLine:
    """Writes records; every method returns when the broker has confirmed them."""

    def __init__(self, settings: Settings, camera: str = "cam", epoch: int = 1_000) -> None:
        self.settings = settings
        self.camera = camera
        self.epoch = epoch
        self._writer = kafka_clients.producer(settings)

    def close(self) -> None:
        self._writer.close()

    def say(self, topic: str, message: Message, *, partition: int = 0, headers: Any = None) -> Any:
        """Write a message to a topic; return the record's metadata."""
        return self._writer.send(
            self.settings.topic(topic),
            key=getattr(message, "camera", self.camera).encode(),
            value=messages.encode(message),
            headers=messages.headers(message) if headers is None else headers,
            partition=partition,
        ).get(CONFIRM_S)

    def captured(self, count: int, *, dropped: tuple[DroppedRange, ...] = (), closed: bool = False) -> None:
        entry = LedgerEntry(self.camera, self.epoch, count, dropped, time.time_ns(), closed)
        self.say("ledger", entry)

    def frame(self, sequence: int) -> Any:
        data = b"pixels-%d" % sequence
        frame = Frame(
            camera=self.camera,
            epoch=self.epoch,
            sequence=sequence,
            captured_at=time.time_ns(),
            codec=Codec.JPEG,
            height=4,
            width=4,
            channels=3,
            data=data,
            checksum=messages.checksum(data),
            size_bytes=len(data),
        )
        return self.say("frames", frame, partition=1)

    def scored(self, *sequences: int, version: str = "m", score: float = 0.0) -> None:
        for sequence in sequences:
            verdict = Verdict(
                camera=self.camera,
                epoch=self.epoch,
                sequence=sequence,
                captured_at=1,
                decided_at=2,
                model_version=version,
                group=0,
                raw_score=0.0,
                score=score,
                p_value=0.5,
                decision=Decision.ACCEPT,
                regions=(),
                timings=Timings(0, 0, 0, 0),
            )
            self.say("verdicts", verdict, partition=1)

    def dead(self, record: Any, sequence: int | None, reason: DeadLetterReason, headers: Any = None) -> Any:
        """Write a dead letter of a record of `frames` (its metadata), with its frame id when there is a `sequence`."""
        identity = None if sequence is None else messages.frame_id(self.camera, self.epoch, sequence)
        original = headers or [("schema", b"frame/1"), *([("frame-id", identity.encode())] if identity else [])]
        letter = DeadLetter(
            reason=reason,
            error="said by a test",
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=self.camera.encode(),
            value=b"original bytes of %d" % record.offset,
            headers=tuple(original),
            at=time.time_ns(),
            frame_id=identity,
        )
        return self.say("dead-letters", letter)

    def committed(self, offset: int) -> None:
        """Commit as the workers do when they have finished everything before `offset` of the camera's partition."""
        client = kafka_clients.consumer(self.settings, group=WORKERS_GROUP)
        try:
            partition = TopicPartition(self.settings.topic("frames"), 1)
            client.assign([partition])
            client.commit({partition: OffsetAndMetadata(offset, "", -1)})
        finally:
            client.close()

    def frames(self) -> list[Any]:
        """Return every record in `frames`."""
        client = kafka_clients.consumer(self.settings)
        try:
            partition = TopicPartition(self.settings.topic("frames"), 1)
            client.assign([partition])
            end = client.end_offsets([partition])[partition]
            client.seek_to_beginning(partition)
            records: list[Any] = []
            while client.position(partition) < end:
                records += client.poll(timeout_ms=500).get(partition, [])
            return records
        finally:
            client.close()
