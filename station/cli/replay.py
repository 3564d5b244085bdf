"""What `flawline replay` shows and does."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime

from rich.table import Table

from flawline.settings.tree import Settings
from ledger import replay
from ledger.replay import Filter, Letter, Status
from station import terminal

SHOWN_LETTERS = 50


def run(settings: Settings, wanted: Filter, send: bool, target: str | None) -> None:
    """List the dead letters that are wanted; with `send`, give the open ones to the workers again."""
    with terminal.progress("records") as advance:
        letters = replay.find(settings, wanted, advance)
    sent = 0
    if send:
        with terminal.progress("replay") as advance:
            sent = replay.send(settings, letters, advance)
    statuses = {str(status): count for status, count in Counter(letter.status for letter in letters).items()}
    if target:
        summary = {"found": len(letters), "by_reason": replay.count_by_reason(letters), "by_status": statuses}
        terminal.emit({**summary, "sent": sent, "letters": [letter.as_dict() for letter in letters]}, target)
        return
    console = terminal.out()
    if letters:
        console.print(table(letters[-SHOWN_LETTERS:]))
    reasons = ", ".join(f"{reason} {count}" for reason, count in replay.count_by_reason(letters).items())
    console.print(f"{len(letters)} dead letters" + (f": {reasons}" if reasons else ""), highlight=False)
    still_open = statuses.get(Status.OPEN, 0)
    if send:
        console.print(f"{sent} sent to the workers again, each confirmed by the broker", highlight=False)
    elif still_open:
        console.print(f"{still_open} of them are open: --send gives them to the workers again", highlight=False)


def table(letters: list[Letter]) -> Table:
    """One row for each letter, oldest first."""
    result = Table()
    for name in ("letter", "when (UTC)", "camera", "reason", "status", "error"):
        result.add_column(name, overflow="fold" if name == "error" else "ellipsis")
    for letter in letters:
        when = datetime.fromtimestamp(letter.at / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%S")
        row = (f"{letter.partition}/{letter.offset}", when, letter.camera or "", letter.reason, letter.status)
        result.add_row(*row, letter.error)
    return result
