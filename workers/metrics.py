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
    """This process's worker metrics as Prometheus text."""
    return generate_latest(telemetry.CollectorGroup(telemetry.OF_AN_ACTOR)).decode()


class ActorCollector(Collector):
    """Asks every actor for its metrics when it is scraped; `ask` gives their expositions by actor."""

    def __init__(self, ask: Callable[[], dict[str, str]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        """The supervisor's own metrics, then those of the actors that answered."""
        yield from telemetry.CollectorGroup(telemetry.OF_THE_SUPERVISOR).collect()
        yield from merged(self._ask()).values()


def merged(expositions: dict[str, str]) -> dict[str, Metric]:
    """Metric families by name with the samples of all actors, labelled."""
    families: dict[str, Metric] = {}
    for actor, text in sorted(expositions.items()):
        for family in text_string_to_metric_families(text):
            # When a counter was created says nothing once its process is one of many.
            if family.name.endswith("_created"):
                continue
            target = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            target.samples.extend(
                Sample(each.name, {**each.labels, "actor": actor}, each.value) for each in family.samples
            )
    return families
