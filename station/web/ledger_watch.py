"""The ledger that the console shows: one thread reads it every few seconds, for all readers."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace

from flawline import clock
from flawline.errors import FlawlineError
from flawline.settings.tree import Settings
from ledger.accounting import Report
from ledger.reader import LedgerReader
from station import ended_run

log = logging.getLogger(__name__)

INTERVAL_S = 5.0


@dataclass(frozen=True)
class LedgerState:
    """The latest account, None before the first; `problem` says why the last read failed, None if it did not.

    `has_ended` says that the account is the last one of a run that is over, whose broker is gone.
    """

    report: Report | None = None
    read_at_ns: int | None = None
    problem: str | None = None
    has_ended: bool = False


class LedgerWatch:
    """Follows the topics of a line. While the broker is away the last account stays."""

    def __init__(self, settings: Settings, utc_ns: clock.UtcNs = clock.utc_ns) -> None:
        self._settings = settings
        self._utc_ns = utc_ns
        self._reader: LedgerReader | None = None
        self._state = LedgerState()

    @property
    def state(self) -> LedgerState:
        return self._state

    def poll(self) -> LedgerState:
        """Read the new records and return the state. Only one thread may call this."""
        try:
            self._reader = self._reader or LedgerReader(self._settings)
            report = self._reader.poll()
            if self._state.problem is not None:
                log.info("the ledger can be read again")
            self._state = LedgerState(report, self._utc_ns())
            self._reader.keep_snapshot()
        except FlawlineError as error:
            if (run := ended_run.read(self._settings.data_dir)) is not None:
                self._state = LedgerState(run.report, run.at_ns, has_ended=True)
                return self._state
            if self._state.problem is None:
                log.warning("%s; trying again", error)
            self._state = replace(self._state, problem=str(error))
        return self._state

    def run(self, stop: threading.Event, interval_s: float = INTERVAL_S) -> None:
        """Poll every `interval_s` until `stop`."""
        try:
            while not stop.is_set():
                self.poll()
                stop.wait(interval_s)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
