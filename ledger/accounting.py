"""The accounting of captures: `captured = scored + dropped + dead-lettered + in flight + gaps`.

Pure: it counts what the reader reports from the topics. Every term is the size of a set of sequence numbers of its own,
and none is computed from the others, so the sum is a check. The rules:

1. A capture exists when the number of captures that its camera reports includes it, or when a record names it that is
   less than UNREPORTED_LIMIT sequences ahead of this number. Records further ahead belong to no camera that is known:
   they are `unclaimed`, and count nowhere else.
2. An outcome that is reported twice (redelivery) counts once. Of several dead letters of a frame the last one counts,
   of several verdicts the first one. A frame whose verdicts differ is counted in `conflicting_verdicts`.
3. A verdict replaces a dead letter: the frame was scored after a replay, or after a crash and a redelivery. It counts
   as scored, and also as `recovered`.
4. Any other capture with two outcomes is a conflict, and so is an outcome after the exact end of a closed epoch.
5. A capture without an outcome is in flight when it is in the log after the workers' committed offset. It is also in
   flight when no later capture that its camera reports has left the producer, and its epoch is alive: not closed, and
   heard of recently.
6. A capture that is not in flight is dropped with the reason `expired` when a worker found that frames of its camera
   had been deleted unread: from the first that the worker reports, to the next capture with a verdict or dead letter.
7. Every other capture without an outcome is a gap. Only captures that their camera reports can be gaps.

A producer closes an epoch, also one of an earlier process, when none of its frames waits in memory or in the spool. It
does not know the exact end of the latter: a process that is killed may not have noted its last captures.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from flawline.intervals import IntervalSet, union
from flawline.messages import DropReason, ExpiredFrames, LedgerEntry

Identity = tuple[str, int, int]
"""Camera, epoch and sequence."""

SILENT_AFTER_NS = 60 * 1_000_000_000
"""An epoch without a report or a verdict for this long counts as over, and its unpublished captures as gaps, until they
are published after all. A judgement, not measured: a producer reports once a second."""

UNREPORTED_LIMIT = 10_000
"""How many sequences ahead of its camera's newest report a record may be. A judgement, not measured: a producer reports
once a second, so a camera of 100 frames a second may be late by 100 s."""

COMPARED_VERDICTS = 2_000
"""How many of a camera's newest verdicts are remembered, to be compared with a second one of the same frame. A
judgement, not measured: a worker commits several times a second, so a redelivery comes within seconds."""

SCORE_TOLERANCE = 1e-3
"""Scores that differ less are the same: the neighbours in a batch change the last digits. A judgement, not measured;
decisions are compared exactly."""

MARK_INTERVAL_NS = 3600 * 1_000_000_000
"""How fine the times are from which captures can be forgotten. A judgement, not measured: a week is 168 marks."""

NO_LAST = (1 << 63) - 1
"""The last sequence of a range without end."""

SETTLED_AFTER_NS = 60 * 1_000_000_000
"""After this time the topics hold every outcome that was on its way when frames were found expired. A judgement, not
measured: a worker that cannot publish for longer reads its frames again."""

SHOWN_RANGES = 20
"""At most this many ranges of gaps and of conflicts, and unreadable records, are kept to be shown."""


@dataclass(frozen=True)
class SequenceRange:
    """Sequences `first` to `last` of one epoch, both included."""

    epoch: int
    first: int
    last: int


class VerdictContent(NamedTuple):
    """What a verdict says about its frame; two verdicts of one frame are compared by it."""

    model_version: str
    decision: str
    score: float

    def agrees(self, other: VerdictContent) -> bool:
        """Tell whether two verdicts say the same."""
        same = (self.model_version, self.decision) == (other.model_version, other.decision)
        return same and abs(self.score - other.score) <= SCORE_TOLERANCE


@dataclass(frozen=True)
class Account:
    """The outcomes of a number of captures. Accounts of different captures can be added.

    `left_out` counts the captures before the begin of the accounting, which are in no other number.
    """

    captured: int = 0
    scored: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict)
    dead_lettered: Mapping[str, int] = field(default_factory=dict)
    in_flight: int = 0
    gaps: int = 0
    contradictions: int = 0
    conflicting_verdicts: int = 0
    recovered: int = 0
    unclaimed: int = 0
    left_out: int = 0
    gap_ranges: tuple[SequenceRange, ...] = ()
    conflict_ranges: tuple[SequenceRange, ...] = ()

    @property
    def accounted(self) -> int:
        """The sum that must equal `captured`."""
        terms = self.scored + self.in_flight + self.gaps
        return terms + sum(self.dropped.values()) + sum(self.dead_lettered.values())

    @property
    def expired(self) -> int:
        """How many of the dropped captures were deleted from the topic before a worker read them."""
        return self.dropped.get(DropReason.EXPIRED, 0)

    @property
    def conflicts(self) -> int:
        """How many captures have two outcomes, or two verdicts that differ. Only the former unbalance the account."""
        return self.contradictions + self.conflicting_verdicts

    @property
    def balanced(self) -> bool:
        """Whether every capture has exactly one outcome."""
        return self.contradictions == 0 and self.accounted == self.captured

    def __add__(self, other: Account) -> Account:
        return Account(
            captured=self.captured + other.captured,
            scored=self.scored + other.scored,
            dropped=_add_counts(self.dropped, other.dropped),
            dead_lettered=_add_counts(self.dead_lettered, other.dead_lettered),
            in_flight=self.in_flight + other.in_flight,
            gaps=self.gaps + other.gaps,
            contradictions=self.contradictions + other.contradictions,
            conflicting_verdicts=self.conflicting_verdicts + other.conflicting_verdicts,
            recovered=self.recovered + other.recovered,
            unclaimed=self.unclaimed + other.unclaimed,
            left_out=self.left_out + other.left_out,
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
            "conflicting_verdicts": self.conflicting_verdicts,
            "recovered": self.recovered,
            "expired": self.expired,
            "unclaimed": self.unclaimed,
            "left_out": self.left_out,
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
class Epoch:
    """The records of one camera from one start of its producer.

    `captured` is the number of captures that the camera reports, and there are no more when the epoch `has_exact_end`.
    `heard_at` is the time (UTC ns) of its newest report or verdict. `first` is the first sequence that is accounted
    for: verdicts of those before it may have expired. None means that it is not known yet. `marks` are times (UTC ns,
    ascending) with the number of captures that was reported then. `missed` are captures that were not in the log when
    it was searched for them. `expired` are captures that are expired when they have no outcome.
    """

    captured: int = 0
    closed: bool = False
    heard_at: int = 0
    first: int | None = None
    marks: list[tuple[int, int]] = field(default_factory=list)
    scored: IntervalSet = field(default_factory=IntervalSet)
    conflicting: IntervalSet = field(default_factory=IntervalSet)
    missed: IntervalSet = field(default_factory=IntervalSet)
    expired: IntervalSet = field(default_factory=IntervalSet)
    dropped: dict[str, IntervalSet] = field(default_factory=lambda: defaultdict(IntervalSet))
    dead: dict[str, IntervalSet] = field(default_factory=lambda: defaultdict(IntervalSet))
    has_exact_end: bool = False

    def next_published(self, sequence: int) -> int | None:
        """Return the first claimed capture from `sequence` on with a verdict or dead letter; None without one."""
        sets = (self.scored, *self.dead.values())
        members = [member for item in sets if (member := item.next_member(sequence)) is not None]
        return min((member for member in members if member < self.captured + UNREPORTED_LIMIT), default=None)

    def is_alive(self, now_ns: int) -> bool:
        """Tell whether the producer may still hold captures."""
        return not self.closed and now_ns - self.heard_at <= SILENT_AFTER_NS

    def mark(self, at: int, captured: int) -> None:
        """Keep the time of a report, when no kept one is near it."""
        index = bisect_left(self.marks, (at, captured))
        near = self.marks[max(0, index - 1) : index + 1]
        if all(abs(at - other) >= MARK_INTERVAL_NS for other, _ in near):
            self.marks.insert(index, (at, captured))

    def forget_before(self, horizon_ns: int) -> None:
        """Leave out the captures that are surely from before `horizon_ns` (UTC): those of a mark from before it."""
        older = bisect_left(self.marks, (horizon_ns, 0))
        if older == 0:
            return
        if self.first is not None:
            self.first = max(self.first, self.marks[older - 1][1])
        del self.marks[: older - 1]
        if self.first:
            outcomes = (self.scored, *self.dropped.values(), *self.dead.values())
            for sequences in (*outcomes, self.conflicting, self.missed, self.expired):
                sequences.discard(0, self.first - 1)


@dataclass
class LedgerState:
    """All that a ledger knows. `horizon_ns` (UTC) is the begin of the accounting.

    `compared` are the newest verdicts by camera, then by epoch and sequence, oldest first. `expired_from` are the first
    captures of a camera, by epoch and sequence, that may have been deleted unread, with the time (UTC ns) of the
    report, until it is settled where they end. `unidentified` are the offsets of records that name no capture, by
    topic, partition and reason. `unreadable` are the times (UTC ns) and descriptions of records that cannot be read.
    """

    horizon_ns: int = 0
    epochs: dict[tuple[str, int], Epoch] = field(default_factory=dict)
    compared: dict[str, dict[tuple[int, int], VerdictContent]] = field(default_factory=lambda: defaultdict(dict))
    expired_from: dict[str, dict[tuple[int, int], int]] = field(default_factory=lambda: defaultdict(dict))
    unidentified: dict[tuple[str, int, str], IntervalSet] = field(default_factory=lambda: defaultdict(IntervalSet))
    unreadable: list[tuple[int, str]] = field(default_factory=list)


class Ledger:
    """Collects the records of the topics, in any order between topics, and gives the account at any time."""

    def __init__(self, *, horizon_ns: int = 0, state: LedgerState | None = None) -> None:
        """Go on from `state`, or begin at `horizon_ns` (UTC): the verdicts of captures before it may have expired."""
        self.state = state or LedgerState(horizon_ns)

    def record_entry(self, entry: LedgerEntry) -> None:
        """Add a report of a camera: its number of captures and its dropped ranges."""
        epoch = self._epoch(entry.camera, entry.epoch)
        epoch.captured = max(epoch.captured, entry.captured)
        epoch.closed |= entry.closed
        epoch.has_exact_end |= entry.closed and entry.exact
        epoch.heard_at = max(epoch.heard_at, entry.at)
        epoch.mark(entry.at, entry.captured)
        if epoch.first is None and entry.at >= self.state.horizon_ns:
            # A capture after this report is also after the horizon, so its verdict has not expired.
            epoch.first = entry.captured
        for dropped in entry.dropped:
            epoch.dropped[dropped.reason].add(dropped.first, dropped.last)

    def record_expired(self, expired: ExpiredFrames) -> None:
        """Add a worker's report that frames of a camera were deleted before a worker read them."""
        self.state.expired_from[expired.camera].setdefault((expired.epoch, expired.sequence), expired.at)

    def record_scored(self, identity: Identity, at: int = 0, content: VerdictContent | None = None) -> None:
        """Add a verdict that was published at `at` (UTC ns) and says `content`; the first one of a frame counts."""
        camera, number, sequence = identity
        epoch = self._epoch(camera, number)
        epoch.heard_at = max(epoch.heard_at, at)
        compared = self.state.compared[camera]
        if sequence in epoch.scored:
            first = compared.get((number, sequence))
            if first is not None and content is not None and not first.agrees(content):
                epoch.conflicting.add(sequence)
            return
        epoch.scored.add(sequence)
        if content is not None:
            compared[number, sequence] = content
            if len(compared) > COMPARED_VERDICTS:
                del compared[next(iter(compared))]

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
        topic, partition, offset = origin
        self.state.unidentified[topic, partition, reason].add(offset)

    def record_unreadable(self, at: int, text: str) -> None:
        """Add a record of `at` (UTC ns) that cannot be read; `text` says where it is, and why."""
        if len(self.state.unreadable) < SHOWN_RANGES:
            self.state.unreadable.append((at, text))

    def is_scored(self, identity: Identity) -> bool:
        """Tell whether the frame has a verdict."""
        camera, epoch, sequence = identity
        known = self.state.epochs.get((camera, epoch))
        return known is not None and sequence in known.scored

    def unexplained(self, in_log: Iterable[Identity], now_ns: int) -> dict[tuple[str, int], IntervalSet]:
        """Return captures by epoch that are in flight if the log holds them beside `in_log`, and else expired or gaps.

        Captures that a search of the log has missed before are left out.
        """
        self._expired_ranges(now_ns)
        waiting = _by_epoch(in_log)
        result = {}
        for key, epoch in self.state.epochs.items():
            split = _split(epoch, waiting[key], alive=epoch.is_alive(now_ns))
            if captures := split.unsettled - split.in_flight - epoch.expired - epoch.missed:
                result[key] = captures
        return result

    def record_missed(self, searched: Mapping[tuple[str, int], IntervalSet], in_log: Iterable[Identity]) -> None:
        """Take down which of the `searched` captures are not among the frames `in_log`."""
        waiting = _by_epoch(in_log)
        for key, captures in searched.items():
            epoch = self.state.epochs[key]
            epoch.missed = epoch.missed | (captures - waiting[key])

    def forget_before(self, horizon_ns: int) -> None:
        """Leave out the captures before `horizon_ns` (UTC), to the hour, which bounds what is kept."""
        state = self.state
        if horizon_ns <= state.horizon_ns:
            return
        state.horizon_ns = horizon_ns
        state.unreadable = [(at, text) for at, text in state.unreadable if at >= horizon_ns]
        for key, epoch in list(state.epochs.items()):
            if epoch.heard_at < horizon_ns and key[1] * 1_000_000 < horizon_ns:
                del state.epochs[key]
            elif key[1] * 1_000_000 < horizon_ns:
                epoch.forget_before(horizon_ns)

    def report(self, in_log: Iterable[Identity], now_ns: int) -> Report:
        """Return the account at `now_ns` (UTC); `in_log` are the frames after the workers' committed offsets."""
        waiting = _by_epoch(in_log)
        for camera, number in waiting:
            self._epoch(camera, number)
        expired_ranges = self._expired_ranges(now_ns)
        cameras: dict[str, Account] = {}
        for (camera, number), epoch in sorted(self.state.epochs.items()):
            expired = epoch.expired | expired_ranges[camera, number]
            alive = epoch.is_alive(now_ns)
            account = _account(number, epoch, waiting[camera, number], expired, alive=alive)
            cameras[camera] = cameras.get(camera, Account()) + account
        unidentified: dict[str, int] = defaultdict(int)
        for (_, _, reason), offsets in sorted(self.state.unidentified.items()):
            unidentified[reason] += len(offsets)
        unreadable = tuple(text for _, text in self.state.unreadable)
        return Report(cameras, dict(sorted(unidentified.items())), unreadable)

    def _expired_ranges(self, now_ns: int) -> defaultdict[tuple[str, int], IntervalSet]:
        """Return the ranges by epoch whose captures are expired when they have no outcome.

        A range begins where a worker reports it and ends before the next capture with a verdict or dead letter, which
        may be in a later epoch of the camera. Those whose end cannot change any more, as SETTLED_AFTER_NS have gone by
        at `now_ns` (UTC), are kept with their epoch, where neighbours become one.
        """
        ranges: defaultdict[tuple[str, int], IntervalSet] = defaultdict(IntervalSet)
        for camera, reports in list(self.state.expired_from.items()):
            numbers = sorted(number for name, number in self.state.epochs if name == camera)
            for place, at in sorted(reports.items()):
                spans = list(self._spans_from(camera, numbers[bisect_left(numbers, place[0]) :], place))
                has_end = bool(spans) and spans[-1][2] is not None
                is_settled = has_end and now_ns - at > SETTLED_AFTER_NS
                if is_settled:
                    del reports[place]
                for number, start, stop in spans:
                    epoch = self.state.epochs[camera, number]
                    end = stop if stop is not None else epoch.captured if has_end else NO_LAST
                    if start < end:
                        (epoch.expired if is_settled else ranges[camera, number]).add(start, end - 1)
        return ranges

    def _spans_from(
        self, camera: str, numbers: Iterable[int], place: tuple[int, int]
    ) -> Iterator[tuple[int, int, int | None]]:
        """Return epoch, start and stop of the ranges behind `place` (epoch and sequence); `numbers` are its epochs on.

        Only the last range can have a stop: the first published capture behind `place`.
        """
        for number in numbers:
            start = place[1] if number == place[0] else 0
            stop = self.state.epochs[camera, number].next_published(start)
            yield number, start, stop
            if stop is not None:
                return

    def _epoch(self, camera: str, number: int) -> Epoch:
        epoch = self.state.epochs.get((camera, number))
        if epoch is None:
            # An epoch is the time of its start in milliseconds: after the horizon, all of its verdicts are there.
            epoch = Epoch(first=0 if number * 1_000_000 >= self.state.horizon_ns else None)
            self.state.epochs[camera, number] = epoch
        return epoch


class _Split(NamedTuple):
    """The captures of an epoch: all, those without an outcome, and those of the latter that are in flight.

    `outcomes` are all that records name, `claimed` those of them that can belong to the camera. `settled` are the
    outcomes that are no frame in the log.
    """

    captures: IntervalSet
    unsettled: IntervalSet
    in_flight: IntervalSet
    claimed: IntervalSet
    outcomes: IntervalSet
    settled: IntervalSet


def _split(epoch: Epoch, in_log: IntervalSet, *, alive: bool) -> _Split:
    """Return which captures of an epoch exist and which are in flight; `in_log` are those that wait for a worker."""
    # 1. The captures: those that the camera reports, and those that were published before it could report them.
    reported = _below(epoch.captured)
    settled = union((epoch.scored, *epoch.dead.values(), *epoch.dropped.values()))
    outcomes = settled | in_log
    claimed = outcomes & _below(epoch.captured + UNREPORTED_LIMIT)
    captures = reported if epoch.has_exact_end else reported | claimed
    if epoch.first is None:
        captures = IntervalSet()
    elif epoch.first:
        captures = captures - _below(epoch.first)

    # 2. Those without an outcome. A record ahead of the reports says nothing about those before it.
    unsettled = captures - settled
    in_flight = unsettled & in_log
    if alive:
        published = (epoch.scored, *epoch.dead.values(), in_log)
        passed = max((part.last + 1 for item in published if (part := item & reported)), default=0)
        in_flight = in_flight | (unsettled - _below(passed))
    return _Split(captures, unsettled, in_flight, claimed, outcomes, settled)


def _account(number: int, epoch: Epoch, in_log: IntervalSet, expired: IntervalSet, *, alive: bool) -> Account:
    """Return the account of the epoch `number`.

    `in_log` are its frames that wait for a worker, `expired` those captures that are expired when they have no outcome;
    `alive` says that a producer may still hold captures of it.
    """
    split = _split(epoch, in_log, alive=alive)
    captures = split.captures
    scored = epoch.scored & captures
    dropped = {reason: sequences & captures for reason, sequences in epoch.dropped.items()}
    dead = {reason: sequences & captures for reason, sequences in epoch.dead.items()}
    recovered = conflicts = IntervalSet()
    outcomes = (epoch.scored, *epoch.dead.values(), *epoch.dropped.values())
    if sum(map(len, outcomes)) != len(split.settled):  # some capture has two outcomes, which is rare and takes long
        recovered = union(epoch.dead.values()) & scored
        dead = {reason: sequences - scored for reason, sequences in dead.items()}
        conflicts = _overlaps((scored, *dropped.values(), *dead.values()))
    unexplained = split.unsettled - split.in_flight
    unread = unexplained & expired
    dropped[DropReason.EXPIRED] = dropped.get(DropReason.EXPIRED, IntervalSet()) | unread
    gaps = unexplained - unread
    # Captures with two outcomes, and outcomes after the last capture.
    contradictions = conflicts | (split.claimed - _below(epoch.captured) if epoch.has_exact_end else IntervalSet())
    return Account(
        captured=len(captures),
        scored=len(scored),
        dropped=_sizes(dropped),
        dead_lettered=_sizes(dead),
        in_flight=len(split.in_flight),
        gaps=len(gaps),
        contradictions=len(contradictions),
        conflicting_verdicts=len(epoch.conflicting & captures),
        recovered=len(recovered),
        unclaimed=len(split.outcomes) - len(split.claimed),
        left_out=epoch.captured if epoch.first is None else min(epoch.first, epoch.captured),
        gap_ranges=_first_ranges(number, gaps),
        conflict_ranges=_first_ranges(number, contradictions | (epoch.conflicting & captures)),
    )


def _by_epoch(identities: Iterable[Identity]) -> defaultdict[tuple[str, int], IntervalSet]:
    """Return the sequences by camera and epoch."""
    result: defaultdict[tuple[str, int], IntervalSet] = defaultdict(IntervalSet)
    for camera, epoch, sequence in identities:
        result[camera, epoch].add(sequence)
    return result


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
