"""What a check of `flawline doctor` finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Status(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """The result of one check; `remedy` is what to do when it is not ok."""

    name: str
    status: Status
    text: str
    remedy: str = ""
