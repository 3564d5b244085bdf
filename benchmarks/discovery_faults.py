"""kill -9 at random points of rounds: is the registry consistent, no id lost, no region counted twice?

A discovery process works on a broker's topics and a store; it is killed while a round runs, at a point drawn evenly
over the time that rounds take, and started again, over and over. At the end the stream is read to its end, and what
the store and the topic `classes` say is compared with what was sent and with what was seen after every kill.

    python -m benchmarks.discovery_faults [--kills 20] [--store-url URL] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import random
import select as wait_select
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from sqlalchemy import func, select

from benchmarks.report import Goal, add_json_option, emit
from discovery.service import DiscoveryService
from discovery.store import registry, schema
from discovery.store.store import Store
from embedded_broker import EmbeddedBroker
from flawline.messages import ClassState, Decision, Defect, Verdict
from flawline.settings.tree import Settings
from tests.discovery import line
from tests.discovery.factories import defect, directions, near, verdict

GOALS: Final[dict[str, Goal]] = {
    "ids_lost": ("==", 0),
    "ids_doubled": ("==", 0),
    "regions_lost": ("==", 0),
    "regions_counted_twice": ("==", 0),
    "frames_miscounted": ("==", 0),
    "inconsistencies": ("==", 0),
    "events_lost": ("==", 0),
}
KINDS: Final = 4
FRAMES_PER_PART: Final = 80
KILLS_PER_MEASURE: Final = 4
START_TIMEOUT_S: Final = 120.0
# Says on stdout when a round begins and when it has been written.
_PROCESS: Final = """
import sys, threading
from pathlib import Path
from discovery import service
from discovery.round_runner import RoundRunner
from flawline.settings.tree import load_settings
step = RoundRunner.step
def told(self):
    if self._wanted:
        print("round", flush=True)
    changed = step(self)
    if changed:
        print("written", flush=True)
    return changed
RoundRunner.step = told
service.run(load_settings(Path(sys.argv[1])), threading.Event())
"""


@dataclass
class Findings:
    """What went wrong, and how often the process was killed: in a round, or behind one that was quick."""

    kills: int = 0
    kills_after_rounds: int = 0
    measured: int = 0
    ids_lost: int = 0
    ids_doubled: int = 0
    inconsistencies: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def run(kills: int, store_url: str | None = None, seed: int = 0) -> dict[str, float]:
    """Return the figures of `kills` kills."""
    chance, findings = random.Random(seed), Findings()
    with tempfile.TemporaryDirectory(prefix="flawline-faults-") as name:
        folder = Path(name)
        broker = EmbeddedBroker(folder / "broker", port=0)
        broker.start()
        try:
            settings = line.settings_for(folder, broker.bootstrap, "faults", store_url=store_url, confirm_rounds=2)
            store = Store(settings.store_url)
            sent = Sent()
            round_s = 0.0
            while findings.kills < kills:
                line.publish(settings, sent.more(seed + sent.frames))
                if findings.kills % KILLS_PER_MEASURE == 0 and findings.measured <= findings.kills // KILLS_PER_MEASURE:
                    # Rounds get longer with what they look at; this one is left alone until it is written.
                    round_s = _kill_in_a_round(folder, START_TIMEOUT_S, findings) or 0.0
                    findings.measured += 1
                else:
                    _kill_in_a_round(folder, chance.uniform(0, round_s), findings)
                check(store, findings)
            with DiscoveryService(settings) as running:
                running.drain()
            check(store, findings)
            figures = totals(store, settings, sent, findings)
            store.close()
        finally:
            broker.stop()
    for note in findings.notes:
        print(note, file=sys.stderr)
    return figures


@dataclass
class Sent:
    """What was published: frames, defects and regions."""

    frames: int = 0
    defects: int = 0
    regions: int = 0

    def more(self, seed: int) -> list[Verdict | Defect]:
        """Return a stretch of production with defects of a few kinds, some of two regions; some records come twice."""
        rng = np.random.default_rng(seed)
        axes = directions(KINDS)
        sent: list[Verdict | Defect] = []
        for sequence in range(self.frames, self.frames + FRAMES_PER_PART):
            camera = f"cam-{sequence % 2}"
            if sequence % 4 == 3:
                sent.append(verdict(sequence, camera=camera))
                continue
            vectors = [near(axes[rng.integers(KINDS)], rng, 0.4) for _ in range(int(rng.integers(1, 3)))]
            sent += [
                verdict(sequence, camera=camera, decision=Decision.REJECT),
                defect(sequence, *vectors, camera=camera),
            ]
            self.defects += 1
            self.regions += len(vectors)
        self.frames += FRAMES_PER_PART
        return sent + sent[-10:]


def _kill_in_a_round(folder: Path, wait_s: float, findings: Findings) -> float | None:
    """Start the process and kill it so long after its first round has begun, or when that has been written.

    How long the round took, None where it did not get so far.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "discovery.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(folder / "line.toml")],
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
        )
    try:
        assert process.stdout is not None
        if not _says(process, b"round", START_TIMEOUT_S):
            raise RuntimeError((folder / "discovery.log").read_text()[-2000:])
        begun = time.monotonic()
        written = _says(process, b"written", wait_s)
        round_s = time.monotonic() - begun
        findings.kills += not written
        findings.kills_after_rounds += written
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
    return round_s if written else None


def _says(process: subprocess.Popen[bytes], word: bytes, timeout_s: float) -> bool:
    """Return whether the process prints `word` as a whole line within `timeout_s`."""
    assert process.stdout is not None
    deadline, line = time.monotonic() + timeout_s, b""
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = wait_select.select([process.stdout], [], [], left)
        letter = os.read(process.stdout.fileno(), 1) if ready else b""
        if not letter:
            return False
        line = b"" if letter == b"\n" else line + letter
        if line == word:
            return True
    return False


def check(store: Store, findings: Findings) -> None:
    """Compare the registry with what was seen before and with the regions it counts."""
    known = registry.read(store)
    now = {entry.id: entry.number for entry in known.classes}
    findings.ids_lost += len(findings.seen.keys() - now.keys())
    findings.ids_doubled += len(now) - len(set(now.values()))
    findings.ids_doubled += sum(now.get(name, number) != number for name, number in findings.seen.items())
    findings.seen = now
    r, c = schema.regions, schema.class_events
    with store.reading() as connection:
        rows = connection.execute(select(r.c.class_id, func.count()).group_by(r.c.class_id))
        members = {row[0]: row[1] for row in rows if row[0] is not None}
        born = set(connection.scalars(select(c.c.class_id).where(c.c.transition == "born")))
        rounds = connection.scalar(select(func.count()).select_from(schema.rounds))
    complaints = [
        f"{entry.id} counts {entry.members} members and has {members.get(entry.id, 0)}"
        for entry in known.classes
        if entry.members != members.get(entry.id, 0)
    ]
    complaints += [f"regions point at {name}, which is no class" for name in members.keys() - now.keys()]
    complaints += [
        f"{entry.id} is merged and has members" for entry in known.classes if _merged(entry.state, members, entry.id)
    ]
    complaints += [f"{name} was never born" for name in now.keys() - born]
    if max([*now.values(), 0]) >= known.next_number:
        complaints.append(f"next number {known.next_number} was given already")
    if rounds != known.round:
        complaints.append(f"{rounds} rounds are written and {known.round} are counted")
    findings.inconsistencies += len(complaints)
    findings.notes += complaints


def _merged(state: ClassState, members: dict[str, int], name: str) -> bool:
    return state is ClassState.MERGED and bool(members.get(name))


def totals(store: Store, settings: Settings, sent: Sent, findings: Findings) -> dict[str, float]:
    """Return the figures after the stream was read to its end."""
    r, d = schema.regions, schema.defects
    with store.reading() as connection:
        frames = int(connection.scalar(select(func.sum(schema.verdict_minutes.c.frames))) or 0)
        regions = int(connection.scalar(select(func.count()).select_from(r)) or 0)
        places = select(d.c.frame_id, r.c.position).join_from(r, d, r.c.defect_id == d.c.id).distinct().subquery()
        distinct = int(connection.scalar(select(func.count()).select_from(places)) or 0)
        history = set(connection.scalars(select(schema.class_events.c.event_id)))
        rounds = int(connection.scalar(select(func.count()).select_from(schema.rounds)) or 0)
    published = {event.event_id for event in line.published_events(settings)}
    return {
        "kills": findings.kills,
        "kills_after_rounds": findings.kills_after_rounds,
        "rounds": rounds,
        "classes": len(findings.seen),
        "regions": regions,
        "ids_lost": findings.ids_lost,
        "ids_doubled": findings.ids_doubled,
        "regions_lost": max(0, sent.regions - distinct),
        "regions_counted_twice": (regions - distinct) + max(0, distinct - sent.regions),
        "frames_miscounted": abs(frames - sent.frames),
        "inconsistencies": findings.inconsistencies,
        "events_lost": len(history - published),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--store-url", help="PostgreSQL instead of a SQLite file; the database must be empty.")
    add_json_option(parser)
    arguments = parser.parse_args()
    emit("discovery_faults", run(arguments.kills, arguments.store_url, arguments.seed), GOALS, arguments.json)


if __name__ == "__main__":
    main()
