"""Frames that may have killed the process that worked on them, and how often.

A frame that makes native code crash, or that takes all memory, ends its process without a word. So the note beside the
committed offset (the metadata field of Kafka's offset commit) says what is in work, for the partition's next
owner:

- No note: the last owner left in order, nothing is suspected.
- `begun`: the last owner was at work, the furthest frame it had begun is named. From the committed offset to there,
  and a margin beyond, frames are suspects, each with one attempt behind it.
- `until` and `trying`: the last owner tried the suspects up to `until` one at a time, and was at one of them.
- `owner`: the process that wrote the note. While it lives on this machine its frames killed nobody: it lost the
  partition because the broker or the network was away.

Suspects are tried one at a time, each noted before it begins; so of those, only the frame that kills is blamed again.
The last attempt leaves the description out (`workers.describing`), in case that is what kills.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from dataclasses import dataclass, fields
from typing import Any, Self

import psutil

from workers.expiry import LAST_FRAMES
from workers.standing import DECIDED, OWED

ATTEMPT_LIMIT = 3
"""Attempts until a frame is a dead letter. A judgement, not measured: one death may be the machine's, two bad luck."""

MARGIN = 64
"""Frames behind the furthest noted one that are suspected too: they may have begun after the last commit.

A judgement: 0.2 s between commits at 300 frames a second. A killer behind it is met again in the next attempt, when
the committed offset is nearer to it.
"""

TRANSACTION_MARGIN = 16
"""The same with exactly-once delivery: each transaction writes the notes, and each trial costs two of them.

A judgement: 0.05 s at 300 frames a second.
"""


@functools.cache
def this_process() -> str:
    """Return a name for this process that no other one has: its host, number and start time."""
    return f"{socket.gethostname()}/{os.getpid()}/{psutil.Process().create_time():.2f}"


def lives(owner: str) -> bool:
    """Tell whether the process named `owner` is alive on this machine; False for a process of another machine."""
    host, _, rest = owner.rpartition("/")[0].rpartition("/")
    if host != socket.gethostname() or not rest.isdigit():
        return False
    try:
        started = psutil.Process(int(rest)).create_time()
    except psutil.Error:
        return False
    return owner == f"{host}/{rest}/{started:.2f}"


@dataclass(frozen=True)
class Note:
    """What the owner of a partition writes beside the committed offset. Offsets; `attempt` is of `trying`."""

    begun: int | None = None
    until: int | None = None
    trying: int | None = None
    attempt: int = 0
    owner: str = ""

    def text(self) -> str:
        """Return the note as the commit's metadata; "" when there is nothing to say."""
        values = {name: value for name, value in vars(self).items() if value != getattr(Note, name)}
        return json.dumps(values, separators=(",", ":")) if values.keys() - {"owner"} else ""

    @classmethod
    def of(cls, text: str | None) -> Self:
        """Read a commit's metadata; what another program wrote there, or a newer version, is no note."""
        try:
            values: Any = json.loads(text or "{}")
            known = {field.name for field in fields(cls)}
            for key in (LAST_FRAMES, DECIDED, OWED):
                values.pop(key, None)
            if values.keys() - known:
                return cls()
            return cls(owner=str(values.pop("owner", "")), **{name: int(value) for name, value in values.items()})
        except (ValueError, TypeError, AttributeError):
            return cls()


@dataclass(frozen=True)
class Suspicion:
    """Which frames of a partition are suspects: those before offset `until`; `trying` has had `attempt` attempts."""

    until: int
    trying: int | None = None
    attempt: int = 0

    def attempts_before(self, offset: int) -> int:
        """Return how many attempts a suspect has behind it."""
        return self.attempt if offset == self.trying else 1


def suspicion(note: Note, log_end: int, margin: int = MARGIN) -> Suspicion | None:
    """Return what a note says of frames that are in the log, which ends before offset `log_end`; None for nothing."""
    if note.until is not None:
        return Suspicion(min(note.until, log_end), note.trying, note.attempt)
    if note.begun is not None:
        return Suspicion(min(note.begun + 1 + margin, log_end))
    return None
