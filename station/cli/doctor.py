"""`flawline doctor`: the effective settings with secrets masked, and a check of everything the line needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

from station.cli.options import Config, Json, JsonFile, settings_of

if TYPE_CHECKING:
    from flawline.settings.tree import Settings
    from station.cli.finding import Finding

STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


def doctor(json: Json = False, json_file: JsonFile = None, config: Config = None) -> None:
    """Print the effective settings, secrets masked, and check everything the line needs. Exit 1 when a check fails."""
    from station import terminal
    from station.cli.finding import Status

    settings = settings_of(config)
    _refuse_without_transactions(settings)
    has_text = not json and json_file is None
    if has_text:
        _show_settings(settings)
    findings = []
    for finding in _findings(settings):
        findings.append(finding)
        if has_text:
            _show(finding)
    healthy = all(finding.status is not Status.FAIL for finding in findings)
    checks = [
        {"name": finding.name, "status": str(finding.status), "text": finding.text, "remedy": finding.remedy}
        for finding in findings
    ]
    terminal.emit_json({"healthy": healthy, "checks": checks, "settings": masked(settings)}, json, json_file)
    if not healthy:
        raise typer.Exit(1)


def _refuse_without_transactions(settings: Settings) -> None:
    """Raise UsageError when the settings want transactions that the broker has not; one that is away is a finding."""
    from flawline.errors import FlawlineError, UsageError
    from flawline.kafka_clients import require_transactions

    try:
        require_transactions(settings)
    except UsageError:
        raise
    except FlawlineError:
        return


def _findings(settings: Settings) -> Iterator[Finding]:
    """Yield what the checks find, each as soon as it is known."""
    from station.cli import doctor_checks

    for check in doctor_checks.ALL:
        yield from _guarded(check, settings)


def _show_settings(settings: Settings) -> None:
    import tomli_w

    from station import terminal

    terminal.out().print(tomli_w.dumps(_without_none(masked(settings))), highlight=False, markup=False)


def _show(finding: Finding) -> None:
    from rich.markup import escape

    from station import terminal

    text = f"{finding.text}: {finding.remedy}" if finding.remedy else finding.text
    style = STYLES[finding.status]
    terminal.out().print(f"[{style}]{finding.status:<4}[/] {finding.name:<10} {escape(text)}", highlight=False)


def masked(settings: Settings) -> dict[str, Any]:
    """Return the effective settings as plain values, with stars for passwords, tokens and credentials in URLs."""
    values = _mask(settings.model_dump(mode="json"))
    # The SQLAlchemy URL is secret as a whole because it may hold a password; without that it says where the store is.
    values["store"]["url"] = _mask(settings.store_url)
    return dict(values)


def _mask(value: Any) -> Any:
    from flawline.redaction import redact

    if isinstance(value, dict):
        return {key: _mask(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_mask(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def _without_none(value: Any) -> Any:
    """Return the value without the keys that are not set: TOML has no null."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _guarded(check: Callable[[Settings], list[Finding]], settings: Settings) -> list[Finding]:
    """Return the findings of a check. A check that raises an error has failed, and the others go on."""
    from kafka.errors import AuthorizationError

    from flawline.errors import FlawlineError, one_line
    from station.cli.finding import Finding, Status

    started = time.monotonic()
    try:
        return check(settings)
    except (FlawlineError, AuthorizationError) as error:
        if isinstance(error, AuthorizationError) or isinstance(error.__cause__, AuthorizationError):
            text = f"not checked: this user may not ({one_line(error)})"
            return [Finding(check.__name__.replace("_", " "), Status.WARN, text, "run it as a user who may")]
        return [Finding(check.__name__.replace("_", " "), Status.FAIL, str(error))]
    except Exception as error:
        text = f"the check itself failed after {time.monotonic() - started:.1f} s: {type(error).__name__}: {error}"
        return [Finding(check.__name__.replace("_", " "), Status.FAIL, " ".join(text.split()))]
