"""The discovery process: takes in verdicts and defects, runs rounds, publishes what happened to the classes.

How far the topics have been read is kept in the store, in the same transaction as what was read, so that a process that
is killed at any point goes on where its store stands. The offsets committed to the broker are for its tools only. Of
several processes on one store one works, the others wait for its lock.

A store that is away is waited for. What was in memory is thrown away then, and everything begins again from what the
store holds, as after a restart of the process.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from kafka import KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from sqlalchemy import func, select

from discovery import record_checks
from discovery.metrics import CLASS_EVENTS, OF_DISCOVERY
from discovery.pictures.album import Album
from discovery.pictures.frame_reader import Place, place_of
from discovery.quality_days import QualityDays
from discovery.round import single_round
from discovery.round.lineage import Registry
from discovery.round_runner import RoundRunner
from discovery.shifts import Calendar
from discovery.store import judgements, pruning, registry, schema
from discovery.store.database import DatabaseAway, fact, parse_url
from discovery.store.store import WITHDRAWN, Batch, LineRules, Position, Store, TakenDefect
from discovery.topic_reader import TopicReader
from flawline import clock, kafka_clients, messages, telemetry, topics
from flawline.errors import FlawlineError
from flawline.messages import ClassEvent, ClassState, Defect, JudgementEvent, Verdict
from flawline.outage import Outage
from flawline.settings.tree import Settings
from scorer.search.neighbours import faiss_module
from scorer.vectors import unit

log = logging.getLogger(__name__)

LOCK_RETRY_S = 1.0
HOUSEKEEPING_S = 2.0
PUBLISH_TIMEOUT_S = 30.0
ROUND_STEP_S = 0.05
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0  # between tries to reach the store; judgements, not measured
WELL_S = 5.0
LAST_PICTURES_S = 60.0
"""How long the end of a finite stream waits for pictures. A judgement: some thousands of frames."""


@dataclass(frozen=True)
class Summary:
    """What the store holds after a finite stream: regions by class id, and the class of each frame that has one."""

    verdicts: int
    defects: int
    rounds: int
    members: Mapping[str, int]
    assignments: Mapping[str, str]


def run(settings: Settings, stop: threading.Event) -> None:
    """Discover until `stop` is set, and wait for a store or a broker that is away.

    Raises UsageError for a store.url that is none, FlawlineError when faiss is missing, when the broker refuses, and
    when a port or a file cannot be used.
    """
    parse_url(settings.store_url)
    faiss_module()
    metrics, store_outage, broker_outage = (
        settings.metrics, Outage(FIRST_PAUSE_S, LONGEST_PAUSE_S), kafka_clients.broker_outage()
    )  # fmt: skip
    telemetry.STORE_AWAY_SECONDS.set_function(store_outage.age_s)
    with contextlib.closing(telemetry.serve(metrics.discovery_port, metrics.host, *OF_DISCOVERY)):
        while kafka_clients.await_broker(lambda: kafka_clients.ensure_topics(settings), broker_outage, stop):
            try:
                with DiscoveryService(settings) as service:
                    service.run(stop, lambda: _on_progress(service, store_outage))
            except DatabaseAway as error:
                failure = store_outage.failed()
                if failure.is_reported:
                    log.error(
                        "%s; trying again with growing pauses: what is not in the store stays in the topics", error
                    )
                stop.wait(failure.pause_s)
            except FlawlineError as error:
                if not kafka_clients.is_away(error):
                    raise
                kafka_clients.wait_for_broker(error, broker_outage, stop)


def _on_progress(service: DiscoveryService, outage: Outage) -> None:
    """End the outage when the store has been well for WELL_S: one that is full answers at first."""
    if outage.is_on and service.age_s() >= WELL_S:
        log.info("the store is well again, after %.0f s", outage.age_s())
        outage.ended()


def rules_of(settings: Settings) -> LineRules:
    """Return what the settings say of the line."""
    calendar = Calendar(settings.shifts, settings.time_zone)
    return LineRules(calendar, settings.views, round(settings.parts.gap_s / clock.NS))


class DiscoveryService:
    """One discovery process. Use as a context manager, from one thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        utc_ns: clock.UtcNs = clock.utc_ns,
        monotonic: clock.Monotonic = clock.monotonic,
    ) -> None:
        self.settings = settings
        self.store = Store(settings.store_url, utc_ns)
        self._utc_ns, self._monotonic = utc_ns, monotonic
        self._stack = contextlib.ExitStack()
        self._stack.callback(self.store.close)
        self._reader: TopicReader | None = None
        self._producer: KafkaProducer | None = None
        self._stack.callback(self._close_producer, PUBLISH_TIMEOUT_S)
        self._names = {settings.topic(topics.VERDICTS.name): Verdict, settings.topic(topics.DEFECTS.name): Defect}
        self._rounds = RoundRunner(settings, self.store, utc_ns, monotonic)
        self._stack.callback(self._rounds.close)
        self._registry = Registry()
        self._assigners: dict[str, single_round.Assigner] = {}
        self._dimensions: dict[str, int] = {}
        self._new_regions = 0
        self._made_at = self._round_at = monotonic()
        self._housekeeping_at = -float("inf")
        self._pruner = pruning.Pruner(self.store, settings.retention, monotonic)
        self._forgotten_before = 0
        self._rules = rules_of(settings)
        self._album = Album(settings, self.store, monotonic)
        self._quality = QualityDays(self.store, monotonic)
        self._stack.callback(self._album.close)

    def __enter__(self) -> DiscoveryService:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, stop: threading.Event, on_progress: Callable[[], None] = lambda: None) -> None:
        """Work until `stop` is set; `on_progress` is called whenever the store has answered. Raises DatabaseAway."""
        if not self._open(stop, on_progress):
            return
        while not stop.is_set():
            self._step()
            self._keep_house()
            on_progress()
        self._album.step(close_minutes=True)
        self._keep_house(now=True)

    def age_s(self) -> float:
        """Return how long ago this was made, in seconds."""
        return self._monotonic() - self._made_at

    def drain(
        self, until: Mapping[Position, int] | None = None, timeout_s: float = 300.0, stop: threading.Event | None = None
    ) -> Summary:
        """Read all records up to `until` (default: what the topics hold now), run the last rounds, return a summary.

        Steps: 1. Take the lock of the store. 2. Read to the end. 3. Finish the round in progress. 4. Run a round for
        what has come since, and more while a candidate only waits for rounds. 5. Have the last pictures kept, publish,
        commit and sum up.

        `until` maps (topic, partition), topics by their names on the broker, to the offset behind the last record.
        Raises FlawlineError when that takes longer than `timeout_s`.
        """
        # 1. Take the lock.
        deadline = self._monotonic() + timeout_s
        stop = stop or threading.Event()
        timer = threading.Timer(timeout_s, stop.set)
        timer.daemon = True
        timer.start()
        try:
            opened = self._open(stop)
        finally:
            timer.cancel()
        if not opened or self._reader is None:
            raise FlawlineError(f"store {self.store} is held by another discovery process: stop it first")
        # 2. Read.
        ends = (
            {TopicPartition(*place): offset for place, offset in until.items()}
            if until is not None
            else self._reader.ends()
        )
        while any(self._reader.behind(ends).values()):
            if self._monotonic() > deadline:
                raise FlawlineError(
                    f"the topics were not read to their end within {timeout_s:.0f} s: is the broker well?"
                )
            self._step()
        # 3. Finish the round.
        self._finish_round()
        # 4. Run the last rounds.
        if self._new_regions:
            self._round()
        for _ in range(self.settings.discovery.confirm_rounds):
            if self._registry.is_waiting:
                self._round()
        # 5. Have the last pictures kept, publish, commit and sum up.
        self._keep_last_pictures(min(deadline, self._monotonic() + LAST_PICTURES_S))
        self._keep_house(now=True)
        return self.summary()

    def summary(self) -> Summary:
        """Return what the store holds now."""
        with self.store.reading() as connection:
            verdicts = connection.scalar(select(func.sum(schema.verdict_minutes.c.frames))) or 0
            defects = connection.scalar(select(func.count()).select_from(schema.defects)) or 0
        current = registry.read(self.store)
        living = (ClassState.CANDIDATE, ClassState.CONFIRMED)
        return Summary(
            verdicts=int(verdicts),
            defects=int(defects),
            rounds=current.round,
            members={entry.id: entry.members for entry in current.classes if entry.state in living},
            assignments=self.store.assignments(),
        )

    def _keep_last_pictures(self, deadline: float) -> None:
        """Have all chosen frames copied; what is not done by the deadline is done by the next process."""
        self._album.step(close_minutes=True)
        while not self._album.is_idle and self._monotonic() < deadline:
            time.sleep(ROUND_STEP_S)
            self._album.step(close_minutes=True)

    def _open(self, stop: threading.Event, on_progress: Callable[[], None] = lambda: None) -> bool:
        """Take the store's lock and start reading where it stands; False when `stop` came first."""
        if self._reader is not None:
            return True
        waiting = False
        while (lock := self.store.try_lock()) is None:
            if not waiting:
                log.info("another discovery process works on %s: standing by", self.store)
                waiting = True
            on_progress()
            if stop.wait(LOCK_RETRY_S):
                return False
        self._stack.push(lock)
        if self.settings.discovery.embedding == "crop":
            self._rounds.backbone()  # what is wrong with it is said before anything is taken in
        self._reader = TopicReader(
            self.settings, topics.DISCOVERY_GROUP, self._names, self.store.positions, self._monotonic
        )
        self._stack.callback(self._reader.close)
        self._read_registry()
        with self.store.reading() as connection:
            self._forgotten_before = pruning.forgotten_before(connection)
            last = int(fact(connection, "last_region", "0"))
            waiting_regions = connection.scalar(
                select(func.count()).select_from(schema.regions).where(schema.regions.c.id > last)
            )
        self._new_regions = int(waiting_regions or 0)
        return True

    def _step(self) -> None:
        """Take in what the next poll brings, and run a round when one is due."""
        assert self._reader is not None
        records = self._reader.poll()
        if any(records.values()):
            self._take_in(records)
        if self._round_is_due():
            self._ask_for_round()
        self._step_round()
        self._forget()
        self._album.step()

    def _forget(self) -> None:
        """Prune a slice when retention asks for it."""
        pruned = self._pruner.step()
        if pruned is not None and pruned.defects:
            with self.store.reading() as connection:
                self._forgotten_before = pruning.forgotten_before(connection)

    def _take_in(self, records: Mapping[TopicPartition, list[Any]]) -> None:
        assert self._reader is not None
        verdicts: list[Verdict] = []
        defects: list[TakenDefect] = []
        rejections: list[tuple[str, str]] = []
        positions: dict[Position, int] = {}
        places: dict[str, Place] = {}
        for place, arrived in sorted(records.items()):
            for record in arrived:
                try:
                    if self._names[place.topic] is Verdict:
                        verdicts.append(record_checks.verdict_of(record.value))
                        places.setdefault(verdicts[-1].frame_id, place_of(record))
                    else:
                        defects.append(
                            self._with_classes(
                                record_checks.defect_of(record.value, self._expected(), self._forgotten_before)
                            )
                        )
                except record_checks.Rejected as error:
                    log.warning("%s offset %d is left out (%s): %s", place, record.offset, error.reason, error)
                    rejections.append((error.reason, str(error)))
                positions[place.topic, place.partition] = record.offset + 1
        taken = self.store.ingest(
            Batch(verdicts, defects, rejections, positions),
            lambda connection, fresh, origins: self._album.take_in(connection, fresh, origins, places),
            self._rules,
        )
        for (topic, partition), offset in positions.items():  # not before the store has them
            self._reader.done(TopicPartition(topic, partition), offset)
        self._new_regions += taken.regions
        telemetry.REGIONS.inc(taken.regions)
        for defect in taken.defects:
            telemetry.DEFECTS.labels(defect.camera).inc()
        if taken.withdrawn:
            log.warning("%d defects are withdrawn: the first verdicts on their frames accept them", taken.withdrawn)
        for reason, _ in [*rejections, *[(WITHDRAWN, "")] * taken.withdrawn]:
            telemetry.REJECTED_RECORDS.labels(reason).inc()

    def _expected(self) -> Mapping[str, int]:
        """Return the sizes of the embeddings that workers send, by version; empty where discovery uses none."""
        return self._dimensions if self.settings.discovery.embedding == "worker" else {}

    def _with_classes(self, defect: Defect) -> TakenDefect:
        if not defect.regions:
            return TakenDefect(defect, ())
        if self.settings.discovery.embedding == "crop":
            defect = record_checks.described_by_crops(defect, self._rounds.backbone())
        version = defect.embedding_version
        if version not in self._dimensions:
            # Checked against the store as well: another message of this version may have come before a restart.
            known = self._stored_dimension(version)
            size = defect.regions[0].embedding.shape[0]
            if known is not None and known != size:
                raise record_checks.Rejected(
                    "bad-embedding", f"{defect.frame_id}: {size} dimensions instead of {known}"
                )
            self._dimensions[version] = size
        if version not in self._assigners:
            self._assigners[version] = single_round.Assigner(self._registry, version)
        vectors = unit(np.stack([region.embedding.array() for region in defect.regions]))
        return TakenDefect(defect, tuple(self._assigners[version].assign(vectors)))

    def _stored_dimension(self, version: str) -> int | None:
        table = schema.regions
        with self.store.reading() as connection:
            stored = connection.scalar(select(table.c.embedding).where(table.c.embedding_version == version).limit(1))
        return None if stored is None else len(stored) // 2

    def _round_is_due(self) -> bool:
        if self._rounds.busy:
            return False
        settings = self.settings.discovery
        waited = self._monotonic() - self._round_at
        return self._new_regions >= settings.round_regions or (
            self._new_regions > 0 and waited >= settings.round_interval_s
        )

    def _round(self) -> None:
        """Run a round from its beginning to its end."""
        self._ask_for_round()
        self._finish_round()

    def _finish_round(self) -> None:
        """Run what is left of a round."""
        while self._rounds.busy:
            self._step_round()
            if self._rounds.busy:
                time.sleep(ROUND_STEP_S)

    def _ask_for_round(self) -> None:
        self._round_at, self._new_regions = self._monotonic(), 0
        self._rounds.ask()

    def _step_round(self) -> None:
        if self._rounds.step():
            self._read_registry()
            self._publish()

    def _read_registry(self) -> None:
        self._registry = registry.read(self.store)
        self._assigners.clear()
        for state in ClassState:
            telemetry.CLASSES.labels(str(state)).set(sum(entry.state is state for entry in self._registry.classes))

    def _keep_house(self, now: bool = False) -> None:
        """Check the lock, publish what people have changed, commit offsets for the broker's tools, measure the lag."""
        if not now and self._monotonic() - self._housekeeping_at < HOUSEKEEPING_S:
            return
        self._housekeeping_at = self._monotonic()
        self.store.check_lock()
        with self.store.reading() as connection:
            revision = int(fact(connection, "revision", "0"))
        if revision != self._registry.revision:
            self._read_registry()
        self._publish()
        self._quality.step()
        if self._reader is not None:
            self._reader.commit()
            with contextlib.suppress(FlawlineError):  # a broker that is away is warned of where it is read
                for name, records in self._reader.behind(self._reader.ends()).items():
                    telemetry.DISCOVERY_LAG.labels(name).set(records)

    def _publish(self) -> None:
        """Send the events of the outbox; each stays there until the broker has it."""
        while waiting := self.store.outbox():
            if not self._is_sent(topics.CLASSES.name, [(event.class_id, event) for _, event in waiting]):
                return
            self.store.mark_published(row for row, _ in waiting)
            for _, event in waiting:
                CLASS_EVENTS.labels(str(event.transition)).inc()
        while unsent := judgements.outbox(self.store):
            if not self._is_sent(topics.JUDGEMENTS.name, [(event.frame_id, event) for _, event in unsent]):
                return
            judgements.published(self.store, [row for row, _ in unsent])

    def _is_sent(self, topic: str, events: Sequence[tuple[str, ClassEvent | JudgementEvent]]) -> bool:
        """Send events with their keys and wait for the broker; return False when they have to be sent again."""
        try:
            if self._producer is None:
                self._producer = kafka_clients.producer(self.settings, topics.CLASSES.name, topics.JUDGEMENTS.name)
            name = self.settings.topic(topic)
            sent = [
                self._producer.send(
                    name, key=key.encode(), value=messages.encode(event), headers=messages.headers(event)
                )
                for key, event in events
            ]
            for future in sent:
                future.get(timeout=PUBLISH_TIMEOUT_S)
        except (KafkaError, FlawlineError) as error:
            log.warning("%d events for %s wait for the broker (%s)", len(events), topic, error)
            self._close_producer()  # else it would hold each event once more at every attempt
            return False
        return True

    def _close_producer(self, timeout_s: float = 0.0) -> None:
        """Close the producer, if there is one; the next event makes another."""
        client, self._producer = self._producer, None
        if client is not None:
            kafka_clients.close_producer(client, timeout_s)
