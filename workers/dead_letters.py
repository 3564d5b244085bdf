"""Dead letters: the original record with the reason why it has no verdict."""

from __future__ import annotations

from typing import Any

from flawline import messages
from flawline.field_limits import NAME, PROSE
from flawline.messages import DeadLetter, DeadLetterReason
from workers.lane import Outcome, Outgoing

OVERHEAD_BYTES = 64 << 10
"""Room in the largest record for what a dead letter adds to the original value."""

ERROR_LENGTH = 2_000
"""Most characters of an error that are kept: within PROSE's limit, whatever they are."""

KEY_BYTES = 1_024
"""Most of a key that is kept. A camera's name has 64."""

HEADERS_BYTES = 16 << 10
"""Most of the headers that are kept. A producer's have some 100."""


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

    A value over `limit_bytes`, a long key and headers beyond their limits are cut or left out, and the error says so: a
    letter that cannot be made or delivered would stop its camera.
    """
    value, key, headers = record.value or b"", record.key, _headers(record)
    room = max(0, limit_bytes - OVERHEAD_BYTES)
    lost = []
    if len(value) > room:
        lost.append(f"only the first {room} of {len(value)} bytes are kept")
        value = value[:room]
    if key is not None and len(key) > KEY_BYTES:
        lost.append(f"only the first {KEY_BYTES} of {len(key)} bytes of the key are kept")
        key = key[:KEY_BYTES]
    if left_out := len(record.headers or ()) - len(headers):
        lost.append(f"{left_out} headers are left out")
    error = " ".join([PROSE.fitted(error)[:ERROR_LENGTH], *(f"({part})" for part in lost)])
    letter = DeadLetter(
        reason=reason,
        error=error,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        key=key,
        value=value,
        headers=headers,
        at=at,
        frame_id=frame.frame_id if frame else frame_id_of(record),
    )
    outgoing = Outgoing(topic, None, key, messages.encode(letter), messages.headers(letter))
    return Outcome(
        outgoing,
        camera=frame.camera if frame else "unknown",
        captured_at=frame.captured_at if frame else at,
        reason=reason,
    )


def _headers(record: Any) -> tuple[tuple[str, bytes], ...]:
    """Return the headers of a record that a dead letter may have."""
    headers, size_bytes = [], 0
    for name, content in record.headers or ():
        try:
            NAME.check(name, "header")
        except ValueError:
            continue
        size_bytes += len(name) + len(content or b"")
        if size_bytes > HEADERS_BYTES:
            break
        headers.append((name, content or b""))
    return tuple(headers)


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
