"""`flawline promote`: the shadow model becomes the active one."""

from __future__ import annotations

from station.cli.options import Config, Json, JsonFile, settings_of


def promote(json: Json = False, json_file: JsonFile = None, config: Config = None) -> None:
    """Make the shadow model the active one, in one step. `flawline rollback` goes back."""
    from station import terminal
    from workers import publish_model

    pointer = publish_model.promote(settings_of(config))
    report = {"role": pointer.role, "version": pointer.version, "uri": pointer.uri}
    if not terminal.emit_json(report, json, json_file):
        terminal.out().print(f"active model is now {pointer.version} ({pointer.uri})", highlight=False)
