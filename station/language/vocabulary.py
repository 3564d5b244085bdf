"""The words of the line that pages show: each kind is a context of the catalogues, its values come from the code."""

from __future__ import annotations

from collections.abc import Iterable

from discovery.pictures.policy import Stratum
from discovery.store.decisions import SEVERITIES
from flawline.messages import ClassState, DeadLetterReason, Decision, DropReason, Scene, Transition
from station.web.accounts import Role

VOCABULARY: dict[str, Iterable[str]] = {
    "decision": Decision,
    "scene": Scene,
    "kind of frame": Stratum,
    "judgement": ("real", "false", "unsure"),
    "state of a class": ClassState,
    "event of a class": Transition,
    "severity": SEVERITIES,
    "action": ("name", "severity", "merge", "split", "dismiss", "assign", "create", "undo"),
    "reason": (*DropReason, *(reason for reason in DeadLetterReason if reason not in list(DropReason))),
    "role": Role,
    "step of time": ("minute", "hour", "day"),
    "theme": ("system", "light", "dark"),
    "balanced": ("yes", "NO"),
}
