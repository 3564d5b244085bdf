"""The role on real topics, with a real HTTP server and a real MQTT broker that come, go and dawdle."""

from __future__ import annotations

import contextlib
import getpass
import json
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition

from discovery.shifts import NO_SHIFTS
from flawline import clock, kafka_clients
from flawline.errors import UsageError
from flawline.messages import ClassEvent, ClassState, Decision, Transition, Verdict
from flawline.settings.outbound import OutboundSettings, WebhookSettings
from flawline.settings.tree import Settings
from producers import mqtt
from station.outbound import events, metrics, receiver, service, webhook
from station.outbound.delivery import DELIVERED, Filter
from station.outbound.feed import Feed
from station.outbound.mqtt import MqttBroker
from tests.discovery import factories
from tests.support.brokers import Certificates
from tests.support.mosquitto import Mosquitto, mqtt_client
from tests.support.ports import reserved_port
from tests.support.talking_line import TalkingLine

pytestmark = pytest.mark.system

WAIT_S = 30
SECRET = "a word of the plant"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiver, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(webhook.Webhook, "longest_pause_s", 0.1)
    monkeypatch.setattr(mqtt, "FIRST_PAUSE_S", 0.05)


class Listener:
    """Is a receiver over HTTP: keeps each call and answers by `status`, when `may_answer` is set."""

    def __init__(self, port: int = 0) -> None:
        self.calls: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        self.statuses: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        listener = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                listener.may_answer.wait(WAIT_S)
                status = listener.statuses.pop(0) if listener.statuses else 204
                if status == 204:
                    listener.calls.put(({name.lower(): text for name, text in self.headers.items()}, body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def frames(self, count: int) -> list[str]:
        """Return the frames of the next calls."""
        return [json.loads(self.calls.get(timeout=WAIT_S)[1])["data"]["frame"] for _ in range(count)]

    def close(self) -> None:
        self.may_answer.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[None]:
    """Run the role."""
    stop, failures = threading.Event(), []

    def run() -> None:
        try:
            service.run(settings, stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(WAIT_S)
    assert not failures and not thread.is_alive()


def hooks(settings: Settings, **urls: str) -> Settings:
    """Return the settings with a receiver for each URL, that have been there before: what comes now is for them."""
    webhooks = [WebhookSettings(name=name, url=url, events=["verdict"], secret=SECRET) for name, url in urls.items()]
    for known in webhooks:
        wanted = Filter(known.events, known.decisions)
        Feed(settings, known.name, wanted, from_all_classes=False, on_lost=lambda *_: None).close()
    return settings.model_copy(update={"webhooks": webhooks})


def verdict(sequence: int, decision: Decision = Decision.REJECT) -> Verdict:
    now = clock.utc_ns()
    return replace(factories.verdict(sequence, decision=decision), captured_at=now, decided_at=now)


def named(sequence: int) -> str:
    return verdict(sequence).frame_id


def until(condition: Any) -> None:
    """Wait for what another thread does and tells nobody."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_receiver_that_was_away_gets_everything_once_and_in_order_also_over_a_restart(
    line: TalkingLine,
) -> None:
    port = reserved_port()
    settings = hooks(line.settings, office=f"http://127.0.0.1:{port}/hook")
    for sequence in range(4):
        line.say("verdicts", verdict(sequence), partition=sequence % 2)
    line.say("verdicts", verdict(4, Decision.ACCEPT))
    failures = metrics.FAILURES.labels("office", "failed")._value
    before = failures.get()
    with running(settings):
        until(lambda: failures.get() > before)
        listener = Listener(port)
        listener.statuses = [503, 400]
        calls = [listener.calls.get(timeout=WAIT_S) for _ in range(4)]
    frames = [json.loads(body)["data"]["frame"] for _, body in calls]
    assert sorted(frames) == [named(0), named(1), named(2), named(3)]
    for partition in (0, 1):
        assert [frame for frame in frames if frame in (named(partition), named(partition + 2))] == [
            named(partition), named(partition + 2),
        ]  # fmt: skip
    for headers, body in calls:
        identity, at_s = headers["webhook-id"], int(headers["webhook-timestamp"])
        assert headers["webhook-signature"] == webhook.signature(SECRET.encode(), identity, at_s, body)
        assert json.loads(body)["id"] == identity
    line.say("verdicts", verdict(5))
    with running(settings):
        assert listener.frames(1) == [named(5)]
    assert listener.calls.empty()
    listener.close()


def test_what_its_topic_deleted_before_a_receiver_was_told_is_counted(line: TalkingLine) -> None:
    listener = Listener()
    settings = hooks(line.settings, archive=listener.url)
    for sequence in range(5):
        line.say("verdicts", verdict(sequence))
    admin = kafka_clients.admin(settings)
    admin.delete_records({TopicPartition(settings.topic("verdicts"), 0): 3})
    admin.close()
    with running(settings):
        assert listener.frames(2) == [named(3), named(4)]
    assert metrics.GIVEN_UP.labels("archive", "expired")._value.get() == 3
    listener.close()


def test_a_receiver_that_dawdles_holds_up_no_other_one(line: TalkingLine) -> None:
    slow, quick = Listener(), Listener()
    slow.may_answer.clear()
    settings = hooks(line.settings, slow=slow.url, quick=quick.url)
    for sequence in range(20):
        line.say("verdicts", verdict(sequence))
    with running(settings):
        assert quick.frames(20) == [named(sequence) for sequence in range(20)]
        assert slow.calls.empty()
        slow.may_answer.set()
        assert slow.frames(20) == [named(sequence) for sequence in range(20)]
    slow.close()
    quick.close()


def test_mqtt_has_the_states_for_a_late_subscriber_also_after_its_broker_forgot_them(
    line: TalkingLine, mosquitto: Mosquitto
) -> None:
    change = ClassEvent("D/1:1:confirmed", "D/1", Transition.CONFIRMED, 1, 3, ClassState.CONFIRMED, 12)
    line.say("classes", change)  # long ago, and before the role first looked
    line.say("verdicts", verdict(0))
    outbound = OutboundSettings(mqtt_url=f"mqtt://127.0.0.1:{mosquitto.port}", mqtt_prefix="plant/qa")
    settings = line.settings.model_copy(update={"outbound": outbound})
    with running(settings):
        mosquitto.start()
        with mqtt_client(mosquitto.port) as early:
            early.subscribe("plant/qa/#", qos=1)
            messages = received(early, "class/D%2F1", "camera/cam-1/state", "state")
            assert messages["class/D%2F1"]["data"]["transition"] == "confirmed"
            assert messages["camera/cam-1/state"]["data"]["kind"] == "live"
            for sequence in range(1, 4):
                line.say("verdicts", verdict(sequence))
            told = [json.loads(early.received.get(timeout=WAIT_S).payload)["data"]["frame"] for _ in range(3)]
            assert told == [named(1), named(2), named(3)]
        mosquitto.stop()
        mosquitto.start()  # without its memory
        with mqtt_client(mosquitto.port) as late:
            late.subscribe("plant/qa/#", qos=1)
            messages = received(late, "class/D%2F1", "camera/cam-1/state", "state")
            assert messages["state"]["online"] is True
            line.say("verdicts", verdict(4))
            messages = received(late, "camera/cam-1/verdict")
            assert messages["camera/cam-1/verdict"]["data"]["frame"] == named(4)
    with mqtt_client(mosquitto.port) as after:
        after.subscribe("plant/qa/#", qos=1)
        messages = received(after, "class/D%2F1", "camera/cam-1/state", "state")
        assert messages["state"]["online"] is False
        assert after.received.empty(), "a verdict is no state"


def received(client: Any, *topics: str) -> dict[str, Any]:
    """Return the newest message of each topic of the line, as soon as each has one."""
    messages: dict[str, Any] = {}
    while messages.keys() < set(topics):
        message = client.received.get(timeout=WAIT_S)
        messages[message.topic.removeprefix("plant/qa/line-1/")] = json.loads(message.payload)
    return messages


def test_the_broker_tells_when_the_role_is_gone_without_a_word(line: TalkingLine, mosquitto: Mosquitto) -> None:
    outbound = OutboundSettings(
        mqtt_url=f"mqtt://127.0.0.1:{mosquitto.port}", mqtt_prefix="plant/qa", mqtt_events=["class"]
    )
    mosquitto.start()
    (told,) = service.make_receivers(line.settings.model_copy(update={"outbound": outbound}))
    with mqtt_client(mosquitto.port) as client:
        client.subscribe("plant/qa/line-1/state", qos=1)

        told._sender.open()

        def await_state(is_online: bool) -> None:
            while json.loads(client.received.get(timeout=WAIT_S).payload)["online"] is not is_online:
                pass

        await_state(is_online=True)
        told._sender._client.socket().shutdown(socket.SHUT_RDWR)
        await_state(is_online=False)
        await_state(is_online=True)
        told._sender.close()
        await_state(is_online=False)


def test_a_broker_with_tls_takes_who_has_its_password_and_its_authority(
    line_settings: Settings, mosquitto: Mosquitto, tmp_path: Path
) -> None:
    certificates, passwords = Certificates(tmp_path / "certificates"), tmp_path / "passwords"
    passwords.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", passwords, "flawline", SECRET], check=True, capture_output=True)
    mosquitto.configure(
        f"user {getpass.getuser()}",  # by default root becomes a user who may not read the files
        f"cafile {certificates.authority}", f"certfile {certificates.certificate('broker')}",
        f"keyfile {certificates.key('broker')}", "allow_anonymous false", f"password_file {passwords}",
    )  # fmt: skip
    mosquitto.start()
    stop, event = threading.Event(), events.of_verdict(verdict(0), "line-1", NO_SHIFTS)
    told = {"mqtt_url": f"mqtts://127.0.0.1:{mosquitto.port}", "mqtt_username": "flawline"}
    told |= {"mqtt_password": SECRET, "mqtt_cafile": certificates.authority}
    for changes, words in (
        ({"mqtt_password": "another one"}, "refuses this client (Not authorized)"),
        ({"mqtt_cafile": certificates.other_authority}, "certificate verify failed"),
    ):
        broker = MqttBroker(OutboundSettings(**told | changes), "line-1")
        broker.open()
        until(lambda broker=broker, words=words: words in broker.send([event], stop).words)
        broker.close()
    broker = MqttBroker(OutboundSettings(**told), "line-1")
    broker.open()
    until(lambda: broker.send([event], stop) == DELIVERED)
    broker.close()


def test_without_receivers_the_role_says_what_to_set(line_settings: Settings) -> None:
    with pytest.raises(UsageError, match=r"set outbound.mqtt_url, or add a block \[\[webhooks\]\]"):
        service.run(line_settings, threading.Event())
