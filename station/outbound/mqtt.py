"""The MQTT broker as a receiver: QoS 1, states retained, and a last will that says when nothing is told any more."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Sequence
from queue import Empty, SimpleQueue
from typing import Any

from flawline.clock import UtcNs, utc_ns
from flawline.errors import one_line
from flawline.settings.outbound import OutboundSettings
from producers.mqtt import client_of
from station.outbound import topic_names
from station.outbound.delivery import DELIVERED, Outcome, Result
from station.outbound.events import Event

WINDOW = 64
"""Events that are on the way at once. A judgement: the broker's answers take some ms, and a line has 100 frames/s."""
STEP_S = 0.2
LONGEST_PAUSE_S = 2.0
"""The client connects again by itself with growing pauses; to see whether it has costs nothing. A judgement."""
STOP_S = 2.0
"""Longest wait for the broker to take that we are going."""


class MqttBroker:
    """Publishes to the broker of the settings, over its outages.

    What was handed to the client is sent again by the client itself, in its order, until the broker has it. `send` is
    for one thread; the callbacks come from the client's own.
    """

    window = WINDOW
    longest_pause_s = LONGEST_PAUSE_S
    keeps_state = True

    def __init__(self, settings: OutboundSettings, line: str, now_ns: UtcNs = utc_ns) -> None:
        """Raise UsageError for settings that cannot be used, and for a library that is missing."""
        assert settings.mqtt_url is not None
        self._settings, self._line, self._now_ns = settings, line, now_ns
        self._client, host, port = client_of(
            "outbound.mqtt_url",
            settings.mqtt_url.get_secret_value(),
            client_id=f"flawline-notify-{line}",
            username=settings.mqtt_username,
            password=settings.mqtt_password.get_secret_value() if settings.mqtt_password else None,
            cafile=settings.mqtt_cafile,
            certfile=settings.mqtt_certfile,
            keyfile=settings.mqtt_keyfile,
        )
        self.address = host, port
        self._role_topic = topic_names.of_role(settings.mqtt_prefix, line)
        self._states: dict[str, bytes] = {}
        """The retained messages so far: a broker that starts again may have forgotten them."""
        # No lock of ours in the client's callbacks: it calls them under its own, which publish takes, too.
        self._acknowledged: SimpleQueue[int] = SimpleQueue()
        self._handed_over: tuple[str, ...] = ()
        self._waiting: set[int] = set()
        """The events that the client has and the broker has not acknowledged, and their numbers."""
        self._is_connected = threading.Event()
        self._is_new = threading.Event()
        self._problem = "does not answer"
        self._client.will_set(self._role_topic, self._role_state(is_online=False), qos=1, retain=True)
        self._client.on_connect, self._client.on_disconnect = self._on_connect, self._on_disconnect
        self._client.on_connect_fail = self._on_connect_fail
        self._client.on_publish = lambda _client, _data, mid, _reason, _properties: self._acknowledged.put(mid)

    def open(self) -> None:
        """Connect, now or as soon as the broker is there."""
        self._client.connect_async(*self.address)
        self._client.loop_start()

    def tend(self) -> None:
        """Publish the states again to a broker that has come back."""
        if self._is_connected.is_set() and self._is_new.is_set():
            self._is_new.clear()
            for topic, body in self._states.items():
                self._client.publish(topic, body, qos=1, retain=True)

    def send(self, events: Sequence[Event], stop: threading.Event) -> Outcome:
        """Publish events in their order, and return when the broker has acknowledged them; FAILED while it is away.

        Events that the broker went away from are not published once more: the client still has them.
        """
        if not self._is_connected.wait(STEP_S):
            return Outcome(Result.FAILED, self._problem)
        self.tend()
        identities = tuple(event.id for event in events)
        if identities != self._handed_over:
            while not self._acknowledged.empty():
                self._acknowledged.get()  # of what nobody waited for
            self._waiting = {self._publish(event) for event in events}
            self._handed_over = identities
        while self._waiting:
            try:
                self._waiting.discard(self._acknowledged.get(timeout=STEP_S))
            except Empty:
                if stop.is_set():
                    return Outcome(Result.FAILED, "is being left")
                if not self._is_connected.is_set():
                    return Outcome(Result.FAILED, self._problem)
        self._handed_over = ()
        return DELIVERED

    def _publish(self, event: Event) -> int:
        """Hand an event to the client, and return the number by which the broker will acknowledge it."""
        topic = topic_names.of_event(self._settings.mqtt_prefix, self._line, event)
        body, is_state = event.body(self._line), event.kind != "verdict"
        if is_state:
            self._states[topic] = body
        return int(self._client.publish(topic, body, qos=1, retain=is_state).mid)

    def close(self) -> None:
        """Say that nothing is told any more, and disconnect."""
        last = self._client.publish(self._role_topic, self._role_state(is_online=False), qos=1, retain=True)
        with contextlib.suppress(RuntimeError):  # the broker is away: its last will of ours says the same
            last.wait_for_publish(STOP_S)
        self._client.disconnect()
        self._client.loop_stop()

    def _role_state(self, *, is_online: bool) -> bytes:
        """Return the state of this role as Sparkplug B 3.0 has that of a host: `online`, and since when in ms UTC."""
        return json.dumps({"online": is_online, "timestamp": self._now_ns() // 1_000_000}).encode()

    def _on_connect(self, client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._problem = f"refuses this client ({reason})"
            return
        client.publish(self._role_topic, self._role_state(is_online=True), qos=1, retain=True)
        self._is_new.set()
        self._is_connected.set()

    def _on_connect_fail(self, _client: Any, _data: Any) -> None:
        # The library calls this while it handles the error, which it tells nobody.
        error = sys.exc_info()[1]
        self._problem = f"cannot be reached ({one_line(error)})" if error else "does not answer"

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self._is_connected.is_set():  # else it has refused, and that is the reason to tell
            self._problem = f"is away ({reason})"
        self._is_connected.clear()
