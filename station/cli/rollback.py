"""`flawline rollback`: the model that was active before becomes active again."""

from __future__ import annotations

from station.cli.options import Config, Json, JsonFile, ModelRole, role_of, settings_of


def rollback(role: ModelRole = "active", json: Json = False, json_file: JsonFile = None, config: Config = None) -> None:
    """Make the previous model active again; repeat it to go further back. With --role shadow, end the shadow model."""
    from station import terminal
    from workers import publish_model
    from workers.active_model import SHADOW

    settings = settings_of(config)
    if role_of(role) == SHADOW:
        pointer = publish_model.withdraw_shadow(settings)
        text = f"shadow model {pointer.version} ({pointer.uri}) is withdrawn"
    else:
        pointer = publish_model.rollback(settings)
        text = f"active model is now {pointer.version} ({pointer.uri})"
    report = {"role": role, "version": pointer.version, "uri": pointer.uri}
    if not terminal.emit_json(report, json, json_file):
        terminal.out().print(text, highlight=False)
