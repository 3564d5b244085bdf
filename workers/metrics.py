"""The metrics of all actors on one endpoint, each sample with the label `actor`; and what only workers measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample

from flawline import telemetry
from flawline.messages import Decision, Verdict

GROUPS_SHOWN = 64
"""Groups beyond are counted together as `other`, so that a model of many products makes no flood of series."""

# From good parts (0, some 0.3 around it) to what is far beyond every threshold.
_SCORE_STEPS = (-1.5, -1.0, -0.75, -0.5, -0.35, -0.2, -0.1, 0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_P_VALUE_STEPS = (0.001, 0.01, 0.05, *(tenth / 10 for tenth in range(1, 11)))

ACCEPTED_SCORE = Histogram(
    "flawline_accepted_score",
    "Aligned scores of accepted frames.",
    ("model", "group"),
    buckets=_SCORE_STEPS,
    registry=telemetry.REGISTRY,
)
P_VALUE = Histogram("flawline_p_value", "P-values of frames.", buckets=_P_VALUE_STEPS, registry=telemetry.REGISTRY)
ALARM_RATE_TARGET = Gauge(
    "flawline_alarm_rate_target", "Share of good parts that the model may alarm.", registry=telemetry.REGISTRY
)
SHADOW_DECISIONS = Counter(
    "flawline_shadow_decisions", "Frames by both models' decisions.", ("active", "shadow"), registry=telemetry.REGISTRY
)
LATE_VERDICTS = Counter(
    "flawline_late_verdicts", "Verdicts that came after the takt.", ("camera",), registry=telemetry.REGISTRY
)
TAKT_SECONDS = Gauge(
    "flawline_takt_seconds", "Longest time from capture to verdict that the line allows.", registry=telemetry.REGISTRY
)
SHARPNESS = Summary(
    "flawline_image_sharpness", "Variance of the Laplacian, in grey levels.", ("camera",), registry=telemetry.REGISTRY
)
BRIGHTNESS = Summary("flawline_image_brightness", "Mean brightness, 0 to 1.", ("camera",), registry=telemetry.REGISTRY)
CLIPPED = Summary(
    "flawline_image_clipped_share", "Share of black and white pixels.", ("camera",), registry=telemetry.REGISTRY
)
SCENE_FRAMES = Counter(
    "flawline_scene_frames",
    "Frames by what their camera's last ones say: as-learnt, camera-changed or product-changed.",
    ("camera", "scene"),
    registry=telemetry.REGISTRY,
)
SCORING_BUSY = Gauge(
    "flawline_scoring_busy", "Share of the last seconds in which frames were scored.", registry=telemetry.REGISTRY
)
GPU_MEMORY_BYTES = Gauge(
    "flawline_gpu_memory_bytes",
    "Memory of the GPU of an actor: used, or total.",
    ("what",),
    registry=telemetry.REGISTRY,
)
OF_AN_ACTOR: tuple[Collector, ...] = (
    *telemetry.OF_AN_ACTOR,
    ACCEPTED_SCORE,
    P_VALUE,
    ALARM_RATE_TARGET,
    SHADOW_DECISIONS,
    LATE_VERDICTS,
    SHARPNESS,
    BRIGHTNESS,
    CLIPPED,
    SCENE_FRAMES,
    SCORING_BUSY,
    GPU_MEMORY_BYTES,
    telemetry.PROCESS,
)


class ScoreMetrics:
    """Counts the scores of one actor. For one thread."""

    def __init__(self) -> None:
        self._model: str | None = None

    def count(self, verdict: Verdict) -> None:
        """Count a verdict; with another model than before the scores begin anew, since its groups are others."""
        if verdict.model_version != self._model:
            ACCEPTED_SCORE.clear()
            self._model = verdict.model_version
        P_VALUE.observe(verdict.p_value)
        if verdict.decision is Decision.ACCEPT:
            group = str(verdict.group) if 0 <= verdict.group < GROUPS_SHOWN else "other"
            ACCEPTED_SCORE.labels(verdict.model_version, group).observe(verdict.score)


def exposition() -> str:
    """Return this process's worker metrics as Prometheus text."""
    return generate_latest(telemetry.CollectorGroup(OF_AN_ACTOR)).decode()


class ActorCollector(Collector):
    """Asks every actor for its metrics when it is scraped; `ask` returns their Prometheus texts by actor.

    The supervisor's own process is shown beside those of the actors, as `supervisor`.
    """

    def __init__(self, ask: Callable[[], dict[str, str]], takt_s: float | None = None) -> None:
        self._ask = ask
        # A gauge without labels would show a takt of 0 where none is set.
        self._of_supervisor = telemetry.CollectorGroup(
            (telemetry.PROCESS, *([TAKT_SECONDS] if takt_s is not None else []))
        )
        TAKT_SECONDS.set(takt_s or 0)

    def collect(self) -> Iterator[Metric]:
        """Yield the supervisor's own metrics, then those of the actors that answered."""
        yield from telemetry.CollectorGroup(telemetry.OF_THE_SUPERVISOR).collect()
        of_supervisor = generate_latest(self._of_supervisor).decode()
        yield from merged(self._ask() | {"supervisor": of_supervisor}).values()


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
