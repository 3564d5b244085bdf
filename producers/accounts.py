"""The journals of one camera: its present epoch's, and those that earlier processes left open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from flawline.messages import DropReason, LedgerEntry
from producers.journal import Journal, left_behind


class Accounts:
    """Gives sequence numbers, takes drops, and says what the topic `ledger` must be told. Thread-safe.

    `last_sequences` are the highest sequences by epoch that wait on disk: they stand in for a journal that is missing.
    """

    def __init__(self, folder: Path, camera: str, epoch: int, last_sequences: Mapping[int, int]) -> None:
        self._folder = folder
        self._camera = camera
        self._lock = threading.Lock()
        self._journals = {old: Journal(folder, camera, old) for old in left_behind(folder)}
        for old, last in last_sequences.items():
            if old not in self._journals:
                self._journals[old] = Journal(folder, camera, old, captured=last + 1)
        # An epoch must never be used twice, whatever the clock does between two starts.
        self.epoch = max(epoch, max(self._journals, default=0) + 1)

    def capture(self) -> int:
        """The next sequence of the present epoch; its journal begins with the first."""
        with self._lock:
            journal = self._journals.get(self.epoch)
            if journal is None:
                journal = self._journals[self.epoch] = Journal(self._folder, self._camera, self.epoch)
        return journal.capture()

    def drop(self, epoch: int, sequence: int, reason: DropReason) -> None:
        """A capture will not be published."""
        with self._lock:
            journal = self._journals[epoch]
        journal.drop(sequence, reason)

    def due(self, at: int, has_ended: Callable[[int], bool]) -> list[tuple[Journal, LedgerEntry]]:
        """What is to be published now; each is answered by its journal's `confirmed` or `failed`."""
        with self._lock:
            for epoch in [epoch for epoch, one in self._journals.items() if one.is_closed and epoch != self.epoch]:
                self._journals.pop(epoch).close()
            journals = sorted(self._journals.items())
        due = []
        for epoch, journal in journals:
            entry = journal.entry(at, closed=has_ended(epoch))
            if entry is not None:
                due.append((journal, entry))
        return due

    def owes(self, has_ended: Callable[[int], bool]) -> bool:
        """Whether the topic `ledger` does not say yet what is known here."""
        with self._lock:
            journals = list(self._journals.items())
        return any(journal.owes(closed=has_ended(epoch)) for epoch, journal in journals)

    def close(self) -> None:
        """Let the files go; those of completed epochs are removed."""
        with self._lock:
            for journal in self._journals.values():
                journal.close()
