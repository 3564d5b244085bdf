"""`flawline classes`: the defect classes, and what people decide about them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.errors import UsageError
from flawline.user import user_name
from station.cli.options import Config, Json, JsonFile, debuggable, opened_store, settings_of

if TYPE_CHECKING:
    from discovery.store.store import Store

app = typer.Typer(help="Defect classes: list them, name them, merge them, and take it back.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(metavar="CLASS", help="Id or name of the class.")]
Why = Annotated[str | None, typer.Option(help="Reason, for the audit trail.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it without asking.")]


@app.command("list")
@debuggable
def list_classes(
    everything: Annotated[bool, typer.Option("--all", help="Include merged and dismissed classes.")] = False,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """List the classes, the largest first."""
    from rich.table import Table

    from discovery.store import class_commands
    from station import terminal

    with opened_store(settings_of(config)) as store:
        classes = class_commands.list_classes(store, everything)
    if terminal.emit_json({"classes": classes}, json, json_file):
        return
    table = Table()
    for column in ("class", "name", "severity", "state", "frames", "regions", "born", "last seen"):
        table.add_column(column, justify="right" if column in ("frames", "regions") else "left")
    for row in classes:
        words = [row["id"], row["name"] or "", row["severity"] or "", row["state"]]
        counts = [str(row["frames"]), str(row["regions"])]
        table.add_row(*words, *counts, _minute(row["born_at"]), _minute(row["last_seen_at"]))
    terminal.out().print(table)


@app.command("show")
@debuggable
def show(reference: Reference, json: Json = False, json_file: JsonFile = None, config: Config = None) -> None:
    """Show a class with its lineage, its history and where it occurs."""
    from discovery.store import class_commands

    _run(config, json, json_file, lambda store: class_commands.show(store, reference))


@app.command("name")
@debuggable
def name(
    reference: Reference,
    new_name: Annotated[str, typer.Argument(metavar="NAME")],
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Name a class."""
    from discovery.store import class_commands

    _run(
        config, json, json_file, lambda store: class_commands.name(store, reference, new_name, who=user_name(), why=why)
    )


@app.command("merge")
@debuggable
def merge(
    reference: Reference,
    into: Annotated[str, typer.Argument(metavar="INTO", help="Id or name of the class that stays.")],
    why: Why = None,
    yes: Yes = False,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Merge a class into another one."""
    from discovery.store import class_commands

    def action(store: Store) -> dict[str, Any]:
        _confirm(store, reference, f"go to {into}", yes)
        return class_commands.merge(store, reference, into, who=user_name(), why=why)

    _run(config, json, json_file, action)


@app.command("split")
@debuggable
def split(
    reference: Reference,
    regions: Annotated[
        str,
        typer.Option(
            metavar="IDS",
            help="Members that the new class shall have, ids separated by commas; the station's page shows them. "
            "Default: what looks least like the rest.",
        ),
    ] = "",
    only: Annotated[bool, typer.Option("--only", help="These members alone, and not what looks like them.")] = False,
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Split a class in two."""
    from discovery.store import class_commands
    from discovery.store.decisions import region_ids

    chosen = region_ids(regions)
    if only and not chosen:
        raise UsageError("--only needs --regions: the members that the new class shall have")
    _run(
        config,
        json,
        json_file,
        lambda store: class_commands.split(store, reference, who=user_name(), why=why, regions=chosen, alike=not only),
    )


@app.command("assign")
@debuggable
def assign(
    regions: Annotated[
        str,
        typer.Argument(metavar="IDS", help="Regions without a class, ids separated by commas; the station shows them."),
    ],
    into: Annotated[
        str | None, typer.Option(metavar="CLASS", help="Id or name of the class that gets them; default: a new one.")
    ] = None,
    new_name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Name of the new class.")] = None,
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Give regions that have no class to a class, a known or a new one."""
    from discovery.store import class_commands
    from discovery.store.decisions import region_ids

    chosen = region_ids(regions)
    _run(
        config,
        json,
        json_file,
        lambda store: class_commands.assign(store, chosen, into, new_name, who=user_name(), why=why),
    )


@app.command("dismiss")
@debuggable
def dismiss(
    reference: Reference,
    why: Why = None,
    yes: Yes = False,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Mark a class as no defect."""
    from discovery.store import class_commands

    def action(store: Store) -> dict[str, Any]:
        _confirm(store, reference, "are no defects then, and leave the classes", yes)
        return class_commands.dismiss(store, reference, who=user_name(), why=why)

    _run(config, json, json_file, action)


@app.command("undo")
@debuggable
def undo(
    reference: Annotated[
        str | None, typer.Argument(metavar="[CLASS]", help="Id or name of the class; default the last word of all.")
    ] = None,
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Take back the last thing that people said about classes, or about one class."""
    from discovery.store import class_commands

    _run(config, json, json_file, lambda store: class_commands.undo(store, reference, who=user_name(), why=why))


@app.command("restore")
@debuggable
def restore(
    reference: Reference, why: Why = None, json: Json = False, json_file: JsonFile = None, config: Config = None
) -> None:
    """Bring back a class that was dismissed or merged, whatever later commands did to it."""
    from discovery.store import class_commands

    _run(config, json, json_file, lambda store: class_commands.restore(store, reference, who=user_name(), why=why))


@app.command("severity")
@debuggable
def severity(
    reference: Reference,
    level: Annotated[str, typer.Argument(metavar="LEVEL")],
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Set how bad a class is."""
    from discovery.store import class_commands

    _run(
        config,
        json,
        json_file,
        lambda store: class_commands.set_severity(store, reference, level, who=user_name(), why=why),
    )


@app.command("dismissed")
@debuggable
def dismissed(
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write the whole frames there, for `flawline extend MODEL DIR`."),
    ] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """List the frames that show nothing but dismissed classes: candidates for a model's good images."""
    from discovery import dismissed
    from discovery.pictures.export import export_pictures
    from discovery.store import frame_pictures
    from station import terminal

    settings = settings_of(config)
    with opened_store(settings) as store:
        frames = dismissed.frames(store)
        pictures = frame_pictures.kept(store, [frame.frame_id for frame in frames]) if export is not None else []
    report: dict[str, Any] = {"frames": [{"frame": frame.frame_id, "class": frame.class_id} for frame in frames]}
    if export is not None:
        with terminal.progress("frames") as advance:
            # Frames that are kept to be judged last longer than their topic does.
            if pictures:
                export_pictures(settings, pictures, export)
            result = dismissed.export(settings, frames, export, advance)
        report |= {"folder": str(export), "exported": list(result.written), "gone": list(result.gone)}
    if not terminal.emit_json(report, json, json_file):
        _show_dismissed(report)


def _show_dismissed(report: Mapping[str, Any]) -> None:
    from station import terminal

    console = terminal.out()
    for frame in report["frames"]:
        console.print(f"{frame['frame']} {frame['class']}", highlight=False, markup=False)
    console.print(f"{len(report['frames'])} frames show nothing but dismissed classes", highlight=False)
    if "folder" in report:
        console.print(
            f"{len(report['exported'])} are now in {report['folder']}; {len(report['gone'])} are no longer on the line",
            highlight=False,
            markup=False,
        )


def _confirm(store: Store, reference: str, what: str, yes: bool) -> None:
    """Ask before frames are hidden. Raises UsageError where there is no terminal to ask at, typer.Abort for a no."""
    from discovery.store import class_commands

    shown = class_commands.show(store, reference)
    text = f"{shown['frames']} frames of class {shown['name'] or shown['id']} {what}"
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError(f"{text}: confirm it with --yes")
    typer.confirm(f"{text}. Do it?", abort=True, err=True)


def _run(config: Path | None, json: bool, json_file: Path | None, action: Callable[[Store], dict[str, Any]]) -> None:
    """Do an action on the store, and print the class that it returns."""
    from station import terminal

    with opened_store(settings_of(config)) as store:
        report = action(store)
    if not terminal.emit_json(report, json, json_file):
        _show(report)


def _show(report: Mapping[str, Any]) -> None:
    from station import terminal

    console = terminal.out()
    keys = ("id", "name", "severity", "state", "frames", "regions", "merged_into")
    facts = {key: report[key] for key in keys if report[key]}
    facts |= {key: ", ".join(report[key]) for key in ("parents", "children", "merged_from") if report[key]}
    for key, value in facts.items():
        console.print(f"{key.replace('_', ' '):12} {value}", highlight=False, markup=False)
    for place in report["places"]:
        text = f"{'seen':12} {place['frames']} frames of {place['camera']}, group {place['group']}"
        console.print(text, highlight=False, markup=False)
    events = [f"{_minute(event['at'])} {event['transition']}" for event in report["events"]]
    entries = [
        f"{_minute(entry['at'])} {entry['who'] or 'someone'}: {entry['action']} {entry['value'] or ''}"
        for entry in report["audit"]
    ]
    for line in (*events, *entries):
        console.print(f"{'':12} {line}", highlight=False, markup=False)


def _minute(stamp: str) -> str:
    return stamp[:16].replace("T", " ")
