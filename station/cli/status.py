"""`flawline status`: what runs on this line, and how it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from station.cli.options import Config, Json, JsonFile, settings_of

if TYPE_CHECKING:
    from rich.table import Table

VERSION_DIGITS = 12


def status(json: Json = False, json_file: JsonFile = None, config: Config = None) -> None:
    """Say what runs on this line and how it is: roles, cameras, model, ledger, lag, discovery. Exit 1 for a problem.

    It works while the broker is away, and says so. Roles are those of this machine.
    """
    from station import line_status, terminal

    report = line_status.status(settings_of(config))
    if not terminal.emit_json(report, json, json_file):
        _show(report)
    if not report["healthy"]:
        raise typer.Exit(1)


def _show(report: dict[str, Any]) -> None:
    from station import terminal

    console = terminal.out()
    for name, text in lines(report):
        console.print(f"{name:<10} {text}", highlight=False, markup=False)
    if report["cameras"]:
        console.print(_table(report["cameras"]))
    for problem in report["problems"]:
        console.print(problem, style="yellow", highlight=False, markup=False)


def lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return name and text of each line of the status."""
    count = len(report["problems"])
    head = "is well" if report["healthy"] else f"has {count} problem{'s' if count > 1 else ''}, see below"
    broker = report["broker"]
    result = [
        ("line", f"{report['line']} {head}"),
        ("roles", ", ".join(f"{role['name']} {role['state']}" for role in report["roles"]) or "none on this machine"),
        ("broker", f"{broker['address']} {'answers' if broker['answers'] else 'is away'}"),
        ("model", _model(report["model"])),
        ("ledger", _ledger(report["ledger"])),
        ("lag", _lag(report["lag"])),
        ("discovery", _discovery(report["discovery"])),
    ]
    if station := report["station"]:
        result.append(("station", f"{station['url']}{'' if station['answers'] else ' (does not run)'}"))
    return result


def _model(model: dict[str, Any] | None) -> str:
    if model is None:
        return "not known"
    if model["version"] is None:
        return f"{model['uri']}: no actor uses it yet" if model["uri"] else "none is active"
    used = f"used by {model['actors_using_it']} of {model['actors']} actors"
    text = f"{model['version'][:VERSION_DIGITS]} ({model['uri']}), {used}"
    return f"{text}; {model['problem']}" if model["problem"] else text


def _ledger(ledger: dict[str, Any] | None) -> str:
    from station.demo.summary import ledger_text

    if ledger is None:
        return "not known"
    return ledger_text(ledger)


def _lag(lag: dict[str, Any]) -> str:
    texts = []
    if lag["seconds"] is not None:
        texts.append(f"{lag['seconds']:.1f} s")
    if lag["frames"] is not None:
        texts.append(f"{lag['frames']:,} frames wait for a verdict")
    return ", ".join(texts) or "not known"


def _discovery(discovery: dict[str, Any] | None) -> str:
    if discovery is None:
        return "no store yet"
    classes = ", ".join(f"{count} {state}" for state, count in sorted(discovery["classes"].items())) or "none"
    text = f"classes: {classes}; {discovery['unassigned_regions']:,} regions without a class"
    behind = discovery["behind_records"]
    return text if behind is None else f"{text}; {behind:,.0f} records behind"


def _table(cameras: list[dict[str, Any]]) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column("camera")
    table.add_column("state")
    for name in ("last frame", "captured", "in flight", "gaps", "on disk"):
        table.add_column(name, justify="right")
    for camera in cameras:
        table.add_row(
            camera["camera"],
            camera["state"],
            _ago(camera["seconds_since_last_frame"]),
            *(_count(camera[key]) for key in ("captured", "in_flight", "gaps", "frames_on_disk")),
        )
    return table


def _ago(seconds: float | None) -> str:
    if seconds is None:
        return "never"
    for unit, size_s in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size_s:
            return f"{seconds / size_s:.0f} {unit} ago"
    return f"{seconds:.1f} s ago"


def _count(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"
