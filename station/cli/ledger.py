"""What `flawline ledger` shows, and its continuous form that serves the metric."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from contextlib import ExitStack

from rich.table import Table

from flawline import telemetry
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from ledger import reader as ledger
from ledger.accounting import Account, Report, SequenceRange
from station import terminal

log = logging.getLogger(__name__)

SHOWN_RANGES = 5


def show(settings: Settings, cameras: Sequence[str], target: str | None) -> Report:
    """Read the account once and print it. Raises UsageError for a camera that nothing is known of."""
    with terminal.progress("records") as advance:
        report = ledger.read(settings, advance)
    for camera in cameras:
        if camera not in report.cameras:
            known = ", ".join(sorted(report.cameras)) or "none yet"
            raise UsageError(f"--camera {camera}: has no captures; cameras with captures: {known}")
    if cameras:
        report = report.only(cameras)
    if target:
        terminal.emit(report.as_dict(), target)
    else:
        console = terminal.out()
        console.print(table(report))
        for line in remarks(report):
            console.print(line, highlight=False, markup=False)
    return report


def table(report: Report) -> Table:
    """One row for each camera, one for the line."""
    result = Table(title="Every capture has one outcome" if report.balanced else "The ledger does NOT balance")
    result.add_column("camera")
    for name in ("captured", "scored", "dropped", "dead-lettered", "in flight", "gaps"):
        result.add_column(name, justify="right")
    result.add_column("balanced", justify="center")
    for name, account in sorted(report.cameras.items()):
        result.add_row(name, *_cells(account))
    result.add_section()
    result.add_row("all", *_cells(report.total), style="bold")
    return result


def _cells(account: Account) -> list[str]:
    counts = [
        f"{account.captured:,}",
        f"{account.scored:,}",
        _with_reasons(account.dropped),
        _with_reasons(account.dead_lettered),
        f"{account.in_flight:,}",
        f"{account.gaps:,}",
    ]
    return [*counts, "yes" if account.balanced else "NO"]


def _with_reasons(counts: dict[str, int] | object) -> str:
    assert isinstance(counts, dict)
    return "\n".join(f"{reason} {count:,}" for reason, count in counts.items()) or "0"


def remarks(report: Report) -> list[str]:
    """What the table cannot say: which captures are missing or contradict themselves, what was left out."""
    lines = []
    for name, account in sorted(report.cameras.items()):
        if account.gap_ranges:
            lines.append(f"{name}: gaps: {_ranges(account.gap_ranges)}")
        if account.conflict_ranges:
            lines.append(f"{name}: more than one outcome, or behind the end: {_ranges(account.conflict_ranges)}")
    total = report.total
    if total.recovered:
        lines.append(f"{total.recovered:,} of the scored frames were dead letters before (replayed or redelivered)")
    if total.expired:
        lines.append(f"{total.expired:,} captures are left out: they are older than the oldest verdict that is kept")
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


def watch(settings: Settings, stop: threading.Event, interval_s: float) -> None:
    """Count every `interval_s` and serve the result as metrics, until `stop`; a broker that is away is waited for."""
    with ExitStack() as stack:
        endpoint = telemetry.serve(settings.metrics.ledger_port, settings.metrics.host, *telemetry.OF_THE_LEDGER)
        stack.callback(endpoint.close)
        reader: ledger.LedgerReader | None = None
        was_fine = True
        try:
            while not stop.is_set():
                try:
                    reader = reader or ledger.LedgerReader(settings)
                    report = reader.poll()
                    ledger.export(report)
                    is_fine = report.balanced and not report.total.gaps
                    if is_fine != was_fine:
                        log.log(logging.INFO if is_fine else logging.ERROR, "%s", _headline(report))
                    was_fine = is_fine
                except FlawlineError as error:
                    log.warning("%s; trying again", error)
                stop.wait(interval_s)
        finally:
            if reader is not None:
                reader.close()


def _headline(report: Report) -> str:
    total = report.total
    text = f"ledger: {total.captured} captured, {total.scored} scored, {total.gaps} gaps, {total.conflicts} conflicts"
    return "; ".join([text, *remarks(report)[:3]])
