"""How fast the ledger starts after 100 million verdicts, and how large its snapshot is.

    python -m benchmarks.ledger [--captures N] [--holes-per-million N] [--json FILE]

The state is made, not read: ten cameras, each with N captures in one epoch of days, with dropped captures one by one at
random, dead letters, and an outage's range in the spool that was full. It goes into a snapshot on an embedded broker; a
minute of 30 frames a second and camera follows. Then the ledger starts, in this process and as the command.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tomli_w

from benchmarks import report
from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, messages
from flawline.intervals import IntervalSet
from flawline.messages import DeadLetterReason, Decision, DropReason, LedgerEntry, Message, Timings, Verdict
from flawline.settings.tree import Settings
from ledger import snapshot
from ledger.accounting import Ledger
from ledger.reader import LedgerReader

CAMERAS = 10
RATE_HZ = 30
TAIL_S = 60
GOALS: dict[str, report.Goal] = {"start_s": ("<", 5), "command_s": ("<", 5), "report_differs": ("==", 0)}


def made_ledger(captures: int, holes: int, epoch: int, now_ns: int) -> Ledger:
    """Return a ledger of CAMERAS cameras with `captures` captures each, `holes` of them not scored, one by one."""
    ledger = Ledger()
    chance = random.Random(0)
    for camera in map(str, range(CAMERAS)):
        ledger.record_entry(LedgerEntry(camera, epoch, captures, (), now_ns))
        state = ledger.state.epochs[camera, epoch]
        places = sorted(chance.sample(range(captures), holes))
        dead = set(places[::20])
        state.dead[DeadLetterReason.UNDECODABLE] = IntervalSet((at, at) for at in sorted(dead))
        state.dropped[DropReason.OVERSIZE] = IntervalSet((at, at) for at in places if at not in dead)
        outage = IntervalSet([(captures // 2, captures // 2 + captures // 1000)])
        settled = state.dead[DeadLetterReason.UNDECODABLE] | state.dropped[DropReason.OVERSIZE]
        state.dropped[DropReason.SPOOL_FULL] = outage - settled
        state.scored = IntervalSet([(0, captures - 1)]) - settled - outage
        state.heard_at = now_ns
    return ledger


def say_tail(settings: Settings, captures: int, epoch: int) -> int:
    """Publish a minute of verdicts and reports; return the number of records."""
    client = kafka_clients.producer(settings, linger_ms=5)
    count = 0

    def say(topic: str, message: Message, partition: int) -> None:
        nonlocal count
        count += 1
        client.send(
            settings.topic(topic),
            value=messages.encode(message),
            headers=messages.headers(message),
            partition=partition,
        )

    for second in range(TAIL_S):
        for camera in range(CAMERAS):
            first = captures + second * RATE_HZ
            for sequence in range(first, first + RATE_HZ):
                say("verdicts", verdict(str(camera), epoch, sequence), camera % settings.kafka.camera_partitions)
            say("ledger", LedgerEntry(str(camera), epoch, first + RATE_HZ, (), time.time_ns()), 0)
    client.flush(timeout=60)
    client.close()
    return count


def verdict(camera: str, epoch: int, sequence: int) -> Verdict:
    """Return the verdict of a good part."""
    return Verdict(
        camera=camera,
        epoch=epoch,
        sequence=sequence,
        captured_at=1,
        decided_at=2,
        model_version="model-1",
        group=0,
        raw_score=0.0,
        score=0.1 * (sequence % 7),
        p_value=0.5,
        decision=Decision.ACCEPT,
        regions=(),
        timings=Timings(0, 0, 0, 0),
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captures", type=int, default=10_000_000, help="captures of each of the ten cameras")
    parser.add_argument("--holes-per-million", type=int, default=500, help="captures of a million that are not scored")
    report.add_json_option(parser)
    options = parser.parse_args(arguments)
    holes = options.captures * options.holes_per_million // 1_000_000
    now_ns = time.time_ns()
    epoch = now_ns // 1_000_000 - 3_600_000
    with tempfile.TemporaryDirectory() as folder, EmbeddedBroker(Path(folder) / "broker") as broker:
        settings = Settings.model_validate(
            {"data_dir": folder, "kafka": {"bootstrap_servers": broker.bootstrap, "camera_partitions": CAMERAS}}
        )
        kafka_clients.ensure_topics(settings)
        ledger = made_ledger(options.captures, holes, epoch, now_ns)
        expected = ledger.report([], now_ns).total
        begun = time.perf_counter()
        size_bytes = snapshot.write(settings, now_ns, (), ledger.state)
        write_s = time.perf_counter() - begun
        tail = say_tail(settings, options.captures, epoch)

        before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begun = time.perf_counter()
        with LedgerReader(settings) as reader:
            total = reader.poll().total
            start_s = time.perf_counter() - begun
            begun = time.perf_counter()
            reader.poll()
            poll_s = time.perf_counter() - begun
        file = Path(folder) / "line.toml"
        file.write_text(tomli_w.dumps(settings.model_dump(mode="json", exclude_unset=True, exclude_none=True)))
        begun = time.perf_counter()
        command = [sys.executable, "-m", "station.cli", "ledger", "--json", "--config", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        command_s = time.perf_counter() - begun
    added = CAMERAS * RATE_HZ * TAIL_S
    differs = (total.captured, total.scored, total.gaps) != (
        expected.captured + added,
        expected.scored + added,
        expected.gaps,
    )
    report.emit(
        "ledger",
        {
            "captures": total.captured,
            "holes": CAMERAS * holes,
            "snapshot_bytes": size_bytes,
            "snapshot_write_s": write_s,
            "tail_records": tail,
            "start_s": start_s,
            "poll_s": poll_s,
            "command_s": command_s,
            "peak_growth_mb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb) / 1024,
            "report_differs": int(differs),
        },
        GOALS,
        options.json,
    )


if __name__ == "__main__":
    main()
