"""Runs the whole line on this machine: broker, model, cameras, Ray workers, discovery; then measures what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kafka.errors import CoordinatorNotAvailableError, GroupIdNotFoundError

from discovery.service import DiscoveryService
from embedded_broker import EmbeddedBroker
from flawline import imaging, kafka_clients, topics
from flawline.errors import FlawlineError, UsageError
from flawline.messages import Codec, Decision, Verdict
from flawline.settings.tree import Settings
from ledger.accounting import Report
from ledger.reader import LedgerReader
from station import ended_run, terminal
from station.demo import figures, page, parts, stage, truth, verdict_log
from station.demo.classes import ClassView, found_classes
from station.demo.memory import PeakMemory
from station.demo.stage import Role
from station.ended_run import EndedRun, Picture, ShownVerdict
from workers.publish_model import publish_model

if TYPE_CHECKING:
    from scorer.detector import CoresetDetector

FIT_PARTS = 336
"""Good parts of the simulated line that the model learns from: 48 of each of seven products."""

PROGRESS_INTERVAL_S = 0.5
READY_INTERVAL_S = 0.1

NO_PROGRESS_S = 120.0
"""After this long without a new outcome the run counts as stuck and ends with an error. A judgement, not measured."""


@dataclass(frozen=True)
class Options:
    """The options of `flawline demo`."""

    out: Path = Path("runs/demo")
    data: Path | None = None
    frames: int = 960
    rate_hz: float = 6.0
    seed: int = 7
    actors: int = 2
    hard: bool = False


def run_demo(base: Settings, options: Options) -> dict[str, Any]:
    """Run the line once and return its summary (the JSON of `flawline demo --json`).

    Raises FlawlineError when a role fails or the run is stuck, UsageError for wrong options. Every role that was
    started is stopped in any case.
    """
    started, started_ns = time.monotonic(), time.time_ns()
    if options.data is not None and options.hard:
        raise UsageError(
            "--hard: makes the defects of the simulated line faint, and --data names images: leave one out"
        )
    if options.data is not None and not options.data.is_dir():
        raise UsageError(
            f"--data {options.data}: no such folder: name one with <product>/train/good and <product>/test"
        )
    out = stage.prepare_folder(options.out)
    with ExitStack() as stack:
        memory = stack.enter_context(PeakMemory())
        settings = _settings(stack, base, options, out)
        kafka_clients.ensure_topics(settings)
        # The workers start while the model is fitted: they wait for the topic `models` to name one.
        workers = _role(stack, out, "work")
        detector = _fit(settings, options)
        publish_model(settings, settings.data_dir / "model")
        discovery = _role(stack, out, "discover")
        _wait_for_workers(settings, options.actors, [workers, discovery])
        producers = _role(stack, out, "produce")
        report = _follow(settings, producers, [workers, discovery])
        for role in (producers, workers, discovery):
            role.stop()
        verdicts = verdict_log.read_verdicts(settings)
        classes = _discovered(settings)
    if not verdicts:
        raise FlawlineError(f"demo: no frame has a verdict: see the logs in {out / 'logs'}")
    truth_of, file_of = truth.of_cameras(settings)
    truths = {verdict.frame_id: truth_of(verdict) for verdict in verdicts}
    assignments = {frame: view.class_id for view in classes for frame in view.frames}
    verdict_log.write_verdicts(out / "verdicts.jsonl", verdicts, file_of)
    result = {
        "ledger": report.as_dict(),
        "frames_per_second": figures.throughput(verdicts),
        "latency_ms": figures.latency_ms(verdicts),
        "quality": figures.quality(verdicts, truths),
        "alarm_rate": figures.alarm_rate(verdicts, truths, detector.alarm_rate),
        "escape_rate": figures.escape_rate(verdicts, truths),
        "classes": figures.classes(verdicts, truths, assignments, with_product=options.data is not None),
        "seconds": {
            "to_first_verdict": (min(verdict.decided_at for verdict in verdicts) - started_ns) / 1e9,
            "total": time.monotonic() - started,
        },
        "peak_rss_bytes": memory.peak_bytes,
        "artefacts": {
            "page": str(out / "index.html"),
            "model": str(out / "model"),
            "verdicts": str(out / "verdicts.jsonl"),
            "store": settings.store_url if base.store.url is None else "the configured store",
            "config": str(out / "line.toml"),
        },
    }
    views = _Views(settings, truths)
    page.write(out / "index.html", result, verdicts, truths, classes, views.of_part)
    terminal.write_json(out / "summary.json", result)
    ended_run.write(out, _ended(report, verdicts, views.pixels_of))
    return result


class _Views:
    """Shows parts of the run as its model sees them; the model is loaded as workers load it."""

    def __init__(self, settings: Settings, truths: Mapping[str, figures.Truth]) -> None:
        from scorer.load import load_detector

        worker = settings.worker
        model = settings.data_dir / "model"
        self._detector = load_detector(model, runtime=worker.runtime, precision=worker.precision)
        self._truths = truths
        self.pixels_of = truth.pixels_of_cameras(settings, self._detector.sample_bits)

    def of_part(self, verdict: Verdict, title: str) -> parts.PartView | None:
        """Return how the page shows a part, None when its picture is gone."""
        try:
            return parts.view(verdict, self._truths[verdict.frame_id], title, self._detector, self.pixels_of)
        except imaging.ImageError:
            return None


def _ended(report: Report, verdicts: list[Verdict], pixels_of: parts.PixelsOf) -> EndedRun:
    """Return what the station shows of the run: of each camera the last verdicts, and the last part not accepted."""
    last = ended_run.last_verdicts(verdicts)
    important = {verdict.frame_id for verdict in _most_important(last)}
    pictures = []
    for verdict in verdicts:
        if verdict.frame_id in important:
            pixels = pixels_of(verdict)
            height, width = pixels.shape[:2]
            pictures.append(Picture(verdict.frame_id, imaging.encode(pixels, Codec.JPEG), height, width))
    return EndedRun(time.time_ns(), report, tuple(last), tuple(pictures))


def _most_important(verdicts: Sequence[ShownVerdict]) -> list[ShownVerdict]:
    """Return of each camera the last verdict that is no acceptance, or its last one."""
    chosen: dict[str, ShownVerdict] = {}
    for verdict in verdicts:
        known = chosen.get(verdict.camera)
        if known is None or verdict.decision is not Decision.ACCEPT or known.decision is Decision.ACCEPT:
            chosen[verdict.camera] = verdict
    return list(chosen.values())


def _settings(stack: ExitStack, base: Settings, options: Options, out: Path) -> Settings:
    """Return the run's settings; without a configured broker the embedded one runs for as long as `stack` is open."""
    bootstrap = base.kafka.bootstrap_servers
    is_embedded = bootstrap is None
    if bootstrap is None:
        bootstrap = stack.enter_context(EmbeddedBroker(out / "broker", fsync=base.embedded.fsync)).bootstrap
    if options.data is None:
        cameras = stage.simulated_cameras(options.frames, options.rate_hz, options.seed, hard=options.hard)
    else:
        cameras = stage.folder_cameras(options.data, options.rate_hz, options.seed)
    return stage.write_settings(out, base, bootstrap, cameras, options.actors, is_embedded=is_embedded)


def _role(stack: ExitStack, out: Path, name: str) -> Role:
    role = Role(out, name, name)
    stack.callback(role.stop)
    return role


def _fit(settings: Settings, options: Options) -> CoresetDetector:
    """Fit on good parts, whose product is never told, and save. The first import of the scorer is here: it is slow."""
    from scorer import commands
    from scorer.fit import fit_detector
    from scorer.load import load_detector

    model = settings.data_dir / "model"
    if options.data is not None:
        commands.fit(options.data, model, settings.scorer, report=False, progress_bar=terminal.stage_progress)
        return load_detector(model)
    with terminal.progress("good parts") as advance:
        images = []
        camera = settings.cameras[0]
        for part in truth.simulated_line(camera).good_parts(FIT_PARTS):
            # What is normal is learnt from pictures as the cameras deliver them: a codec leaves traces of its own.
            data = imaging.encode(part.image, camera.codec, quality=camera.jpeg_quality)
            images.append(imaging.decode(data, camera.codec, shape=part.image.shape))
            advance(len(images), FIT_PARTS)
    with terminal.progress("fit") as advance:
        fitted = fit_detector(images, settings.scorer, lambda name, done, total: advance(done, total, name))
    fitted.save(model)
    return fitted


def _wait_for_workers(settings: Settings, actors: int, roles: list[Role]) -> None:
    """Wait until every actor has loaded its model and is a member of the group, so that no frame waits for a start."""
    group = settings.kafka.topic_prefix + topics.WORKERS_GROUP
    client = kafka_clients.admin(settings)
    try:
        deadline = time.monotonic() + NO_PROGRESS_S
        while time.monotonic() < deadline:
            stage.require_running(roles)
            try:
                described = client.describe_groups([group])[group]
                if described["group_state"] == "Stable" and len(described["members"]) >= actors:
                    return
            except (CoordinatorNotAvailableError, GroupIdNotFoundError):
                pass  # Apache Kafka knows no group before its first member
            time.sleep(READY_INTERVAL_S)
    finally:
        client.close()
    raise FlawlineError(f"demo: the workers are not ready after {NO_PROGRESS_S:.0f} s: see {roles[0].log}")


def _follow(settings: Settings, producers: Role, others: list[Role]) -> Report:
    """Wait until every capture has its outcome, and return the ledger's last report."""
    expected = truth.expected_frames(settings)
    with LedgerReader(settings) as reader, terminal.progress("frames") as advance:
        last_done, changed_at = -1, time.monotonic()
        while True:
            ended = not producers.running
            stage.require_running(others)
            total = (report := reader.poll()).total
            done = total.scored + sum(total.dropped.values()) + sum(total.dead_lettered.values())
            advance(done, max(expected, total.captured))
            if ended and done >= total.captured > 0 and not total.in_flight:
                return report
            if done != last_done:
                last_done, changed_at = done, time.monotonic()
            elif time.monotonic() - changed_at > NO_PROGRESS_S:
                raise FlawlineError(
                    f"demo: {done} of {total.captured} captures have an outcome and none came for "
                    f"{NO_PROGRESS_S:.0f} s: see the logs in {settings.data_dir / 'logs'}"
                )
            time.sleep(PROGRESS_INTERVAL_S)


def _discovered(settings: Settings) -> list[ClassView]:
    """Read what discovery had not read when it was stopped, run a last round, and return the classes."""
    with DiscoveryService(settings) as service:
        service.drain()
        return found_classes(service.store)
