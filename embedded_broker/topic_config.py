"""Topic settings: their names in Apache Kafka, their defaults here, and the values that this broker can follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Final

from embedded_broker.unsupported import needs_apache_kafka

_DAY_MS: Final = 24 * 3600 * 1000


class ConfigType(IntEnum):
    """The type of a value, as DescribeConfigs numbers it."""

    BOOLEAN = 1
    STRING = 2
    INT = 3
    LONG = 5
    DOUBLE = 6
    LIST = 7


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """The settings of one topic that have an effect here: bytes, milliseconds, -1 for no limit."""

    cleanup_policy: str = "delete"
    retention_bytes: int = -1
    retention_ms: int = 7 * _DAY_MS
    segment_bytes: int = 64 << 20
    segment_ms: int = 7 * _DAY_MS
    max_message_bytes: int = 16 << 20
    min_cleanable_dirty_ratio: float = 0.5
    min_compaction_lag_ms: int = 0
    max_compaction_lag_ms: int = (1 << 63) - 1
    delete_retention_ms: int = _DAY_MS

    @property
    def compacted(self) -> bool:
        return "compact" in self.cleanup_policy

    @property
    def deletes_old(self) -> bool:
        return "delete" in self.cleanup_policy


class InvalidConfig(ValueError):
    """A setting has an unknown name or a value that is not allowed here; the message is one line."""


@dataclass(frozen=True, slots=True)
class _Setting:
    type: ConfigType
    parse: Callable[[str], Any]


def _integer(low: int, high: int = (1 << 63) - 1) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(f"must be between {low} and {high}")
        return value

    return parse


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise ValueError("must be between 0 and 1")
    return value


def _policy(text: str) -> str:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words or not set(words) <= {"delete", "compact"}:
        raise ValueError("must be delete, compact or compact,delete")
    return ",".join(dict.fromkeys(words))


def _only(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(needs_apache_kafka("broker-side rewriting"))
        return text

    return parse


_SETTINGS: Final[dict[str, _Setting]] = {
    "cleanup.policy": _Setting(ConfigType.LIST, _policy),
    "retention.bytes": _Setting(ConfigType.LONG, _integer(-1)),
    "retention.ms": _Setting(ConfigType.LONG, _integer(-1)),
    "segment.bytes": _Setting(ConfigType.INT, _integer(1024, (1 << 31) - 1)),
    "segment.ms": _Setting(ConfigType.LONG, _integer(1)),
    "max.message.bytes": _Setting(ConfigType.INT, _integer(0, (1 << 31) - 1)),
    "min.cleanable.dirty.ratio": _Setting(ConfigType.DOUBLE, _fraction),
    "min.compaction.lag.ms": _Setting(ConfigType.LONG, _integer(0)),
    "max.compaction.lag.ms": _Setting(ConfigType.LONG, _integer(1)),
    "delete.retention.ms": _Setting(ConfigType.LONG, _integer(0)),
}

# Settings without an effect on a single node. They are accepted, because clients also set them on Apache Kafka; the
# values are those that hold here.
_INERT: Final[dict[str, tuple[str, _Setting]]] = {
    "compression.type": ("producer", _Setting(ConfigType.STRING, _only("producer"))),
    "message.timestamp.type": ("CreateTime", _Setting(ConfigType.STRING, _only("CreateTime"))),
    "min.insync.replicas": ("1", _Setting(ConfigType.INT, _integer(1))),
    "unclean.leader.election.enable": ("false", _Setting(ConfigType.BOOLEAN, str)),
    "preallocate": ("false", _Setting(ConfigType.BOOLEAN, str)),
    "file.delete.delay.ms": ("0", _Setting(ConfigType.LONG, _integer(0))),
    "flush.messages": (str((1 << 63) - 1), _Setting(ConfigType.LONG, _integer(1))),
    "flush.ms": (str((1 << 63) - 1), _Setting(ConfigType.LONG, _integer(0))),
    "index.interval.bytes": ("4096", _Setting(ConfigType.INT, _integer(0))),
    "segment.index.bytes": ("10485760", _Setting(ConfigType.INT, _integer(4))),
    "segment.jitter.ms": ("0", _Setting(ConfigType.LONG, _integer(0))),
    "message.timestamp.before.max.ms": (str((1 << 63) - 1), _Setting(ConfigType.LONG, _integer(0))),
    "message.timestamp.after.max.ms": (str((1 << 63) - 1), _Setting(ConfigType.LONG, _integer(0))),
}


def check(name: str, value: str | None) -> str:
    """Return `value` when the setting `name` may have it. Raises InvalidConfig."""
    setting = _SETTINGS.get(name) or (_INERT[name][1] if name in _INERT else None)
    if setting is None:
        raise InvalidConfig(f"unknown topic config {name}")
    if value is None:
        raise InvalidConfig(f"topic config {name} has no value")
    try:
        setting.parse(value)
    except ValueError as error:
        raise InvalidConfig(f"topic config {name}={value}: {error}") from error
    return value


def resolve(overrides: Mapping[str, str], defaults: TopicConfig) -> TopicConfig:
    """Return the settings that hold: `overrides`, already checked, over the defaults of the broker."""
    values = {
        name.replace(".", "_"): _SETTINGS[name].parse(text) for name, text in overrides.items() if name in _SETTINGS
    }
    return replace(defaults, **values)


def describe(overrides: Mapping[str, str], defaults: TopicConfig) -> list[tuple[str, str, ConfigType, bool]]:
    """Return `(name, value, type, is default)` of every setting."""
    rows = []
    for name, setting in _SETTINGS.items():
        default = str(getattr(defaults, name.replace(".", "_")))
        rows.append((name, overrides.get(name, default), setting.type, name not in overrides))
    for name, (default, setting) in _INERT.items():
        rows.append((name, overrides.get(name, default), setting.type, name not in overrides))
    return rows
