"""Measure the embedded broker with kafka-python: throughput, memory, latency, and its losses when it is killed.

`python -m benchmarks.broker [--json FILE] [--scale 0.1]`; with the scale of 1 it takes about two minutes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from benchmarks.group_member import joined
from benchmarks.report import Goal, add_json_option, emit
from embedded_broker import EmbeddedBroker
from flawline.child_process import ChildProcess

FRAME_BYTES: Final = 200_000
IN_FLIGHT: Final = 32  # unacknowledged records of a producer, as in an application that limits them

GOALS: Final[dict[str, Goal]] = {
    "produce_mb_per_s": (">=", 150),
    "consume_mb_per_s": (">=", 150),
    "rss_mb_after_2gb": ("<=", 80),
    "p99_ms_at_50_per_s": ("<=", 10),
    "lost": ("==", 0),
    "duplicates": ("==", 0),
    "failover_beyond_session_s": ("<=", 1),
    "tail_records_missed": ("==", 0),
}

Figures = dict[str, float]


def say(text: str) -> None:
    """Print progress to stderr, beside the report."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


@contextmanager
def running_broker(fsync: str = "interval") -> Iterator[EmbeddedBroker]:
    """Run a broker on a new data directory, which is deleted afterwards."""
    with (
        tempfile.TemporaryDirectory(prefix="flawline-bench-") as folder,
        EmbeddedBroker(Path(folder), fsync=fsync) as broker,
    ):
        yield broker


def create_topic(broker: EmbeddedBroker, topic: str, partitions: int = 1, **configs: str) -> None:
    """Create a topic; underscores in the names of settings stand for dots."""
    admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
    settings = {name.replace("_", "."): value for name, value in configs.items()}
    admin.create_topics({topic: {"num_partitions": partitions, "replication_factor": 1, "configs": settings}})
    admin.close()


def producer_for(broker: EmbeddedBroker) -> KafkaProducer:
    """Return a producer with the options that Flawline uses for frames."""
    return KafkaProducer(
        bootstrap_servers=broker.bootstrap,
        acks="all",
        enable_idempotence=True,
        linger_ms=0,
        batch_size=1 << 20,
        max_request_size=16 << 20,
        request_timeout_ms=15_000,
        delivery_timeout_ms=60_000,
    )


def consumer_for(broker: EmbeddedBroker, topic: str) -> KafkaConsumer:
    """Return a consumer of partition 0 from its beginning, with the options that Flawline uses for frames."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap,
        fetch_max_wait_ms=100,
        fetch_max_bytes=32 << 20,
        max_partition_fetch_bytes=8 << 20,
        receive_message_max_bytes=100_000_000,
        max_poll_records=50,
    )
    consumer.assign([TopicPartition(topic, 0)])
    consumer.seek_to_beginning()
    return consumer


def push(producer: KafkaProducer, topic: str, count: int, value: bytes) -> None:
    """Send `count` records, at most `IN_FLIGHT` unacknowledged at a time, and wait for all."""
    waiting: deque = deque()
    for _ in range(count):
        waiting.append(producer.send(topic, value))
        if len(waiting) > IN_FLIGHT:
            waiting.popleft().get(60)
    for future in waiting:
        future.get(60)


def memory_mb(pid: int, field: str) -> float:
    """Return `VmRSS` or `VmHWM` (its peak) of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1000
    raise ValueError(f"no {field} for process {pid}")


def throughput(scale: float) -> Figures:
    """Write and read 300 MB three times each, and return the medians."""
    count = max(int(1500 * scale), 50)
    value = os.urandom(FRAME_BYTES)
    produced, consumed = [], []
    with running_broker() as broker:
        for index in range(3):
            topic = f"throughput-{index}"
            create_topic(broker, topic)
            producer = producer_for(broker)
            started = time.perf_counter()
            push(producer, topic, count, value)
            produced.append(count * FRAME_BYTES / 1e6 / (time.perf_counter() - started))
            producer.close()
            consumer = consumer_for(broker, topic)
            started, seen = time.perf_counter(), 0
            while seen < count:
                seen += sum(map(len, consumer.poll(timeout_ms=500).values()))
            consumed.append(count * FRAME_BYTES / 1e6 / (time.perf_counter() - started))
            consumer.close()
    return {"produce_mb_per_s": statistics.median(produced), "consume_mb_per_s": statistics.median(consumed)}


def memory(scale: float) -> Figures:
    """Write 2 GB of 200 kB records to a topic that keeps 256 MB, and return the memory of the broker."""
    count = max(int(10_000 * scale), 100)
    with running_broker() as broker:
        create_topic(broker, "memory", retention_bytes=str(256 << 20), segment_bytes=str(32 << 20))
        before = memory_mb(broker.pid, "VmRSS")
        producer = producer_for(broker)
        push(producer, "memory", count, os.urandom(FRAME_BYTES))
        producer.close()
        return {
            "rss_mb_empty": before,
            "rss_mb_after_2gb": memory_mb(broker.pid, "VmRSS"),
            "rss_mb_peak": memory_mb(broker.pid, "VmHWM"),
        }


def latency(scale: float) -> Figures:
    """Send 50 records of 200 kB a second, and return percentiles of the time from send to poll."""
    count, interval_s = max(int(600 * scale), 100), 0.02
    padding = os.urandom(FRAME_BYTES - 8)
    times_s: list[float] = []
    with running_broker() as broker:
        create_topic(broker, "latency")
        producer, consumer = producer_for(broker), consumer_for(broker, "latency")
        push(producer, "latency", 20, struct.pack(">d", 0.0) + padding)  # connections, caches, first allocations

        def send() -> None:
            due = time.perf_counter()
            for _ in range(count):
                producer.send("latency", struct.pack(">d", time.perf_counter()) + padding)
                due += interval_s
                time.sleep(max(due - time.perf_counter(), 0))

        thread = threading.Thread(target=send)
        warmed = 0
        while warmed < 20:
            warmed += sum(map(len, consumer.poll(timeout_ms=500).values()))
        thread.start()
        while len(times_s) < count:
            for records in consumer.poll(timeout_ms=500).values():
                now = time.perf_counter()
                times_s += [now - struct.unpack_from(">d", record.value)[0] for record in records]
        thread.join()
        consumer.close()
        producer.close()
    cuts = statistics.quantiles(times_s, n=100)
    return {"p50_ms_at_50_per_s": 1000 * cuts[49], "p99_ms_at_50_per_s": 1000 * cuts[98]}


def storm(scale: float) -> Figures:
    """Kill the broker twice under two idempotent producers and a group of two, and count missing records."""
    topic, partitions, calm_s = "storm", 4, max(5 * scale, 2)
    stop, complete = threading.Event(), threading.Event()
    acknowledged: set[bytes] = set()
    consumed: Counter[bytes] = Counter()
    restarts: list[float] = []
    with running_broker() as broker:
        create_topic(broker, topic, partitions)

        def produce(name: int) -> None:
            producer = producer_for(broker)
            waiting: deque = deque()
            number = 0
            while not stop.is_set() or waiting:
                if not stop.is_set():
                    value = b"%d:%08d:" % (name, number) + bytes(FRAME_BYTES // 10)
                    waiting.append((value[:12], producer.send(topic, value, partition=number % partitions)))
                    number += 1
                if len(waiting) > 8 or stop.is_set():
                    key, future = waiting.popleft()
                    future.get(90)
                    acknowledged.add(key)
            producer.close()

        def consume() -> None:
            consumer = joined(broker.bootstrap, "storm", topic, 10_000)
            while not complete.is_set() or not acknowledged <= consumed.keys():
                for records in consumer.poll(timeout_ms=200).values():
                    consumed.update(record.value[:12] for record in records)
                try:
                    consumer.commit()
                except KafkaError:
                    continue  # the broker is away or the group rebalances; the next commit includes these offsets
            consumer.close()

        producers = [threading.Thread(target=produce, args=(name,)) for name in range(2)]
        readers = [threading.Thread(target=consume) for _ in range(2)]
        for thread in producers + readers:
            thread.start()
        for _ in range(2):
            time.sleep(calm_s)
            broker.kill()
            started = time.perf_counter()
            broker.start()
            restarts.append(time.perf_counter() - started)
        time.sleep(calm_s)
        stop.set()
        for thread in producers:
            thread.join(120)
        complete.set()  # all records are known from here on
        for thread in readers:
            thread.join(120)
        log = read_log(broker, topic, partitions)
    return {
        "acknowledged": len(acknowledged),
        "lost": len(acknowledged - log.keys()) + len(acknowledged - consumed.keys()),
        "duplicates": sum(count - 1 for count in log.values()),
        "redelivered_to_group": sum(count - 1 for count in consumed.values()),
        "restart_s": max(restarts),
    }


def read_log(broker: EmbeddedBroker, topic: str, partitions: int) -> Counter[bytes]:
    """Read the whole topic and count its records by their first twelve bytes."""
    consumer = KafkaConsumer(bootstrap_servers=broker.bootstrap)
    places = [TopicPartition(topic, index) for index in range(partitions)]
    consumer.assign(places)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(places)
    counts: Counter[bytes] = Counter()
    while any(consumer.position(place) < ends[place] for place in places):
        for records in consumer.poll(timeout_ms=500).values():
            counts.update(record.value[:12] for record in records)
    consumer.close()
    return counts


def failover(scale: float) -> Figures:
    """Kill a member of a group, and return the time until the other member has its partitions."""
    topic, partitions, session_ms = "failover", 8, max(int(6000 * scale), 2000)
    times_s: list[float] = []
    with running_broker() as broker:
        create_topic(broker, topic, partitions)
        for round_ in range(2):
            arguments = [broker.bootstrap, f"failover-{round_}", topic, str(session_ms)]
            command = [sys.executable, "-m", "benchmarks.group_member", *arguments]
            victim = ChildProcess(command, stdout=subprocess.PIPE)
            assert victim.stdout is not None
            victim.stdout.readline()
            survivor = joined(broker.bootstrap, f"failover-{round_}", topic, session_ms)
            while len(survivor.assignment()) != partitions // 2:
                survivor.poll(timeout_ms=50)
            victim.stdout.readline()
            victim.kill()
            started = time.perf_counter()
            while len(survivor.assignment()) != partitions:
                survivor.poll(timeout_ms=50)
            times_s.append(time.perf_counter() - started)
            survivor.close()
    worst = max(times_s)
    return {"failover_s": worst, "failover_beyond_session_s": worst - session_ms / 1000}


def tail(scale: float) -> Figures:
    """Let a consumer follow six producers of small records in one partition, and count the records that it misses."""
    count, producers = max(int(4000 * scale), 200), 6
    with running_broker() as broker:
        create_topic(broker, "tail")
        consumer = consumer_for(broker, "tail")

        def produce() -> None:
            producer = producer_for(broker)
            push(producer, "tail", count, bytes(1000))
            producer.close()

        threads = [threading.Thread(target=produce) for _ in range(producers)]
        for thread in threads:
            thread.start()
        offsets: list[int] = []
        deadline = time.monotonic() + 120
        while len(offsets) < count * producers and time.monotonic() < deadline:
            for records in consumer.poll(timeout_ms=500).values():
                offsets += [record.offset for record in records]
        for thread in threads:
            thread.join()
        consumer.close()
    return {
        "tail_records": count * producers,
        "tail_records_missed": len(set(range(count * producers)) - set(offsets)),
    }


PARTS: Final[tuple[Callable[[float], Figures], ...]] = (throughput, memory, latency, storm, failover, tail)


def main() -> None:
    """Run all parts and print the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.broker", description=__doc__)
    add_json_option(parser)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the runs; the goals are for 1")
    args = parser.parse_args()
    figures: Figures = {}
    for part in PARTS:
        say(f"{part.__name__} ...")
        measured = part(args.scale)
        say(", ".join(f"{name} {value:.4g}" for name, value in measured.items()))
        figures |= measured
    emit("broker", figures, GOALS, args.json)


if __name__ == "__main__":
    main()
