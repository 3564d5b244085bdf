"""What `flawline up` says about its roles, read from its metrics: for the console and for `doctor`."""

from __future__ import annotations

import http.client
import urllib.request
from collections import defaultdict
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from flawline.settings.tree import Settings

TIMEOUT_S = 1.0  # a judgement, not measured
PAGE_LIMIT_BYTES = 200_000  # a judgement, not measured


@dataclass(frozen=True)
class RoleState:
    """One role: whether its process runs, how often it was started again, and for how long it has been failing."""

    name: str
    up: bool
    restarts: int
    failing_s: float

    @property
    def text(self) -> str:
        """The state in words."""
        if self.failing_s:
            return f"has been failing for {self.failing_s:.0f} s"
        return "runs" if self.up else "has ended"


def read(settings: Settings) -> list[RoleState] | None:
    """Return the roles that the `flawline up` of this machine runs, by name; None where none answers."""
    metrics = settings.metrics
    text = metrics_text(metrics.host, metrics.up_port, TIMEOUT_S) if metrics.up_port else None
    if text is None:
        return None
    values: dict[str, dict[str, float]] = defaultdict(dict)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if "role" in sample.labels:
                values[sample.labels["role"]][sample.name] = sample.value
    return [
        RoleState(
            name,
            bool(of_role.get("flawline_role_up")),
            int(of_role.get("flawline_role_restarts_total", 0)),
            of_role.get("flawline_role_failing_seconds", 0.0),
        )
        for name, of_role in sorted(values.items())
    ]


def metrics_text(host: str, port: int, timeout_s: float) -> str | None:
    """Return the metrics that are served on `host:port`, None when nothing answers within `timeout_s`."""
    where = "127.0.0.1" if host in ("0.0.0.0", "") else f"[{host}]" if ":" in host else host
    try:
        with urllib.request.urlopen(f"http://{where}:{port}/metrics", timeout=timeout_s) as answer:
            return str(answer.read(PAGE_LIMIT_BYTES).decode(errors="replace"))
    except (OSError, ValueError, http.client.HTTPException):
        return None
