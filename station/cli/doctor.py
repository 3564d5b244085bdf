"""`flawline doctor`: the effective settings with secrets masked, and a check of everything the line needs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tomli_w
from rich.markup import escape

from flawline.errors import FlawlineError
from flawline.redaction import redact
from flawline.settings.tree import Settings
from station import terminal
from station.cli import doctor_checks
from station.cli.doctor_checks import Finding, Status

STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}


def run(settings: Settings, target: str | None) -> bool:
    """Print the settings and every finding; whether no check failed."""
    shown = masked(settings)
    console = terminal.out()
    if not target:
        console.print(tomli_w.dumps(_without_none(shown)), highlight=False, markup=False)
    findings: list[Finding] = []
    for check in doctor_checks.ALL:
        for finding in _guarded(check, settings):
            findings.append(finding)
            if not target:
                mend = f": {finding.mend}" if finding.mend else ""
                style = STYLES[finding.status]
                console.print(
                    f"[{style}]{finding.status:<4}[/] {finding.name:<10} {escape(finding.text + mend)}", highlight=False
                )
    healthy = all(finding.status is not Status.FAIL for finding in findings)
    if target:
        checks = [
            {"name": each.name, "status": str(each.status), "text": each.text, "mend": each.mend} for each in findings
        ]
        terminal.emit({"healthy": healthy, "checks": checks, "settings": shown}, target)
    return healthy


def masked(settings: Settings) -> dict[str, Any]:
    """The effective settings as plain values; passwords, tokens and credentials in URLs are stars."""
    shown = _mask(settings.model_dump(mode="json"))
    # The SQLAlchemy URL is secret as a whole because it may hold a password; without that it says where the store is.
    shown["store"]["url"] = _mask(settings.store_url)
    return shown


def _mask(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _mask(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _without_none(value: Any) -> Any:
    """TOML has no null: what is not set is left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _guarded(check: Callable[[Settings], list[Finding]], settings: Settings) -> list[Finding]:
    """A check that cannot even look is a failed check, and does not keep the others from looking."""
    started = time.monotonic()
    try:
        return check(settings)
    except FlawlineError as error:
        return [Finding(check.__name__.replace("_", " "), Status.FAIL, str(error))]
    except Exception as error:
        text = f"the check itself failed after {time.monotonic() - started:.1f} s: {type(error).__name__}: {error}"
        return [Finding(check.__name__.replace("_", " "), Status.FAIL, " ".join(text.split()))]
