"""What of a record may enter the store. A record that may not is counted with its reason; it never stops the stream."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from discovery.learned import augment
from discovery.round import single_round
from flawline.errors import FlawlineError
from flawline.messages import Defect, SchemaError, Tensor, Verdict, decode

if TYPE_CHECKING:
    from discovery.learned.crop_backbone import CropBackbone

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
    """Return the verdict in a record. Raises Rejected."""
    return _checked(Verdict, value)


def defect_of(value: bytes | None, dimensions: Mapping[str, int], forgotten_before: int = 0) -> Defect:
    """Return the defect in a record. Raises Rejected.

    `dimensions` has the embedding size of each known version. Captures before `forgotten_before` (ns UTC) are refused:
    they may have been counted and forgotten.
    """
    defect = _checked(Defect, value)
    if defect.captured_at < forgotten_before:
        raise Rejected("expired", f"{defect.frame_id}: older than retention.defect_rows_days")
    if len(defect.heatmap.shape) != 2:
        raise Rejected("bad-heatmap", f"{defect.frame_id}: heat map of shape {list(defect.heatmap.shape)}")
    expected = dimensions.get(defect.embedding_version)
    for region in defect.regions:
        vector = region.embedding.array()
        # As it will be stored: what float16 cannot hold becomes infinite here and is found.
        problem = single_round.problem_of(vector.astype("<f2"), expected)
        if problem:
            raise Rejected("bad-embedding", f"{defect.frame_id}: {problem}")
        expected = expected or vector.size
    return defect


def described_by_crops(defect: Defect, backbone: CropBackbone) -> Defect:
    """Return the defect with embeddings of its crops in place of those that the worker sent. Raises Rejected."""
    try:
        vectors = backbone.embed([augment.decode(region.crop, region.mask) for region in defect.regions])
    except FlawlineError as error:
        raise Rejected("bad-crop", f"{defect.frame_id}: {error}") from error
    regions = tuple(
        replace(region, embedding=Tensor.of(vector, "float16"))
        for region, vector in zip(defect.regions, vectors, strict=True)
    )
    return replace(defect, regions=regions, embedding_version=backbone.version)


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
