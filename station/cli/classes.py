"""`flawline classes`: look at the defect classes, and say what they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flawline.user import user_name
from station.cli.options import Config, Json, json_target, settings_of

if TYPE_CHECKING:
    from discovery.store.store import Store

app = typer.Typer(help="Defect classes: look at them and say what they are.", no_args_is_help=True)

Reference = Annotated[str, typer.Argument(metavar="CLASS", help="Id or name of the class.")]
Why = Annotated[str | None, typer.Option(help="Reason, for the audit trail.")]


@app.command("list")
def list_classes(
    everything: Annotated[bool, typer.Option("--all", help="Merged and dismissed ones too.")] = False,
    json: Json = None,
    config: Config = None,
) -> None:
    """List the classes, the largest first."""
    from rich.table import Table

    from discovery.store import commands
    from station import terminal

    target = json_target(json)
    with _store(config) as store:
        classes = commands.list_classes(store, everything)
    if target:
        terminal.emit({"classes": classes}, target)
        return
    table = Table()
    for column in ("class", "name", "severity", "state", "frames", "regions", "born", "last seen"):
        table.add_column(column, justify="right" if column in ("frames", "regions") else "left")
    for each in classes:
        row = [each["id"], each["name"] or "", each["severity"] or "", each["state"]]
        counts = [str(each["frames"]), str(each["regions"])]
        table.add_row(*row, *counts, _minute(each["born_at"]), _minute(each["last_seen_at"]))
    terminal.out().print(table)


@app.command("show")
def show(reference: Reference, json: Json = None, config: Config = None) -> None:
    """Show one class with its lineage, its history and where it occurs."""
    from discovery.store import commands

    _tell(config, json, lambda store: commands.show(store, reference))


@app.command("name")
def name(
    reference: Reference,
    new_name: Annotated[str, typer.Argument(metavar="NAME")],
    why: Why = None,
    json: Json = None,
    config: Config = None,
) -> None:
    """Name a class."""
    from discovery.store import commands

    _tell(config, json, lambda store: commands.name(store, reference, new_name, who=user_name(), why=why))


@app.command("merge")
def merge(
    reference: Reference,
    into: Annotated[str, typer.Argument(metavar="INTO", help="Id or name of the class that stays.")],
    why: Why = None,
    json: Json = None,
    config: Config = None,
) -> None:
    """Merge a class into another one."""
    from discovery.store import commands

    _tell(config, json, lambda store: commands.merge(store, reference, into, who=user_name(), why=why))


@app.command("split")
def split(reference: Reference, why: Why = None, json: Json = None, config: Config = None) -> None:
    """Split a class in two."""
    from discovery.store import commands

    _tell(config, json, lambda store: commands.split(store, reference, who=user_name(), why=why))


@app.command("dismiss")
def dismiss(reference: Reference, why: Why = None, json: Json = None, config: Config = None) -> None:
    """Say that a class is no defect."""
    from discovery.store import commands

    _tell(config, json, lambda store: commands.dismiss(store, reference, who=user_name(), why=why))


@app.command("severity")
def severity(
    reference: Reference,
    level: Annotated[str, typer.Argument(metavar="LEVEL")],
    why: Why = None,
    json: Json = None,
    config: Config = None,
) -> None:
    """Say how bad a class is."""
    from discovery.store import commands

    _tell(config, json, lambda store: commands.set_severity(store, reference, level, who=user_name(), why=why))


@app.command("dismissed")
def dismissed(
    export: Annotated[
        Path | None,
        typer.Option("--export", metavar="DIR", help="Write the whole frames there, for `flawline extend MODEL DIR`."),
    ] = None,
    json: Json = None,
    config: Config = None,
) -> None:
    """List the frames that show nothing but dismissed classes: candidates for a model's good images."""
    from discovery import dismissed as room
    from station import terminal

    target = json_target(json)
    settings = settings_of(config)
    with _store(config) as store:
        found = room.frames(store)
    report: dict[str, Any] = {"frames": [{"frame": each.frame_id, "class": each.class_id} for each in found]}
    if export is not None:
        with terminal.progress("frames") as advance:
            result = room.export(settings, found, export, advance)
        report |= {"folder": str(export), "exported": list(result.written), "gone": list(result.gone)}
    if target:
        terminal.emit(report, target)
        return
    console = terminal.out()
    for each in found:
        console.print(f"{each.frame_id} {each.class_id}", highlight=False, markup=False)
    console.print(f"{len(found)} frames show nothing but dismissed classes", highlight=False)
    if export is not None:
        console.print(
            f"{len(report['exported'])} lie in {export}; {len(report['gone'])} are not kept by the line any more",
            highlight=False,
            markup=False,
        )


@contextmanager
def _store(config: Path | None) -> Iterator[Store]:
    from discovery.store.store import Store

    store = Store(settings_of(config).store_url)
    try:
        yield store
    finally:
        store.close()


def _tell(config: Path | None, json: str | None, work: Callable[[Store], dict[str, Any]]) -> None:
    """Do something with the store, and print the class that comes of it."""
    from station import terminal

    target = json_target(json)
    with _store(config) as store:
        one = work(store)
    if target:
        terminal.emit(one, target)
        return
    console = terminal.out()
    history = [f"{each['at'][:16]} {each['transition']}" for each in one["events"]]
    said = [
        f"{each['at'][:16]} {each['who'] or 'someone'}: {each['action']} {each['value'] or ''}" for each in one["audit"]
    ]
    facts = {
        key: one[key] for key in ("id", "name", "severity", "state", "frames", "regions", "merged_into") if one[key]
    }
    facts |= {key: ", ".join(one[key]) for key in ("parents", "children", "merged_from") if one[key]}
    for key, value in facts.items():
        console.print(f"{key.replace('_', ' '):12} {value}", highlight=False, markup=False)
    for place in one["places"]:
        console.print(
            f"{'seen':12} {place['frames']} frames of {place['camera']}, group {place['group']}", highlight=False
        )
    for line in (*history, *said):
        console.print(f"{'':12} {line}", highlight=False, markup=False)


def _minute(stamp: str) -> str:
    return stamp[:16].replace("T", " ")
