"""Topics, committed offsets, groups and producer ids in one SQLite file."""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, Final, NamedTuple

_SCHEMA_VERSION: Final = 1
_TABLES: Final = """
create table if not exists topics (
    name text primary key, id text not null, partitions integer not null, configs text not null
) without rowid;
create table if not exists log_starts (
    topic_id text not null, partition integer not null, log_start integer not null, primary key (topic_id, partition)
) without rowid;
create table if not exists offsets (
    group_id text not null, topic text not null, partition integer not null, committed integer not null,
    leader_epoch integer not null, metadata text, committed_at_ms integer not null,
    primary key (group_id, topic, partition)
) without rowid;
create table if not exists groups (group_id text primary key, state text not null) without rowid;
create table if not exists facts (name text primary key, value text not null) without rowid;
"""


class FsyncPolicy(Enum):
    """When data is forced to the disk. A killed process loses nothing under any policy, a power loss may."""

    NEVER = "never"
    INTERVAL = "interval"
    ALWAYS = "always"  # before every acknowledgement


_SYNCHRONOUS: Final = {FsyncPolicy.NEVER: "off", FsyncPolicy.INTERVAL: "normal", FsyncPolicy.ALWAYS: "full"}


class TopicRow(NamedTuple):
    """A topic as it is stored: `configs` holds the settings that differ from the defaults."""

    name: str
    id: str
    partitions: int
    configs: dict[str, str]


class CommittedOffset(NamedTuple):
    """The next offset that a group reads in one partition, and the text that was committed with it."""

    topic: str
    partition: int
    offset: int
    leader_epoch: int
    metadata: str | None


class MetadataStore:
    """The state of the broker besides the logs. Every method may raise sqlite3.Error, for example on a full disk."""

    def __init__(self, path: Path, fsync: FsyncPolicy) -> None:
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("pragma journal_mode = wal")
        self._db.execute(f"pragma synchronous = {_SYNCHRONOUS[fsync]}")
        self._db.executescript(_TABLES)
        version = int(self._fact("schema_version", str(_SCHEMA_VERSION)))
        if version != _SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"schema version {version}, this release reads {_SCHEMA_VERSION}")
        self.cluster_id = self._fact("cluster_id", uuid.uuid4().hex[:22])

    def close(self) -> None:
        """Close the file; its write-ahead log becomes part of it."""
        self._db.close()

    def _fact(self, name: str, default: str) -> str:
        self._db.execute("insert or ignore into facts values (?, ?)", (name, default))
        return str(self._db.execute("select value from facts where name = ?", (name,)).fetchone()[0])

    def next_producer_id(self) -> int:
        """Return a producer id that was never given before."""
        self._fact("producer_id", "0")
        row = self._db.execute(
            "update facts set value = cast(value as integer) + 1 where name = 'producer_id' returning value"
        ).fetchone()
        return int(row[0])

    def topics(self) -> list[TopicRow]:
        """Return all topics."""
        rows = self._db.execute("select name, id, partitions, configs from topics order by name")
        return [TopicRow(name, id_, partitions, json.loads(configs)) for name, id_, partitions, configs in rows]

    def put_topic(self, topic: TopicRow) -> None:
        """Create the topic or replace its settings."""
        row = (topic.name, topic.id, topic.partitions, json.dumps(topic.configs))
        self._db.execute("insert or replace into topics values (?, ?, ?, ?)", row)

    def delete_topic(self, topic: TopicRow) -> None:
        """Delete the topic and every offset that is committed in it."""
        with _transaction(self._db):
            self._db.execute("delete from topics where name = ?", (topic.name,))
            self._db.execute("delete from offsets where topic = ?", (topic.name,))
            self._db.execute("delete from log_starts where topic_id = ?", (topic.id,))

    def log_start(self, topic_id: str, partition: int) -> int:
        """Return the offset up to which records were deleted on request, 0 when none were."""
        row = self._db.execute(
            "select log_start from log_starts where topic_id = ? and partition = ?", (topic_id, partition)
        ).fetchone()
        return int(row[0]) if row else 0

    def put_log_start(self, topic_id: str, partition: int, log_start: int) -> None:
        """Store the offset up to which records were deleted on request."""
        self._db.execute("insert or replace into log_starts values (?, ?, ?)", (topic_id, partition, log_start))

    def commit(self, group_id: str, offsets: Iterable[CommittedOffset]) -> None:
        """Store offsets of one group, all or none."""
        now_ms = time.time_ns() // 1_000_000
        rows = [(group_id, *offset, now_ms) for offset in offsets]
        with _transaction(self._db):
            self._db.executemany("insert or replace into offsets values (?, ?, ?, ?, ?, ?, ?)", rows)

    def committed(self, group_id: str) -> list[CommittedOffset]:
        """Return all offsets of one group."""
        rows = self._db.execute(
            "select topic, partition, committed, leader_epoch, metadata from offsets where group_id = ? "
            "order by topic, partition",
            (group_id,),
        )
        return [CommittedOffset(*row) for row in rows]

    def delete_committed(self, group_id: str, partitions: Iterable[tuple[str, int]]) -> None:
        """Delete the offsets of one group in these partitions."""
        rows = [(group_id, topic, partition) for topic, partition in partitions]
        with _transaction(self._db):
            self._db.executemany("delete from offsets where group_id = ? and topic = ? and partition = ?", rows)

    def groups_with_offsets(self) -> list[str]:
        """Return the groups that have committed offsets."""
        return [row[0] for row in self._db.execute("select distinct group_id from offsets order by group_id")]

    def put_group(self, group_id: str, state: dict[str, Any]) -> None:
        """Store the members of a group, so that a restart of the broker does not disturb it."""
        self._db.execute("insert or replace into groups values (?, ?)", (group_id, json.dumps(state)))

    def groups(self) -> list[tuple[str, dict[str, Any]]]:
        """Return the stored members of all groups."""
        return [(group_id, json.loads(state)) for group_id, state in self._db.execute("select * from groups")]

    def delete_group(self, group_id: str) -> None:
        """Delete a group and its offsets."""
        with _transaction(self._db):
            self._db.execute("delete from groups where group_id = ?", (group_id,))
            self._db.execute("delete from offsets where group_id = ?", (group_id,))


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    """Run the block in one transaction; the connection is in autocommit mode otherwise."""
    db.execute("begin immediate")
    try:
        yield
        db.execute("commit")
    finally:
        if db.in_transaction:  # the block failed, or the commit did; SQLite itself rolls back on a full disk
            db.execute("rollback")
