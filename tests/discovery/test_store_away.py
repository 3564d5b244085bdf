"""A store that is away, silent or handed over: discovery waits, counts every frame once, and there is one writer."""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from kafka import TopicPartition
from sqlalchemy import func, select

from discovery import service
from discovery.service import DiscoveryService
from discovery.store import class_commands, schema
from discovery.store import store as stores
from discovery.store.database import DatabaseAway, LockLost
from discovery.store.store import Batch, Store
from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, telemetry, topics
from flawline.messages import Decision
from flawline.settings.tree import Settings
from tests.discovery import line
from tests.discovery.factories import defect, directions, verdict
from tests.support.brokers import unique
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.system


def wait_for(condition: Callable[[], object], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def records(start: int, count: int) -> list:
    """Return the verdicts of `count` frames, every second one with a defect."""
    vector = directions(1)[0]
    frames = range(start, start + count)
    of_frame = ([verdict(n, decision=Decision.REJECT), defect(n, vector)] if n % 2 else [verdict(n)] for n in frames)
    return [message for messages in of_frame for message in messages]


def counts(url: str) -> tuple[int, int]:
    """Return how many frames were counted and how many defects are kept."""
    store = Store(url)
    try:
        with store.reading() as connection:
            frames = connection.scalar(select(func.sum(schema.verdict_minutes.c.frames))) or 0
            return int(frames), connection.scalar(select(func.count()).select_from(schema.defects)) or 0
    finally:
        store.close()


def away_s() -> float:
    value = telemetry.REGISTRY.get_sample_value("flawline_store_away_seconds")
    assert value is not None
    return value


@contextmanager
def discovering(settings: Settings) -> Iterator[None]:
    """Run the role in a thread; it has ended without an error when the block is left."""
    stop, ended = threading.Event(), []
    thread = threading.Thread(target=lambda: ended.append(service.run(settings, stop)))
    thread.start()
    try:
        yield
        assert thread.is_alive()
    finally:
        stop.set()
        thread.join(60)
    assert ended == [None]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make pauses short, and give a store up after a second."""
    monkeypatch.setattr(service, "LONGEST_PAUSE_S", 0.5)
    monkeypatch.setattr(service, "WELL_S", 0.5)
    monkeypatch.setattr(service, "HOUSEKEEPING_S", 0.2)
    monkeypatch.setattr(service, "Store", functools.partial(Store, answer_timeout_s=1.0))


@pytest.fixture
def settings(embedded_broker: EmbeddedBroker, own_postgres: PostgresServer, tmp_path: Path) -> Settings:
    return line.settings_for(tmp_path, embedded_broker.bootstrap, unique("away"), store_url=own_postgres.new_database())


@pytest.mark.usefixtures("quick")
def test_store_that_is_away_at_the_start_and_goes_away_later_costs_time_and_one_line_each(
    settings: Settings, own_postgres: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="discovery.service")
    url = settings.store_url
    line.publish(settings, records(0, 20))
    own_postgres.shut_down()
    with discovering(settings):
        wait_for(lambda: away_s() > 1)
        own_postgres.start()
        wait_for(lambda: counts(url) == (20, 10))
        wait_for(lambda: away_s() == 0)
        own_postgres.shut_down()
        line.publish(settings, records(20, 20))
        wait_for(lambda: away_s() > 1)
        assert committed(settings) <= 30, "what is not in the store is not committed"
        own_postgres.start()
        wait_for(lambda: counts(url) == (40, 20))
        wait_for(lambda: away_s() == 0)
    lines = [record.getMessage() for record in caplog.records if record.name == "discovery.service"]
    assert sum("trying again" in text for text in lines) == 2
    assert sum("well again" in text for text in lines) == 2


def committed(settings: Settings) -> int:
    """Return how many records discovery has committed to the broker."""
    client = kafka_clients.consumer(settings, group=topics.DISCOVERY_GROUP)
    try:
        places = [TopicPartition(settings.topic(name), n) for name in ("verdicts", "defects") for n in (0, 1)]
        return sum(client.committed(place) or 0 for place in places)
    finally:
        client.close(autocommit=False)


@pytest.mark.usefixtures("quick")
def test_store_that_is_silent_is_given_up_and_taken_again(settings: Settings, own_postgres: PostgresServer) -> None:
    with discovering(settings):
        line.publish(settings, records(0, 20))
        wait_for(lambda: counts(settings.store_url) == (20, 10))
        own_postgres.freeze()
        line.publish(settings, records(20, 20))
        wait_for(lambda: away_s() > 1)
        own_postgres.thaw()
        wait_for(lambda: counts(settings.store_url) == (40, 20))


def test_silent_store_is_away_within_its_time(own_postgres: PostgresServer) -> None:
    store = Store(own_postgres.new_database(), answer_timeout_s=1.0)
    started = time.monotonic()
    with pytest.raises(DatabaseAway, match="has not answered for"), store.reading() as connection:
        own_postgres.freeze()
        connection.execute(select(1))
    with pytest.raises(DatabaseAway, match="connection timeout"):
        store.positions()
    assert time.monotonic() - started < 12
    own_postgres.thaw()
    assert store.positions() == {}
    store.close()


def test_statement_that_takes_too_long_is_ended_by_the_server(postgres_server: PostgresServer) -> None:
    store = Store(postgres_server.new_database(), answer_timeout_s=0.5)
    with pytest.raises(DatabaseAway, match="statement timeout"), store.reading() as connection:
        connection.execute(select(func.pg_sleep(30)))
    assert store.positions() == {}
    store.close()


def test_roles_that_open_a_new_store_at_the_same_time_make_it_once(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    together = threading.Barrier(6)

    def opened() -> dict:
        together.wait()
        store = Store(url)
        try:
            return store.positions()
        finally:
            store.close()

    with ThreadPoolExecutor(together.parties) as pool:
        results = [pool.submit(opened) for _ in range(together.parties)]
    assert [result.result() for result in results] == [{}] * together.parties


def end_the_lock(url: str) -> None:
    """End the connection that holds the lock of a store, as a failover does."""
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        holders = connection.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
            "WHERE locktype = 'advisory' AND granted AND datname = current_database()"
        ).fetchall()
    assert holders == [(True,)]


def test_writer_that_lost_its_lock_writes_nothing_more(postgres_server: PostgresServer) -> None:
    url = postgres_server.new_database()
    first, second = Store(url), Store(url)
    lock = first.try_lock()
    assert lock is not None and second.try_lock() is None
    first.check_lock()
    first.ingest(Batch(verdicts=[verdict(0)]))
    end_the_lock(url)
    other = second.try_lock()
    assert other is not None
    for _ in range(2):  # for good, and not until the next connection
        with pytest.raises(LockLost, match="right to write has ended"):
            first.ingest(Batch(verdicts=[verdict(1)]))
        with pytest.raises(LockLost):
            first.check_lock()
    assert first.positions() == {}, "reading goes on"
    lock.close()
    assert first.try_lock() is None, "and the end of the lost lock does not touch the lock of the other"
    second.ingest(Batch(verdicts=[verdict(1)]))
    other.close()
    again = first.try_lock()
    assert again is not None
    first.ingest(Batch(verdicts=[verdict(2)]))
    again.close()
    first.close()
    second.close()
    assert counts(url) == (3, 0)


@pytest.mark.usefixtures("quick")
def test_failover_in_the_middle_of_a_batch_hands_over_to_the_standby_and_counts_every_frame_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = settings.store_url
    in_batch, may_go_on = threading.Event(), threading.Event()
    add = stores._add_to_minutes
    writers: list[int] = []

    def add_slowly(*arguments: object) -> None:
        writers.append(threading.get_ident())
        if not in_batch.is_set():  # the first writer, which has read what was counted before it
            in_batch.set()
            assert may_go_on.wait(60)
        add(*arguments)

    monkeypatch.setattr(stores, "_add_to_minutes", add_slowly)
    with discovering(settings):
        line.publish(settings, records(0, 20))
        assert in_batch.wait(30)
        with discovering(settings):
            end_the_lock(url)
            wait_for(lambda: counts(url) == (20, 10))
            may_go_on.set()
            line.publish(settings, records(20, 20))
            wait_for(lambda: counts(url) == (40, 20))
        # The first one stood by meanwhile, and has the lock now.
        line.publish(settings, records(40, 20))
        wait_for(lambda: counts(url) == (60, 30))
    assert len(set(writers)) == 2


def test_idle_service_notices_that_its_lock_is_gone(settings: Settings) -> None:
    stop = threading.Event()
    with DiscoveryService(settings) as running:
        thread = threading.Thread(target=lambda: (wait_for(lambda: running._reader), end_the_lock(settings.store_url)))
        thread.start()
        with pytest.raises(LockLost):
            running.run(stop)
        thread.join()


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_readers_take_no_write_lock(database: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'store.db'}"
    if database == "postgresql":
        url = request.getfixturevalue("postgres_server").new_database()
    writer = Store(url)
    with writer.transaction() as connection:
        connection.execute(schema.facts.insert().values(name="held", value="1"))
        if database == "postgresql":
            connection.exec_driver_sql("LOCK TABLE facts, classes, class_events, defects, regions IN EXCLUSIVE MODE")
        started = time.monotonic()
        reader = Store(url)
        assert class_commands.list_classes(reader) == []
        assert reader.outbox() == [] and reader.positions() == {}
        assert service.registry.read(reader).classes == ()
        reader.close()
        assert time.monotonic() - started < 10
    writer.close()


def test_housekeeping_takes_no_write_lock(embedded_broker: EmbeddedBroker, tmp_path: Path) -> None:
    settings = line.settings_for(tmp_path, embedded_broker.bootstrap, unique("away"))
    with DiscoveryService(settings) as running:
        running.drain()
        person = Store(settings.store_url)
        with person.transaction():
            started = time.monotonic()
            running._keep_house(now=True)
            assert time.monotonic() - started < 10
        person.close()
