"""How much of what a line needs, by arithmetic; `flawline size` and docs/scale.md show it. Pure."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from flawline import topics
from flawline.settings.tree import Settings

HOUR_S = 3600
DAY_S = 86_400

SCORED_PER_CORE_S = {"f32": 100.0, "bf16": 133.0}
"""Images that one core scores in a second with profile `fast` at 256 px, banks full: 200 (f32) and 267 (bf16) on two
quiet cores, by `benchmarks.scorer --parts speed` (docs/scoring.md)."""

WORK_OF_PROFILE = {"fast": 1.0, "accurate": 5.0, "foundation": 35.0}
"""Work of an image on a CPU, against `fast`. Five times is measured (README). 35 is an estimate: the ratio of the bare
backbones, 280 and 8 images a second on two cores (docs/backbones.md)."""

DECODE_S_PER_BYTE = 14e-9
"""Processor time of decoding a JPEG, for each of its bytes: 3.3 ms for 228 kB of 1024 x 1024 pixels, quality 90 (18 and
11 ns a byte for files of half and of twice the size; one core of an AMD EPYC)."""

SCORED_PER_GPU_S = {"fast": 6000.0, "accurate": 1200.0, "foundation": 2000.0}
"""Images that a large GPU scores in a second, with room to spare: an H200 scores 12,340 (`fast`) and 2,762
(`foundation`) in batches of 64 (docs/gpu.md). `accurate` is a fifth of `fast`: an estimate."""

BUSY_SHARE = 0.5
"""Share of cores, GPUs and network that a line may fill. A judgement, not measured: the rest describes rejects, and
catches up after an outage in as long as that took."""

BROKER_WRITES_BYTES_S = 140e6
"""Bytes that one broker writes in a second, copies included. An estimate: half of the 280 MB/s that the embedded broker
takes on two cores (README); Apache Kafka on the plant's disks has not been measured."""

PRODUCER_BYTES_S = 50e6
"""Bytes that one process of producers sends in a second. An estimate, for its one core."""

ACTOR_BYTES = 2 << 30
"""Memory of an actor with its model. An estimate: a demo of two actors, broker, discovery and cameras takes 2.6 GB."""

RECORD_BYTES = 500
"""Bytes of a record without an image: a verdict, or a frame whose image is in a bucket. An estimate: a verdict takes
300 bytes; headers and longer names come on top."""

PARTITIONS_PER_ACTOR = 4
"""So that cameras spread evenly over actors, also when one is away (README, "Scale")."""


@dataclass(frozen=True)
class Machine:
    """A machine of the plant: what it has of each thing that can run short."""

    cores: int = 16
    disk_bytes: float = 4e12
    network_bytes_s: float = 1.25e9


@dataclass(frozen=True)
class Load:
    """What the cameras send."""

    cameras: int
    rate_hz: float
    frame_bytes: float

    @property
    def frames_s(self) -> float:
        """Frames of all cameras in a second."""
        return self.cameras * self.rate_hz

    @property
    def bytes_s(self) -> float:
        """Bytes of all cameras in a second."""
        return self.frames_s * self.frame_bytes


@dataclass(frozen=True)
class Needs:
    """What a line needs. Bytes on disk hold what retention keeps; of Kafka they count every copy."""

    frames_s: float
    bytes_s: float
    worker_cores: int
    gpus: int
    actors: int
    actors_memory_bytes: int
    decode_threads: int
    camera_partitions: int
    replicas_of_partitions: int
    broker_writes_bytes_s: float
    brokers: int
    frames_disk_bytes: float
    verdicts_disk_bytes: float
    bucket_bytes: float
    spool_bytes_per_hour: float
    producers: int
    machines: dict[str, float]
    bottleneck: str

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, for JSON."""
        return asdict(self)


def size(load: Load, settings: Settings, machine: Machine, *, precision: str = "f32") -> Needs:
    """Return what `load` needs with these settings; `precision` is that of the model, on CPUs.

    With `worker.num_gpus` GPUs score, with profile `scorer.profile`. `machines` says how many machines each thing alone
    would fill, and the largest of these is the bottleneck: the first to run short as cameras are added.
    """
    kafka, keep, worker = settings.kafka, settings.retention, settings.worker
    profile = settings.scorer.profile
    gpus = math.ceil(load.frames_s / (BUSY_SHARE * SCORED_PER_GPU_S[profile])) if worker.num_gpus else 0
    per_core = BUSY_SHARE * SCORED_PER_CORE_S[precision] / WORK_OF_PROFILE[profile]
    scoring = 0.0 if gpus else load.frames_s / per_core
    decoding = load.bytes_s * DECODE_S_PER_BYTE / BUSY_SHARE
    actors = max(1, math.ceil(gpus / worker.num_gpus if gpus else scoring / worker.num_cpus))
    partitions = PARTITIONS_PER_ACTOR * actors

    in_bucket = settings.frames.objects_url is not None and load.frame_bytes > settings.frames.inline_limit_bytes
    in_kafka = load.frames_s * ((RECORD_BYTES if in_bucket else load.frame_bytes) + RECORD_BYTES)
    writes = in_kafka * kafka.replication_factor
    frames_disk = (0 if in_bucket else load.bytes_s) * keep.frames_hours * HOUR_S * kafka.replication_factor
    verdicts_disk = load.frames_s * RECORD_BYTES * keep.verdicts_days * DAY_S * kafka.replication_factor
    machines = {
        "cores of workers": (scoring + decoding) / machine.cores,
        "network of workers": load.bytes_s / BUSY_SHARE / machine.network_bytes_s,
        "what brokers write": writes / BROKER_WRITES_BYTES_S,
        "disks of brokers": (frames_disk + verdicts_disk) / machine.disk_bytes,
        "cores of producers": load.bytes_s / PRODUCER_BYTES_S / machine.cores,
    }
    return Needs(
        frames_s=load.frames_s,
        bytes_s=load.bytes_s,
        worker_cores=math.ceil(scoring + decoding),
        gpus=gpus,
        actors=actors,
        actors_memory_bytes=actors * ACTOR_BYTES,
        decode_threads=math.ceil(decoding / actors),
        camera_partitions=partitions,
        replicas_of_partitions=partitions * kafka.replication_factor * sum(topic.per_camera for topic in topics.ALL),
        broker_writes_bytes_s=writes,
        brokers=max(
            kafka.replication_factor, math.ceil(max(machines["what brokers write"], machines["disks of brokers"]))
        ),
        frames_disk_bytes=frames_disk,
        verdicts_disk_bytes=verdicts_disk,
        bucket_bytes=load.bytes_s * keep.frames_hours * HOUR_S if in_bucket else 0,
        spool_bytes_per_hour=load.bytes_s * HOUR_S,
        producers=max(1, math.ceil(load.bytes_s / PRODUCER_BYTES_S)),
        machines=machines,
        bottleneck=max(machines, key=lambda name: machines[name]),
    )


def remedies(needs: Needs, settings: Settings) -> list[str]:
    """Return the settings that are too small for `needs`, each with its key, its value and what it should be."""
    kafka, keep = settings.kafka, settings.retention
    copies = kafka.replication_factor
    least = {
        "kafka.camera_partitions": (kafka.camera_partitions, needs.camera_partitions),
        "worker.decode_threads": (settings.worker.decode_threads, needs.decode_threads),
        "retention.frames_limit_bytes": (keep.frames_limit_bytes, math.ceil(needs.frames_disk_bytes / copies)),
        "retention.verdicts_limit_bytes": (keep.verdicts_limit_bytes, math.ceil(needs.verdicts_disk_bytes / copies)),
        "retention.objects_limit_bytes": (keep.objects_limit_bytes, math.ceil(needs.bucket_bytes)),
    }
    return [f"{key} = {value}: {wanted} or more" for key, (value, wanted) in least.items() if value < wanted]
