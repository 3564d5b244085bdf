"""`flawline groups`: the look-alike groups of the models, and the names that people give them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from flawline.user import user_name
from station.cli.options import Config, Json, JsonFile, debuggable, opened_store, settings_of

app = typer.Typer(
    help="Look-alike groups: list them, name them, carry names to a new model, take back.", no_args_is_help=True
)

Model = Annotated[str, typer.Argument(metavar="MODEL", help="Version of the model, as `groups list` shows it.")]
Why = Annotated[str | None, typer.Option(help="Reason, which is kept with the name.")]


@app.command("list")
@debuggable
def list_groups(
    model: Annotated[str | None, typer.Option(metavar="MODEL", help="Only groups of this model version.")] = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """List the groups that were seen, with their names and numbers of frames, those of the latest model first."""
    from rich.table import Table
    from rich.text import Text

    from discovery.store import group_names
    from station import terminal

    with opened_store(settings_of(config)) as store:
        groups = group_names.list_groups(store, model)
    if terminal.emit_json({"groups": groups}, json, json_file):
        return
    table = Table()
    for column in ("model", "group", "name", "frames", "last seen"):
        table.add_column(column)
    for group in groups:
        words = [
            group["model"],
            str(group["group"]),
            group["name"] or "",
            f"{group['frames']:,}",
            group["last_at"][:16],
        ]
        table.add_row(*map(Text, words))  # a text, so that brackets in it are no markup
    terminal.out().print(table)


@app.command("name")
@debuggable
def name(
    model: Model,
    group: Annotated[int, typer.Argument(metavar="GROUP", help="Number of the group.")],
    new_name: Annotated[str, typer.Argument(metavar="NAME")],
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Name a group of a model."""
    from discovery.store import group_names

    with opened_store(settings_of(config)) as store:
        named = group_names.name(store, model, group, new_name, who=user_name() or "unknown", why=why)
    _show([named], json, json_file)


@app.command("carry")
@debuggable
def carry(
    old: Annotated[str, typer.Argument(metavar="OLD", help="Version of the model whose groups have names.")],
    new: Annotated[str, typer.Argument(metavar="NEW", help="Version of the model that was extended from it.")],
    why: Why = None,
    json: Json = False,
    json_file: JsonFile = None,
    config: Config = None,
) -> None:
    """Give the groups of an extended model the names of the same groups of the model before it."""
    from discovery.store import group_names

    with opened_store(settings_of(config)) as store:
        changed = group_names.carry(store, old, new, who=user_name() or "unknown", why=why)
    _show(changed, json, json_file)


@app.command("undo")
@debuggable
def undo(json: Json = False, json_file: JsonFile = None, config: Config = None) -> None:
    """Take back the last name that was given to a group."""
    from discovery.store import group_names

    with opened_store(settings_of(config)) as store:
        group = group_names.undo(store, who=user_name() or "unknown")
    _show([group], json, json_file)


def _show(groups: list[dict[str, Any]], json: bool, json_file: Any) -> None:
    from station import terminal

    if terminal.emit_json({"groups": groups}, json, json_file):
        return
    for group in groups:
        text = f"group {group['group']} of model {group['model']}: {group['name'] or 'no name'}"
        terminal.out().print(text, highlight=False, markup=False)
    if not groups:
        terminal.out().print("no group was without a name", highlight=False)
