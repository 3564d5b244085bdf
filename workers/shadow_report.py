"""The shadow model beside the active one: how often they agree, and the frames that they decide differently."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kafka import KafkaConsumer
from kafka.errors import KafkaError
from kafka.structs import TopicPartition

from flawline import imaging, kafka_clients, messages, topics
from flawline.byte_budget import ByteBudget
from flawline.errors import FlawlineError, one_line
from flawline.messages import Codec, Decision, SchemaError, ShadowVerdict
from flawline.object_store import object_store
from flawline.settings.tree import Settings
from workers.reading import Reader, Rejected

RECORDS_LIMIT = 200_000
"""The newest shadow verdicts that are compared: half a day at five a second. It bounds memory; a judgement."""

FLIPS_LIMIT = 1_000
"""The newest frames with two decisions that are listed; all are counted."""

POLL_MS = 1_000
PICTURE_TIMEOUT_POLLS = 5

PICTURE_BYTES = 1 << 30
"""Memory that decoding one picture may take: more than the largest frame's pixels."""


@dataclass
class Comparison:
    """What two versions decided about the same frames; `counts` are by the active and the shadow decision."""

    active_version: str
    shadow_version: str
    counts: Counter[tuple[Decision, Decision]] = field(default_factory=Counter)
    flips: deque[ShadowVerdict] = field(default_factory=lambda: deque(maxlen=FLIPS_LIMIT))
    _frames: set[str] = field(default_factory=set)

    def add(self, verdict: ShadowVerdict) -> None:
        """Count a frame; of a frame that was scored twice the first result counts."""
        if verdict.frame_id in self._frames:
            return
        self._frames.add(verdict.frame_id)
        self.counts[verdict.active_decision, verdict.decision] += 1
        if verdict.active_decision is not verdict.decision:
            self.flips.append(verdict)

    @property
    def frames(self) -> int:
        """How many frames both have decided."""
        return self.counts.total()

    @property
    def agreement(self) -> float:
        """The share of frames with the same decision."""
        return sum(count for (active, shadow), count in self.counts.items() if active is shadow) / self.frames

    @property
    def flip_counts(self) -> dict[str, int]:
        """How many frames changed from which decision to which, the most frequent first."""
        return {
            f"{active} -> {shadow}": count
            for (active, shadow), count in self.counts.most_common()
            if active is not shadow
        }

    def as_dict(self) -> dict[str, object]:
        """Return the comparison for JSON."""
        return {
            "active_version": self.active_version,
            "shadow_version": self.shadow_version,
            "frames": self.frames,
            "agreement": self.agreement,
            "flips": self.flip_counts,
            "flipped_frames": [
                {
                    "frame_id": verdict.frame_id,
                    "part": verdict.part,
                    "active": {"decision": verdict.active_decision, "score": verdict.active_score},
                    "shadow": {"decision": verdict.decision, "score": verdict.score},
                    "partition": verdict.partition,
                    "offset": verdict.offset,
                }
                for verdict in self.flips
            ],
        }


def compare(verdicts: Iterable[ShadowVerdict], shadow_version: str | None = None) -> Comparison | None:
    """Return the comparison of the two versions that the newest record names; None when there is no record.

    With `shadow_version`, only its records count.
    """
    pairs: dict[tuple[str, str], Comparison] = {}
    newest: Comparison | None = None
    for verdict in verdicts:
        if shadow_version in (None, verdict.model_version):
            pair = verdict.active_version, verdict.model_version
            newest = pairs.setdefault(pair, Comparison(*pair))
            newest.add(verdict)
    return newest


def read(settings: Settings, limit: int = RECORDS_LIMIT) -> Iterator[ShadowVerdict]:
    """Yield the newest shadow verdicts, in the order of the topic. Raises FlawlineError."""
    place = TopicPartition(settings.topic(topics.SHADOW_VERDICTS.name), 0)
    client = kafka_clients.consumer(settings)
    try:
        if place.topic not in client.topics():
            return
        client.assign([place])
        begin, end = client.beginning_offsets([place])[place], client.end_offsets([place])[place]
        client.seek(place, max(begin, end - limit))
        while client.position(place) < end:
            for record in client.poll(timeout_ms=POLL_MS).get(place, []):
                try:
                    yield messages.decode(ShadowVerdict, record.value or b"")
                except SchemaError:
                    continue  # a foreign record is nothing to compare
    except KafkaError as error:
        raise FlawlineError(
            f"topic {place.topic} cannot be read ({one_line(error)}): start the broker, or grant READ on the topic"
        ) from error
    finally:
        client.close(autocommit=False)


def write_pictures(settings: Settings, flips: Iterable[ShadowVerdict], folder: Path) -> tuple[int, int]:
    """Write each frame that is still kept as a PNG in `folder`, sorted by what changed.

    Returns how many were written and how many are gone. Raises FlawlineError when the folder cannot be written or the
    broker does not answer.
    """
    is_over = threading.Event()
    is_over.set()  # an object store that is away is not waited for
    reader = Reader(settings.frames, object_store(settings), ByteBudget(PICTURE_BYTES), is_over)
    client = kafka_clients.consumer(settings)
    written = missing = 0
    try:
        for flip in sorted(flips, key=lambda verdict: (verdict.partition, verdict.offset)):
            value = _value(client, TopicPartition(settings.topic(topics.FRAMES.name), flip.partition), flip.offset)
            try:
                picture = reader.read(value)
            except (Rejected, InterruptedError):
                missing += 1
                continue
            picture.let_go()
            if picture.frame.frame_id != flip.frame_id:  # the topic was made anew
                missing += 1
                continue
            target = folder / f"{flip.active_decision}-to-{flip.decision}"
            target.mkdir(parents=True, exist_ok=True)
            name = flip.frame_id.replace(":", "_")
            (target / f"{name}.png").write_bytes(imaging.encode(picture.pixels, Codec.PNG))
            written += 1
    except KafkaError as error:
        raise FlawlineError(f"frames cannot be read ({one_line(error)}): start the broker, or grant READ") from error
    except OSError as error:
        raise FlawlineError(f"{folder}: cannot be written: {error.strerror}: choose another folder") from error
    finally:
        client.close(autocommit=False)
    return written, missing


def _value(client: KafkaConsumer, place: TopicPartition, offset: int) -> bytes | None:
    """Return the value of the record at a place of the log, None when it is not there any more."""
    client.assign([place])
    if not client.beginning_offsets([place])[place] <= offset < client.end_offsets([place])[place]:
        return None
    client.seek(place, offset)
    for _ in range(PICTURE_TIMEOUT_POLLS):
        for record in client.poll(timeout_ms=POLL_MS, max_records=1).get(place, []):
            return record.value if record.offset == offset else None
    return None
