"""`flawline ledger`: the account of every capture, once or continuously with metrics."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from flawline.clock import utc_ns
from flawline.errors import FlawlineError, UsageError
from station.cli.options import Config, Json, JsonFile, settings_of, time_ns, until_stopped

if TYPE_CHECKING:
    from rich.table import Table

    from flawline.settings.tree import Settings
    from ledger.accounting import Account, Report
    from ledger.reader import LedgerReader

log = logging.getLogger(__name__)

SHOWN_REMARKS = 3
"""Remarks in one line of the log."""


def ledger(
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only captures since then: 2h, 7d, 2026-11-27T06:00.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep counting, and serve the figures as metrics.")] = False,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between counts, with --watch.")] = 5.0,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Account for every capture, from the topics themselves. Exit 1 when it does not balance or there are gaps.

    With --since the accounting of a camera begins at its first report after that time, one a second, and an epoch that
    began later is counted whole. Without it, it begins where verdicts begin to be kept.
    """
    if watch:
        if camera or since or json or json_file is not None:
            raise UsageError("--camera, --since, --json and --json-file do not go with --watch: leave them out")
        settings = settings_of(config, "ledger")
        until_stopped(lambda stop: watch_ledger(settings, stop, interval))
        return
    from station import terminal

    since_ns = time_ns(since, "--since", utc_ns()) if since else None
    report = _read(settings_of(config), camera or [], since_ns)
    if not terminal.emit_json(report.as_dict(), json, json_file):
        _show(report)
    if not _is_fine(report):
        raise typer.Exit(1)


def _read(settings: Settings, cameras: list[str], since_ns: int | None) -> Report:
    """Return the account of the line, or of some cameras. Raises UsageError for a camera without captures."""
    from ledger import reader
    from station import terminal

    with terminal.progress("records") as advance:
        report = reader.read(settings, advance, since_ns=since_ns)
    for camera in cameras:
        if camera not in report.cameras:
            known = ", ".join(sorted(report.cameras)) or "none yet"
            raise UsageError(f"--camera {camera}: has no captures: choose a camera that has some ({known})")
    return report.only(cameras) if cameras else report


def _is_fine(report: Report) -> bool:
    return report.balanced and not report.total.gaps


def _show(report: Report) -> None:
    from station import terminal
    from station.remarks import remarks

    console = terminal.out()
    console.print(_table(report))
    for line in remarks(report):
        console.print(line, highlight=False, markup=False)


def _table(report: Report) -> Table:
    """Return a table with a row for each camera and one for the line."""
    from rich.table import Table

    table = Table(title="Every capture has one outcome" if report.balanced else "The ledger does NOT balance")
    table.add_column("camera")
    for name in ("captured", "scored", "dropped", "dead-lettered", "in flight", "gaps"):
        table.add_column(name, justify="right")
    table.add_column("balanced", justify="center")
    for name, account in sorted(report.cameras.items()):
        table.add_row(name, *_cells(account))
    table.add_section()
    table.add_row("all", *_cells(report.total), style="bold")
    return table


def _cells(account: Account) -> list[str]:
    return [
        f"{account.captured:,}",
        f"{account.scored:,}",
        _with_reasons(account.dropped),
        _with_reasons(account.dead_lettered),
        f"{account.in_flight:,}",
        f"{account.gaps:,}",
        "yes" if account.balanced else "NO",
    ]


def _with_reasons(counts: Mapping[str, int]) -> str:
    return "\n".join(f"{reason} {count:,}" for reason, count in counts.items()) or "0"


def watch_ledger(settings: Settings, stop: threading.Event, interval_s: float) -> None:
    """Count every `interval_s`, serve the result as metrics and collect unused objects, until `stop`.

    A broker that is away is waited for.
    """
    from flawline import telemetry
    from flawline.outage import Outage
    from ledger import metrics, object_collection, reader, topic_retention

    metrics.announce(camera.name for camera in settings.cameras)
    with closing(telemetry.serve(settings.metrics.ledger_port, settings.metrics.host, *metrics.OF_THE_LEDGER)):
        ledger: LedgerReader | None = None
        was_fine, outage = True, Outage(interval_s, interval_s)
        telemetry.BROKER_WAIT_SECONDS.set_function(outage.age_s)
        object_collection.start(settings, stop)
        try:
            while not stop.is_set():
                try:
                    if ledger is None:
                        if settings.kafka.bootstrap_servers is None:
                            topic_retention.change(settings)  # nobody else does it on a broker of our own
                        ledger = reader.LedgerReader(settings)
                    report = ledger.poll()
                    reader.export(report)
                    is_fine = _is_fine(report)
                    if is_fine != was_fine:
                        log.log(logging.INFO if is_fine else logging.ERROR, "%s", _headline(report))
                    was_fine = is_fine
                    ledger.keep_snapshot()
                    ledger.export_retention()
                    outage.ended()
                except FlawlineError as error:
                    if outage.failed().is_reported:
                        log.warning("%s; trying again", error)
                stop.wait(interval_s)
        finally:
            if ledger is not None:
                ledger.close()


def _headline(report: Report) -> str:
    from station.remarks import remarks

    total = report.total
    text = f"ledger: {total.captured} captured, {total.scored} scored, {total.gaps} gaps, {total.conflicts} conflicts"
    return "; ".join([text, *remarks(report)[:SHOWN_REMARKS]])
