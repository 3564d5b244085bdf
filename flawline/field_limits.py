"""The limits of the fields of messages, given by their annotations and checked whenever a message is made.

A text without a limit of its own has NAME's, an integer INTEGER's. What else a message can hold is bounded by the size
of a record.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from typing import Annotated, Any

LAST_MS = 4_102_444_800_000
"""The beginning of the year 2100 UTC in milliseconds. No clock shows a later time, nor one before 1970."""

Check = Callable[[Any, str], None]

_CONTROL = "\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\u2028\u2029"
_CONTROL_OR_LINES = re.compile(f"[\\t\\n{_CONTROL}]")
_CONTROL_ONLY = re.compile(f"[{_CONTROL}]")


@dataclass(frozen=True)
class Text:
    """The limit of a text: bytes in UTF-8. It has no control characters, but line feeds and tabs with `lines`."""

    limit_bytes: int
    lines: bool = False

    @property
    def _refused(self) -> re.Pattern[str]:
        return _CONTROL_ONLY if self.lines else _CONTROL_OR_LINES

    def check(self, value: str, where: str) -> None:
        """Raise ValueError when a text breaks the limit."""
        try:
            size_bytes = len(value.encode())
        except UnicodeEncodeError as error:
            raise ValueError(f"{where} holds half a character at place {error.start}") from error
        if size_bytes > self.limit_bytes:
            raise ValueError(f"{where} has {size_bytes} bytes: at most {self.limit_bytes} are allowed")
        if wrong := self._refused.search(value):
            raise ValueError(f"{where} holds the control character U+{ord(wrong[0]):04X}: leave it out")

    def fitted(self, value: str) -> str:
        """Return a text that keeps the limit: its beginning, with `?` in place of what is not allowed."""
        plain = self._refused.sub("?", value).encode(errors="replace")
        return plain[: self.limit_bytes].decode(errors="ignore")


@dataclass(frozen=True)
class Pattern:
    """The limit of a text that names something: `expression` matches the whole of it."""

    expression: re.Pattern[str]
    meaning: str

    def check(self, value: str, where: str) -> None:
        """Raise ValueError when a text does not match."""
        if not self.expression.fullmatch(value):
            raise ValueError(f"{where} {value[:80]!a} is no {self.meaning}")


@dataclass(frozen=True)
class Within:
    """The limit of an integer: `first` to `last`, both included."""

    first: int
    last: int

    def check(self, value: int, where: str) -> None:
        """Raise ValueError when a number is outside."""
        if not self.first <= value <= self.last:
            raise ValueError(f"{where} {value} is outside {self.first}..{self.last}")


@dataclass(frozen=True)
class Items:
    """The limit of a list of parts, which check themselves: `most` of them."""

    most: int

    def check(self, value: tuple[Any, ...], where: str) -> None:
        """Raise ValueError when there are more."""
        if len(value) > self.most:
            raise ValueError(f"{where} has {len(value)} items: at most {self.most} are allowed")


NAME = Text(256)
"""For the name of a part, a lot, a version: as long as a file name can be. A judgement, not measured."""

PROSE = Text(8_192, lines=True)
"""For an error, or the reason of a decision. A judgement, not measured."""

INTEGER = Within(-(1 << 63), (1 << 63) - 1)

Prose = Annotated[str, PROSE]
Count = Annotated[int, Within(0, (1 << 63) - 1)]
Crc = Annotated[int, Within(0, (1 << 32) - 1)]
TimeMs = Annotated[int, Within(0, LAST_MS)]
TimeNs = Annotated[int, Within(0, LAST_MS * 1_000_000)]


@dataclass(frozen=True)
class Limited:
    """What every message, and every part of one, inherits: its fields keep their limits. Raises ValueError."""

    def __post_init__(self) -> None:
        for name, check in checks(type(self)):  # type: ignore[arg-type]  # a class can be hashed
            check(getattr(self, name), name)


@cache
def checks(cls: type) -> tuple[tuple[str, Check], ...]:
    """Return the names of a class's fields that have a limit, each with its check."""
    hints = typing.get_type_hints(cls, include_extras=True)
    checks = ((item.name, _check_of(hints[item.name])) for item in fields(cls))
    return tuple((name, check) for name, check in checks if check is not None)


def is_optional(expected: Any) -> bool:
    """Return whether a type is another one or None: the only union that messages know."""
    return typing.get_origin(expected) in (types.UnionType, typing.Union)


def _check_of(expected: Any) -> Check | None:
    if typing.get_origin(expected) is Annotated:
        return typing.get_args(expected)[1].check
    if is_optional(expected):
        check = _check_of(typing.get_args(expected)[0])
        return None if check is None else _unless_none(check)
    if typing.get_origin(expected) is tuple:
        return _of_items([_check_of(item) for item in typing.get_args(expected) if item is not Ellipsis])
    if expected is str:
        return NAME.check
    return INTEGER.check if expected is int else None


def _unless_none(check: Check) -> Check:
    def run(value: Any, where: str) -> None:
        if value is not None:
            check(value, where)

    return run


def _of_items(item_checks: list[Check | None]) -> Check | None:
    """Return the check of a tuple: a single check is for every item, several are for the items in their order."""
    if not any(item_checks):
        return None

    def run(value: tuple[Any, ...], where: str) -> None:
        in_turn = item_checks * len(value) if len(item_checks) == 1 else item_checks
        for item, check in zip(value, in_turn, strict=True):
            if check is not None:
                check(item, where)

    return run
