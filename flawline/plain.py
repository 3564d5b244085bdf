"""Frozen dataclasses to and from the plain values that msgpack knows, checked type by type."""

from __future__ import annotations

import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from enum import StrEnum
from functools import cache
from typing import Any


def to_plain(value: Any) -> Any:
    """Maps, lists and scalars of a dataclass, with enums as their text."""
    if is_dataclass(value):
        return {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, StrEnum) else value


@cache
def _field_types(cls: type) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {each.name: hints[each.name] for each in fields(cls)}


@cache
def _required(cls: type) -> frozenset[str]:
    return frozenset(each.name for each in fields(cls) if each.default is MISSING)


def from_plain(expected: Any, value: Any, where: str) -> Any:
    """`value` as `expected`: a dataclass, enum, tuple, optional or scalar, the few types that messages are made of.

    Raises TypeError or ValueError that names the place (`where`, then dotted field names) of what does not fit.
    """
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is types.UnionType:
        return None if value is None else from_plain(arguments[0], value, where)
    if origin is tuple:
        if not isinstance(value, tuple):
            raise TypeError(f"{where} is no list")
        inner = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(inner) != len(value):
            raise ValueError(f"{where} has {len(value)} items instead of {len(inner)}")
        return tuple(from_plain(kind, item, where) for kind, item in zip(inner, value, strict=True))
    if is_dataclass(expected):
        return _dataclass_of(typing.cast(type, expected), value, where)
    if issubclass(expected, StrEnum):
        return expected(value)
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise TypeError(f"{where} is {type(value).__name__} instead of {expected.__name__}")
    return value


def _dataclass_of(cls: type, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"{where} is no map")
    types_ = _field_types(cls)
    if unknown := value.keys() - types_.keys():
        raise ValueError(f"{where} has the unknown field {min(map(str, unknown))!r}")
    if missing := _required(cls) - value.keys():
        raise ValueError(f"{where} lacks the field {min(missing)!r}")
    return cls(**{name: from_plain(types_[name], item, f"{where}.{name}") for name, item in value.items()})
