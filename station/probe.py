"""Ask a role on this machine whether it works, as a readiness probe: `python -m station.probe ROLE URL`.

The exit code is 0 when it works, else 1 with the reason on one line. Whether a role lives is another question, which
any answer of its metrics settles: a role that waits for a broker or a store lives, and another start would not help.
It runs every few seconds, so it imports little: 0.1 s of a core.
"""

from __future__ import annotations

import ssl
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_S = 5.0
"""Longest wait for an answer: the workers' metrics take up to 2 s while an actor is busy."""

Values = Mapping[str, Sequence[float]]
"""Values of each metric, by name."""


def problem(role: str, page: str) -> str | None:
    """Return why a role does not work, from the page of its metrics; None when it works. Raises KeyError for a role."""
    values: dict[str, list[float]] = defaultdict(list)
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            values[sample.name].append(sample.value)
    return PROBLEMS[role](values)


def _of_producers(values: Values) -> str | None:
    cameras = values["flawline_camera_up"]  # none after replays that ended, which is no fault
    return "no camera delivers" if cameras and not any(cameras) else None


def _of_workers(values: Values) -> str | None:
    return None if sum(values["flawline_actors"]) else "no actor inspects"


def _of_discovery(values: Values) -> str | None:
    return "the store is away" if any(values["flawline_store_away_seconds"]) else _waiting(values)


def _waiting(values: Values) -> str | None:
    return "the broker is away" if any(values["flawline_broker_wait_seconds"]) else None


PROBLEMS = {
    "producers": _of_producers,
    "workers": _of_workers,
    "discovery": _of_discovery,
    "ledger": _waiting,
    "notify": _waiting,
}
"""For each role that serves metrics what keeps it from its work. The console answers for itself, at /healthz."""


def main(arguments: Sequence[str]) -> int:
    """Probe a role and return the exit code."""
    role, url = arguments
    context = ssl.create_default_context()
    context.check_hostname = False  # the certificate names the console's host, and this is the same machine
    context.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S, context=context) as answer:
            page = answer.read().decode()
    except (OSError, ValueError) as error:
        print(f"{role}: {url} does not answer: {error}", file=sys.stderr)
        return 1
    reason = None if role == "console" else problem(role, page)
    if reason:
        print(f"{role}: {reason}", file=sys.stderr)
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
