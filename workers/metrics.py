"""The metrics of all actors on one endpoint, each sample with the label `actor`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from flawline import telemetry


def exposition() -> str:
    """Return this process's worker metrics as Prometheus text."""
    return generate_latest(telemetry.CollectorGroup(telemetry.OF_AN_ACTOR)).decode()


class ActorCollector(Collector):
    """Asks every actor for its metrics when it is scraped; `ask` returns their Prometheus texts by actor."""

    def __init__(self, ask: Callable[[], dict[str, str]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """Yield the supervisor's own metrics, then those of the actors that answered."""
        yield from telemetry.CollectorGroup(telemetry.OF_THE_SUPERVISOR).collect()
        yield from merged(self._ask()).values()


def merged(expositions: dict[str, str]) -> dict[str, Metric]:
    """Return metric families by name with the samples of all actors, each with the label `actor`."""
    families: dict[str, Metric] = {}
    for actor, text in sorted(expositions.items()):
        for family in text_string_to_metric_families(text):
            # The time when a counter was created means nothing for the sum of several processes.
            if family.name.endswith("_created"):
                continue
            target = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            target.samples.extend(
                Sample(sample.name, {**sample.labels, "actor": actor}, sample.value) for sample in family.samples
            )
    return families
