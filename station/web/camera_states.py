"""The state of each camera in words, also of one that is dead, silent or has never delivered."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from prometheus_client.parser import text_string_to_metric_families

from flawline.settings.tree import Settings
from station.language.languages import Language, english
from station.role_states import TIMEOUT_S, metrics_text

SILENT_AFTER_S = 10.0
"""A camera without a rate of its own counts as silent after this time. A judgement, not measured."""
SILENT_AFTER_FRAMES = 5  # a judgement, not measured

SINCE = "{since}"
"""Stands in the words for the time of the last frame, which the page writes in local time."""


class Kind(StrEnum):
    """How a tile looks."""

    LIVE = "live"
    SILENT = "silent"
    AWAY = "away"
    NEVER = "never"
    WAITING = "waiting"
    ENDED = "ended"


@dataclass(frozen=True)
class CameraState:
    """A camera's state: its kind, and in words, with `{since}` for a time."""

    kind: Kind
    words: str


def camera_state(
    last_ns: int | None,
    now_ns: int,
    *,
    rate_hz: float | None,
    is_up: bool | None,
    in_flight: int,
    language: Language | None = None,
) -> CameraState:
    """Return the state of a camera, its words in English or another language.

    `last_ns` is the capture of its last frame with a verdict, `is_up` what the producers say (None when they are not
    asked), `in_flight` how many of its captures wait for a verdict.
    """
    silent_after_s = max(SILENT_AFTER_S, SILENT_AFTER_FRAMES / rate_hz) if rate_hz else SILENT_AFTER_S
    if last_ns is not None and now_ns - last_ns <= silent_after_s * 1e9:
        return CameraState(Kind.LIVE, "")
    _ = (language or english()).gettext
    ngettext = (language or english()).ngettext
    is_known = last_ns is not None
    frames = _("no frame since {since}") if is_known else _("no frame yet")
    if is_up is False:
        return CameraState(Kind.AWAY, f"{frames}: " + _("does not answer"))
    if in_flight:
        verdicts = _("no verdict since {since}") if is_known else _("no verdict yet")
        waiting = ngettext(
            "%(number)s frame waits for the workers", "%(number)s frames wait for the workers", in_flight
        )
        return CameraState(Kind.WAITING, f"{verdicts}: {waiting}")
    if is_up:
        return CameraState(Kind.SILENT, f"{frames}: " + _("connected, delivers nothing"))
    if not is_known:
        return CameraState(Kind.NEVER, f"{frames}: " + _("never seen"))
    return CameraState(Kind.SILENT, f"{frames}: " + _("silent"))


def cameras_up(settings: Settings) -> dict[str, bool]:
    """Return by camera whether it delivers, as the producers of this machine say; empty when none answer."""
    metrics = settings.metrics
    text = metrics_text(metrics.host, metrics.producers_port, TIMEOUT_S) if metrics.producers_port else None
    if text is None:
        return {}
    return {
        sample.labels["camera"]: sample.value > 0
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "flawline_camera_up"
    }
