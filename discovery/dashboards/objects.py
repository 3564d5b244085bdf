"""What belongs into Grafana, and how it differs from what is there. Pure: no request leaves from here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

REDACTED = "[REDACTED]"
"""What Grafana shows in place of a secret of a contact point."""

_SHOWN_CHARACTERS = 60


class Kind(StrEnum):
    """The kinds of objects, in the order in which they need each other."""

    FOLDER = "folder"
    SOURCE = "data source"
    CONTACT_POINT = "contact point"
    DASHBOARD = "dashboard"
    RULE = "alert rule"


@dataclass(frozen=True)
class Wanted:
    """An object as it is to be. `is_kept` says that one that is there stays as it is."""

    kind: Kind
    uid: str
    title: str
    body: Mapping[str, Any]
    is_kept: bool = False

    def differences(self, there: Mapping[str, Any]) -> list[str]:
        """Return what of the object is otherwise in Grafana, a line each: the place, what is there, what is wanted.

        What Grafana adds by itself (numbers, versions, defaults) is no difference, but for dashboards, which it keeps
        as they are: there a part that is not wanted is one.
        """
        if self.kind is Kind.DASHBOARD:
            return list(_differences("", _without(there, "id", "version"), _without(self.body, "id", "version"), True))
        # A password is never told.
        return list(_differences("", there, _without(self.body, "secureJsonData"), False))


def _without(body: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key not in keys}


def _differences(place: str, there: Any, wanted: Any, is_whole: bool) -> Iterator[str]:
    if isinstance(wanted, Mapping) and isinstance(there, Mapping):
        keys = [*wanted, *(key for key in there if key not in wanted and is_whole)]
        for key in keys:
            yield from _differences(f"{place}.{key}" if place else key, there.get(key), wanted.get(key), is_whole)
    elif isinstance(wanted, list) and isinstance(there, list):
        if len(wanted) != len(there):
            yield f"{place}: {len(there)} entries, wanted {len(wanted)}"
            return
        for number, (old, new) in enumerate(zip(there, wanted, strict=True)):
            yield from _differences(f"{place}[{number}]", old, new, is_whole)
    elif wanted != there and there != REDACTED:
        yield f"{place}: {_short(there)}, wanted {_short(wanted)}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 4]} ..."
