"""The names that people give to look-alike groups. Nothing is overwritten: each name says who, when and why, and undo.

A group belongs to a model, so a name is of a model's group. `carry` gives the groups of one model the names of another
one's, which is right for a model that was extended: its groups are those of the model before it, with new ones behind.
Raises UsageError in one line.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, func, select, update

from discovery.store import schema
from discovery.store.database import stamp
from discovery.store.production import rename_group
from discovery.store.store import Store
from flawline.errors import UsageError

NAME_LENGTH, WHO_LENGTH, WHY_LENGTH = 64, 64, 500


def name(
    store: Store, model_version: str, group_id: int, new_name: str, *, who: str, why: str | None = None
) -> dict[str, Any]:
    """Call a group of a model by a name that no other group of this model has, and return the group."""
    new_name = new_name.strip()
    if not 1 <= len(new_name) <= NAME_LENGTH or not new_name.isprintable():
        raise UsageError(f"group name {new_name!r}: give 1 to {NAME_LENGTH} printable characters")
    _check_person(who, why)
    with store.transaction() as connection:
        known = _find(connection, model_version, group_id)
        g = schema.groups.c
        same_name = select(g.group_id).where(g.model_version == model_version, g.name == new_name)
        other = connection.scalar(same_name)
        if other is not None and other != group_id:
            raise UsageError(f"name {new_name!r} is that of group {other} already: choose another")
        _say(store, connection, known, new_name, who, why)
        return as_dict(_find(connection, model_version, group_id))


def carry(
    store: Store, old_version: str, new_version: str, *, who: str, why: str | None = None
) -> list[dict[str, Any]]:
    """Give the groups of a new model that have no name those of the groups of an old one, and return them."""
    _check_person(who, why)
    g = schema.groups.c
    with store.transaction() as connection:
        names = dict(
            connection.execute(
                select(g.group_id, g.name).where(g.model_version == old_version, g.name.is_not(None))
            ).all()
        )
        if not names:
            raise UsageError(f"model {old_version}: none of its groups has a name: `flawline groups list` shows them")
        taken = set(connection.scalars(select(g.name).where(g.model_version == new_version)))
        changed = []
        for row in _rows(connection, new_version):
            wanted = names.get(row.group_id)
            if row.name is None and wanted is not None and wanted not in taken:
                _say(store, connection, row, wanted, who, why or f"as in model {old_version}")
                changed.append(as_dict(_find(connection, new_version, row.group_id)))
    return changed


def undo(store: Store, *, who: str) -> dict[str, Any]:
    """Take back the last name that people gave to a group, and return the group."""
    n = schema.group_names
    with store.transaction() as connection:
        entry = connection.execute(select(n).where(n.c.id == _last_id(connection))).one_or_none()
        if entry is None:
            raise UsageError("no name of a group to take back")
        connection.execute(update(n).where(n.c.id == entry.id).values(undone_at=stamp(store.utc_ns()), undone_by=who))
        g = schema.groups.c
        holder = connection.scalar(
            select(g.group_id).where(
                g.model_version == entry.model_version, g.name == entry.before, g.group_id != entry.group_id
            )
        )
        if entry.before is not None and holder is not None:
            raise UsageError(f"name {entry.before!r} is that of group {holder} since: give that one another name first")
        rename_group(connection, entry.model_version, entry.group_id, entry.before)
        return as_dict(_find(connection, entry.model_version, entry.group_id))


def last(store: Store) -> dict[str, Any] | None:
    """Return what `undo` would take back: group, name, who and at; None for nothing."""
    n = schema.group_names
    with store.reading() as connection:
        entry = connection.execute(select(n).where(n.c.id == _last_id(connection))).one_or_none()
    if entry is None:
        return None
    return {"group": entry.group_id, "name": entry.name, "who": entry.who, "at": entry.at}


def list_groups(store: Store, model_version: str | None = None) -> list[dict[str, Any]]:
    """Return the groups that were seen, those of the latest model first."""
    with store.reading() as connection:
        return [as_dict(row) for row in _rows(connection, model_version)]


def names(store: Store) -> dict[tuple[str, int], str]:
    """Return the names of all groups that have one, by model version and number."""
    g = schema.groups.c
    with store.reading() as connection:
        rows = connection.execute(select(g.model_version, g.group_id, g.name).where(g.name.is_not(None)))
        return {(row.model_version, row.group_id): row.name for row in rows}


def as_dict(row: Any) -> dict[str, Any]:
    """Return a group with the keys that `flawline groups list --json` prints."""
    return {
        "model": row.model_version,
        "group": row.group_id,
        "name": row.name,
        "frames": int(row.frames),
        "first_at": row.first_at.isoformat(),
        "last_at": row.last_at.isoformat(),
    }


def _last_id(connection: Connection) -> int:
    n = schema.group_names.c
    return int(connection.scalar(select(func.max(n.id)).where(n.undone_at.is_(None))) or 0)


def _rows(connection: Connection, model_version: str | None) -> list[Any]:
    g = schema.groups
    query = select(g) if model_version is None else select(g).where(g.c.model_version == model_version)
    rows = list(connection.execute(query.order_by(g.c.model_version, g.c.group_id)))
    latest: dict[str, Any] = {}
    for row in rows:
        latest[row.model_version] = max(latest.get(row.model_version, row.last_at), row.last_at)
    return sorted(rows, key=lambda row: latest[row.model_version], reverse=True)


def _find(connection: Connection, model_version: str, group_id: int) -> Any:
    g = schema.groups
    row = connection.execute(
        select(g).where(g.c.model_version == model_version, g.c.group_id == group_id)
    ).one_or_none()
    if row is None:
        raise UsageError(f"no group {group_id} of model {model_version!r} was seen: `flawline groups list` shows them")
    return row


def _say(store: Store, connection: Connection, row: Any, new_name: str, who: str, why: str | None) -> None:
    entry = {
        "at": stamp(store.utc_ns()),
        "who": who,
        "model_version": row.model_version,
        "group_id": row.group_id,
        "name": new_name,
        "before": row.name,
        "why": why or None,
    }
    connection.execute(schema.group_names.insert().values(entry))
    rename_group(connection, row.model_version, row.group_id, new_name)


def _check_person(who: str, why: str | None) -> None:
    if not 1 <= len(who) <= WHO_LENGTH or not who.isprintable():
        raise UsageError(f"who: give a name of 1 to {WHO_LENGTH} printable characters")
    if why is not None and (len(why) > WHY_LENGTH or not why.isprintable()):
        raise UsageError(f"why: at most {WHY_LENGTH} printable characters")
