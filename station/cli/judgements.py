"""`flawline judgements`: what people say of single frames, the rates that follow, and the false alarms as images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import UsageError
from flawline.user import user_name
from station.cli.options import Config, Json, JsonFile, debuggable, opened_store, settings_of, time_ns

if TYPE_CHECKING:
    from discovery.quality_rates import Estimate
    from discovery.store.judgements import Filter

app = typer.Typer(
    help="Judgements of frames: list them, judge, take back, overkill and escape rates, export false alarms.",
    no_args_is_help=True,
)

Camera = Annotated[str | None, typer.Option(help="Only frames of this camera.")]
Since = Annotated[str | None, typer.Option(metavar="TIME", help="Only frames since then: 2h, 7d, 2026-11-27T06:00.")]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Only frames before then.")]
Word = Annotated[
    str, typer.Argument(metavar="JUDGEMENT", help="real (a defect), false (an alarm for nothing), unsure.")
]
Why = Annotated[str | None, typer.Option(help="Reason, which is kept with the judgement.")]


@app.command("list")
@debuggable
def list_judgements(
    camera: Camera = None,
    since: Since = None,
    until: Until = None,
    only: Annotated[str | None, typer.Option(metavar="JUDGEMENT", help="Only real, false or unsure ones.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="List at most so many, the latest first.")] = 50,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """List the judgements that hold, the latest first, with what waits and who judged how many."""
    from discovery.store import judgements
    from station import terminal

    if only is not None and only not in list(judgements.Judgement):
        raise UsageError(f"--only {only}: choose from {', '.join(judgements.Judgement)}")
    wanted = _filter(camera, since, until)
    with opened_store(settings_of(config)) as store:
        rows = judgements.latest(store, wanted, limit, only)
        report: dict[str, Any] = {
            "judgements": [judgements.as_dict(row) for row in rows],
            "waiting": {str(queue): count for queue, count in judgements.backlogs(store, wanted).items()},
            "people": judgements.by_person(store, wanted),
        }
    if not terminal.emit_json(report, json, json_file):
        _show_list(report)


def _show_list(report: Mapping[str, Any]) -> None:
    from rich.table import Table
    from rich.text import Text

    from station import terminal

    table = Table()
    for column in ("captured", "frame", "decision", "judgement", "who", "judged", "why"):
        table.add_column(column)
    for row in report["judgements"]:
        times = [row[name][:16].replace("T", " ") for name in ("captured_at", "at")]
        words = [times[0], row["frame"], row["stratum"], row["judgement"], row["who"], times[1], row["why"] or ""]
        table.add_row(*map(Text, words))  # a text, so that brackets in it are no markup
    console = terminal.out()
    console.print(table)
    for who, counts in report["people"].items():
        text = ", ".join(f"{count} {word}" for word, count in counts.items())
        console.print(f"{who}: {text}", highlight=False, markup=False)
    waiting = report["waiting"]
    console.print(f"{waiting['alarms']} alarms and {waiting['audit']} accepted frames wait", highlight=False)


@app.command("judge")
@debuggable
def judge(
    frame: Annotated[str, typer.Argument(metavar="FRAME", help="Id of the frame.")],
    judgement: Word,
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Judge a frame that has a picture. Since it was looked up and not offered, it does not count in the rates."""
    from discovery.store import judgements

    with opened_store(settings_of(config)) as store:
        entry = judgements.judge(store, frame, judgement, who=user_name() or "unknown", why=why)
    _show_entry(entry, "is judged", json, json_file)


@app.command("undo")
@debuggable
def undo(
    frame: Annotated[
        str | None, typer.Argument(metavar="[FRAME]", help="Id of the frame; default the last that you judged.")
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Take back the last judgement of a frame, or your last one."""
    from discovery.store import judgements

    with opened_store(settings_of(config)) as store:
        entry = judgements.undo(store, who=user_name() or "unknown", frame_id=frame)
    _show_entry(entry, "is no longer judged", json, json_file)


def _show_entry(entry: dict[str, Any], what: str, json: bool, json_file: Path | None) -> None:
    from station import terminal

    if not terminal.emit_json(entry, json, json_file):
        terminal.out().print(f"{entry['frame']} {what} {entry['judgement']}", highlight=False, markup=False)


@app.command("rates")
@debuggable
def rates(
    camera: Camera = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Show overkill and escapes with 95 % intervals, from the frames that were offered and judged, by whole hours."""
    from discovery import quality_rates
    from discovery.store import judgements
    from station import terminal

    with opened_store(settings_of(config)) as store:
        strata = judgements.judged(store, _filter(camera, since, until))
    report = quality_rates.report(strata)
    if terminal.emit_json(report, json, json_file):
        return
    estimates = quality_rates.rates(strata)
    console = terminal.out()
    for words, estimate in (
        ("good parts that were not accepted (overkill)", estimates.overkill),
        ("defective parts that were accepted (escape)", estimates.escape),
        ("frames not accepted that show no defect", estimates.false_alarm_share),
        ("accepted frames that show a defect", estimates.escapes_per_accepted),
    ):
        console.print(f"{words:46} {percent(estimate)}", highlight=False)
    for part in strata:
        console.print(f"{part.stratum:16} {part.frames:>10,} frames, {part.judgements:,} judged", highlight=False)


def percent(estimate: Estimate) -> str:
    """Return an estimate as in `1.2 % (0.4 % to 3.1 %)`; a dash where nothing is judged."""
    interval = f"{estimate.low:.2%} to {estimate.high:.2%}"
    return f"not known ({interval})" if estimate.value is None else f"{estimate.value:.2%} ({interval})"


@app.command("export")
@debuggable
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the images; it may exist.")],
    camera: Camera = None,
    since: Since = None,
    until: Until = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Write the false alarms as images, byte for byte as captured, for `flawline extend MODEL DIR`.

    Only frames that were not accepted and whose last judgement is *false* are written.
    """
    from discovery.pictures.export import export_pictures
    from discovery.store import judgements
    from station import terminal

    settings = settings_of(config)
    with opened_store(settings) as store:
        pictures = judgements.false_alarms(store, _filter(camera, since, until))
    with terminal.progress("frames") as advance:
        exported = export_pictures(settings, pictures, folder, advance)
    report = {"folder": str(folder), "exported": list(exported.written), "gone": list(exported.gone)}
    if terminal.emit_json(report, json, json_file):
        return
    console = terminal.out()
    console.print(_exported(len(exported.written), len(exported.gone), folder), highlight=False, markup=False)
    if exported.written:
        text = f"next: flawline extend MODEL {folder}, then flawline publish MODEL-extended --role shadow"
        console.print(text, highlight=False, markup=False)


def _exported(written: int, gone: int, folder: Path) -> str:
    text = f"{written} false alarms are in {folder}"
    return f"{text}; the pictures of {gone} others are gone" if gone else text


def _filter(camera: str | None, since: str | None, until: str | None) -> Filter:
    from discovery.store.filters import Filter
    from flawline.clock import utc_ns

    now_ns = utc_ns()
    return Filter(
        camera=camera,
        since_ns=time_ns(since, "--since", now_ns) if since else None,
        until_ns=time_ns(until, "--until", now_ns) if until else None,
    )
