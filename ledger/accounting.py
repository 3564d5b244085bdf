"""The accounting of captures: `captured = scored + dropped + dead-lettered + in flight + gaps`.

Pure: it counts what the reader reports from the topics. Every term is the size of a set of sequence numbers of its own,
and none is computed from the others, so the sum is a check. The rules:

1. A capture exists when the number of captures that its camera reports includes it, or when a record names it.
2. An outcome that is reported twice (redelivery) counts once. Of several dead letters of a frame the last one counts.
3. A verdict replaces a dead letter: the frame was scored after a replay, or after a crash and a redelivery. It counts
   as scored, and also as `recovered`.
4. Any other capture with two outcomes is a conflict, and so is an outcome after the end of a closed epoch.
5. A capture without an outcome is in flight when it is in the log after the workers' committed offset. It is also in
   flight when no later capture has left the producer, and its epoch is alive: not closed, and heard of recently.
6. Every other capture without an outcome is a gap.

A producer closes an epoch, also one of an earlier process, when none of its frames waits in memory or in the spool.
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
"""An epoch without a report or a verdict for this long counts as over, and its unpublished captures as gaps, until they
are published after all. A judgement, not measured: a producer reports once a second."""

SHOWN_RANGES = 20
"""At most this many ranges of gaps and of conflicts are kept to be shown."""


@dataclass(frozen=True)
class SequenceRange:
    """Sequences `first` to `last` of one epoch, both included."""

    epoch: int
    first: int
    last: int


@dataclass(frozen=True)
class Account:
    """The outcomes of a number of captures. Accounts of different captures can be added."""

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
        """Whether every capture has exactly one outcome."""
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
        """Return what `flawline ledger --json` prints of a camera and of the line."""
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
    """The account of every camera, and the records that belong to no known capture.

    `unidentified` counts dead letters without a frame id by reason; `unreadable` describes records in words.
    """

    cameras: Mapping[str, Account]
    unidentified: Mapping[str, int] = field(default_factory=dict)
    unreadable: tuple[str, ...] = ()

    @property
    def total(self) -> Account:
        """The account of all cameras together."""
        return sum(self.cameras.values(), Account())

    @property
    def balanced(self) -> bool:
        """Whether every capture has exactly one outcome and every record could be read."""
        return not self.unreadable and all(account.balanced for account in self.cameras.values())

    def only(self, cameras: Iterable[str]) -> Report:
        """Return the report for some of the cameras."""
        wanted = set(cameras)
        chosen = {name: account for name, account in self.cameras.items() if name in wanted}
        return Report(chosen, self.unidentified, self.unreadable)

    def as_dict(self) -> dict[str, Any]:
        """Return what `flawline ledger --json` prints."""
        return {
            **self.total.as_dict(),
            "balanced": self.balanced,
            "unidentified": dict(self.unidentified),
            "unreadable": list(self.unreadable),
            "cameras": {name: account.as_dict() for name, account in sorted(self.cameras.items())},
        }


@dataclass
class _Epoch:
    """The records of one camera from one start of its producer.

    `captured` is the number of captures that the camera reports, `heard_at` the time (UTC ns) of its newest report or
    verdict. `first` is the first sequence that is accounted for: verdicts of those before it may have expired. None
    means that it is not known yet.
    """

    captured: int = 0
    closed: bool = False
    heard_at: int = 0
    first: int | None = None
    scored: IntervalSet = field(default_factory=IntervalSet)
    dropped: dict[str, IntervalSet] = field(default_factory=lambda: defaultdict(IntervalSet))
    dead: dict[str, IntervalSet] = field(default_factory=lambda: defaultdict(IntervalSet))


class Ledger:
    """Collects the records of the topics, in any order between topics, and gives the account at any time."""

    def __init__(self, *, horizon_ns: int = 0) -> None:
        """Leave captures before `horizon_ns` (UTC) out, because their verdicts may have expired."""
        self._horizon_ns = horizon_ns
        self._epochs: dict[tuple[str, int], _Epoch] = {}
        self._unidentified: dict[tuple[str, int, int], str] = {}

    def record_entry(self, entry: LedgerEntry) -> None:
        """Add a report of a camera: its number of captures and its dropped ranges."""
        epoch = self._epoch(entry.camera, entry.epoch)
        epoch.captured = max(epoch.captured, entry.captured)
        epoch.closed |= entry.closed
        epoch.heard_at = max(epoch.heard_at, entry.at)
        if epoch.first != 0 and entry.at >= self._horizon_ns:
            # A capture after this report is also after the horizon, so its verdict has not expired.
            epoch.first = entry.captured if epoch.first is None else min(epoch.first, entry.captured)
        for dropped in entry.dropped:
            epoch.dropped[dropped.reason].add(dropped.first, dropped.last)

    def record_scored(self, identity: Identity, at: int = 0) -> None:
        """Add a verdict that was published at `at` (UTC ns)."""
        camera, number, sequence = identity
        epoch = self._epoch(camera, number)
        epoch.scored.add(sequence)
        epoch.heard_at = max(epoch.heard_at, at)

    def record_dead_letter(self, identity: Identity, reason: str) -> None:
        """Add a dead letter of a frame; it replaces an earlier one of the same frame."""
        camera, epoch, sequence = identity
        dead = self._epoch(camera, epoch).dead
        for other, sequences in dead.items():
            if other != reason:
                sequences.discard(sequence)
        dead[reason].add(sequence)

    def record_unidentified(self, origin: tuple[str, int, int], reason: str) -> None:
        """Add a dead letter without a frame id; `origin` is topic, partition and offset of the original record."""
        self._unidentified[origin] = reason

    def is_scored(self, identity: Identity) -> bool:
        """Tell whether the frame has a verdict."""
        camera, epoch, sequence = identity
        known = self._epochs.get((camera, epoch))
        return known is not None and sequence in known.scored

    def report(self, in_log: Iterable[Identity], now_ns: int, *, unreadable: Iterable[str] = ()) -> Report:
        """Return the account at `now_ns` (UTC); `in_log` are the frames after the workers' committed offsets.

        `unreadable` describes records that the reader could not read.
        """
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
            # An epoch is the time of its start in milliseconds: after the horizon, all of its verdicts are there.
            known = _Epoch(first=0 if epoch * 1_000_000 >= self._horizon_ns else None)
            self._epochs[camera, epoch] = known
        return known


def _account(number: int, epoch: _Epoch, in_log: IntervalSet, *, alive: bool) -> Account:
    """Return the account of the epoch `number`; `alive` says that a producer may still hold captures of it."""
    # 1. The captures: sequences from the first accounted one to the last known one.
    dead_letters = union(epoch.dead.values())
    published = union((epoch.scored, dead_letters, in_log))
    outcomes = published | union(epoch.dropped.values())
    # A frame that is published was captured, also when a crash came before its camera could report it.
    captured = max(epoch.captured, outcomes.last + 1 if outcomes else 0)
    if epoch.closed:
        captured = epoch.captured
    first = captured if epoch.first is None else min(epoch.first, captured)
    captures = _below(captured) - _below(first)

    # 2. Their outcomes, each a set of its own.
    scored = epoch.scored & captures
    dropped = {reason: sequences & captures for reason, sequences in epoch.dropped.items()}
    dead = {reason: (sequences & captures) - scored for reason, sequences in epoch.dead.items()}

    # 3. Captures without an outcome: in flight, or gaps.
    unsettled = captures - union((scored, *dropped.values(), *dead.values()))
    in_flight = unsettled & in_log
    if alive:
        first_unpublished = published.last + 1 if published else 0
        in_flight = in_flight | (unsettled - _below(first_unpublished))
    gaps = unsettled - in_flight

    # 4. Captures with two outcomes, and outcomes after the last capture.
    conflicts = _overlaps((scored, *dropped.values(), *dead.values())) | (outcomes - _below(captured))
    return Account(
        captured=len(captures),
        scored=len(scored),
        dropped=_sizes(dropped),
        dead_lettered=_sizes(dead),
        in_flight=len(in_flight),
        gaps=len(gaps),
        conflicts=len(conflicts),
        recovered=len(dead_letters & scored),
        expired=first,
        gap_ranges=_first_ranges(number, gaps),
        conflict_ranges=_first_ranges(number, conflicts),
    )


def _below(end: int) -> IntervalSet:
    """Return the sequences 0 to `end - 1`."""
    return IntervalSet([(0, end - 1)] if end > 0 else [])


def _overlaps(sets: Iterable[IntervalSet]) -> IntervalSet:
    """Return the members of more than one of the sets."""
    seen, twice = IntervalSet(), IntervalSet()
    for item in sets:
        twice = twice | (seen & item)
        seen = seen | item
    return twice


def _first_ranges(epoch: int, sequences: IntervalSet) -> tuple[SequenceRange, ...]:
    pairs = zip(sequences.ranges(), range(SHOWN_RANGES), strict=False)
    return tuple(SequenceRange(epoch, first, last) for (first, last), _ in pairs)


def _sizes(sets: Mapping[str, IntervalSet]) -> dict[str, int]:
    return {str(reason): len(sequences) for reason, sequences in sorted(sets.items()) if sequences}


def _add_counts(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {reason: left.get(reason, 0) + right.get(reason, 0) for reason in sorted({*left, *right})}


def _count(reasons: Iterable[str]) -> dict[str, int]:
    counts: dict[str, int] = defaultdict(int)
    for reason in reasons:
        counts[reason] += 1
    return dict(sorted(counts.items()))
