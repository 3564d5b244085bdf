"""What of a record may enter the store. A record that may not is counted with its reason; it never stops the stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from discovery import rounds
from flawline.messages import Defect, SchemaError, Verdict, decode

# What both databases can hold.
INTEGER_LIMIT: Final = 1 << 31
BIG_INTEGER_LIMIT: Final = 1 << 63
_BIG: Final = frozenset({"captured_at", "decided_at", "epoch", "sequence"})


class Rejected(Exception):
    """A record that cannot be used, with the reason under which it is counted."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(error)
        self.reason = reason


def verdict_of(value: bytes | None) -> Verdict:
    """The verdict in a record. Raises Rejected."""
    return _checked(Verdict, value)


def defect_of(value: bytes | None, dimensions: Mapping[str, int]) -> Defect:
    """The defect in a record; `dimensions` has the embedding size of each known version. Raises Rejected."""
    defect = _checked(Defect, value)
    if len(defect.heatmap.shape) != 2:
        raise Rejected("bad-heatmap", f"{defect.frame_id}: heat map of shape {list(defect.heatmap.shape)}")
    expected = dimensions.get(defect.embedding_version)
    for region in defect.regions:
        vector = region.embedding.array()
        # As it will be stored: what float16 cannot hold becomes infinite here and is found.
        problem = rounds.problem_of(vector.astype("<f2"), expected)
        if problem:
            raise Rejected("bad-embedding", f"{defect.frame_id}: {problem}")
        expected = expected or vector.size
    return defect


def _checked(kind: Any, value: bytes | None) -> Any:
    if value is None:
        raise Rejected("undecodable", "record without a value")
    try:
        message = decode(kind, value)
    except SchemaError as error:
        raise Rejected(str(error.reason), str(error)) from error
    for name, item in _leaves(message, ""):
        if isinstance(item, float) and not math.isfinite(item):
            raise Rejected("not-finite", f"{message.frame_id}: {name} is {item}")
        if isinstance(item, int) and not 0 <= item < (BIG_INTEGER_LIMIT if name in _BIG else INTEGER_LIMIT):
            raise Rejected("out-of-range", f"{message.frame_id}: {name} is {item}")
        if isinstance(item, str) and "\x00" in item:
            raise Rejected("out-of-range", f"{message.frame_id}: {name} holds a zero byte")
    return message


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _leaves(getattr(value, field.name), field.name)
    elif isinstance(value, tuple):
        for item in value:
            yield from _leaves(item, name)
    else:
        yield name, value
