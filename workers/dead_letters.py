"""Dead letters: the original record with the reason why it has no verdict."""

from __future__ import annotations

from typing import Any

from flawline import messages
from flawline.messages import DeadLetter, DeadLetterReason
from workers.lane import Outcome, Outgoing

OVERHEAD_BYTES = 64 << 10
"""Room in the largest record for what a dead letter adds to the original value."""

ERROR_LIMIT = 2_000


def dead_letter(
    record: Any,
    reason: DeadLetterReason,
    error: str,
    at: int,
    *,
    topic: str,
    limit_bytes: int,
    frame: messages.Frame | None = None,
) -> Outcome:
    """Return the outcome that sends `record`, a consumed Kafka record, to `topic` with its key.

    A value over `limit_bytes` is cut, and the error says so: a letter that cannot be delivered would stop its camera.
    """
    value = record.value or b""
    room = max(0, limit_bytes - OVERHEAD_BYTES)
    if len(value) > room:
        error = f"{error} (only the first {room} of {len(value)} bytes are kept)"
        value = value[:room]
    letter = DeadLetter(
        reason=reason,
        error=error[:ERROR_LIMIT],
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=record.key,
        value=value,
        headers=tuple((name, content or b"") for name, content in record.headers or ()),
        at=at,
        frame_id=frame.frame_id if frame else frame_id_of(record),
    )
    outgoing = Outgoing(topic, None, record.key, messages.encode(letter), messages.headers(letter))
    return Outcome(
        outgoing,
        camera=frame.camera if frame else "unknown",
        captured_at=frame.captured_at if frame else at,
        reason=reason,
    )


def frame_id_of(record: Any) -> str | None:
    """Return the frame id that a record's headers name, None when there is no valid one; the value is not read."""
    for name, content in record.headers or ():
        if name == "frame-id":
            try:
                text = content.decode()
                messages.parse_frame_id(text)
            except (AttributeError, ValueError):
                return None
            return text
    return None
