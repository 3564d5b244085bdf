"""Names of parts, lots and views: from file names, from messages in front of a trigger, from codes. Pure.

What a capture says itself (its file name, the code in its picture) holds before what a message said. A name that is too
long for a message, or holds control characters, is cut and mended, since no capture may be lost for its name.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from flawline.clock import NS
from flawline.errors import UsageError
from flawline.field_limits import NAME
from producers.camera import Capture

REMEMBERED = 256
"""Messages that are remembered for each camera, since a capture can be named some time after it was taken. A judgement,
not measured."""


def matched(pattern: re.Pattern[str], text: str) -> dict[str, str]:
    """Return what the named groups of a pattern say of a text; nothing when it does not match the whole of it."""
    match = pattern.fullmatch(text)
    if match is None:
        return {}
    return {name: NAME.fitted(value) for name, value in match.groupdict().items() if value}


def _sendable(text: str | None) -> str | None:
    if text is not None:
        NAME.check(text, "it")
    return text or None


Name = Annotated[str | None, AfterValidator(_sendable)]


class PartMessage(BaseModel):
    """Names the part that comes in front of the cameras.

    A field that is missing leaves what was said before, null takes it back; a part takes back the trigger of the part
    before it.
    """

    model_config = ConfigDict(extra="forbid")

    part: Name = Field(None, description="Name of the part, which the next captures show.")
    lot: Name = Field(None, description="Name of the lot, which holds until another one is named.")
    trigger: Name = Field(None, description="Name of the trigger that takes the captures.")
    cameras: list[str] | None = Field(None, min_length=1, description="Cameras that see the part; by default all.")
    captures: int | None = Field(
        None,
        ge=1,
        le=10_000,
        description="Number of captures of each camera that show the part; by default any number.",
    )


def parsed(body: bytes) -> PartMessage:
    """Return the message in a JSON text. Raises UsageError in one line."""
    try:
        return PartMessage.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(place) for place in first["loc"]) or "message"
        raise UsageError(f"{key}: {first['msg'].removeprefix('Value error, ')}") from None


@dataclass(frozen=True)
class _Names:
    """What holds for a camera from `at_ns` on."""

    at_ns: int
    part_at_ns: int = 0
    part: str | None = None
    lot: str | None = None
    trigger: str | None = None
    captures: int | None = None


class PartNames:
    """Knows the part that each camera sees now. Safe for several threads."""

    def __init__(self, cameras: Iterable[str], hold_s: float) -> None:
        """`hold_s` is how long a part's name is given to captures; a lot holds until another one is named."""
        self._hold_ns = round(hold_s / NS)
        self._states = {camera: deque([_Names(0)], maxlen=REMEMBERED) for camera in cameras}
        self._counts: dict[str, tuple[_Names, int]] = {}
        self._lock = threading.Lock()

    def take(self, message: PartMessage, now_ns: int) -> list[str]:
        """Let a message hold from now on, and return its cameras. Raises UsageError for a camera that is not here."""
        cameras = sorted(self._states) if message.cameras is None else message.cameras
        for camera in cameras:
            if camera not in self._states:
                raise UsageError(
                    f"camera {camera!r} is none of this producer: it has {', '.join(sorted(self._states))}"
                )
        changes: dict[str, Any] = {
            name: getattr(message, name) for name in ("part", "lot", "trigger") if name in message.model_fields_set
        }
        if "part" in changes:
            changes = {"trigger": None, **changes, "part_at_ns": now_ns, "captures": message.captures}
        with self._lock:
            for camera in cameras:
                state = self._states[camera]
                state.append(replace(state[-1], at_ns=now_ns, **changes))
        return cameras

    def named(self, camera: str, capture: Capture) -> Capture:
        """Return a capture of a camera with the names that held when it was taken."""
        with self._lock:
            state = next(
                (state for state in reversed(self._states[camera]) if state.at_ns <= capture.captured_at), None
            )
            if state is None or state.at_ns == 0:
                return capture
            names = {"lot": state.lot}
            if state.part is not None and self._is_shown(camera, state, capture.captured_at):
                names |= {"part": state.part, "trigger": state.trigger}
        added: dict[str, Any] = {
            name: value for name, value in names.items() if value and getattr(capture, name) is None
        }
        return replace(capture, **added) if added else capture

    def _is_shown(self, camera: str, state: _Names, captured_ns: int) -> bool:
        """Count a capture of a part; return False for one that comes too late or is one too many."""
        if captured_ns - state.part_at_ns > self._hold_ns:
            return False
        last, count = self._counts.get(camera, (state, 0))
        count = count if last.part_at_ns == state.part_at_ns else 0
        self._counts[camera] = state, count + 1
        return state.captures is None or count < state.captures
