"""The role `flawline notify`: tells an MQTT broker and the receivers of webhooks what happens on the line."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import closing

from flawline import telemetry
from flawline.clock import monotonic
from flawline.errors import FlawlineError, UsageError
from flawline.settings.tree import Settings
from station.outbound.camera_watch import CameraWatch
from station.outbound.delivery import Filter
from station.outbound.events import Event
from station.outbound.metrics import OF_NOTIFY
from station.outbound.mqtt import MqttBroker
from station.outbound.receiver import Receiver
from station.outbound.webhook import Webhook

log = logging.getLogger(__name__)

MQTT = "mqtt"
"""Name of the MQTT broker among the receivers."""
CHECK_S = 0.5  # a judgement, not measured
STOP_TIMEOUT_S = 10.0  # a judgement, not measured


def run(settings: Settings, stop: threading.Event) -> None:
    """Tell every receiver until `stop`, each in a thread of its own.

    Raises UsageError when nobody is to be told, and for settings that cannot be used; FlawlineError for a port in use,
    and when the broker refuses.
    """
    if not settings.has_receivers:
        raise UsageError("nobody is to be told: set outbound.mqtt_url, or add a block [[webhooks]] (docs/outbound.md)")
    # While a broker is away the Kafka client logs it many times a minute; each receiver logs it once.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with closing(telemetry.serve(settings.metrics.notify_port, settings.metrics.host, *OF_NOTIFY)):
        receivers = make_receivers(settings)
        telemetry.BROKER_WAIT_SECONDS.set_function(lambda: max(receiver.broker_wait_s() for receiver in receivers))
        work: dict[str, Callable[[threading.Event], None]] = {receiver.name: receiver.run for receiver in receivers}
        if any("camera" in kinds for kinds in (settings.outbound.mqtt_events, *(w.events for w in settings.webhooks))):

            def tell(event: Event) -> None:
                for receiver in receivers:
                    receiver.tell_camera(event)

            work["cameras"] = CameraWatch(settings, tell).run
        log.info("events are told to %s", ", ".join(receiver.name for receiver in receivers))
        _run_all(work, stop)


def make_receivers(settings: Settings) -> list[Receiver]:
    """Return the receivers of the settings. Raises UsageError for what cannot be used."""
    receivers = [
        Receiver(
            settings,
            webhook.name,
            Filter(webhook.events, webhook.decisions),
            Webhook(webhook, settings.line),
            webhook.give_up_after_s,
        )
        for webhook in settings.webhooks
    ]
    outbound = settings.outbound
    if outbound.mqtt_url is not None:
        wanted = Filter(outbound.mqtt_events, outbound.mqtt_decisions)
        broker = MqttBroker(outbound, settings.line)
        receivers.append(Receiver(settings, MQTT, wanted, broker, outbound.mqtt_give_up_after_s))
    return receivers


def _run_all(work: Mapping[str, Callable[[threading.Event], None]], stop: threading.Event) -> None:
    """Run each in a thread until `stop`. Raises FlawlineError when one of them ends by itself."""
    ended = threading.Event()
    failures: dict[str, BaseException] = {}

    def guarded(name: str, run: Callable[[threading.Event], None]) -> None:
        try:
            run(ended)
        except BaseException as error:
            failures[name] = error

    threads = [threading.Thread(target=guarded, args=(name, run), name=name, daemon=True) for name, run in work.items()]
    for thread in threads:
        thread.start()
    try:
        while not stop.wait(CHECK_S) and all(thread.is_alive() for thread in threads):
            pass
    finally:
        ended.set()
        deadline = monotonic() + STOP_TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))  # one that still waits for an answer ends with the process
    for name, failure in failures.items():
        if isinstance(failure, FlawlineError):
            raise failure
        raise FlawlineError(f"what tells {name} has ended with {type(failure).__name__}: report it") from failure
