"""The topics of the broker: create, change and delete them, on the disk and in memory."""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from embedded_broker import topic_config
from embedded_broker.log import PartitionLog
from embedded_broker.protocol import ErrorCode
from embedded_broker.store import MetadataStore, TopicRow
from embedded_broker.topic_config import InvalidConfig, TopicConfig

log = logging.getLogger(__name__)

_NAME: Final = re.compile(r"[a-zA-Z0-9._-]{1,249}")
MAX_PARTITIONS: Final = 4096  # over all topics: each keeps at least one file open


@dataclass(frozen=True, slots=True)
class TopicError(Exception):
    """A request about a topic is refused: the error code of the protocol, and one line."""

    code: ErrorCode
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(slots=True)
class Topic:
    """A topic that exists; `row` is its row in the store."""

    row: TopicRow
    config: TopicConfig
    partitions: list[PartitionLog] = field(default_factory=list)


class Topics:
    """All topics under one data directory. Methods may raise `TopicError`, `OSError` and `sqlite3.Error`."""

    def __init__(self, folder: Path, store: MetadataStore, defaults: TopicConfig, default_partitions: int) -> None:
        self._folder = folder
        self._store = store
        self.defaults = defaults
        self.default_partitions = default_partitions
        self._topics: dict[str, Topic] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for row in store.topics():
            self._open(row)
        known = {self._topic_folder(topic.row) for topic in self._topics.values()}
        for stray in set(folder.iterdir()) - known:
            log.warning("%s belongs to no topic, it may be deleted", stray)

    def __iter__(self):
        return iter(tuple(self._topics.values()))

    def __len__(self) -> int:
        return len(self._topics)

    def get(self, name: str) -> Topic | None:
        """Return the topic, None when there is none of that name."""
        return self._topics.get(name)

    def partition(self, name: str, index: int) -> PartitionLog | None:
        """Return the log of one partition, None when it does not exist."""
        topic = self._topics.get(name)
        if topic is None or not 0 <= index < len(topic.partitions):
            return None
        return topic.partitions[index]

    def _topic_folder(self, row: TopicRow) -> Path:
        # The id keeps old records out of a topic that is created again after a crash during its deletion.
        return self._folder / f"{row.name[:200]}~{row.id[:8]}"  # a file name ends at 255 bytes

    def _open(self, row: TopicRow) -> Topic:
        topic = Topic(row, topic_config.resolve(row.configs, self.defaults))
        self._open_partitions(topic)
        self._topics[row.name] = topic
        return topic

    def _open_partitions(self, topic: Topic) -> None:
        for index in range(len(topic.partitions), topic.row.partitions):
            folder = self._topic_folder(topic.row) / str(index)
            log_start = self._store.log_start(topic.row.id, index)
            topic.partitions.append(PartitionLog(folder, topic.config, log_start=log_start))

    def _require_room(self, more: int) -> None:
        used = sum(len(topic.partitions) for topic in self._topics.values())
        if used + more > MAX_PARTITIONS:
            raise TopicError(
                ErrorCode.POLICY_VIOLATION, f"{used} + {more} partitions are over the limit of {MAX_PARTITIONS}"
            )

    def create(
        self, name: str, partitions: int, configs: dict[str, str | None], *, validate_only: bool = False
    ) -> TopicRow:
        """Create a topic; `partitions` of -1 takes the broker's default."""
        if not _NAME.fullmatch(name) or name in (".", ".."):
            raise TopicError(
                ErrorCode.INVALID_TOPIC_EXCEPTION, f"topic name {name[:80]!r} must match [a-zA-Z0-9._-]{{1,249}}"
            )
        if name in self._topics:
            raise TopicError(ErrorCode.TOPIC_ALREADY_EXISTS, f"topic {name} exists already")
        count = self.default_partitions if partitions == -1 else partitions
        if count < 1:
            raise TopicError(ErrorCode.INVALID_PARTITIONS, f"topic {name} cannot have {count} partitions")
        self._require_room(count)
        row = TopicRow(name, uuid.uuid4().hex, count, self._checked(configs))
        if not validate_only:
            self._store.put_topic(row)
            try:
                self._open(row)
            except OSError:
                self._topics.pop(name, None)
                self._store.delete_topic(row)
                shutil.rmtree(self._topic_folder(row), ignore_errors=True)
                raise
        return row

    def _checked(self, configs: dict[str, str | None]) -> dict[str, str]:
        try:
            return {name: topic_config.check(name, value) for name, value in configs.items()}
        except InvalidConfig as error:
            raise TopicError(ErrorCode.INVALID_CONFIG, str(error)) from error

    def _require(self, name: str) -> Topic:
        topic = self._topics.get(name)
        if topic is None:
            raise TopicError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"topic {name[:80]!r} does not exist")
        return topic

    def delete(self, name: str) -> None:
        """Delete a topic with its records and the offsets committed in it."""
        topic = self._require(name)
        self._store.delete_topic(topic.row)
        del self._topics[name]
        for partition in topic.partitions:
            partition.abandon()
        shutil.rmtree(self._topic_folder(topic.row), ignore_errors=True)

    def add_partitions(self, name: str, count: int, *, validate_only: bool = False) -> None:
        """Increase the number of partitions to `count`."""
        topic = self._require(name)
        have = len(topic.partitions)
        if count <= have:
            raise TopicError(ErrorCode.INVALID_PARTITIONS, f"topic {name} has {have} partitions, {count} is not more")
        self._require_room(count - have)
        if validate_only:
            return
        row = topic.row._replace(partitions=count)
        self._store.put_topic(row)
        topic.row = row
        self._open_partitions(topic)

    def set_configs(self, name: str, configs: dict[str, str | None], *, validate_only: bool = False) -> None:
        """Replace the settings of the topic by `configs`."""
        topic = self._require(name)
        checked = self._checked(configs)
        if validate_only:
            return
        row = topic.row._replace(configs=checked)
        self._store.put_topic(row)
        topic.row = row
        topic.config = topic_config.resolve(checked, self.defaults)
        for partition in topic.partitions:
            partition.config = topic.config

    def delete_records(self, name: str, index: int, offset: int) -> int:
        """Delete the records before `offset` (-1: all) and return the log start; raises `OffsetOutOfRange` too."""
        partition = self.partition(name, index)
        if partition is None:
            raise TopicError(ErrorCode.UNKNOWN_TOPIC_OR_PARTITION, f"partition {name[:80]}-{index} does not exist")
        log_start = partition.delete_before(partition.next_offset if offset == -1 else offset)
        partition.retain()  # first, because on a full disk the next line needs room
        self._store.put_log_start(self._topics[name].row.id, index, log_start)
        return log_start

    def close(self) -> None:
        """Save the indexes of all logs and close them."""
        for topic in self._topics.values():
            for partition in topic.partitions:
                try:
                    partition.close()
                except OSError as error:  # without its index the segment is scanned at the next start
                    log.warning("%s: index not saved: %s", partition.folder, error)
