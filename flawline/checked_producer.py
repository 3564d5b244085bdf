"""A Kafka producer that checks each acknowledgement.

A broker that lost its disk gives producer ids out for a second time. The new producer's first batches then look like
repetitions of the old one's: the broker acknowledges them and throws them away. Seen on Apache Kafka 4.3 with an empty
disk; the line counted the frames as published and the topic did not hold them.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from kafka import KafkaProducer
from kafka.errors import (
    IllegalStateError,
    InvalidProducerEpochError,
    KafkaError,
    KafkaTimeoutError,
    OutOfOrderSequenceNumberError,
    ProducerFencedError,
    UnknownProducerIdError,
)
from kafka.future import Future
from kafka.structs import TopicPartition


class ImplausibleAcknowledgement(KafkaError):
    """The broker acknowledged a record at an offset that it cannot have."""


CLIENT_STATE_LOST = (
    # The broker lost its log, forgot this producer, or another took its id; or the client was closed.
    OutOfOrderSequenceNumberError,
    UnknownProducerIdError,
    InvalidProducerEpochError,
    ProducerFencedError,
    IllegalStateError,
    ImplausibleAcknowledgement,
)
"""Errors that a new producer cures: they say nothing about the record."""


class Acknowledgements:
    """Tells whether an acknowledged offset can be true. Not thread-safe: the producer's one sender thread calls it.

    A record that is sent now gets an offset at or behind the end that the log had when the producer was made, and
    behind those of all earlier records of this producer in the partition.
    """

    def __init__(self, ends: Mapping[TopicPartition, int]) -> None:
        self._next = dict(ends)

    def check(self, partition: TopicPartition, offset: int) -> None:
        """Take an acknowledged offset into account. Raises ImplausibleAcknowledgement."""
        expected = self._next.get(partition, 0)
        if offset < expected:
            raise ImplausibleAcknowledgement(
                f"{partition.topic} [{partition.partition}]: the broker acknowledges offset {offset} for a record that "
                f"belongs at {expected} or behind: its log was replaced, or it takes this producer for another one"
            )
        self._next[partition] = offset + 1


class CheckedFuture(Future):
    """The answer to one record: its metadata, or the error."""

    __slots__ = ("_answered",)

    def __init__(self) -> None:
        super().__init__()
        self._answered = threading.Event()

    def success(self, value: Any) -> Any:
        """Give the record's metadata."""
        try:
            return super().success(value)
        finally:
            self._answered.set()

    def failure(self, e: Any) -> Any:
        """Give the error."""
        try:
            return super().failure(e)
        finally:
            self._answered.set()

    def answered(self, timeout: float) -> bool:
        """Wait for the answer for at most `timeout` seconds; return whether it is there."""
        return self._answered.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the answer; return the metadata. Raises the error, or KafkaTimeoutError after `timeout` seconds."""
        if not self._answered.wait(timeout):
            raise KafkaTimeoutError(f"no answer after {timeout} s")
        if self.exception is not None:
            raise self.exception
        return self.value


class CheckedProducer(KafkaProducer):
    """A KafkaProducer whose futures fail with ImplausibleAcknowledgement when the broker cannot have the record."""

    def __init__(self, ends: Mapping[TopicPartition, int], **options: Any) -> None:
        """Connect with the `options` of KafkaProducer; `ends` are the ends of the logs as they are now."""
        self._acknowledgements = Acknowledgements(ends)
        super().__init__(**options)

    def send(self, topic: str, *arguments: Any, **options: Any) -> CheckedFuture:
        """Queue a record as KafkaProducer does; return the future of its checked answer."""
        checked = CheckedFuture()
        answer = super().send(topic, *arguments, **options)
        answer.add_callback(self._check, checked)
        answer.add_errback(checked.failure)
        return checked

    def _check(self, checked: CheckedFuture, metadata: Any) -> None:
        try:
            self._acknowledgements.check(metadata.topic_partition, metadata.offset)
        except ImplausibleAcknowledgement as error:
            checked.failure(error)
        else:
            checked.success(metadata)
