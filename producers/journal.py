"""What a camera captured and dropped, kept on disk so that the ledger survives a kill.

The journal of a camera is a SQLite file in its spool folder: the number of captures of each epoch, and the ranges of
dropped captures that no ledger entry has confirmed yet. After a kill the next start knows the last capture, so that
captures that were in memory show as gaps, and not as captures that never were. An epoch leaves the journal when its
last entry, the `closed` one, is confirmed.

The file is in WAL mode with `synchronous = NORMAL`: a commit is in the operating system's hands when it returns, so a
killed process loses nothing; a power failure may lose the last commits, and never damages the file. A commit takes
about 30 microseconds (17 with OFF, which a power failure may damage; 980 with FULL, which waits for the disk). Memory
holds two numbers and one range of an epoch, whatever is dropped; on disk a drop extends the last range in place, so a
camera without a broker for a day leaves one row.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from flawline.clock import Monotonic, monotonic
from flawline.errors import one_line
from flawline.messages import DroppedRange, DropReason, LedgerEntry

log = logging.getLogger(__name__)

FILE_NAME = "journal.db"

HEARTBEAT_NS = 20 * 1_000_000_000
"""The ledger takes an open epoch without news for a minute for dead, and its waiting frames for lost."""

DISK_RETRY_S = 2.0
"""Pause between attempts to write the file again after the disk failed. A judgement, not measured."""

RANGES_PER_ENTRY = 10_000
"""An entry stays far below its topic's size limit; the ranges that are left go with the next."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS epochs (epoch INTEGER PRIMARY KEY, captured INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS dropped (
    epoch INTEGER NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, reason TEXT NOT NULL,
    PRIMARY KEY (epoch, first)
) WITHOUT ROWID;
"""


class _Database:
    """Holds the SQLite file of one camera. Not thread-safe: the journal's lock guards it.

    While the disk fails, a database in memory takes the place of the file, with one line in the log: that costs the
    account's survival of a kill, and never a capture. Every DISK_RETRY_S the file is tried again.
    """

    def __init__(self, path: Path, clock: Monotonic = monotonic) -> None:
        self.path = path
        self._clock = clock
        self._in_memory = False
        self._retry_at_s = 0.0
        try:
            self._connection = _opened(path)
        except sqlite3.Error as error:
            self._connection = self._give_up_disk(error, {}, [])

    @property
    def is_on_disk(self) -> bool:
        """Whether what is written survives a kill."""
        return not self._in_memory

    def read(self, query: str, *values: object) -> list[tuple]:
        """Return the rows of a query."""
        return self._connection.execute(query, values).fetchall()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Callable[..., object]]:
        """Yield a function that adds a statement to one transaction, which is executed at the end."""
        statements: list[tuple[str, tuple]] = []
        yield lambda statement, *values: statements.append((statement, values))
        if self._in_memory and self._clock() >= self._retry_at_s:
            self._return_to_disk()
        try:
            self._execute(statements)
        except sqlite3.Error as error:
            if self._in_memory:
                raise
            self._connection = self._give_up_disk(error, *self._content())
            self._execute(statements)

    def _execute(self, statements: Iterable[tuple[str, tuple]]) -> None:
        with self._connection:  # commits, or rolls back
            self._connection.execute("BEGIN IMMEDIATE")
            for statement, values in statements:
                self._connection.execute(statement, values)

    def _content(self) -> tuple[dict[int, int], list[tuple]]:
        try:
            epochs = dict(self.read("SELECT epoch, captured FROM epochs"))
            return epochs, self.read("SELECT epoch, first, last, reason FROM dropped")
        except sqlite3.Error:
            return {}, []

    def _give_up_disk(self, error: sqlite3.Error, epochs: dict[int, int], dropped: list[tuple]) -> sqlite3.Connection:
        log.error(
            "journal %s cannot be kept (%s): after a kill the ledger would not know the last captures: free space, or "
            "repair the disk",
            self.path, one_line(error),
        )  # fmt: skip
        self._in_memory, self._retry_at_s = True, self._clock() + DISK_RETRY_S
        with contextlib.suppress(AttributeError, sqlite3.Error):
            self._connection.close()
        connection = _opened(None)
        with connection:
            connection.executemany("INSERT INTO epochs VALUES (?, ?)", epochs.items())
            connection.executemany("INSERT INTO dropped VALUES (?, ?, ?, ?)", dropped)
        return connection

    def _return_to_disk(self) -> None:
        """Write what memory holds to the file, and go on with the file, if the disk works again."""
        self._retry_at_s = self._clock() + DISK_RETRY_S
        epochs, dropped = self._content()
        try:
            disk = _opened(self.path)
        except sqlite3.Error:
            return
        try:
            with disk:
                disk.execute("BEGIN IMMEDIATE")
                # What the file holds beside it is published once more, which changes nothing.
                disk.executemany("INSERT OR REPLACE INTO epochs VALUES (?, ?)", epochs.items())
                disk.executemany("INSERT OR REPLACE INTO dropped VALUES (?, ?, ?, ?)", dropped)
        except sqlite3.Error:
            disk.close()
            return
        self._connection.close()
        self._connection, self._in_memory = disk, False
        log.warning("journal %s is kept on disk again", self.path)

    def close(self) -> None:
        """Close the file, and remove it when it holds no epoch any more."""
        with contextlib.suppress(sqlite3.Error):
            empty = not self._in_memory and not self.read("SELECT epoch FROM epochs LIMIT 1")
            self._connection.close()
            if empty:
                for suffix in ("", "-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)


def _opened(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, timeout=5.0)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.executescript(_SCHEMA)
    except BaseException:
        connection.close()
        raise
    return connection


class EpochAccount:
    """Holds the account of one epoch of a camera. Its journal's lock makes it thread-safe."""

    def __init__(
        self, database: _Database, lock: threading.RLock, camera: str, epoch: int, captured: int, exact: bool
    ) -> None:
        self.camera = camera
        self.epoch = epoch
        self.captured = captured
        self._exact = exact
        self._database = database
        self._lock = lock
        self._last: DroppedRange | None = None  # the newest range, unless an entry that is in flight has it
        self._entry: LedgerEntry | None = None  # in flight
        self._taken: list[int] = []  # `first` of the ranges that this entry has
        self._published: tuple[int, bool] | None = None  # captured and closed of the last confirmed entry
        self._published_at = 0

    @property
    def is_closed(self) -> bool:
        """Return whether the epoch's last entry is confirmed."""
        return self._published is not None and self._published[1]

    def count(self, sequence: int) -> None:
        """Record that there is a capture `sequence`; the account holds it from here on."""
        with self._lock:
            if sequence >= self.captured:
                with self._database.writing() as write:
                    self._count(sequence, write)

    def _count(self, sequence: int, write: Callable[..., object]) -> None:
        if sequence >= self.captured:
            self.captured = sequence + 1
            write("INSERT OR REPLACE INTO epochs VALUES (?, ?)", self.epoch, self.captured)

    def drop(self, sequence: int, reason: DropReason) -> None:
        """Record that a capture will not be published; it is counted if it was not before."""
        with self._lock, self._database.writing() as write:
            self._count(sequence, write)
            last = self._last
            if last is not None and sequence == last.last + 1 and reason is last.reason:
                self._last = DroppedRange(last.first, sequence, reason)
                write("UPDATE dropped SET last = ? WHERE epoch = ? AND first = ?", sequence, self.epoch, last.first)
            else:
                self._last = DroppedRange(sequence, sequence, reason)
                write("INSERT OR IGNORE INTO dropped VALUES (?, ?, ?, ?)", self.epoch, sequence, sequence, str(reason))

    def owes(self, *, closed: bool) -> bool:
        """Return whether the account has something that no confirmed entry holds."""
        with self._lock:
            return self.captured > 0 and (bool(self._waiting(1)) or self._published != (self.captured, closed))

    def _waiting(self, limit: int) -> list[DroppedRange]:
        rows = self._database.read(
            "SELECT first, last, reason FROM dropped WHERE epoch = ? ORDER BY first LIMIT ?", self.epoch, limit
        )
        return [DroppedRange(first, last, DropReason(reason)) for first, last, reason in rows]

    def entry(self, at: int, *, closed: bool) -> LedgerEntry | None:
        """Return the entry to publish now; `confirmed` or `failed` must follow.

        Returns None if an entry is in flight, or if nothing changed and the last entry is younger than HEARTBEAT_NS.
        `at` is UTC in nanoseconds. `closed` is left out while more ranges wait than one entry takes.
        """
        with self._lock:
            if self._entry is not None or self.captured == 0:
                return None
            dropped = self._waiting(RANGES_PER_ENTRY + 1)
            closed = closed and len(dropped) <= RANGES_PER_ENTRY
            del dropped[RANGES_PER_ENTRY:]
            unchanged = not dropped and (self.captured, closed) == self._published
            if unchanged and (closed or at - self._published_at < HEARTBEAT_NS):
                return None
            self._entry = LedgerEntry(self.camera, self.epoch, self.captured, merged(dropped), at, closed, self._exact)
            self._taken = [taken.first for taken in dropped]
            # A range that is in flight must not grow: what is dropped meanwhile is not in the entry.
            self._last = None
            return self._entry

    def confirmed(self) -> None:
        """Record that the entry in flight is in the topic."""
        with self._lock:
            entry, self._entry = self._entry, None
            if entry is None:
                return
            self._published, self._published_at = (entry.captured, entry.closed), entry.at
            taken, self._taken = self._taken, []
            if taken:
                with self._database.writing() as write:
                    for first in taken:
                        write("DELETE FROM dropped WHERE epoch = ? AND first = ?", self.epoch, first)

    def failed(self) -> None:
        """Record that the entry in flight is not in the topic; the next entry has its content."""
        with self._lock:
            self._entry, self._taken = None, []
            self._merge_newest()

    def _merge_newest(self) -> None:
        """Make one range of the two newest when they touch, and let the newest grow again.

        Otherwise each entry that fails in an outage would leave a range behind.
        """
        rows = self._database.read(
            "SELECT first, last, reason FROM dropped WHERE epoch = ? ORDER BY first DESC LIMIT 2", self.epoch
        )
        if not rows:
            return
        ranges = merged(DroppedRange(first, last, DropReason(reason)) for first, last, reason in rows)
        self._last = ranges[-1]
        if len(ranges) < len(rows):
            with self._database.writing() as write:
                write("DELETE FROM dropped WHERE epoch = ? AND first = ?", self.epoch, rows[0][0])
                write(
                    "UPDATE dropped SET last = ? WHERE epoch = ? AND first = ?", self._last.last, self.epoch, rows[1][0]
                )


class Journal:
    """Holds the accounts of a camera: of the present epoch, and of those that earlier processes left open. Thread-safe.

    `last_sequences` are the highest sequences by epoch that wait on disk: they complete an account that lacks them.
    """

    def __init__(self, folder: Path, camera: str, epoch: int, last_sequences: Mapping[int, int]) -> None:
        self._camera = camera
        self._lock = threading.RLock()
        self._database = _Database(folder / FILE_NAME)
        self._take_over_text_files(folder)
        captured = dict(self._database.read("SELECT epoch, captured FROM epochs"))
        # A frame that is on disk was captured, also when a kill came before it was counted.
        missing = {old: last + 1 for old, last in last_sequences.items() if last >= captured.get(old, 0)}
        if missing:
            with self._database.writing() as write:
                for old, count in missing.items():
                    write("INSERT OR REPLACE INTO epochs VALUES (?, ?)", old, count)
        self._accounts = {old: self._account(old, count, exact=False) for old, count in (captured | missing).items()}
        # An epoch must never be used twice, whatever the clock does between two starts.
        self.epoch = max(epoch, max(self._accounts, default=0) + 1)

    def _account(self, epoch: int, captured: int, *, exact: bool) -> EpochAccount:
        return EpochAccount(self._database, self._lock, self._camera, epoch, captured, exact)

    def _take_over_text_files(self, folder: Path) -> None:
        """Move the accounts of `<epoch>.journal` files, the old format, into the database.

        A file stays while its account is in memory only, or when it cannot be removed: taking it over again changes
        nothing.
        """
        for path in sorted(folder.glob("*.journal")):
            if path.stem.isdigit():
                epoch = int(path.stem)
                try:
                    captured, dropped = read_text_journal(path)
                except OSError as error:
                    log.error("journal %s cannot be read (%s): the ledger misses its captures", path, one_line(error))
                    continue
                with self._database.writing() as write:
                    if captured:
                        write("INSERT OR IGNORE INTO epochs VALUES (?, ?)", epoch, captured)
                    for item in merged(dropped):
                        row = (epoch, item.first, item.last, str(item.reason))
                        write("INSERT OR IGNORE INTO dropped VALUES (?, ?, ?, ?)", *row)
                if self._database.is_on_disk:
                    try:
                        path.unlink(missing_ok=True)
                    except OSError as error:
                        log.warning("journal %s is in %s and cannot be removed (%s)", path, FILE_NAME, one_line(error))

    @property
    def next_sequence(self) -> int:
        """Return the sequence of the next capture of the present epoch."""
        with self._lock:
            account = self._accounts.get(self.epoch)
            return account.captured if account else 0

    def count(self, sequence: int) -> None:
        """Record that the present epoch has a capture `sequence`; its account begins with the first."""
        with self._lock:
            self._of(self.epoch).count(sequence)

    def capture(self) -> int:
        """Count the next capture of the present epoch and return its sequence."""
        with self._lock:
            sequence = self.next_sequence
            self.count(sequence)
            return sequence

    def drop(self, epoch: int, sequence: int, reason: DropReason) -> None:
        """Record that a capture will not be published; it is counted if it was not before."""
        with self._lock:
            self._of(epoch).drop(sequence, reason)

    def _of(self, epoch: int) -> EpochAccount:
        account = self._accounts.get(epoch)
        if account is None:
            account = self._accounts[epoch] = self._account(epoch, 0, exact=epoch == self.epoch)
        return account

    def due(self, at: int, has_ended: Callable[[int], bool]) -> list[tuple[EpochAccount, LedgerEntry]]:
        """Return the entries to publish now; each is answered by its account's `confirmed` or `failed`.

        `at` is UTC in nanoseconds; `has_ended(epoch)` tells whether no capture of an epoch waits any more.
        """
        with self._lock:
            self._forget(epoch for epoch, account in self._accounts.items() if account.is_closed)
            accounts = sorted(self._accounts.items())
        entries = ((account, account.entry(at, closed=has_ended(epoch))) for epoch, account in accounts)
        return [(account, entry) for account, entry in entries if entry is not None]

    def _forget(self, epochs: Iterable[int], present_too: bool = False) -> None:
        for epoch in [epoch for epoch in epochs if present_too or epoch != self.epoch]:
            del self._accounts[epoch]
            with self._database.writing() as write:
                write("DELETE FROM epochs WHERE epoch = ?", epoch)
                write("DELETE FROM dropped WHERE epoch = ?", epoch)

    def owes(self, has_ended: Callable[[int], bool]) -> bool:
        """Return whether the topic `ledger` lacks something of the accounts."""
        with self._lock:
            accounts = list(self._accounts.items())
        return any(account.owes(closed=has_ended(epoch)) for epoch, account in accounts)

    def close(self) -> None:
        """Close the file; completed epochs leave it, and a file without any epoch is removed."""
        with self._lock:
            self._forget([epoch for epoch, account in self._accounts.items() if account.is_closed], present_too=True)
            self._database.close()


def merged(dropped: Iterable[DroppedRange]) -> tuple[DroppedRange, ...]:
    """Return ranges in sequence order, neighbours with the same reason as one."""
    result: list[DroppedRange] = []
    for item in sorted(dropped, key=lambda item: item.first):
        if result and result[-1].reason is item.reason and item.first <= result[-1].last + 1:
            result[-1] = DroppedRange(result[-1].first, max(result[-1].last, item.last), item.reason)
        else:
            result.append(item)
    return tuple(result)


def read_text_journal(path: Path) -> tuple[int, list[DroppedRange]]:
    """Return the captures and the unconfirmed drops of a journal in the old text format.

    Its first line is the number of captures, then comes a JSON line for each drop and for each confirmed entry. A line
    that a kill cut is left out, with a line in the log.
    """
    head, _, rest = path.read_bytes().partition(b"\n")
    dropped: list[DroppedRange] = []
    confirmed = 0
    for line in rest.splitlines():
        try:
            item = json.loads(line)
            if "confirmed" in item:
                confirmed += item["confirmed"]
            else:
                dropped.append(DroppedRange(item["first"], item["last"], DropReason(item["reason"])))
        except (ValueError, KeyError, TypeError):
            log.warning("journal %s has an unreadable line of %d bytes", path, len(line))
    return int(head) if head.isdigit() else 0, dropped[confirmed:]


def has_open_accounts(folder: Path) -> bool:
    """Return whether a camera's folder holds accounts that an earlier process left open."""
    return (folder / FILE_NAME).is_file() or any(path.stem.isdigit() for path in folder.glob("*.journal"))
