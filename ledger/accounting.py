"""The accounting of captures: `captured = scored + dropped + dead-lettered + in flight + gaps`, by sets, never by rest.

Pure: it is told what the topics say and counts. Every term is the size of its own set of sequence numbers, so the sum
is a check and no definition. Rules:

- A capture is known from the camera's watermark or because something names its sequence number.
- The same outcome told twice (redelivery) counts once. Of several dead letters of one frame, the last one counts.
- A verdict supersedes a dead letter: the frame was replayed, or redelivered after a crash, and then scored. It counts
  as scored, and is shown as `recovered`.
- Everything else that is told two outcomes is a conflict, and so is an outcome behind the end of a closed epoch.
- A capture without an outcome is in flight when it is in the log behind the workers' committed offset, or when nothing
  behind it has left the producer yet and its epoch is alive: not closed, and heard of lately. Otherwise it is a gap.
  A producer closes an epoch, maybe one of an earlier process, when nothing of it waits in memory or spool any more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flawline.intervals import IntervalSet, union
from flawline.messages import LedgerEntry

Identity = tuple[str, int, int]
"""Camera, epoch and sequence."""

SILENT_AFTER_NS = 60 * 1_000_000_000
"""An epoch without a report or a verdict for this long is taken for over: what was never published counts as lost,
until it comes after all."""

SHOWN_RANGES = 20


@dataclass(frozen=True)
class SequenceRange:
    """Sequences `first` to `last` of one epoch, both included."""

    epoch: int
    first: int
    last: int


@dataclass(frozen=True)
class Account:
    """What became of a number of captures. Two accounts of different captures can be added."""

    captured: int = 0
    scored: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    dead_lettered: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    gaps: int = 0
    conflicts: int = 0
    recovered: int = 0
    expired: int = 0
    gap_ranges: tuple[SequenceRange, ...] = ()
    conflict_ranges: tuple[SequenceRange, ...] = ()

    @property
    def accounted(self) -> int:
        """The sum that must equal `captured`."""
        terms = self.scored + self.in_flight + self.gaps
        return terms + sum(self.dropped.values()) + sum(self.dead_lettered.values())

    @property
    def balanced(self) -> bool:
        return self.conflicts == 0 and self.accounted == self.captured

    def __add__(self, other: Account) -> Account:
        return Account(
            captured=self.captured + other.captured,
            scored=self.scored + other.scored,
            dropped=_add_counts(self.dropped, other.dropped),
            dead_lettered=_add_counts(self.dead_lettered, other.dead_lettered),
            in_flight=self.in_flight + other.in_flight,
            gaps=self.gaps + other.gaps,
            conflicts=self.conflicts + other.conflicts,
            recovered=self.recovered + other.recovered,
            expired=self.expired + other.expired,
            gap_ranges=(self.gap_ranges + other.gap_ranges)[:SHOWN_RANGES],
            conflict_ranges=(self.conflict_ranges + other.conflict_ranges)[:SHOWN_RANGES],
        )

    def as_dict(self) -> dict[str, Any]:
        """The keys that `flawline ledger --json` prints for a camera and for the line."""
        return {
            "captured": self.captured,
            "scored": self.scored,
            "dropped": dict(self.dropped),
            "dead_lettered": dict(self.dead_lettered),
            "in_flight": self.in_flight,
            "gaps": self.gaps,
            "balanced": self.balanced,
            "conflicts": self.conflicts,
            "recovered": self.recovered,
            "expired": self.expired,
        }


@dataclass(frozen=True)
class Report:
    """The account of every camera, and records that could not be attributed to a capture."""

    cameras: Mapping[str, Account]
    unidentified: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    @property
    def total(self) -> Account:
        return sum(self.cameras.values(), Account())

    @property
    def balanced(self) -> bool:
        """Every capture has exactly one outcome, and everything that was said about them could be read."""
        return not self.unreadable and all(account.balanced for account in self.cameras.values())

    def only(self, cameras: Iterable[str]) -> Report:
        """The same report for some of the cameras."""
        wanted = set(cameras)
        kept = {name: account for name, account in self.cameras.items() if name in wanted}
        return Report(kept, self.unidentified, self.unreadable)

    def as_dict(self) -> dict[str, Any]:
        """What `flawline ledger --json` prints."""
        return {
            **self.total.as_dict(),
            "balanced": self.balanced,
            "unidentified": dict(self.unidentified),
            "unreadable": list(self.unreadable),
            "cameras": {name: account.as_dict() for name, account in sorted(self.cameras.items())},
        }


@dataclass
class _Epoch:
    """What is known of one producer start of one camera."""

    watermark: int = 0
    closed: bool = False
    heard_at: int = 0  # UTC ns of the newest report or verdict
    # The first sequence that is accounted for; those before it are older than the oldest verdict that is still kept.
    low: int | None = None
    scored: IntervalSet = field(default_factory=IntervalSet)
    dropped: dict[str, IntervalSet] = field(default_factory=lambda: defaultdict(IntervalSet))
    dead: dict[str, IntervalSet] = field(default_factory=lambda: defaultdict(IntervalSet))


class Ledger:
    """Takes what the topics say in any order between topics, and gives the account at any time."""

    def __init__(self, *, horizon_ns: int = 0) -> None:
        """`horizon_ns`: UTC time before which verdicts may have expired, so that older captures are left out."""
        self._horizon_ns = horizon_ns
        self._epochs: dict[tuple[str, int], _Epoch] = {}
        self._unidentified: dict[tuple[str, int, int], str] = {}

    def record_entry(self, entry: LedgerEntry) -> None:
        """A camera's watermark and dropped ranges."""
        epoch = self._epoch(entry.camera, entry.epoch)
        epoch.watermark = max(epoch.watermark, entry.captured)
        epoch.closed |= entry.closed
        epoch.heard_at = max(epoch.heard_at, entry.at)
        if epoch.low != 0 and entry.at >= self._horizon_ns:
            # Captured after this entry means captured after the horizon: from here on every verdict is still kept.
            epoch.low = entry.captured if epoch.low is None else min(epoch.low, entry.captured)
        for dropped in entry.dropped:
            epoch.dropped[dropped.reason].add(dropped.first, dropped.last)

    def record_scored(self, identity: Identity, at: int = 0) -> None:
        """A verdict that was published at `at` (UTC ns)."""
        camera, number, sequence = identity
        epoch = self._epoch(camera, number)
        epoch.scored.add(sequence)
        epoch.heard_at = max(epoch.heard_at, at)

    def record_dead_letter(self, identity: Identity, reason: str) -> None:
        """A dead letter of a known frame; a later one replaces an earlier one."""
        camera, epoch, sequence = identity
        dead = self._epoch(camera, epoch).dead
        for other, sequences in dead.items():
            if other != reason:
                sequences.discard(sequence)
        dead[reason].add(sequence)

    def record_unidentified(self, origin: tuple[str, int, int], reason: str) -> None:
        """A dead letter that names no frame; `origin` is the topic, partition and offset of what it was."""
        self._unidentified[origin] = reason

    def is_scored(self, identity: Identity) -> bool:
        """Whether the frame has a verdict."""
        camera, epoch, sequence = identity
        known = self._epochs.get((camera, epoch))
        return known is not None and sequence in known.scored

    def report(self, in_log: Iterable[Identity], now_ns: int, *, unreadable: Iterable[str] = ()) -> Report:
        """The account, where `in_log` is what the topic `frames` holds behind the workers' committed offsets."""
        waiting: dict[tuple[str, int], IntervalSet] = defaultdict(IntervalSet)
        for camera, epoch, sequence in in_log:
            waiting[camera, epoch].add(sequence)
            self._epoch(camera, epoch)
        cameras: dict[str, Account] = {}
        for (camera, epoch), known in sorted(self._epochs.items()):
            alive = not known.closed and now_ns - known.heard_at <= SILENT_AFTER_NS
            account = _account(epoch, known, waiting[camera, epoch], alive=alive)
            cameras[camera] = cameras.get(camera, Account()) + account
        return Report(cameras, _count(self._unidentified.values()), tuple(unreadable))

    def _epoch(self, camera: str, epoch: int) -> _Epoch:
        known = self._epochs.get((camera, epoch))
        if known is None:
            # An epoch is the time of its start in milliseconds, so one behind the horizon is complete.
            known = _Epoch(low=0 if epoch * 1_000_000 >= self._horizon_ns else None)
            self._epochs[camera, epoch] = known
        return known


def _account(number: int, epoch: _Epoch, in_log: IntervalSet, *, alive: bool) -> Account:
    """The account of one epoch; `alive` says that a producer may still hold captures of it."""
    dead_all = union(epoch.dead.values())
    dropped_all = union(epoch.dropped.values())
    left_producer = union((epoch.scored, dead_all, in_log))
    outcomes = left_producer | dropped_all
    # A frame that reached the log was captured, even if its camera's watermark did not get that far before a crash.
    captured = max(epoch.watermark, outcomes.last + 1 if outcomes else 0)
    if epoch.closed:
        captured = epoch.watermark
    low = captured if epoch.low is None else min(epoch.low, captured)
    captures = IntervalSet([(low, captured - 1)] if low < captured else [])

    scored = epoch.scored & captures
    dropped = {reason: sequences & captures for reason, sequences in epoch.dropped.items()}
    dead = {reason: (sequences & captures) - scored for reason, sequences in epoch.dead.items()}
    unsettled = captures - union((scored, *dropped.values(), *dead.values()))
    in_flight = unsettled & in_log
    if alive:
        at_producer = left_producer.last + 1 if left_producer else 0
        if at_producer < captured:
            in_flight = in_flight | (unsettled & IntervalSet([(at_producer, captured - 1)]))
    gaps = unsettled - in_flight

    behind_end = outcomes - IntervalSet([(0, captured - 1)] if captured else [])
    contradicted = union((_overlaps((scored, *dropped.values(), *dead.values())), behind_end))
    return Account(
        captured=len(captures),
        scored=len(scored),
        dropped=_sizes(dropped),
        dead_lettered=_sizes(dead),
        in_flight=len(in_flight),
        gaps=len(gaps),
        conflicts=len(contradicted),
        recovered=len(dead_all & scored),
        expired=low,
        gap_ranges=_shown(number, gaps),
        conflict_ranges=_shown(number, contradicted),
    )


def _overlaps(sets: Iterable[IntervalSet]) -> IntervalSet:
    """What is in more than one of the sets."""
    seen, twice = IntervalSet(), IntervalSet()
    for item in sets:
        twice = twice | (seen & item)
        seen = seen | item
    return twice


def _shown(epoch: int, sequences: IntervalSet) -> tuple[SequenceRange, ...]:
    pairs = zip(sequences.ranges(), range(SHOWN_RANGES), strict=False)
    return tuple(SequenceRange(epoch, first, last) for (first, last), _ in pairs)


def _sizes(sets: Mapping[str, IntervalSet]) -> dict[str, int]:
    return {str(reason): len(sequences) for reason, sequences in sorted(sets.items()) if sequences}


def _add_counts(one: Mapping[str, int], two: Mapping[str, int]) -> dict[str, int]:
    return {reason: one.get(reason, 0) + two.get(reason, 0) for reason in sorted({*one, *two})}


def _count(reasons: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counts[reason] += 1
    return dict(sorted(counts.items()))
