"""What runs where: the supervisor tells the topic `model-reports` what its actors run, as it last heard from them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from kafka.errors import KafkaError

from flawline import clock, kafka_clients, messages, topics
from flawline.checked_producer import CheckedProducer
from flawline.errors import FlawlineError
from flawline.messages import ModelReport
from flawline.settings.tree import Settings

log = logging.getLogger(__name__)

REPORT_S = 1.0
REPEAT_S = 30.0
"""A report without a change is repeated so often. Who reads one that is older knows that nobody repeats it."""

STALE_S = 3 * REPEAT_S
CONFIRM_TIMEOUT_S = 10.0  # a judgement, not measured


class ModelReporter:
    """A thread that writes a report of each actor when it changes, and REPEAT_S after the last one.

    `ask` returns the reports of this moment. What the broker does not take is written later; a stop takes the reports
    back.
    """

    def __init__(
        self, settings: Settings, ask: Callable[[], list[ModelReport]], now_ns: clock.UtcNs = clock.utc_ns
    ) -> None:
        self._settings = settings
        self._ask = ask
        self._now_ns = now_ns
        self._written: dict[str, ModelReport] = {}
        self._producer: CheckedProducer | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-reports", daemon=True)

    def start(self) -> None:
        """Start to report."""
        self._thread.start()

    def stop(self) -> None:
        """Take the reports back and end; does not wait for a broker that is away."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2 * CONFIRM_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stop.wait(REPORT_S):
            self._try(self._ask())
        self._try([])
        self._close()

    def _try(self, reports: list[ModelReport]) -> None:
        try:
            self._write(due(self._written, reports, self._now_ns()))
        except (KafkaError, FlawlineError) as error:
            log.debug("models are reported later: %s", error)
            self._close()

    def _write(self, changes: dict[str, ModelReport | None]) -> None:
        if not changes:
            return
        if self._producer is None:
            kafka_clients.ensure_topics(self._settings, [topics.MODEL_REPORTS.name])
            self._producer = kafka_clients.producer(self._settings, topics.MODEL_REPORTS.name)
        for member, report in changes.items():
            self._producer.send(
                self._settings.topic(topics.MODEL_REPORTS.name),
                key=member.encode(),
                value=messages.encode(report) if report else None,
                headers=messages.headers(report) if report else [],
            ).get(timeout=CONFIRM_TIMEOUT_S)
            if report:
                self._written[member] = report
            else:
                self._written.pop(member, None)

    def _close(self) -> None:
        if self._producer is not None:
            kafka_clients.close_producer(self._producer)
            self._producer = None


def due(written: dict[str, ModelReport], reports: list[ModelReport], now_ns: int) -> dict[str, ModelReport | None]:
    """Return what to write for each actor: a report that changed or is old, None for an actor that has gone."""
    changes: dict[str, ModelReport | None] = dict.fromkeys(written.keys() - {report.member for report in reports})
    for report in reports:
        last = written.get(report.member)
        if last is None or replace(last, at=report.at) != report or now_ns - last.at >= REPEAT_S / clock.NS:
            changes[report.member] = report
    return changes


def read(settings: Settings) -> list[ModelReport]:
    """Return the last report of each actor. Raises FlawlineError."""
    newest = kafka_clients.newest_values(settings, topics.MODEL_REPORTS.name)
    return [messages.decode(ModelReport, value) for _, value in sorted(newest.items())]
