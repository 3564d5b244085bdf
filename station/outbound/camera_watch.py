"""Follows the state of each camera, as the station shows it, and tells of each change."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from kafka.errors import KafkaError

from flawline import clock, messages
from flawline.errors import FlawlineError
from flawline.messages import SchemaError, Verdict
from flawline.outage import Outage
from flawline.settings.tree import Settings
from ledger.reader import LedgerReader
from station import verdict_tail
from station.outbound.events import Event, SeenCamera, of_camera
from station.web import camera_states
from station.web.camera_states import Kind, camera_state

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
        self._told: dict[str, tuple[Kind, str]] = {}

    def new(self, cameras: Mapping[str, SeenCamera]) -> dict[str, SeenCamera]:
        """Return the cameras to tell of: at first all of them, later those whose kind or scene has changed."""
        now = {name: (seen.state.kind, seen.scene) for name, seen in cameras.items()}
        changed = {name: seen for name, seen in cameras.items() if self._told.get(name) != now[name]}
        self._told.update((name, now[name]) for name in changed)
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
        self._last: dict[str, Verdict] = {}
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
        for name, seen in self._changes.new(self._seen(now)).items():
            self._tell(of_camera(name, seen, self._settings.line, now))
        return STEP_S

    def close(self) -> None:
        """Close the connections."""
        for client in (self._verdicts, self._ledger):
            if client is not None:
                client.close()
        self._verdicts = self._ledger = self._account_at = None

    def _seen(self, now_ns: int) -> dict[str, SeenCamera]:
        cameras_up = camera_states.cameras_up(self._settings)
        cameras = {}
        for name in [*self._rates, *sorted(self._last.keys() - self._rates.keys())]:
            last = self._last.get(name)
            last_ns = None if last is None else last.captured_at
            state = camera_state(
                last_ns,
                now_ns,
                rate_hz=self._rates.get(name),
                is_up=cameras_up.get(name),
                in_flight=self._in_flight.get(name, 0),
            )
            cameras[name] = SeenCamera(state, last_ns, str(last.scene) if last is not None and last.scene else "")
        return cameras

    def _read_verdicts(self) -> None:
        if self._verdicts is None:
            self._verdicts = verdict_tail.consumer(self._settings, BACK)
        while self._verdicts is not None and (polled := self._verdicts.poll(timeout_ms=POLL_MS)):
            for record in (record for records in polled.values() for record in records):
                try:
                    verdict = messages.decode(Verdict, record.value or b"")
                except SchemaError:
                    continue  # the ledger counts it
                known = self._last.get(verdict.camera)
                if known is None or known.captured_at <= verdict.captured_at:
                    self._last[verdict.camera] = replace(verdict, regions=())

    def _read_account(self) -> None:
        now = self._monotonic()
        if self._account_at is not None and now - self._account_at < ACCOUNT_INTERVAL_S:
            return
        self._ledger = self._ledger or LedgerReader(self._settings)
        report = self._ledger.poll()
        self._account_at = now
        self._in_flight = {name: account.in_flight for name, account in report.cameras.items()}
