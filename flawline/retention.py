"""What goes first: the policy of retention by value, by age, by size and by free bytes of a disk. Pure.

Whoever owns files or rows asks it with what it holds, and removes what it names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Generic, TypeVar

Key = TypeVar("Key")


class Value(IntEnum):
    """How much a picture is worth, the least first: the order in which pictures go when there is no room."""

    SAMPLE = 0
    """A sample of accepted frames."""
    NEAR_MISS = 1
    """A frame for review."""
    DISMISSED = 2
    """A frame of a class that people call no defect."""
    DEFECT = 3
    """A rejected frame."""


@dataclass(frozen=True)
class Holding(Generic[Key]):
    """Things of one value that can go together; `at_ns` is the time of the newest of them, `key` names them.

    The lower the value, the sooner they go: a Value, or another number of things that are no pictures.
    """

    key: Key
    value: int
    at_ns: int
    size_bytes: int


@dataclass(frozen=True)
class Limits:
    """How long each value is kept (a value without an age is kept for ever), and how large all of them may be."""

    ages_ns: Mapping[int, int] = field(default_factory=dict)
    limit_bytes: int | None = None


@dataclass(frozen=True)
class Going(Generic[Key]):
    """What has to go: because it is too old, and because there is no room, the least valuable and oldest first."""

    too_old: tuple[Holding[Key], ...] = ()
    too_much: tuple[Holding[Key], ...] = ()


def going(holdings: Iterable[Holding[Key]], limits: Limits, now_ns: int, lacking_bytes: int = 0) -> Going[Key]:
    """Return what has to go at `now_ns`; `lacking_bytes` are what the disk has less free than it should.

    1. All that is older than its value's age goes.
    2. Of the rest, the least valuable and oldest goes until it is within the limit and, with what went by age, has
       freed what the disk lacks. What frees nothing stays.
    """
    too_old: list[Holding[Key]] = []
    rest: list[Holding[Key]] = []
    for holding in holdings:
        age_ns = limits.ages_ns.get(holding.value)
        (too_old if age_ns is not None and holding.at_ns < now_ns - age_ns else rest).append(holding)
    excess = 0 if limits.limit_bytes is None else sum(item.size_bytes for item in rest) - limits.limit_bytes
    excess = max(excess, lacking_bytes - sum(item.size_bytes for item in too_old))
    too_much = []
    for holding in sorted(rest, key=lambda item: (item.value, item.at_ns)):
        if excess <= 0:
            break
        if holding.size_bytes > 0:
            too_much.append(holding)
            excess -= holding.size_bytes
    return Going(tuple(too_old), tuple(too_much))
