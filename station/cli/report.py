"""`flawline report`: yield, overkill, escapes, Pareto, classes, stops, models of a shift, a lot or a span of time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flawline.errors import UsageError
from station.cli.options import Config, Json, JsonFile, opened_store, settings_of, time_ns

if TYPE_CHECKING:
    from station.report.figures import Figures


def report(
    shift: Annotated[str | None, typer.Option(help="Shift of the calendar in line.toml.")] = None,
    day: Annotated[
        str | None, typer.Option(metavar="DATE", help="Day on which the shift begins: 2026-11-28; default today.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="From then on, in place of a shift: 2h, 7d, 2026-11-27T06:00.")
    ] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="Before then; default now.")] = None,
    lot: Annotated[str | None, typer.Option(help="Only frames of this lot.")] = None,
    camera: Annotated[str | None, typer.Option(help="Only frames of this camera.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the page to FILE, .html or .pdf.")
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Report on a shift, a lot or a span of time; by default on the shift that ended last, or on the last 24 hours."""
    if shift is not None and (since or until):
        raise UsageError(f"--shift {shift}: give a shift, or --since and --until, not both")
    if day is not None and shift is None:
        raise UsageError(f"--day {day}: name the shift that begins on this day with --shift")
    from discovery.store.filters import Filter
    from station import terminal
    from station.language import languages
    from station.report import page
    from station.report.figures import read
    from station.report.span import span_of

    if out is not None:
        page.check_name(out)
    settings = settings_of(config)
    language = languages.of_code(settings.console.language, "console.language")
    with opened_store(settings) as store:
        now_ns = store.utc_ns()
        span = span_of(
            settings.shifts,
            settings.time_zone,
            now_ns,
            shift=shift,
            day=day,
            since_ns=time_ns(since, "--since", now_ns) if since else None,
            until_ns=time_ns(until, "--until", now_ns) if until else None,
        )
        wanted = Filter(camera=camera, lot=lot)
        figures = read(store, settings.line, span, wanted, settings.retention.minutes_days)
    if out is not None:
        page.write(out, figures, settings.time_zone, language)
    written = {} if out is None else {"page": str(out)}
    if not terminal.emit_json(figures.as_dict() | written, json, json_file):
        _show(figures, settings.time_zone, out)


def _show(figures: Figures, time_zone: str, out: Path | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from station import terminal
    from station.cli.judgements import percent
    from station.report.page import shown, wall_clock

    wall = wall_clock(time_zone)
    console = terminal.out()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False)

    where = [f"lot {figures.wanted.lot}"] if figures.wanted.lot else []
    where += [f"camera {figures.wanted.camera}"] if figures.wanted.camera else []
    where += [f"shift {figures.wanted.shift} of {figures.wanted.shift_day}"] if figures.wanted.shift else []
    say(", ".join([f"{figures.line}: {wall(figures.since)} to {wall(figures.until)} ({time_zone})", *where]))
    accepted = "" if figures.accepted is None else f", {figures.accepted:.2%} accepted"
    say(f"{figures.frames:,} frames{accepted}")
    if figures.part_yield is not None:
        missing = f", of {figures.incomplete_parts:,} a view never came" if figures.incomplete_parts else ""
        say(f"{sum(figures.parts.values()):,} parts, yield {figures.part_yield:.2%}{missing}")
    say(f"overkill {percent(figures.rates.overkill)}")
    say(f"escapes  {percent(figures.rates.escape)}")
    if figures.stops is not None:
        say(f"stops: {len(figures.stops)}, {sum(stop.minutes for stop in figures.stops)} minutes")
    if figures.pareto:
        table = Table("class", "severity", "frames", "share", "down to here")
        for bar in shown(figures.pareto):
            words = (bar.name, bar.severity or "", f"{bar.frames:,}", f"{bar.share:.1%}", f"{bar.cumulative:.1%}")
            table.add_row(*map(Text, words))
        console.print(table)
    for change in figures.changes:
        word = "new" if change.transition == "confirmed" else change.transition
        say(f"{wall(change.at)} {change.class_id} {change.name or ''} {word}")
    for use in figures.models:
        say(f"model {use.version}: {use.frames:,} frames, {wall(use.first)} to {wall(use.last)}")
    if out is not None:
        say(f"page: {out}")
