"""Frames that retention deletes before a worker reads them: found here, and reported to the ledger.

A log begins behind the next offset to read when frames were deleted unread. Their sequences are unknown then. So the
last finished frame of each camera stands beside the committed offset, and the report says that captures behind it are
gone, up to the next one with an outcome (`ledger.accounting`). It is in the topic `ledger` before a frame behind the
jump is worked on, so that no crash can lose it.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from kafka.errors import KafkaError

from flawline import kafka_clients, messages, topics
from flawline.errors import FlawlineError, one_line
from flawline.messages import ExpiredFrames
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

METADATA_LIMIT_BYTES = 4_096
"""Kafka's default limit of what stands beside a committed offset (`offset.metadata.max.bytes`)."""

CONFIRM_TIMEOUT_S = 10.0  # a judgement, not measured

LAST_FRAMES = "last"
"""The key of the last finished frames in a commit's metadata, beside those of `workers.suspects.Note`."""


def with_last_frames(note: str, last: Mapping[str, tuple[int, int]]) -> str:
    """Return a commit's metadata: a note, and epoch and sequence of the last finished frame of each camera.

    The cameras that finished a frame last are left in when there is no room for all: about forty have room.
    """
    cameras = list(last.items())
    content = json.loads(note or "{}")
    while cameras:
        text = json.dumps(content | {LAST_FRAMES: dict(cameras)}, separators=(",", ":"))
        if len(text) <= METADATA_LIMIT_BYTES:
            return text
        del cameras[0]
    return note


def last_frames_of(metadata: str | None) -> dict[str, tuple[int, int]]:
    """Return epoch and sequence of the last finished frame of each camera; empty when the metadata has none."""
    try:
        return {
            str(camera): (int(epoch), int(sequence))
            for camera, (epoch, sequence) in json.loads(metadata or "{}")[LAST_FRAMES].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}


@dataclass
class ReadFrames:
    """Which frames of a partition were read, which was each camera's last one, and whether frames were missed.

    `last` is epoch and sequence of the last finished frame of each camera, the one that finished last at the end.
    `missed` are the deleted offsets (first and stop) that cameras are still reported for when their first frame comes.
    """

    next_offset: int
    last: dict[str, tuple[int, int]] = field(default_factory=dict)
    missed: tuple[int, int] | None = None
    _unfinished: deque[tuple[int, str, int, int]] = field(default_factory=deque)
    _reported: set[str] = field(default_factory=set)

    def register(self, offset: int, headers: Iterable[tuple[str, bytes]] | None) -> None:
        """Take a fetched frame down; one that is read again is known already."""
        if offset < self.next_offset:
            return
        self.next_offset = offset + 1
        if (identity := identity_of(headers)) is not None:
            self._unfinished.append((offset, *identity))

    def finish_before(self, offset: int) -> dict[str, tuple[int, int]]:
        """Return the last frames of the cameras when all before `offset` are finished."""
        while self._unfinished and self._unfinished[0][0] < offset:
            _, camera, epoch, sequence = self._unfinished.popleft()
            self.last.pop(camera, None)
            self.last[camera] = epoch, sequence
        return self.last

    def newest(self) -> dict[str, tuple[int, int]]:
        """Return epoch and sequence of the newest frame of each camera that was read, finished or not."""
        return self.last | {camera: (epoch, sequence) for _, camera, epoch, sequence in self._unfinished}

    def reports(self, partition: int, cameras: Iterable[str], at: int) -> list[ExpiredFrames]:
        """Return what to report of the missed offsets before frames of `cameras` are worked on.

        Cameras with a frame before the jump are reported at once, others when their first frame comes: nothing of them
        was read before. `at` is UTC in nanoseconds.
        """
        if self.missed is None:
            return []
        known = self.newest()
        names = sorted((set(cameras) | set(known)) - self._reported)
        places = {name: (known[name][0], known[name][1] + 1) if name in known else (0, 0) for name in names}
        return [ExpiredFrames(name, *place, partition, *self.missed, at) for name, place in places.items()]

    def jump(self, first: int, stop: int) -> None:
        """Take down that the offsets from `first` to before `stop` were deleted unread."""
        self.missed = first, stop
        self._reported.clear()

    def reported(self, reports: Iterable[ExpiredFrames]) -> None:
        """Take down that reports are in the topic."""
        self._reported |= {report.camera for report in reports}


def identity_of(headers: Iterable[tuple[str, bytes]] | None) -> tuple[str, int, int] | None:
    """Return camera, epoch and sequence that a record's headers name; None when they name none."""
    name = dict(headers or ()).get("frame-id")
    try:
        return messages.parse_frame_id(name.decode()) if name else None
    except (ValueError, UnicodeDecodeError):
        return None


def publish(settings: Settings, reports: Iterable[ExpiredFrames]) -> bool:
    """Publish reports to the topic `ledger`; return whether the broker holds all of them.

    The client is made for this: a report is rare, and must not wait behind verdicts.
    """
    name = settings.topic(topics.LEDGER.name)
    try:
        client = kafka_clients.producer(settings, topics.LEDGER.name)
    except FlawlineError as error:
        log.warning("expired frames are reported later: %s", error)
        return False
    try:
        sent = [
            client.send(
                name,
                key=report.camera.encode(),
                value=messages.encode(report),
                headers=messages.headers(report),
                partition=0,
            )
            for report in reports
        ]
        for future in sent:
            future.get(timeout=CONFIRM_TIMEOUT_S)
    except KafkaError as error:
        log.warning("expired frames are reported to topic %s later: %s", name, one_line(error, with_type=True))
        return False
    finally:
        kafka_clients.close_producer(client)
    return True


def describe(partition: Any, first: int, stop: int) -> str:
    """Return the line of the log about deleted offsets."""
    return (
        f"{stop - first} frames of partition {partition} (offsets {first} to {stop - 1}) were deleted before a worker "
        "read them: add workers, or raise the topic's retention"
    )
