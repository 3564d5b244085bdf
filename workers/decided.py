"""Frames that have a verdict already: a worker that takes a partition over decides none of them again.

An owner that dies, or loses its partition, leaves frames with a verdict in the topic and without a committed offset.
The next owner reads them again. Before the first one begins it reads the end of the topic `verdicts` back, whose
partitions are those of `frames`: a frame that it finds there keeps its verdict. One that was not accepted is scored
once more, only to describe it, because its defect may be missing.

Verdicts leave in the order of the log. So the way back ends at a frame that is finished: all before it are too.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from flawline import clock, kafka_clients, messages, telemetry, topics
from flawline.errors import FlawlineError, UsageError, one_line
from flawline.messages import Defect, Frame, SchemaError, Tensor, Verdict
from flawline.settings.tree import Settings
from scorer.regions import regions
from workers import verdicts
from workers.expiry import identity_of
from workers.lane import Job

if TYPE_CHECKING:
    from scorer.detector import Detector

log = logging.getLogger(__name__)

Identity = tuple[str, int, int]
"""Camera, epoch and sequence of a frame."""

TAILS = (512, 4096)
"""Verdicts at the end of a partition that are read back: first these, then up to so many. A judgement: 512 are 25 s of
a camera at 20 Hz, where a commit every 0.2 s leaves four; many more are left while a description holds the commit.
Measured on two busy cores, both brokers: up to 0.03 s for 512, 0.1 s for 4,096, and 0.15 s once for the client."""

BYTES_LIMIT = 32 << 20
"""Bytes of verdicts that are read back; one takes some 600. A judgement, not measured."""

TRY_S = 2.0
"""How long one try may hold up the thread that polls."""

PATIENCE_S = 10.0
"""How long frames wait for a topic that cannot be read. Then they are decided again, as they would be without it."""


class Recall:
    """Reads back, for one partition after the other, which frames have a verdict. Not thread-safe.

    The client stays open until `close`: a new one takes 0.1 s, and an actor takes many partitions over at once.
    """

    def __init__(self, settings: Settings, now: clock.Monotonic = clock.monotonic) -> None:
        self._settings = settings
        self._now = now
        self._tried_since: dict[int, float] = {}
        self._client: KafkaConsumer | None = None

    def __call__(self, partition: int, last: Mapping[str, tuple[int, int]]) -> dict[Identity, bytes] | None:
        """Return the first verdict, encoded, of each frame of a partition behind the `last` finished ones.

        `last` is epoch and sequence of each camera's last finished frame. Returns None when it must be tried again,
        as while the broker is away. A topic that cannot be read for PATIENCE_S, or not back far enough, counts as
        unknown.
        """
        started = self._tried_since.setdefault(partition, self._now())
        try:
            decided, is_complete = self._read(partition, last)
        except (KafkaError, FlawlineError) as error:
            if self._client is None and not isinstance(error, UsageError):
                started = self._tried_since[partition] = self._now()  # the broker is away: nothing could be sent anyway
            self.close()
            if not kafka_clients.is_refusal(error) and self._now() - started < PATIENCE_S:
                log.debug("verdicts of partition %d are read back later: %s", partition, one_line(error))
                return None
            log.warning("frames of partition %d may be decided twice, since the topic %s cannot be read: %s", partition,
                        self._settings.topic(topics.VERDICTS.name), one_line(error))  # fmt: skip
            decided, is_complete = {}, False
        del self._tried_since[partition]
        if not is_complete:
            telemetry.UNKNOWN_VERDICTS.inc()
        if decided:
            log.info("partition %d: %d frames have a verdict already", partition, len(decided))
        return decided

    def close(self) -> None:
        """Give the client back; the next call makes another one."""
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(KafkaError):
                client.close(autocommit=False)

    def _read(self, partition: int, last: Mapping[str, tuple[int, int]]) -> tuple[dict[Identity, bytes], bool]:
        """Return the verdicts, and whether all of them were found. Raises KafkaError and FlawlineError."""
        place = TopicPartition(self._settings.topic(topics.VERDICTS.name), partition)
        if self._client is None:
            self._client = kafka_clients.consumer(self._settings, max_poll_records=2_000)
        client = self._client
        decided: dict[Identity, bytes] = {}
        room_bytes = BYTES_LIMIT
        try:
            client.assign([place])
            until = self._now() + TRY_S
            try:
                begin = client.beginning_offsets([place], timeout_ms=int(1000 * TRY_S))[place]
                stop = end = client.end_offsets([place], timeout_ms=int(1000 * TRY_S))[place]
            except KafkaError:
                if partition in (client.partitions_for_topic(place.topic) or ()):
                    raise
                return {}, True
            for size in TAILS:
                start = max(begin, end - size)
                records = []
                for record in self._between(client, place, start, stop, until):
                    room_bytes -= len(record.value or b"")
                    if room_bytes < 0:
                        break
                    records.append(record)
                # From the newest to the oldest: of two verdicts on a frame the first one stays.
                for record in reversed(records):
                    if (identity := identity_of(record.headers)) and not _is_finished(identity, last):
                        decided[identity] = record.value
                if room_bytes < 0:
                    break
                if start == begin or any(_is_finished(identity_of(record.headers), last) for record in records[:1]):
                    return decided, True
                stop = start
            return decided, False
        finally:
            client.unsubscribe()  # else it would go on to fetch

    def _between(
        self, client: KafkaConsumer, place: TopicPartition, start: int, stop: int, until: float
    ) -> Iterator[Any]:
        """Yield the records of a place from offset `start` to before `stop`. Raises FlawlineError after `until`."""
        client.seek(place, start)
        while client.position(place) < stop:
            if self._now() > until:
                raise FlawlineError(f"{place.topic} is not read to its end within {TRY_S:g} s")
            for record in client.poll(timeout_ms=100).get(place, []):
                if record.offset < stop:
                    yield record


def _is_finished(identity: Identity | None, last: Mapping[str, tuple[int, int]]) -> bool:
    return identity is not None and identity[0] in last and identity[1:] <= last[identity[0]]


def verdict_on(job: Job) -> Verdict | None:
    """Return the verdict that a job's frame had when its partition was taken over, None when it had none."""
    decided, identity = job.lane.decided, identity_of(job.record.headers)
    value = decided.pop(identity, None) if decided and identity else None
    try:
        return messages.decode(Verdict, value) if value is not None else None
    except SchemaError as error:
        log.warning("partition %d offset %d is decided again: its verdict cannot be read: %s", job.record.partition,
                    job.offset, error)  # fmt: skip
        return None


def as_decided(defect: Defect, verdict: Verdict) -> Defect:
    """Return a description, maybe by another model, of a frame that `verdict` has decided."""
    return replace(
        defect,
        model_version=verdict.model_version,
        group=verdict.group,
        score=verdict.score,
        p_value=verdict.p_value,
        decision=verdict.decision,
    )


def bare_defect(frame: Frame, verdict: Verdict, detector: Detector) -> Defect:
    """Return the defect of a decided frame that cannot be described: its heat map shows the verdict's regions."""
    scale = min(1.0, verdicts.HEATMAP_SIDE_LIMIT / max(frame.height, frame.width))
    heatmap = np.zeros((max(1, round(frame.height * scale)), max(1, round(frame.width * scale))), np.float32)
    for region in verdict.regions:
        x, y, width, height = (round(side * scale) for side in region.box)
        area = heatmap[y : y + max(1, height), x : x + max(1, width)]
        np.maximum(area, region.peak, out=area)
    return Defect(
        camera=frame.camera,
        epoch=frame.epoch,
        sequence=frame.sequence,
        captured_at=frame.captured_at,
        model_version=verdict.model_version,
        group=verdict.group,
        score=verdict.score,
        p_value=verdict.p_value,
        decision=verdict.decision,
        height=frame.height,
        width=frame.width,
        embedding_version=regions.embedding_version(detector.embedding_version, closer=True),
        heatmap=Tensor.of(verdicts.coarse(heatmap), "float16"),
        regions=(),
        part=frame.part,
        lot=frame.lot,
    )
