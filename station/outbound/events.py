"""Events as other systems get them: pure functions from messages of the line to JSON.

What an event tells has the names and forms that `/api/v1` has for such an object.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from discovery.shifts import Calendar
from discovery.store.database import stamp
from flawline.messages import ClassEvent, Decision, Verdict
from flawline.settings.outbound import EventKind
from station.web.camera_states import CameraState

NAMESPACE = uuid.UUID("6b1a3a64-9c39-5b52-8f0e-3a5be3b8a1c7")


@dataclass(frozen=True)
class Event:
    """One event: its id, which is the same each time that it is told; what it is about, and what it tells.

    `subject` is the name of the camera, or the id of the class. `at_ns` (UTC) is when it came to be.
    """

    kind: EventKind
    id: str
    at_ns: int
    subject: str
    data: Mapping[str, Any]
    decision: Decision | None = None

    def body(self, line: str) -> bytes:
        """Return the event as JSON; `type`, `timestamp` and `data` are where Standard Webhooks has them."""
        content = {
            "id": self.id,
            "type": self.kind,
            "timestamp": stamp(self.at_ns).isoformat(),
            "line": line,
            "data": self.data,
        }
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def event_id(line: str, kind: EventKind, identity: str) -> str:
    """Return the id of an event: a UUID of its line, its kind and what names it among those of its kind (RFC 9562)."""
    return str(uuid.uuid5(NAMESPACE, "\0".join((line, kind, identity))))


def _finite(value: float) -> float | None:
    """Return a number that JSON knows, None for infinities and what is no number."""
    return value if math.isfinite(value) else None


def of_verdict(verdict: Verdict, line: str, calendar: Calendar) -> Event:
    """Return the event of a verdict. Two verdicts on a frame have one id: the first one is the decision."""
    shift = calendar.at(verdict.captured_at)
    data = {
        "frame": verdict.frame_id,
        "camera": verdict.camera,
        "captured_at": stamp(verdict.captured_at).isoformat(),
        "decided_at": stamp(verdict.decided_at).isoformat(),
        "decision": str(verdict.decision),
        "score": _finite(verdict.score),
        "p_value": _finite(verdict.p_value),
        "group": verdict.group,
        "model": verdict.model_version,
        "part": verdict.part,
        "lot": verdict.lot,
        "view": verdict.view,
        "scene": None if verdict.scene is None else str(verdict.scene),
        "shift": shift.name or None,
        "shift_day": shift.day or None,
        "regions": [
            {"box": list(region.box), "area_px": region.area_px, "peak": _finite(region.peak)}
            for region in verdict.regions
        ],
    }
    identity = event_id(line, "verdict", verdict.frame_id)
    return Event("verdict", identity, verdict.decided_at, verdict.camera, data, verdict.decision)


def of_class(change: ClassEvent, line: str) -> Event:
    """Return the event of a change of a class, with the whole state of the class after it."""
    data = {
        "id": change.class_id,
        "name": change.name,
        "severity": change.severity,
        "state": str(change.state),
        "regions": change.members,
        "merged_into": change.merged_into,
        "parents": list(change.parents),
        "transition": str(change.transition),
        "at": stamp(change.at).isoformat(),
        "round": change.round,
        "who": change.who,
        "why": change.why,
        "selected": change.selected,
    }
    return Event("class", event_id(line, "class", change.event_id), change.at, change.class_id, data)


@dataclass(frozen=True)
class SeenCamera:
    """A camera as it is seen: its state, the capture of its last frame (UTC ns), and what has changed before it."""

    state: CameraState
    last_ns: int | None = None
    scene: str = ""


def of_camera(camera: str, seen: SeenCamera, line: str, at_ns: int) -> Event:
    """Return the event of a camera's state, which was noticed at `at_ns`.

    The words have `{since}` in place of that time, as in the interface, so that a reader writes it in local time.
    """
    data = {
        "camera": camera,
        "kind": str(seen.state.kind),
        "words": seen.state.words,
        "scene": seen.scene,
        "since": None if seen.last_ns is None else stamp(seen.last_ns).isoformat(),
    }
    return Event("camera", event_id(line, "camera", f"{camera}\0{at_ns}"), at_ns, camera, data)
