"""The store that the console shows: one thread opens it and looks whether it answers, for all readers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from discovery.store.database import DatabaseAway
from discovery.store.store import Store
from flawline.errors import FlawlineError
from flawline.outage import Outage
from station.language.languages import N_
from station.web import queries

log = logging.getLogger(__name__)

INTERVAL_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0  # judgements, not measured: somebody looks at a page that tries again
ANSWER_TIMEOUT_S = 5.0
"""A page is not worth a longer wait. A judgement, not measured."""


class StoreWatch:
    """Holds the store, or the reason why there is none now, so that no page waits for a store that is away."""

    def __init__(self, open_store: Callable[[], Store]) -> None:
        """`open_store` opens the store; it is tried again for as long as it raises FlawlineError."""
        self._open_store = open_store
        self._outage = Outage(FIRST_PAUSE_S, LONGEST_PAUSE_S)
        self._store: Store | None = None
        self._problem: str | None = N_("the store is being opened")

    @property
    def store(self) -> Store:
        """The store. Raises DatabaseAway while it does not answer."""
        if self._store is None or self._problem is not None:
            raise DatabaseAway(str(self._problem))
        return self._store

    def poll(self) -> float:
        """Look whether the store answers, and return the seconds to wait before the next look. For one thread."""
        try:
            self._store = self._store or self._open_store()
            queries.ready(self._store)
        except FlawlineError as error:
            self._problem = str(error)
            failure = self._outage.failed()
            if failure.is_reported:
                log.error("%s; trying again with growing pauses, and pages that need it say so", error)
            return failure.pause_s
        if self._outage.is_on:
            log.info("the store is well again, after %.0f s", self._outage.age_s())
            self._outage.ended()
        self._problem = None
        return INTERVAL_S

    def run(self, stop: threading.Event) -> None:
        """Poll until `stop`."""
        while not stop.is_set():
            stop.wait(self.poll())

    def close(self) -> None:
        """Close the store."""
        if self._store is not None:
            self._store.close()
