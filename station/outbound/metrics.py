"""What the role `flawline notify` measures."""

from __future__ import annotations

from prometheus_client import Counter, Gauge
from prometheus_client.registry import Collector

from flawline import telemetry
from station.outbound.delivery import Reason

DELIVERED = Counter(
    "flawline_outbound_delivered", "Events that a receiver has acknowledged.", ("receiver", "kind"),
    registry=telemetry.REGISTRY,
)  # fmt: skip
GIVEN_UP = Counter(
    "flawline_outbound_given_up", "Events that a receiver is not told any more.", ("receiver", "reason"),
    registry=telemetry.REGISTRY,
)  # fmt: skip
FAILURES = Counter(
    "flawline_outbound_failures", "Attempts to tell a receiver that did not go well.", ("receiver", "result"),
    registry=telemetry.REGISTRY,
)  # fmt: skip
FAILING_SECONDS = Gauge(
    "flawline_outbound_failing_seconds", "Time since a receiver went away, 0 while it answers.", ("receiver",),
    registry=telemetry.REGISTRY,
)  # fmt: skip
OLDEST_AGE = Gauge(
    "flawline_outbound_oldest_age_seconds", "Age of the oldest event that a receiver has not acknowledged.",
    ("receiver",), registry=telemetry.REGISTRY,
)  # fmt: skip
OF_NOTIFY: tuple[Collector, ...] = (
    DELIVERED, GIVEN_UP, FAILURES, FAILING_SECONDS, OLDEST_AGE, telemetry.BROKER_WAIT_SECONDS, telemetry.PROCESS,
)  # fmt: skip


def announce(receiver: str, kinds: list[str]) -> None:
    """Show the counters of a receiver: one that begins at 0 shows its first increment."""
    for kind in kinds:
        DELIVERED.labels(receiver, kind)
    for reason in Reason:
        GIVEN_UP.labels(receiver, str(reason))
    for result in ("refused", "failed"):
        FAILURES.labels(receiver, result)
