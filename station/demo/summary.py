"""The summary as a table for a terminal, and the texts that the page shares with it."""

from __future__ import annotations

import math
from typing import Any

from rich.table import Table

from station import terminal


def show(result: dict[str, Any]) -> None:
    """Print the summary table to stdout."""
    table = Table(title="Flawline demo", title_justify="left", show_header=False, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, text in rows(result):
        table.add_row(name, text)
    terminal.out().print(table)


def rows(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and text of each line of the summary."""
    ledger, alarm, escape = result["ledger"], result["alarm_rate"], result["escape_rate"]
    quality, classes, seconds = result["quality"], result["classes"], result["seconds"]
    return [
        ("ledger", ledger_text(ledger)),
        ("frames", f"{result['frames_per_second']:.1f} a second"),
        (
            "latency",
            f"p50 {number(result['latency_ms']['p50'], 0)} ms, p99 {number(result['latency_ms']['p99'], 0)} ms",
        ),
        (
            "quality",
            f"pooled image AUROC {number(quality['pooled_image_auroc'], 4)}, "
            f"average precision {number(quality['pooled_image_ap'], 4)}",
        ),
        (
            "alarm rate",
            f"{percent(alarm['measured'])} of {alarm['good_frames']} good parts (asked for {percent(alarm['target'])})",
        ),
        ("escapes", f"{percent(escape['measured'])} of {escape['defective_frames']} defective parts were accepted"),
        (
            "classes",
            f"{classes['found']} found, {classes['true']} true kinds, ARI {number(classes['ari'], 2)}, "
            f"NMI {number(classes['nmi'], 2)} over {classes['frames']} defective frames",
        ),
        (
            "time",
            f"{seconds['to_first_verdict']:.1f} s to the first verdict, {seconds['total']:.0f} s in all; "
            f"memory {result['peak_rss_bytes'] / 2**30:.2f} GiB at most",
        ),
        *((name, path) for name, path in result["artefacts"].items()),
    ]


def ledger_text(ledger: dict[str, Any]) -> str:
    """Return the accounting in one line."""
    dropped, dead = sum(ledger["dropped"].values()), sum(ledger["dead_lettered"].values())
    waiting = f"+ {ledger['in_flight']} in flight " if ledger.get("in_flight") else ""
    verdict = "balanced" if ledger["balanced"] else "NOT BALANCED"
    return (
        f"{ledger['captured']} captured = {ledger['scored']} scored + {dropped} dropped + {dead} dead-lettered "
        f"{waiting}+ {ledger['gaps']} gaps: {verdict}"
    )


def number(value: float | None, digits: int) -> str:
    """Return a figure as text, or a dash where it does not exist. A figure below 1 is never shown as 1."""
    if value is None:
        return "-"
    if value < 1 <= round(value, digits):
        value = math.floor(value * 10**digits) / 10**digits
    return f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Return a share in percent, or a dash where it does not exist. What is not none or all is not shown so."""
    if value is None:
        return "-"
    if 0 < value < 0.0005:
        return "< 0.1 %"
    return "> 99.9 %" if 0.9995 <= value < 1 else f"{100 * value:.1f} %"
