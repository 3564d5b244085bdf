"""When an event is told, told again and given up: pure policy."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum

from flawline.messages import Decision
from flawline.settings.outbound import EventKind
from station.outbound.events import Event

LATER = frozenset({408, 425, 429})
"""Answers of the 400s that say that the same call may go well later (RFC 9110, RFC 8470, RFC 6585)."""

REFUSALS = 3
"""How often an event is told that a receiver refuses, since a receiver that is being set up refuses for a moment, too.

A judgement, not measured.
"""

LONGEST_WISH_S = 300.0
"""Longest pause that a receiver may ask for. A judgement, not measured."""


class Result(StrEnum):
    """What came of an attempt to tell."""

    DELIVERED = "delivered"
    REFUSED = "refused"
    """The receiver does not want it, and does not want it later."""
    FAILED = "failed"
    """The receiver is away, or has no time."""


class Reason(StrEnum):
    """Why an event is given up."""

    TOO_OLD = "too-old"
    REFUSED = "refused"
    EXPIRED = "expired"
    """The topic had deleted it before it was read."""
    OVERFLOW = "overflow"
    """More changes of cameras than are kept waited for a receiver that is away."""
    UNREADABLE = "unreadable"


@dataclass(frozen=True)
class Outcome:
    """What came of an attempt, in words where it did not go well, and the pause that the receiver asks for."""

    result: Result
    words: str = ""
    wish_s: float = 0.0


DELIVERED = Outcome(Result.DELIVERED)


@dataclass(frozen=True)
class Filter:
    """What a receiver is told: the kinds of events, and of the verdicts those with some decisions."""

    kinds: Collection[EventKind]
    decisions: Collection[Decision]

    def wants(self, event: Event) -> bool:
        """Return whether the receiver is told an event."""
        return event.kind in self.kinds and (event.decision is None or event.decision in self.decisions)


def outcome_of(status: int, retry_after: str | None) -> Outcome:
    """Return what an HTTP answer means. Redirections are not followed: they count as refusals."""
    words = f"answers {status}"
    if 200 <= status < 300:
        return DELIVERED
    if status >= 500 or status in LATER:
        wish_s = int(retry_after) if retry_after is not None and retry_after.isascii() and retry_after.isdigit() else 0
        return Outcome(Result.FAILED, words, min(wish_s, LONGEST_WISH_S))
    return Outcome(Result.REFUSED, words)


def is_too_old(event: Event, now_ns: int, limit_s: float) -> bool:
    """Return whether an event is not told any more. One from the future of this clock is told."""
    return now_ns - event.at_ns > limit_s * 1e9


def is_given_up(outcome: Outcome, refusals: int, is_refusing: bool) -> bool:
    """Return whether an event is given up after an attempt, its `refusals` so far counted.

    A receiver that refused the event before this one for good gets one attempt for each, until it takes one.
    """
    return outcome.result is Result.REFUSED and (is_refusing or refusals >= REFUSALS)
