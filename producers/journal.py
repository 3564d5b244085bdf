"""What one camera captured and dropped in one epoch, kept on disk so that the ledger survives a kill.

A journal is a text file `<epoch>.journal`: a first line of fixed length with the number of captures so far, rewritten
in place at every capture, then a JSON line per dropped capture and per confirmed ledger entry. A few microseconds a
frame buy this: after a kill the next start still knows the last capture, so that those which were in memory show as
gaps, and not as captures that never were. The epoch's last entry, `closed`, is published when nothing of it waits.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from pathlib import Path

from flawline.messages import DroppedRange, DropReason, LedgerEntry

log = logging.getLogger(__name__)

_COUNT_BYTES = 21  # 20 decimal digits and the line's end
HEARTBEAT_NS = 20 * 1_000_000_000
"""The ledger takes an open epoch that it hears nothing of for a minute for dead, and its waiting frames for lost."""

RANGES_PER_ENTRY = 10_000
"""An entry stays far below its topic's size limit; what is left goes with the next."""


class Journal:
    """The account of one camera and epoch. Thread-safe.

    A disk that cannot be written costs the account's survival of a kill, said once in the log, and never a capture.
    """

    def __init__(self, folder: Path, camera: str, epoch: int, captured: int = 0) -> None:
        self.camera = camera
        self.epoch = epoch
        self.captured = captured
        self.path = folder / f"{epoch}.journal"
        self._dropped: list[DroppedRange] = []  # not confirmed yet
        self._entry: LedgerEntry | None = None  # under way
        self._taken = 0  # of the dropped, how many that entry takes
        self._published: tuple[int, bool] | None = None  # captured and closed of the last confirmed entry
        self._published_at = 0
        self._lock = threading.Lock()
        self._file: int | None = None
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            self._load(self._file)
        except OSError as error:
            self._give_up_disk(error)

    @property
    def is_closed(self) -> bool:
        """Whether the epoch's last entry is confirmed."""
        return self._published is not None and self._published[1]

    def _load(self, file: int) -> None:
        head, _, rest = os.pread(file, os.fstat(file).st_size, 0).partition(b"\n")
        if head.isdigit():
            self.captured = max(self.captured, int(head))
        confirmed = 0
        for line in rest.splitlines():
            try:
                item = json.loads(line)
                if "confirmed" in item:
                    confirmed += item["confirmed"]
                else:
                    self._dropped.append(DroppedRange(item["first"], item["last"], DropReason(item["reason"])))
            except (ValueError, KeyError, TypeError):  # the torn last line of a kill
                log.warning("journal %s has an unreadable line of %d bytes", self.path, len(line))
        del self._dropped[:confirmed]
        self._write_count()
        # Ends a torn line, so that the next one stands on its own.
        if rest and not rest.endswith(b"\n"):
            os.pwrite(file, b"\n", os.fstat(file).st_size)

    def capture(self) -> int:
        """The next sequence. From here on the capture is accounted for, whatever becomes of it."""
        with self._lock:
            sequence = self.captured
            self.captured += 1
            try:
                self._write_count()
            except OSError as error:
                self._give_up_disk(error)
            return sequence

    def drop(self, sequence: int, reason: DropReason) -> None:
        """Capture `sequence` will not be published."""
        with self._lock:
            # Appended one by one, and merged only when an entry is made: the file's lines count what is confirmed.
            self._dropped.append(DroppedRange(sequence, sequence, reason))
            self._append({"first": sequence, "last": sequence, "reason": str(reason)})

    def owes(self, *, closed: bool) -> bool:
        """Whether something is known here that no confirmed entry says."""
        with self._lock:
            return self.captured > 0 and (bool(self._dropped) or self._published != (self.captured, closed))

    def entry(self, at: int, *, closed: bool) -> LedgerEntry | None:
        """The entry to publish now; None while one is under way, or when nothing changed since the last, lately.

        To be followed by `confirmed` or `failed`. `closed` is left out while more drops wait than one entry takes.
        """
        with self._lock:
            dropped = self._dropped[:RANGES_PER_ENTRY]
            closed = closed and len(dropped) == len(self._dropped)
            state = (self.captured, closed)
            if self._entry is not None or self.captured == 0:
                return None
            unchanged = not dropped and state == self._published
            if unchanged and (closed or at - self._published_at < HEARTBEAT_NS):
                return None
            self._entry = LedgerEntry(self.camera, self.epoch, self.captured, merged(dropped), at, closed)
            self._taken = len(dropped)
            return self._entry

    def confirmed(self) -> None:
        """The entry that was under way is in the topic."""
        with self._lock:
            entry, self._entry = self._entry, None
            if entry is None:
                return
            self._published, self._published_at = (entry.captured, entry.closed), entry.at
            if self._taken:
                del self._dropped[: self._taken]
                self._append({"confirmed": self._taken})

    def failed(self) -> None:
        """The entry that was under way is not in the topic; its content goes with the next."""
        with self._lock:
            self._entry = None

    def close(self) -> None:
        """Let the file go; remove it when the epoch's last entry is confirmed, or when nothing was ever captured."""
        with self._lock:
            if self._file is not None:
                os.close(self._file)
                self._file = None
            if self.is_closed or self.captured == 0:
                self.path.unlink(missing_ok=True)

    def _write_count(self) -> None:
        if self._file is not None:
            os.pwrite(self._file, b"%020d\n" % self.captured, 0)

    def _append(self, item: dict[str, object]) -> None:
        if self._file is None:
            return
        try:
            end = max(_COUNT_BYTES, os.fstat(self._file).st_size)
            os.pwrite(self._file, json.dumps(item).encode() + b"\n", end)
        except OSError as error:
            self._give_up_disk(error)

    def _give_up_disk(self, error: OSError) -> None:
        log.error("journal %s cannot be kept (%s): after a kill the ledger will not know the last captures",
                  self.path, error.strerror)  # fmt: skip
        if self._file is not None:
            os.close(self._file)
            self._file = None


def merged(dropped: list[DroppedRange]) -> tuple[DroppedRange, ...]:
    """Ranges in sequence order, neighbours with the same reason as one."""
    result: list[DroppedRange] = []
    for one in sorted(dropped, key=lambda item: item.first):
        if result and result[-1].reason is one.reason and one.first <= result[-1].last + 1:
            result[-1] = DroppedRange(result[-1].first, max(result[-1].last, one.last), one.reason)
        else:
            result.append(one)
    return tuple(result)


def left_behind(folder: Path) -> list[int]:
    """Epochs whose journals are in a camera's folder, oldest first."""
    return sorted(int(path.stem) for path in folder.glob("*.journal") if path.stem.isdigit())
