"""Remarks on a ledger's report, as the command line and the console show them."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.accounting import Report, SequenceRange

SHOWN_RANGES = 5


def remarks(report: Report) -> list[str]:
    """Return lines that a table of counts has no place for: missing, contradictory and left out captures."""
    lines = []
    for name, account in sorted(report.cameras.items()):
        if account.gap_ranges:
            lines.append(f"{name}: gaps: {_ranges(account.gap_ranges)}")
        if account.conflict_ranges:
            lines.append(f"{name}: more than one outcome, or behind the end: {_ranges(account.conflict_ranges)}")
    total = report.total
    if total.recovered:
        lines.append(f"{total.recovered:,} of the scored frames were dead letters before (replayed or redelivered)")
    if total.conflicting_verdicts:
        lines.append(
            f"{total.conflicting_verdicts:,} frames have verdicts that differ: the first one in the topic counts, here "
            "as in the store and the console"
        )
    if total.expired:
        lines.append(f"{total.expired:,} frames expired: they were deleted from the topic before a worker read them")
    if total.unclaimed:
        lines.append(f"{total.unclaimed:,} records are left out: they name captures far beyond what a camera reports")
    if total.left_out:
        lines.append(f"{total.left_out:,} captures are left out: they are from before the begin of the accounting")
    for reason, count in report.unidentified.items():
        lines.append(f"{count:,} dead letters ({reason}) name no capture: foreign records in the topic frames")
    lines.extend(f"unreadable: {text}" for text in report.unreadable)
    return lines


def _ranges(ranges: Sequence[SequenceRange]) -> str:
    shown = [
        f"epoch {item.epoch} sequence {item.first}" + (f" to {item.last}" if item.last > item.first else "")
        for item in ranges[:SHOWN_RANGES]
    ]
    return ", ".join(shown) + (", ..." if len(ranges) > SHOWN_RANGES else "")
