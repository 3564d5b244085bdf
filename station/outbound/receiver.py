"""One receiver of events: a thread that reads, tells, tries again and gives up. No other receiver waits for it."""

from __future__ import annotations

import logging
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from flawline import kafka_clients
from flawline.clock import Monotonic, UtcNs, monotonic, utc_ns
from flawline.errors import FlawlineError, one_line
from flawline.outage import Outage
from flawline.settings.tree import Settings
from station.outbound import metrics
from station.outbound.delivery import Filter, Outcome, Reason, Result, is_given_up, is_too_old
from station.outbound.events import Event
from station.outbound.feed import CameraQueue, Feed, Item, open_feed

log = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.5
"""The pause after the first attempt. A judgement, not measured: who is back after a restart is told at once."""


class Sender(Protocol):
    """How a receiver is told: `window` events at a time, all of which it acknowledges, or none counts.

    While it is away it is tried at least each `longest_pause_s`. With `keeps_state` the newest state of cameras and
    classes is told however old it is.
    """

    @property
    def window(self) -> int: ...
    @property
    def keeps_state(self) -> bool: ...
    @property
    def longest_pause_s(self) -> float: ...
    @property
    def address(self) -> tuple[str, int]: ...
    def open(self) -> None: ...
    def tend(self) -> None: ...
    def send(self, events: Sequence[Event], stop: threading.Event) -> Outcome: ...
    def close(self) -> None: ...


class Receiver:
    """Tells one receiver, in order. `run` is for one thread; `tell_camera` for another one."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        wanted: Filter,
        sender: Sender,
        give_up_after_s: float,
        *,
        now_ns: UtcNs = utc_ns,
        clock: Monotonic = monotonic,
    ) -> None:
        self.name = name
        self._settings, self._wanted, self._sender = settings, wanted, sender
        self._give_up_after_s, self._now_ns, self._clock = give_up_after_s, now_ns, clock
        self._outage = Outage(FIRST_PAUSE_S, sender.longest_pause_s, clock=clock)
        self._broker_outage = Outage(kafka_clients.FIRST_PAUSE_S, kafka_clients.LONGEST_PAUSE_S, clock=clock)
        self._cameras = CameraQueue(lambda: self._lose(Reason.OVERFLOW, 1))
        self._is_refusing = False
        self._oldest_ns: int | None = None
        metrics.announce(name, list(wanted.kinds))
        metrics.FAILING_SECONDS.labels(name).set_function(self._outage.age_s)
        metrics.OLDEST_AGE.labels(name).set_function(self._oldest_age_s)

    def broker_wait_s(self) -> float:
        """Return how long the topics could not be read, 0 while they can."""
        return self._broker_outage.age_s()

    def problem(self, timeout_s: float) -> str | None:
        """Return in words why nobody listens at the receiver's address, None when somebody does. Nothing is told."""
        try:
            socket.create_connection(self._sender.address, timeout_s).close()
        except OSError as error:
            return f"cannot be reached ({one_line(error)})"
        return None

    def tell_camera(self, event: Event) -> None:
        """Add a state of a camera to what is told."""
        if self._wanted.wants(event):
            self._cameras.put(event)

    def run(self, stop: threading.Event) -> None:
        """Tell what comes until `stop`. Raises FlawlineError when the broker refuses."""
        try:
            feed = self._open(stop)
            if feed is None:
                return
            try:
                self._sender.open()
                while not stop.is_set():
                    self.step(feed, stop)
            finally:
                feed.close()
        finally:
            self._sender.close()

    def step(self, feed: Feed, stop: threading.Event) -> None:
        """Tell what waits at this moment."""
        self._sender.tend()
        items = deque(Item(event) for event in self._cameras.take())
        items.extend(feed.items())
        if not items:
            feed.commit()
        while items and not stop.is_set():
            window = [items.popleft() for _ in range(min(self._sender.window, len(items)))]
            told = [item.event for item in window if item.event is not None]
            if told and not self._tell(told, stop):
                return  # what is not acknowledged is read again at the next start
            for item in window:
                feed.done(item)

    def _open(self, stop: threading.Event) -> Feed | None:
        """Return the feed as soon as the broker answers, None when `stop` came first."""
        while not stop.is_set():
            try:
                feed = open_feed(
                    lambda: Feed(
                        self._settings, self.name, self._wanted,
                        from_all_classes=self._sender.keeps_state, on_lost=self._lose,
                    )
                )  # fmt: skip
            except FlawlineError as error:
                if not kafka_clients.is_away(error):
                    raise
                kafka_clients.wait_for_broker(error, self._broker_outage, stop)
                continue
            self._broker_outage.ended()
            return feed
        return None

    def _tell(self, waiting: list[Event], stop: threading.Event) -> bool:
        """Tell events until they are acknowledged or given up; return False when `stop` came first."""
        refusals = 0
        while waiting := self._fresh(waiting):
            self._oldest_ns = waiting[0].at_ns
            outcome = self._sender.send(waiting, stop)
            if outcome.result is Result.DELIVERED:
                self._on_delivered(waiting)
                break
            if stop.is_set():
                return False
            metrics.FAILURES.labels(self.name, str(outcome.result)).inc()
            refusals += outcome.result is Result.REFUSED
            if is_given_up(outcome, refusals, self._is_refusing):
                self._give_up(waiting, outcome)
                break
            failure = self._outage.failed()
            if failure.is_reported:
                log.warning("receiver %s (%s) %s: it is tried again with growing pauses",
                            self.name, self._sender.address[0], outcome.words)  # fmt: skip
            if stop.wait(max(failure.pause_s, outcome.wish_s)):
                return False
        self._oldest_ns = None
        return True

    def _fresh(self, waiting: list[Event]) -> list[Event]:
        """Return the events that are still told, and count the others."""
        now = self._now_ns()
        fresh = [
            event for event in waiting if self._is_state(event) or not is_too_old(event, now, self._give_up_after_s)
        ]
        if len(fresh) < len(waiting):
            self._lose(Reason.TOO_OLD, len(waiting) - len(fresh))
        return fresh

    def _is_state(self, event: Event) -> bool:
        return self._sender.keeps_state and event.kind != "verdict"

    def _on_delivered(self, told: Sequence[Event]) -> None:
        for event in told:
            metrics.DELIVERED.labels(self.name, event.kind).inc()
        self._is_refusing = False
        if self._outage.is_on:
            log.info("receiver %s answers again, after %.0f s", self.name, self._outage.age_s())
            self._outage.ended()

    def _give_up(self, waiting: Sequence[Event], outcome: Outcome) -> None:
        if not self._is_refusing:
            log.error("receiver %s (%s) %s: event %s is given up; see its log, and url, secret, token",
                      self.name, self._sender.address[0], outcome.words, waiting[0].id)  # fmt: skip
        self._is_refusing = True
        self._lose(Reason.REFUSED, len(waiting))

    def _lose(self, reason: Reason, count: int) -> None:
        metrics.GIVEN_UP.labels(self.name, str(reason)).inc(count)

    def _oldest_age_s(self) -> float:
        oldest_ns = self._oldest_ns
        return 0.0 if oldest_ns is None else max(0.0, (self._now_ns() - oldest_ns) / 1e9)
