"""What only discovery measures, beside `flawline.telemetry`."""

from __future__ import annotations

from prometheus_client import Counter
from prometheus_client.registry import Collector

from flawline import telemetry
from flawline.messages import Transition

CLASS_EVENTS = Counter(
    "flawline_class_events", "What happened to classes, as published.", ("transition",), registry=telemetry.REGISTRY
)
OF_DISCOVERY: tuple[Collector, ...] = (*telemetry.OF_DISCOVERY, CLASS_EVENTS, telemetry.PROCESS)

for _transition in Transition:
    CLASS_EVENTS.labels(str(_transition))  # a counter that begins at 0 shows its first increment
