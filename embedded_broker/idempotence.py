"""The sequences of idempotent producers in one partition: a retried batch is recognised, a hole is refused (KIP-98)."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from embedded_broker.batch import BatchError, BatchHeader
from embedded_broker.protocol import ErrorCode

REMEMBERED_BATCHES: Final = 5  # as many as a producer may have in flight
_EXPIRY_MS: Final = 24 * 3600 * 1000  # producer.id.expiration.ms of Apache Kafka
_MAX_SEQUENCE: Final = 0x7FFFFFFF


class _Appended(NamedTuple):
    first_sequence: int
    last_sequence: int
    base_offset: int


@dataclass(slots=True)
class _Producer:
    epoch: int
    last_append_ms: int
    batches: deque[_Appended] = field(default_factory=lambda: deque(maxlen=REMEMBERED_BATCHES))


class ProducerStates:
    """The last batches that each idempotent producer appended to one partition."""

    def __init__(self) -> None:
        self._producers: dict[int, _Producer] = {}

    def duplicate_of(self, header: BatchHeader) -> int | None:
        """Return the offset at which this batch is in the log already; None when it is the next in order.

        Raises `BatchError` for a fenced epoch or a sequence that leaves a hole. A producer that is unknown,
        perhaps because retention deleted its batches, may start with any sequence.
        """
        known = self._producers.get(header.producer_id)
        if header.producer_id < 0 or known is None:
            return None
        if header.producer_epoch < known.epoch:
            raise BatchError(
                ErrorCode.INVALID_PRODUCER_EPOCH,
                f"producer {header.producer_id} has moved on to epoch {known.epoch}",
            )
        if header.producer_epoch > known.epoch:
            if header.base_sequence == 0:
                return None
            raise _out_of_order(header, 0)
        last_sequence = _advanced(header.base_sequence, header.record_count - 1)
        for appended in known.batches:
            if appended[:2] == (header.base_sequence, last_sequence):
                return appended.base_offset
        expected = _advanced(known.batches[-1].last_sequence, 1)
        if header.base_sequence == expected:
            return None
        if header.base_sequence < expected:
            raise BatchError(
                ErrorCode.DUPLICATE_SEQUENCE_NUMBER,
                f"producer {header.producer_id} sent sequence {header.base_sequence} again, {expected} is next",
            )
        raise _out_of_order(header, expected)

    def appended(self, header: BatchHeader, base_offset: int, now_ms: int) -> None:
        """Remember that the batch went into the log at `base_offset`."""
        if header.producer_id < 0:
            return
        known = self._producers.get(header.producer_id)
        if known is None or known.epoch != header.producer_epoch:
            known = self._producers[header.producer_id] = _Producer(header.producer_epoch, now_ms)
        known.last_append_ms = now_ms
        # The offset delta, not the record count: compaction removes records but leaves the sequences as they were.
        last_sequence = _advanced(header.base_sequence, header.last_offset_delta)
        known.batches.append(_Appended(header.base_sequence, last_sequence, base_offset))

    def expire(self, now_ms: int) -> None:
        """Forget producers that appended nothing for a day."""
        for producer_id in [
            producer_id for producer_id, known in self._producers.items() if now_ms - known.last_append_ms > _EXPIRY_MS
        ]:
            del self._producers[producer_id]

    def dump(self) -> list[list[int]]:
        """Return the state as rows of numbers, for `restore`."""
        return [
            [producer_id, known.epoch, known.last_append_ms, *appended]
            for producer_id, known in self._producers.items()
            for appended in known.batches
        ]

    def restore(self, rows: list[list[int]]) -> None:
        """Replace the state with what `dump` returned."""
        self._producers.clear()
        for producer_id, epoch, last_append_ms, *appended in rows:
            known = self._producers.setdefault(producer_id, _Producer(epoch, last_append_ms))
            known.batches.append(_Appended(*appended))


def _advanced(sequence: int, count: int) -> int:
    """Return `sequence + count`; after 2^31 - 1 comes 0, as producers count."""
    return (sequence + count) & _MAX_SEQUENCE


def _out_of_order(header: BatchHeader, expected: int) -> BatchError:
    return BatchError(
        ErrorCode.OUT_OF_ORDER_SEQUENCE_NUMBER,
        f"producer {header.producer_id} sent sequence {header.base_sequence}, {expected} is next",
    )
