"""How far a partition is with exactly-once delivery, as it stands beside the committed offset."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

DECIDED, OWED = "decided", "owed"
"""The keys of a commit's metadata, beside those of `workers.suspects.Note`; both count from the committed offset."""


@dataclass(frozen=True)
class Standing:
    """How far a partition is: all before `offset` is finished, all before `decided` has a verdict or a dead letter.

    `owed` are the offsets between the two whose verdict still wants its defect; the others between them are finished.
    """

    offset: int
    decided: int
    owed: tuple[int, ...] = ()

    def is_finished(self, offset: int) -> bool:
        """Tell whether nothing is left to do for a frame."""
        return offset < self.decided and offset not in self.owed

    def beside(self, metadata: str) -> str:
        """Return a commit's metadata with what this says beyond its offset; as it was when that is nothing."""
        if self.decided == self.offset:
            return metadata
        content = {DECIDED: self.decided - self.offset, OWED: [offset - self.offset for offset in self.owed]}
        return json.dumps(json.loads(metadata or "{}") | content, separators=(",", ":"))


def standing_of(offset: int, metadata: str | None) -> Standing:
    """Return what the last owner of a partition committed; metadata of another program says nothing."""
    try:
        content: Any = json.loads(metadata or "{}")
        owed = tuple(sorted(offset + int(further) for further in content.get(OWED, ())))
        return Standing(offset, offset + max(0, int(content.get(DECIDED, 0))), owed)
    except (ValueError, TypeError, AttributeError):
        return Standing(offset, offset)
