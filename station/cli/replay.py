"""`flawline replay`: the dead letters, and their frames once more to the workers."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, age_s, settings_of

if TYPE_CHECKING:
    from rich.table import Table

    from ledger.replay import Filter, Letter

SHOWN_LETTERS = 50


def replay(
    reason: Annotated[list[str] | None, typer.Option(help="Only this reason; may be repeated.")] = None,
    camera: Annotated[list[str] | None, typer.Option(help="Only this camera; may be repeated.")] = None,
    older_than: Annotated[str | None, typer.Option(metavar="AGE", help="At least this old: 90s, 30m, 12h, 7d.")] = None,
    newer_than: Annotated[str | None, typer.Option(metavar="AGE", help="At most this old.")] = None,
    send: Annotated[bool, typer.Option("--send", help="Send the open ones to the workers again.")] = False,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """List dead letters, and with --send give their frames to the workers again."""
    from ledger import replay
    from station import terminal

    settings = settings_of(config)
    wanted = _filter(reason or [], camera or [], older_than, newer_than)
    with terminal.progress("records") as advance:
        letters = replay.find(settings, wanted, advance)
    sent_count = 0
    if send:
        with terminal.progress("replay") as advance:
            sent_count = replay.send(settings, letters, advance)
    report = {
        "found": len(letters),
        "by_reason": replay.count_by_reason(letters),
        "by_status": {str(status): count for status, count in Counter(letter.status for letter in letters).items()},
        "sent": sent_count,
        "letters": [letter.as_dict() for letter in letters],
    }
    if not terminal.emit_json(report, json, json_file):
        _show(report, letters, send)


def _filter(reasons: list[str], cameras: list[str], older_than: str | None, newer_than: str | None) -> Filter:
    """Return which dead letters are wanted. Raises UsageError for a reason or an age that does not exist."""
    from flawline.messages import DeadLetterReason
    from ledger.replay import Filter

    known = [str(reason) for reason in DeadLetterReason]
    for reason in reasons:
        if reason not in known:
            raise UsageError(f"--reason {reason}: choose from {', '.join(known)}")
    return Filter(
        frozenset(map(DeadLetterReason, reasons)),
        frozenset(cameras),
        age_s(older_than, "--older-than") if older_than else None,
        age_s(newer_than, "--newer-than") if newer_than else None,
    )


def _show(report: dict[str, Any], letters: list[Letter], send: bool) -> None:
    from ledger.replay import Status
    from station import terminal

    console = terminal.out()
    if letters:
        console.print(_table(letters[-SHOWN_LETTERS:]))
    reasons = ", ".join(f"{reason} {count}" for reason, count in report["by_reason"].items())
    console.print(f"{len(letters)} dead letters" + (f": {reasons}" if reasons else ""), highlight=False)
    open_count = report["by_status"].get(Status.OPEN, 0)
    if send:
        console.print(f"{report['sent']} sent to the workers again, each confirmed by the broker", highlight=False)
    elif open_count:
        console.print(f"{open_count} of them are open: --send gives them to the workers again", highlight=False)


def _table(letters: list[Letter]) -> Table:
    """Return a table with a row for each letter, oldest first."""
    from datetime import UTC, datetime

    from rich.table import Table

    table = Table()
    for name in ("letter", "when (UTC)", "camera", "reason", "status", "error"):
        table.add_column(name, overflow="fold" if name == "error" else "ellipsis")
    for letter in letters:
        when = datetime.fromtimestamp(letter.at / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        row = (f"{letter.partition}/{letter.offset}", when, letter.camera or "", letter.reason, letter.status)
        table.add_row(*row, letter.error)
    return table
