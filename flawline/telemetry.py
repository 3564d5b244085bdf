"""Every Prometheus metric of the system. Names hold the unit; labels have few values (cameras, reasons, stages)."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, start_http_server
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from flawline.errors import FlawlineError

log = logging.getLogger(__name__)

REGISTRY = CollectorRegistry()
PROCESS = ProcessCollector("flawline", registry=REGISTRY)

# From one decoding to a frame that waits minutes for a broker that is away.
LATENCY_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.3, 2.5, 5, 10, 30, 60, 300)


REQUEST_TIMEOUT_S = 10.0
"""A connection to an endpoint that sends nothing for so long is closed. A judgement: Prometheus sends at once."""


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(f"flawline_{name}", text, labels, registry=REGISTRY)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(f"flawline_{name}", text, labels, registry=REGISTRY)


def _histogram(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(f"flawline_{name}", text, labels, buckets=LATENCY_BUCKETS_S, registry=REGISTRY)


# Discovery and ledger
DISK_FREE_BYTES = _gauge("disk_free_bytes", "Free bytes of the disk that holds the store, or the data.", "disk")
DISK_SHORT = _gauge("disk_short", "1 while a disk has less free than retention.min_free_bytes.", "disk")

# Producers and workers
OBJECT_STORE_AWAY = _gauge("object_store_away", "1 while frames wait because the object store is away.")

# Workers, discovery and ledger
BROKER_WAIT_SECONDS = _gauge("broker_wait_seconds", "Time that a role has waited for the broker, 0 while it works.")

# Producers
CAPTURED = _counter("captured_frames", "Frames captured.", "camera")
PUBLISHED = _counter("published_frames", "Frames acknowledged by the broker.", "camera")
PUBLISHED_BYTES = _counter("published_bytes", "Encoded bytes acknowledged by the broker.", "camera")
DROPPED = _counter("dropped_frames", "Captures dropped before the topic frames.", "camera", "reason")
CAMERA_UP = _gauge("camera_up", "1 while the camera delivers, 0 while it is away or stalled.", "camera")
CAMERA_RECONNECTS = _counter("camera_reconnects", "Times a camera was opened again.", "camera")
PUBLISH_LATENCY = _histogram("publish_latency_seconds", "Capture to acknowledgement by the broker.", "camera")
PRODUCER_IN_FLIGHT_BYTES = _gauge("producer_in_flight_bytes", "Unacknowledged bytes in the producer.")
SPOOL_BYTES = _gauge("spool_bytes", "Bytes that wait on disk for the broker.", "camera")
SPOOL_FRAMES = _gauge("spool_frames", "Frames that wait on disk for the broker.", "camera")
SPOOL_OLDEST_AGE = _gauge("spool_oldest_age_seconds", "Age of the oldest frame on disk.", "camera")
CAMERA_LAG = _gauge("camera_lag_seconds", "Age of a camera's oldest published frame without a verdict.", "camera")
KEPT_SHARE = _gauge("kept_share", "Share of the captures that is published; below 1 while the workers lag.", "camera")
PART_MESSAGES = _counter("part_messages", "Messages that name parts, taken or refused.", "outcome")
OF_PRODUCERS: tuple[Collector, ...] = (
    CAPTURED,
    PART_MESSAGES,
    PUBLISHED,
    PUBLISHED_BYTES,
    DROPPED,
    CAMERA_UP,
    CAMERA_RECONNECTS,
    PUBLISH_LATENCY,
    PRODUCER_IN_FLIGHT_BYTES,
    SPOOL_BYTES,
    SPOOL_FRAMES,
    SPOOL_OLDEST_AGE,
    CAMERA_LAG,
    KEPT_SHARE,
    OBJECT_STORE_AWAY,
)

# Workers
VERDICTS = _counter("verdicts", "Verdicts acknowledged by the broker.", "camera", "decision")
DEAD_LETTERS = _counter("dead_letters", "Dead letters acknowledged by the broker.", "camera", "reason")
UNDESCRIBED_DEFECTS = _counter("undescribed_defects", "Defects that left without their regions.", "camera", "reason")
DECIDED_BEFORE = _counter("decided_before", "Frames that were read again and had a verdict already.")
UNKNOWN_VERDICTS = _counter("unknown_verdicts", "Partitions taken over without knowing all verdicts on their frames.")
TRANSACTIONS = _counter("transactions", "Transactions of a worker, with exactly-once delivery.", "result")
EXPIRED_FRAMES = _counter("expired_frames", "Frames that were deleted before a worker read them.", "partition")
STAGE_LATENCY = _histogram("stage_latency_seconds", "Time of a frame in one stage of a worker.", "stage")
VERDICT_LATENCY = _histogram("verdict_latency_seconds", "Capture to acknowledged verdict.", "camera")
LAG_RECORDS = _gauge("lag_records", "Frames in the log that have no verdict yet.", "partition")
LAG_SECONDS = _gauge("lag_seconds", "Age of the oldest frame that has no verdict yet.", "partition")
WORKER_IN_FLIGHT_BYTES = _gauge("worker_in_flight_bytes", "Bytes of frames without a verdict, fetched and decoded.")
QUEUE_DEPTH = _gauge("queue_depth", "Items that wait before a stage.", "stage")
PAUSED_PARTITIONS = _gauge("paused_partitions", "Partitions that are paused by the byte bound.")
PAUSED_SECONDS = _gauge("paused_seconds", "How long the partitions have been paused without a break.")
UNACKNOWLEDGED_SECONDS = _gauge("unacknowledged_seconds", "Age of the oldest record that the broker has not answered.")
BATCH_SIZE = Histogram(
    "flawline_batch_size", "Frames scored together.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=REGISTRY
)
GPU_MEMORY_SHORTAGES = _gauge(
    "gpu_memory_shortages", "Times the GPU's memory was used up, so that batches became smaller, with this model."
)
MODEL_INFO = _gauge("model_info", "1 for the model version in use.", "version", "role")
MODEL_LOAD_FAILURES = _counter("model_load_failures", "Model versions that could not be loaded.")
MODEL_PROBLEM = _gauge("model_problem", "1 while the model that is to play a role cannot be used.", "role")
SHADOW_FRAMES = _counter("shadow_frames", "Frames for the shadow model, by what became of them.", "outcome")
ACTORS = _gauge("actors", "Ray actors that run.")
ACTOR_RESTARTS = _counter("actor_restarts", "Ray actors that died and were started again.")
OF_AN_ACTOR: tuple[Collector, ...] = (
    VERDICTS,
    DEAD_LETTERS,
    UNDESCRIBED_DEFECTS,
    DECIDED_BEFORE,
    UNKNOWN_VERDICTS,
    TRANSACTIONS,
    EXPIRED_FRAMES,
    STAGE_LATENCY,
    VERDICT_LATENCY,
    LAG_RECORDS,
    LAG_SECONDS,
    WORKER_IN_FLIGHT_BYTES,
    QUEUE_DEPTH,
    PAUSED_PARTITIONS,
    PAUSED_SECONDS,
    UNACKNOWLEDGED_SECONDS,
    BATCH_SIZE,
    GPU_MEMORY_SHORTAGES,
    MODEL_INFO,
    MODEL_LOAD_FAILURES,
    OBJECT_STORE_AWAY,
    MODEL_PROBLEM,
    SHADOW_FRAMES,
)
OF_THE_SUPERVISOR: tuple[Collector, ...] = (ACTORS, ACTOR_RESTARTS, BROKER_WAIT_SECONDS)

# Discovery
DEFECTS = _counter("defects", "Defect messages taken into the store.", "camera")
REGIONS = _counter("regions", "Defect regions taken into the store.")
REJECTED_RECORDS = _counter("rejected_records", "Records that discovery could not use.", "reason")
CLASSES = _gauge("classes", "Defect classes by state.", "state")
UNASSIGNED_REGIONS = _gauge("unassigned_regions", "Regions that belong to no class yet.")
ROUND_SECONDS = _histogram("round_seconds", "Duration of a discovery round.")
ROUNDS = _counter("rounds", "Discovery rounds.")
DISCOVERY_LAG = _gauge("discovery_lag_records", "Records that discovery has not read yet.", "topic")
STORE_AWAY_SECONDS = _gauge("store_away_seconds", "Time since discovery's store went away, 0 while it answers.")
FORGOTTEN_PICTURES = _counter("forgotten_pictures", "Frames whose pictures retention removed.", "value", "reason")
FORGOTTEN_DEFECTS = _counter("forgotten_defects", "Defects that are only counted any more.")
PICTURE_BYTES = _gauge("picture_bytes", "Bytes of crops, masks and heat maps in the store.", "value")
KEPT_FRAMES = _counter("kept_frames", "Whole frames put into the picture store.", "stratum")
LOST_FRAMES = _counter("lost_frames", "Whole frames that were to be kept and could not be.", "reason")
FORGOTTEN_FRAMES = _counter("forgotten_frames", "Whole frames removed from the picture store.", "value", "reason")
KEPT_FRAME_BYTES = _gauge("kept_frame_bytes", "Bytes of the frames in the picture store.", "value")
WAITING_FRAMES = _gauge("waiting_frames", "Whole frames that wait to be put into the picture store.")
UNJUDGED_FRAMES = _gauge("unjudged_frames", "Frames that were not accepted, have a picture and no judgement.")
OF_DISCOVERY: tuple[Collector, ...] = (
    KEPT_FRAMES,
    LOST_FRAMES,
    FORGOTTEN_FRAMES,
    KEPT_FRAME_BYTES,
    WAITING_FRAMES,
    UNJUDGED_FRAMES,
    DISK_FREE_BYTES,
    DISK_SHORT,
    FORGOTTEN_PICTURES,
    FORGOTTEN_DEFECTS,
    PICTURE_BYTES,
    DEFECTS,
    REGIONS,
    REJECTED_RECORDS,
    CLASSES,
    UNASSIGNED_REGIONS,
    ROUND_SECONDS,
    ROUNDS,
    DISCOVERY_LAG,
    STORE_AWAY_SECONDS,
    BROKER_WAIT_SECONDS,
)

# Ledger
LEDGER = _gauge("ledger_frames", "Accounting of captures by outcome.", "camera", "outcome", "reason")
LEDGER_BALANCED = _gauge("ledger_balanced", "1 when every capture has exactly one outcome.")
UNREAD_EXPIRE_SECONDS = _gauge(
    "unread_frames_expire_seconds", "Time until a frame that no worker has read is deleted from its topic.", "partition"
)
STORED_OBJECTS = _gauge("stored_objects", "Objects in the object store after the last collection.")
STORED_OBJECT_BYTES = _gauge("stored_object_bytes", "Bytes of the objects in the object store.")
COLLECTED_OBJECTS = _counter("collected_objects", "Objects removed because no record refers to them any more.")
COLLECTED_OBJECT_BYTES = _counter("collected_object_bytes", "Bytes of the objects that were removed.")
EARLY_OBJECTS = _counter("early_objects", "Objects of frames with a verdict that were removed for want of room.")
EARLY_OBJECT_BYTES = _counter("early_object_bytes", "Bytes of the objects that were removed for want of room.")
TOPIC_DELETED = _gauge("topic_deleted_records", "Records that retention has deleted from a topic.", "topic")
OF_THE_LEDGER: tuple[Collector, ...] = (
    DISK_FREE_BYTES,
    DISK_SHORT,
    EARLY_OBJECTS,
    EARLY_OBJECT_BYTES,
    TOPIC_DELETED,
    STORED_OBJECTS,
    STORED_OBJECT_BYTES,
    COLLECTED_OBJECTS,
    COLLECTED_OBJECT_BYTES,
    LEDGER,
    LEDGER_BALANCED,
    UNREAD_EXPIRE_SECONDS,
    BROKER_WAIT_SECONDS,
)

# `flawline up`
ROLE_UP = _gauge("role_up", "1 while the process of a role runs.", "role")
ROLE_RESTARTS = _counter("role_restarts", "Times a role was started again after it had died.", "role")
ROLE_FAILING_SECONDS = _gauge("role_failing_seconds", "Time since a role died, 0 once it is well again.", "role")
OF_UP: tuple[Collector, ...] = (ROLE_UP, ROLE_RESTARTS, ROLE_FAILING_SECONDS)


class CollectorGroup(Collector):
    """Several collectors as one. A role serves its own metrics only: the gauge of another role would be a false 0."""

    def __init__(self, collectors: Iterable[Collector]) -> None:
        self._collectors = tuple(collectors)

    def collect(self) -> Iterator[Metric]:
        for collector in self._collectors:
            yield from collector.collect()


class Endpoint:
    """A running Prometheus endpoint; `port` is 0 when nothing is served."""

    def __init__(self, server: WSGIServer | None, port: int) -> None:
        self._server = server
        self.port = port

    def close(self) -> None:
        """Stop serving; harmless when it has stopped."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None


def serve(port: int, host: str, *collectors: Collector) -> Endpoint:
    """Serve the metrics of `collectors` on `host:port`; port 0 serves nothing. Raises FlawlineError."""
    if port == 0:
        return Endpoint(None, 0)
    registry = CollectorRegistry()
    registry.register(CollectorGroup(collectors))
    try:
        server, _ = start_http_server(port, addr=host, registry=registry)
        # A client that sends no request would hold a thread for ever.
        handler: Any = server.RequestHandlerClass
        server.RequestHandlerClass = type("Handler", (handler,), {"timeout": REQUEST_TIMEOUT_S})
    except OSError as error:
        raise FlawlineError(
            f"metrics port {host}:{port} cannot be opened ({error.strerror}): choose another in [metrics] or 0 for none"
        ) from error
    log.info("metrics on http://%s:%d/metrics", host, port)
    return Endpoint(server, port)
