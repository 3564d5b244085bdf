"""Many machines, as processes of this one: a node dies under load, a node is added, a model is published anew.

    python -m benchmarks.cluster [--json FILE] [--actors N] [--cameras N] [--rate-hz R] [--seconds S] [--log FILE]

Three nodes of Ray, three of Apache Kafka (KAFKA_HOME), and a server that speaks S3 with the model. Cameras send small
frames at a steady rate, and the detector is plain arithmetic, so that the line is measured and not the scoring. Then:

1. actors are spread over the nodes, and each node fetches the model by itself;
2. all processes of a node are killed at once: how long is each camera without a verdict of a new frame, and is a frame
   lost?
3. a node and actors are added: do they start there, and do cameras move to them?
4. another model is published at the same address with another version: does every node fetch it?

Figures are of this machine's processes: a network between the nodes is not part of it.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

from kafka.structs import TopicPartition

from benchmarks.kafka_cluster import KafkaCluster
from benchmarks.report import Goal, emit
from flawline import kafka_clients, messages
from flawline.messages import ModelPointer, Verdict
from flawline.settings.tree import KafkaSettings, Settings
from flawline.settings.workers import WorkerSettings
from tests.support.brokers import kafka_home
from tests.support.ray_cluster import RayCluster, RayNode
from tests.support.s3 import BUCKET, S3Server
from tests.workers.line import Feeder, frame, load_plain
from workers.inspector import Load
from workers.supervisor import Supervisor, start_ray, stop_ray

NODES: Final = 3
SESSION_S: Final = 6.0
MOVE_LIMIT_S: Final = SESSION_S + 2.0
WAIT_S: Final = 180.0
MODEL_URI: Final = f"s3://{BUCKET}/models/line"


@dataclass
class Arrivals:
    """The verdicts that have come: how often for each frame, and for each camera when and of what frame."""

    count: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)
    of_camera: dict[str, list[tuple[float, int]]] = field(default_factory=dict)

    def take(self, verdict: Verdict) -> None:
        """Note a verdict that has come now."""
        self.count[verdict.frame_id] += 1
        self.versions[verdict.model_version] += 1
        self.of_camera.setdefault(verdict.camera, []).append((time.monotonic(), verdict.captured_at))

    def new_after(self, camera: str, moment_ns: int) -> float | None:
        """Return when the first verdict of a frame captured after a moment came (monotonic, s), None before that."""
        return next((at_s for at_s, captured in self.of_camera.get(camera, []) if captured > moment_ns), None)


class Line:
    """Cameras at a steady rate, and a reader of verdicts, each on a thread."""

    def __init__(self, settings: Settings, cameras: int, rate_hz: float) -> None:
        self.settings = settings
        self.cameras = [f"camera-{i}" for i in range(cameras)]
        self.sent = 0
        self.arrivals = Arrivals()
        self._pause_s = 1 / rate_hz
        self._no_more_frames, self._done = threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._send, self._read)]

    def __enter__(self) -> Line:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._no_more_frames.set()
        self._done.set()
        for thread in self._threads:
            thread.join()

    def settle(self) -> None:
        """Send no more frames, and wait until each has its verdict, or for WAIT_S."""
        self._no_more_frames.set()
        self._threads[0].join()
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: len(self.arrivals.count) >= self.sent, "verdicts")

    def _send(self) -> None:
        feeder = Feeder(self.settings)
        sequence, due_s = 0, time.monotonic()
        while not self._no_more_frames.wait(max(0.0, due_s - time.monotonic())):
            feeder.send(*(frame(camera, sequence) for camera in self.cameras))
            self.sent += len(self.cameras)
            sequence, due_s = sequence + 1, due_s + self._pause_s
        feeder.flush()
        feeder.close()

    def _read(self) -> None:
        consumer = kafka_clients.consumer(self.settings)
        topic = self.settings.topic("verdicts")
        consumer.assign([TopicPartition(topic, partition) for partition in consumer.partitions_for_topic(topic)])
        consumer.seek_to_beginning()
        while not self._done.is_set():
            for records in consumer.poll(timeout_ms=100).values():
                for record in records:
                    self.arrivals.take(messages.decode(Verdict, record.value))
        consumer.close(autocommit=False)


def wait_until(condition: Callable[[], bool], what: str) -> float:
    """Return how long it took until a condition came true. Raises TimeoutError after WAIT_S."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > WAIT_S:
            raise TimeoutError(f"{what}: not within {WAIT_S:.0f} s")
        time.sleep(0.05)
    return time.monotonic() - started


def publish(settings: Settings, server: S3Server, version: str) -> None:
    """Put a model into the object store and announce it."""
    server.client().put_object(Bucket=BUCKET, Key="models/line/plain.txt", Body=f"{version} 0.0".encode())
    producer = kafka_clients.producer(settings)
    pointer = ModelPointer("active", version, MODEL_URI, time.time_ns())
    producer.send(settings.topic("models"), key=b"active", value=messages.encode(pointer)).get(20)
    producer.close()


def fetched(node: RayNode, version: str) -> int:
    """Return how many copies of a model a node has on its own disk."""
    copies = node.folder.glob("data/model-copies/*/plain.txt")
    return sum(copy.read_text().split()[0] == version for copy in copies)


def slots_on(node: RayNode, supervisor: Supervisor) -> list[int]:
    """Return the slots whose actors run on a node."""
    return [slot for slot, pid in supervisor.actor_pids().items() if node.holds(pid)]


def shares_all(supervisor: Supervisor, cameras: int) -> bool:
    """Return whether the actors hold all cameras, each of them some."""
    partitions = [health.partitions for health in supervisor.health().values()]
    return sum(map(len, partitions)) == cameras and all(partitions)


def measure(folder: Path, actors: int, cameras: int, rate_hz: float, seconds: float) -> dict[str, float]:
    """Return the figures of a line on a cluster."""
    home = kafka_home()
    if home is None:
        raise SystemExit("set KAFKA_HOME to a folder of Apache Kafka 4, and install java")
    figures: dict[str, float] = {"nodes": NODES, "actors": actors, "cameras": cameras, "session_s": SESSION_S}
    with contextlib.ExitStack() as ends:
        server = S3Server(folder / "s3.log")
        ends.callback(server.kill)
        os.environ.update(server.environment)  # before the nodes start: their actors use it
        kafka = KafkaCluster(home, folder / "kafka")
        ends.callback(kafka.kill)
        kafka.start()
        # Of a dead node's actors the other nodes have room for all.
        cluster = RayCluster(folder / "ray", cpus=-(-actors // (NODES - 1)))
        ends.callback(cluster.stop)
        ends.callback(stop_ray)
        cluster.add()
        settings = Settings(
            data_dir=Path("data"),  # of the folder of each node
            kafka=KafkaSettings(bootstrap_servers=kafka.bootstrap, camera_partitions=cameras),
            worker=WorkerSettings(actors=actors, num_cpus=1, ray_address=cluster.address, session_timeout_s=SESSION_S),
        )
        start_ray(settings)  # this process belongs to the first node, which stays
        for _ in range(NODES - 1):
            cluster.add()
        kafka_clients.ensure_topics(settings)
        publish(settings, server, "plain-1")
        supervisor = Supervisor(settings, load=cast(Load, load_plain))
        ends.callback(supervisor.stop)
        supervisor.start()

        # Step 1: actors are spread, and each node has fetched the model.
        wait_until(lambda: len(supervisor.actor_pids()) == actors, "actors")
        by_node = [len(slots_on(node, supervisor)) for node in cluster.nodes]
        figures |= {"fewest_actors_of_a_node": min(by_node), "most_actors_of_a_node": max(by_node)}
        figures["nodes_that_fetched_the_model"] = sum(fetched(node, "plain-1") == 1 for node in cluster.nodes)

        line = ends.enter_context(Line(settings, cameras, rate_hz))
        wait_until(lambda: shares_all(supervisor, cameras), "cameras")
        wait_until(lambda: len(line.arrivals.of_camera) == cameras, "first verdicts")
        time.sleep(seconds)

        # Step 2: a node dies.
        doomed = cluster.nodes[-1]
        of_doomed = [p for slot in slots_on(doomed, supervisor) for p in supervisor.health()[slot].partitions]
        killed_at, killed_ns = time.monotonic(), time.time_ns()
        cluster.kill(doomed)
        waits = {
            camera: wait_until(lambda c=camera: line.arrivals.new_after(c, killed_ns) is not None, camera)  # type: ignore[misc]
            for camera in line.cameras
        }
        waits = {camera: (line.arrivals.new_after(camera, killed_ns) or 0.0) - killed_at for camera in waits}
        figures["cameras_of_the_killed_node"] = len(of_doomed)
        figures["longest_wait_of_a_camera_s"] = max(waits.values())
        wait_until(lambda: sum(len(slots_on(node, supervisor)) for node in cluster.nodes) == actors, "new actors")
        figures["actors_started_again_after_s"] = time.monotonic() - killed_at
        wait_until(lambda: shares_all(supervisor, cameras), "cameras")
        time.sleep(seconds)

        # Step 3: a node is added, and actors.
        added_at = time.monotonic()
        added = cluster.add()
        supervisor.scale(actors + actors // NODES)
        wait_until(lambda: bool(slots_on(added, supervisor)) and shares_all(supervisor, cameras), "actors on the node")
        figures["cameras_moved_to_the_added_node_after_s"] = time.monotonic() - added_at
        on_added = slots_on(added, supervisor)
        figures["actors_on_the_added_node"] = len(on_added)
        figures["cameras_on_the_added_node"] = sum(len(supervisor.health()[slot].partitions) for slot in on_added)

        # Step 4: another model at the same address.
        publish(settings, server, "plain-2")
        published_at = time.monotonic()
        wait_until(lambda: all(fetched(node, "plain-2") for node in cluster.nodes), "the second model")
        wait_until(lambda: line.arrivals.versions["plain-2"] > 0, "a verdict of the second model")
        figures["second_model_at_work_after_s"] = time.monotonic() - published_at
        figures["nodes_that_fetched_the_second_model"] = sum(fetched(node, "plain-2") == 1 for node in cluster.nodes)
        time.sleep(seconds)

        line.settle()
        supervisor.check()
        figures |= {
            "frames_sent": line.sent,
            "frames_lost": line.sent - len(line.arrivals.count),
            "frames_scored_twice": sum(count > 1 for count in line.arrivals.count.values()),
        }
    return figures


def main() -> None:
    """Measure, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--actors", type=int, default=6)
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--rate-hz", type=float, default=5.0, help="of each camera")
    parser.add_argument("--seconds", type=float, default=15.0, help="between two steps")
    parser.add_argument("--log", type=Path, help="file for the log of the line")
    arguments = parser.parse_args()
    if arguments.log:
        logging.basicConfig(filename=arguments.log, level=logging.INFO)
    with tempfile.TemporaryDirectory(prefix="flawline-cluster-") as folder:
        figures = measure(Path(folder), arguments.actors, arguments.cameras, arguments.rate_hz, arguments.seconds)
    goals: dict[str, Goal] = {
        "frames_lost": ("==", 0),
        "longest_wait_of_a_camera_s": ("<=", MOVE_LIMIT_S),
        "fewest_actors_of_a_node": (">=", arguments.actors // NODES),
        "nodes_that_fetched_the_model": ("==", NODES),
        "actors_on_the_added_node": (">=", 1),
        "cameras_on_the_added_node": (">=", 1),
        "nodes_that_fetched_the_second_model": ("==", NODES),
    }
    emit("cluster", figures, goals, arguments.json)


if __name__ == "__main__":
    main()
