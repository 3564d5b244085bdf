"""Follows the state of each camera, as the station shows it, and tells of each change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from kafka.errors import KafkaError

from flawline import clock, messages
from flawline.errors import FlawlineError
from flawline.messages import SchemaError, Verdict
from flawline.outage import Outage
from flawline.settings.tree import Settings
from ledger.reader import LedgerReader
from station import verdict_tail
from station.outbound.events import Event, of_camera
from station.web import camera_states
from station.web.camera_states import CameraState, Kind, camera_state

log = logging.getLogger(__name__)

STEP_S = 1.0
ACCOUNT_INTERVAL_S = 5.0
"""How often the ledger is read, for what waits for the workers: as often as the station does."""
BACK = 50
POLL_MS = 200
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
"""Judgements, all of these."""


class CameraChanges:
    """Remembers what was told of each camera. Pure."""

    def __init__(self) -> None:
        self._told: dict[str, Kind] = {}

    def new(self, states: Mapping[str, CameraState]) -> dict[str, CameraState]:
        """Return the states to tell: at first all of them, later those whose kind has changed."""
        changed = {name: state for name, state in states.items() if self._told.get(name) is not state.kind}
        self._told.update((name, state.kind) for name, state in changed.items())
        return changed


class CameraWatch:
    """Reads beside the line what the station's tiles are made of. For one thread."""

    def __init__(
        self,
        settings: Settings,
        tell: Callable[[Event], None],
        *,
        now_ns: clock.UtcNs = clock.utc_ns,
        monotonic: clock.Monotonic = clock.monotonic,
    ) -> None:
        self._settings, self._tell, self._now_ns, self._monotonic = settings, tell, now_ns, monotonic
        self._rates = {camera.name: camera.rate_hz or None for camera in settings.cameras}
        self._outage = Outage(FIRST_PAUSE_S, LONGEST_PAUSE_S, clock=monotonic)
        self._changes = CameraChanges()
        self._last_ns: dict[str, int] = {}
        self._in_flight: dict[str, int] = {}
        self._account_at: float | None = None
        self._verdicts: Any = None
        self._ledger: LedgerReader | None = None

    def run(self, stop: threading.Event) -> None:
        """Tell of changes until `stop`. While the broker is away nothing is known of the cameras, and nothing told."""
        try:
            while not stop.is_set():
                stop.wait(self.step())
        finally:
            self.close()

    def step(self) -> float:
        """Read what is new, tell what has changed, and return the seconds to wait."""
        try:
            self._read_verdicts()
            self._read_account()
        except (KafkaError, FlawlineError, OSError) as error:
            self.close()
            failure = self._outage.failed()
            if failure.is_reported:
                log.warning("the states of the cameras are not known (%s): trying again", error)
            return failure.pause_s
        if self._outage.is_on:
            self._outage.ended()
        now = self._now_ns()
        for name, state in self._changes.new(self._states(now)).items():
            self._tell(of_camera(name, state, self._last_ns.get(name), self._settings.line, now))
        return STEP_S

    def close(self) -> None:
        """Close the connections."""
        for client in (self._verdicts, self._ledger):
            if client is not None:
                client.close()
        self._verdicts = self._ledger = self._account_at = None

    def _states(self, now_ns: int) -> dict[str, CameraState]:
        cameras_up = camera_states.cameras_up(self._settings)
        return {
            name: camera_state(
                self._last_ns.get(name),
                now_ns,
                rate_hz=self._rates.get(name),
                is_up=cameras_up.get(name),
                in_flight=self._in_flight.get(name, 0),
            )
            for name in [*self._rates, *sorted(self._last_ns.keys() - self._rates.keys())]
        }

    def _read_verdicts(self) -> None:
        if self._verdicts is None:
            self._verdicts = verdict_tail.consumer(self._settings, BACK)
        while self._verdicts is not None and (polled := self._verdicts.poll(timeout_ms=POLL_MS)):
            for record in (record for records in polled.values() for record in records):
                try:
                    verdict = messages.decode(Verdict, record.value or b"")
                except SchemaError:
                    continue  # the ledger counts it
                self._last_ns[verdict.camera] = max(self._last_ns.get(verdict.camera, 0), verdict.captured_at)

    def _read_account(self) -> None:
        now = self._monotonic()
        if self._account_at is not None and now - self._account_at < ACCOUNT_INTERVAL_S:
            return
        self._ledger = self._ledger or LedgerReader(self._settings)
        report = self._ledger.poll()
        self._account_at = now
        self._in_flight = {name: account.in_flight for name, account in report.cameras.items()}
