"""The state of the broker, which the requests read and change, and its housekeeping."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Final

from embedded_broker import compaction
from embedded_broker.disk_floor import DiskFloor
from embedded_broker.groups import Group
from embedded_broker.log import PartitionLog, wall_clock_ms
from embedded_broker.members import GroupState
from embedded_broker.store import FsyncPolicy, MetadataStore
from embedded_broker.topic_config import TopicConfig
from embedded_broker.topics import Topics
from flawline.errors import FlawlineError
from flawline.file_lock import holder, try_lock

log = logging.getLogger(__name__)

NODE_ID: Final = 1


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """The options of a broker; they do not change while it runs."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 9092
    advertised_host: str | None = None
    advertised_port: int | None = None
    allow_remote: bool = False
    fsync: FsyncPolicy = FsyncPolicy.INTERVAL
    fsync_interval_s: float = 1.0
    housekeeping_interval_s: float = 2.0
    default_partitions: int = 1
    auto_create_topics: bool = True
    # Long enough that members that start together are all in the first generation; a judgement, not measured.
    group_initial_delay_s: float = 0.2
    max_request_bytes: int = 128 << 20
    # Below so many free bytes of the disk, records that every group has read go; 0 turns this off.
    min_free_bytes: int = 0
    topic_defaults: TopicConfig = field(default_factory=TopicConfig)


class Broker:
    """The data of the broker. It is used from the event loop only."""

    def __init__(self, options: BrokerOptions) -> None:
        self.options = options
        self.host = options.advertised_host or options.host
        self.port = options.port
        self._lock = _lock_data_dir(options.data_dir)
        try:
            self.store = MetadataStore(options.data_dir / "metadata.sqlite", options.fsync)
            self.topics = Topics(
                options.data_dir / "topics", self.store, options.topic_defaults, options.default_partitions
            )
        except (sqlite3.Error, OSError, ValueError, KeyError) as error:
            self._lock.close()
            raise FlawlineError(
                f"the broker's data directory {options.data_dir} cannot be opened ({error}): "
                "free space or correct its permissions, or name another one with --data"
            ) from error
        self._floor = DiskFloor(options.data_dir, options.min_free_bytes)
        self._groups: dict[str, Group] = {}
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="disk")

    # Groups

    def restore_groups(self) -> None:
        """Restore the groups of an earlier run. It needs the running event loop, for their timers."""
        for group_id, snapshot in self.store.groups():
            self._new_group(group_id).restore(snapshot)

    def group(self, group_id: str) -> Group | None:
        """Return a group that has or had members; None for any other."""
        return self._groups.get(group_id)

    def group_for_join(self, group_id: str) -> Group:
        """Return the group; make it when it does not exist."""
        return self._groups.get(group_id) or self._new_group(group_id)

    def _new_group(self, group_id: str) -> Group:
        group = Group(group_id, self.options.group_initial_delay_s, self._group_changed)
        self._groups[group_id] = group
        return group

    def _group_changed(self, group: Group) -> None:
        try:
            self.store.put_group(group.group_id, group.snapshot())
        except sqlite3.Error as error:  # it only costs the members a new join after a restart
            log.error("members of group %s not stored, they join again after a restart: %s", group.group_id, error)

    def group_ids(self) -> list[str]:
        """Return all groups: those with members, and those that only have committed offsets."""
        return sorted(set(self._groups) | set(self.store.groups_with_offsets()))

    def forget_group(self, group_id: str) -> None:
        """Delete an empty group with its offsets."""
        self.store.delete_group(group_id)
        self._groups.pop(group_id, None)

    def subscribed(self, group_id: str) -> bool:
        """Tell whether the group has members now."""
        group = self._groups.get(group_id)
        return group is not None and group.state is not GroupState.EMPTY

    # Disk

    def partitions(self) -> Iterator[PartitionLog]:
        """Iterate over the logs of all topics."""
        for topic in self.topics:
            yield from topic.partitions

    async def make_durable(self, partitions: list[PartitionLog]) -> None:
        """Under the policy `always`, return when all records of the partitions are on the disk."""
        if self.options.fsync is FsyncPolicy.ALWAYS:
            await self._sync(partitions)

    async def _sync(self, partitions: list[PartitionLog]) -> None:
        loop = asyncio.get_running_loop()
        for partition in partitions:
            for segment in tuple(partition.unsynced):
                size_bytes = segment.size_bytes
                await loop.run_in_executor(self._workers, segment.sync)
                if segment.size_bytes == size_bytes:  # else something was appended while the disk worked
                    partition.unsynced.discard(segment)
            partition.save_indexes()

    async def housekeeping(self) -> None:
        """Run retention and compaction until cancelled."""
        while True:
            await asyncio.sleep(self.options.housekeeping_interval_s)
            for partition in tuple(self.partitions()):
                try:
                    if self.options.fsync is FsyncPolicy.NEVER:
                        partition.unsynced.clear()  # under this policy the system alone decides when
                        partition.save_indexes()
                    partition.retain()
                    if partition.config.compacted:
                        await self._compact(partition)
                except (OSError, sqlite3.Error) as error:
                    log.error("housekeeping of %s failed, tried again later: %s", partition.folder, error)
            try:
                self._floor.keep(self.topics, self.store)
            except (OSError, sqlite3.Error) as error:
                log.error("no room is made on the disk of %s, tried again later: %s", self.options.data_dir, error)

    async def _compact(self, partition: PartitionLog) -> None:
        plan = compaction.plan(partition, wall_clock_ms())
        if plan is None:
            return
        results = await asyncio.get_running_loop().run_in_executor(self._workers, compaction.rewrite, plan)
        compaction.install(partition, plan, results)

    async def sync_regularly(self) -> None:
        """Under the policy `interval`, force all records to the disk once per interval, until cancelled."""
        while self.options.fsync is FsyncPolicy.INTERVAL:
            await asyncio.sleep(self.options.fsync_interval_s)
            try:
                await self._sync(list(self.partitions()))
            except OSError as error:
                log.error("data not forced to the disk, tried again in %g s: %s", self.options.fsync_interval_s, error)

    def close(self) -> None:
        """Force all records to the disk, close the files and unlock the data directory."""
        self._workers.shutdown(wait=True)
        if self.options.fsync is not FsyncPolicy.NEVER:
            for partition in self.partitions():
                with contextlib.suppress(OSError):  # the records are acknowledged, and no client is connected any more
                    partition.sync()
        self.topics.close()
        self.store.close()
        self._lock.close()


def _lock_data_dir(data_dir: Path) -> FileIO:
    """Lock the data directory for this process until the returned file is closed. Raises FlawlineError."""
    path = data_dir / "lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = try_lock(path)
    except OSError as error:
        raise FlawlineError(
            f"the broker's data directory {data_dir} cannot be used ({error.strerror}): name another one with --data"
        ) from error
    if lock is None:
        raise FlawlineError(
            f"the broker's data directory {data_dir} is in use by process {holder(path)}: "
            "stop that broker or name another directory with --data"
        )
    return lock
