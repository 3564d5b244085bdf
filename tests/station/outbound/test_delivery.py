"""When events are told, told again and given up; how a call is signed; what a receiver is told of."""

from __future__ import annotations

import base64
import threading
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition

from flawline.errors import UsageError
from flawline.messages import Decision
from flawline.settings.outbound import NOT_ACCEPTED, OutboundSettings, WebhookSettings
from flawline.settings.tree import Settings
from station.outbound import metrics, webhook
from station.outbound.camera_watch import CameraChanges
from station.outbound.delivery import DELIVERED, Filter, Outcome, Reason, Result, is_given_up, is_too_old, outcome_of
from station.outbound.events import Event, SeenCamera
from station.outbound.feed import CameraQueue, Item
from station.outbound.mqtt import MqttBroker
from station.outbound.receiver import Receiver
from station.web.camera_states import CameraState, Kind

S = 1_000_000_000
NOW = 1_000 * S
REFUSED, FAILED = Outcome(Result.REFUSED, "answers 400"), Outcome(Result.FAILED, "answers 503")


def event(number: int = 0, kind: Any = "verdict", age_s: float = 0.0) -> Event:
    decision = Decision.REJECT if kind == "verdict" else None
    return Event(kind, f"id-{number}", NOW - round(age_s * S), "cam", {"number": number}, decision)


# Policy


@pytest.mark.parametrize(
    ("status", "retry_after", "outcome"),
    [
        (200, None, DELIVERED),
        (204, "5", DELIVERED),
        (301, None, Outcome(Result.REFUSED, "answers 301")),
        (400, None, Outcome(Result.REFUSED, "answers 400")),
        (410, "5", Outcome(Result.REFUSED, "answers 410")),
        (408, None, Outcome(Result.FAILED, "answers 408")),
        (429, "7", Outcome(Result.FAILED, "answers 429", 7)),
        (500, None, Outcome(Result.FAILED, "answers 500")),
        (503, "999999", Outcome(Result.FAILED, "answers 503", 300)),
        (503, "Fri, 31 Dec 1999 23:59:59 GMT", Outcome(Result.FAILED, "answers 503")),
        (503, "²", Outcome(Result.FAILED, "answers 503")),
    ],
)
def test_an_answer_is_a_delivery_a_refusal_or_a_failure(status: int, retry_after: str | None, outcome: Outcome) -> None:
    assert outcome_of(status, retry_after) == outcome


def test_a_refusal_is_given_up_after_three_attempts_and_by_a_refusing_receiver_at_once() -> None:
    assert [is_given_up(REFUSED, count, is_refusing=False) for count in (1, 2, 3)] == [False, False, True]
    assert is_given_up(REFUSED, 1, is_refusing=True)
    assert not is_given_up(FAILED, 2, is_refusing=True)


def test_an_event_is_too_old_beyond_the_limit_and_never_from_the_future() -> None:
    assert [is_too_old(event(age_s=age), NOW, 10) for age in (-5, 0, 10, 10.1)] == [False, False, False, True]


def test_a_filter_looks_at_kinds_and_at_the_decisions_of_verdicts() -> None:
    wanted = Filter(["verdict", "class"], NOT_ACCEPTED)
    accepted = replace(event(), decision=Decision.ACCEPT)
    told = [wanted.wants(item) for item in (event(), accepted, event(kind="class"), event(kind="camera"))]
    assert told == [True, False, True, False]


def test_a_camera_is_told_at_first_and_when_its_kind_or_its_scene_changes() -> None:
    changes = CameraChanges()
    live = SeenCamera(CameraState(Kind.LIVE, ""), NOW)
    silent = SeenCamera(CameraState(Kind.SILENT, "no frame since {since}: silent"), NOW)
    assert changes.new({"a": live, "b": live}) == {"a": live, "b": live}
    assert changes.new({"a": live, "b": replace(live, last_ns=NOW + 1)}) == {}
    dark = replace(live, scene="camera-changed")
    assert changes.new({"a": live, "b": dark}) == {"b": dark}
    assert changes.new({"a": live, "b": live}) == {"b": live}
    assert changes.new({"a": silent, "b": live}) == {"a": silent}
    assert changes.new({"a": live, "b": live}) == {"a": live}


def test_of_too_many_changes_of_cameras_the_oldest_go_and_are_counted() -> None:
    lost: list[int] = []
    queue = CameraQueue(lambda: lost.append(1), limit=3)
    for number in range(5):
        queue.put(event(number, "camera"))
    assert [item.id for item in queue.take()] == ["id-2", "id-3", "id-4"] and len(lost) == 2
    assert not list(queue.take())


# Signatures


def test_a_signature_is_that_of_the_standard() -> None:
    """The example of the specification of Standard Webhooks."""
    key = webhook.key_of("whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
    body = b'{"email":"test@example.com","username":"test_user"}'
    signed = webhook.signature(key, "msg_27UH4WbU6Z5A5EzD8u03UvzRbpk", 1_649_367_553, body)
    assert signed == "v1,tZ1I4/hDygAJgO5TYxiSd6Sd0kDW6hPenDe+bTa3Kkw="


def test_a_signature_changes_with_all_that_it_signs() -> None:
    parts = [
        (b"k", "i", 1, b"b"),
        (b"l", "i", 1, b"b"),
        (b"k", "j", 1, b"b"),
        (b"k", "i", 2, b"b"),
        (b"k", "i", 1, b"c"),
    ]
    assert len({webhook.signature(*part) for part in parts}) == 5


def test_headers_carry_the_id_the_time_and_what_is_configured() -> None:
    bare = webhook.headers(event(), b"{}", 5, None, None)
    assert (bare["webhook-id"], bare["webhook-timestamp"]) == ("id-0", "5")
    assert not {"webhook-signature", "authorization"} & bare.keys()
    full = webhook.headers(event(), b"{}", 5, b"key", "t")
    assert full["webhook-signature"].startswith("v1,") and full["authorization"] == "Bearer t"


def test_a_secret_is_text_or_marked_base64() -> None:
    assert webhook.key_of("a word") == b"a word"
    assert webhook.key_of("whsec_" + base64.b64encode(b"\0\1").decode()) == b"\0\1"
    with pytest.raises(UsageError, match="is not base64") as caught:
        webhook.key_of("whsec_a%secret")
    assert "a%secret" not in str(caught.value)


# Settings


@pytest.mark.parametrize("url", ["ftp://h/x", "h/x", "http://", "http://h:0/", "http://h:x/"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="http://HOST/PATH"):
        WebhookSettings(name="a", url=url)


@pytest.mark.parametrize("prefix", ["", "a+b", "#", "$SYS/x", "/a", "a/", "a\0b"])
def test_a_prefix_that_mqtt_does_not_take_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError):
        OutboundSettings(mqtt_prefix=prefix)


def test_two_receivers_of_one_name_are_refused() -> None:
    for names in (["a", "a"], ["mqtt"]):
        with pytest.raises(ValueError, match="is used twice"):
            Settings(webhooks=[{"name": name, "url": "http://h/"} for name in names])


def test_a_receiver_is_not_waited_for_longer_than_verdicts_are_kept() -> None:
    day_s, hook = 86_400, {"name": "a", "url": "http://h/"}
    for told in ({"webhooks": [hook | {"give_up_after_s": 2.5 * day_s}]},
                 {"outbound": {"mqtt_url": "mqtt://h", "mqtt_give_up_after_s": 2.5 * day_s}}):  # fmt: skip
        Settings(retention={"verdicts_days": 3}, **told)
        with pytest.raises(ValueError, match="is longer than verdicts are kept"):
            Settings(retention={"verdicts_days": 2}, **told)
    Settings(retention={"verdicts_days": 0.1})  # nobody is told


# MQTT


class ClientOfNobody:
    """Takes messages and numbers them."""

    def __init__(self) -> None:
        self.published: list[str] = []

    def publish(self, topic: str, body: bytes, **_: Any) -> Any:
        self.published.append(topic.removeprefix("flawline/l/"))
        return SimpleNamespace(mid=len(self.published))


def test_what_an_mqtt_broker_went_away_from_is_not_published_twice_and_the_states_are_when_it_is_back() -> None:
    pytest.importorskip("paho.mqtt")
    broker, stop = MqttBroker(OutboundSettings(mqtt_url="mqtt://h"), "l"), threading.Event()
    client = broker._client = ClientOfNobody()
    ok, lost = SimpleNamespace(is_failure=False), SimpleNamespace(is_failure=True)
    waiting = [event(1, "class"), event(2), event(3)]
    topics = ["class/cam", "camera/cam/verdict", "camera/cam/verdict"]
    assert broker.send(waiting, stop).result is Result.FAILED and not client.published

    broker._on_connect(client, None, None, ok, None)
    client.publish = lambda *arguments, **options: _lose(broker, lost, ClientOfNobody.publish(client, *arguments))
    assert broker.send(waiting, stop).result is Result.FAILED and client.published == ["state", *topics]

    client.publish = lambda *arguments, **options: ClientOfNobody.publish(client, *arguments)
    broker._on_connect(client, None, None, ok, None)
    for number in (2, 3, 4):
        broker._acknowledged.put(number)
    assert broker.send(waiting, stop) == DELIVERED
    assert client.published == ["state", *topics, "state", "class/cam"]


def _lose(broker: MqttBroker, reason: Any, message: Any) -> Any:
    """Lose the connection behind a message."""
    broker._on_disconnect(None, None, None, reason, None)
    return message


# A receiver


class ScriptedSender:
    """Answers by a list, and remembers what it was told; a clock goes on with each pause."""

    def __init__(self, *outcomes: Outcome, window: int = 1, keeps_state: bool = False) -> None:
        self.longest_pause_s = 60.0
        self.window, self.keeps_state, self.address = window, keeps_state, ("h", 80)
        self._outcomes = list(outcomes)
        self.told: list[list[str]] = []

    def send(self, events: Sequence[Event], stop: threading.Event) -> Outcome:
        self.told.append([item.id for item in events])
        return self._outcomes.pop(0) if self._outcomes else DELIVERED

    def open(self) -> None: ...
    def tend(self) -> None: ...
    def close(self) -> None: ...


class ListFeed:
    """Gives items once, and remembers which were done."""

    def __init__(self, *waiting: Event | None) -> None:
        place = TopicPartition("verdicts", 0)
        self._items = [Item(item, place, number + 1) for number, item in enumerate(waiting)]
        self.offsets: list[int] = []

    def items(self) -> list[Item]:
        items, self._items = self._items, []
        return items

    def done(self, item: Item) -> None:
        self.offsets.append(item.next_offset)

    def commit(self) -> None: ...


class Pauses(threading.Event):
    """Is an event on which nobody waits: it remembers the pauses, moves a clock, and is set after so many."""

    def __init__(self, limit: int = 1_000) -> None:
        super().__init__()
        self.now_s, self.pauses, self._limit = 0.0, [], limit

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.pauses.append(timeout)
        self.now_s += timeout
        if len(self.pauses) >= self._limit:
            self.set()
        return self.is_set()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of a receiver that no other test has."""
    return request.node.name[:60]


def receiver(name: str, sender: ScriptedSender, stop: Pauses, give_up_after_s: float = 100.0) -> Receiver:
    wanted = Filter(["verdict", "class", "camera"], list(Decision))
    return Receiver(
        Settings(), name, wanted, sender, give_up_after_s,
        now_ns=lambda: NOW + round(stop.now_s * S), clock=lambda: stop.now_s,
    )  # fmt: skip


def lost(name: str) -> dict[str, int]:
    counts = {str(reason): int(metrics.GIVEN_UP.labels(name, str(reason))._value.get()) for reason in Reason}
    return {reason: count for reason, count in counts.items() if count}


def test_events_are_told_in_order_with_growing_pauses_and_none_is_passed_over(name: str) -> None:
    stop, feed = Pauses(), ListFeed(event(1), None, event(2))
    sender = ScriptedSender(FAILED, FAILED, FAILED, FAILED)
    receiver(name, sender, stop).step(feed, stop)
    assert sender.told == [["id-1"]] * 5 + [["id-2"]]
    assert feed.offsets == [1, 2, 3]
    assert all(0.25 * 2**number <= pause <= 0.5 * 2**number for number, pause in enumerate(stop.pauses))
    assert not lost(name)


def test_what_is_older_than_the_limit_is_given_up_and_counted_and_the_next_is_told(name: str) -> None:
    stop, feed = Pauses(), ListFeed(event(1, age_s=90), event(2, age_s=0))
    sender = ScriptedSender(*[FAILED] * 6)
    receiver(name, sender, stop).step(feed, stop)
    assert sender.told[-1] == ["id-2"] and feed.offsets == [1, 2]
    assert lost(name) == {"too-old": 1}


def test_what_a_receiver_refuses_is_given_up_and_a_refusing_receiver_holds_nothing_up(name: str) -> None:
    stop, feed = Pauses(), ListFeed(*map(event, range(1, 5)))
    sender = ScriptedSender(REFUSED, REFUSED, REFUSED, REFUSED, DELIVERED)
    receiver(name, sender, stop).step(feed, stop)
    assert sender.told == [["id-1"]] * 3 + [["id-2"], ["id-3"], ["id-4"]]
    assert feed.offsets == [1, 2, 3, 4] and lost(name) == {"refused": 2}


def test_a_stop_commits_nothing_that_was_not_acknowledged(name: str) -> None:
    stop, feed = Pauses(limit=3), ListFeed(event(1), event(2))
    sender = ScriptedSender(DELIVERED, *[FAILED] * 10)
    receiver(name, sender, stop).step(feed, stop)
    assert feed.offsets == [1] and sender.told == [["id-1"]] + [["id-2"]] * 3


def test_the_pause_that_a_receiver_asks_for_is_kept(name: str) -> None:
    stop, feed = Pauses(), ListFeed(event(1))
    receiver(name, ScriptedSender(Outcome(Result.FAILED, "answers 429", 30)), stop).step(feed, stop)
    assert stop.pauses == [30]


def test_a_window_is_told_together_and_a_state_is_never_too_old(name: str) -> None:
    stop = Pauses()
    feed = ListFeed(event(1, "class", age_s=1e6), event(2, age_s=1e6), None, event(3), event(4))
    sender = ScriptedSender(window=4, keeps_state=True)
    told = receiver(name, sender, stop)
    told.tell_camera(event(0, "camera", age_s=1e6))
    told.step(feed, stop)
    assert sender.told == [["id-0", "id-1"], ["id-3", "id-4"]]
    assert lost(name) == {"too-old": 1}


def test_how_long_a_receiver_is_away_and_how_old_its_oldest_event_is_are_measured(name: str) -> None:
    stop, ages = Pauses(), []

    class LookingSender(ScriptedSender):
        def send(self, events: Sequence[Event], stop: threading.Event) -> Outcome:
            gauges = (metrics.FAILING_SECONDS, metrics.OLDEST_AGE)
            ages.append([_value(gauge, name) for gauge in gauges])
            return super().send(events, stop)

    receiver(name, LookingSender(FAILED, FAILED), stop).step(ListFeed(event(1, age_s=5)), stop)
    assert ages[0] == [0, 5] and ages[2] == [pytest.approx(sum(stop.pauses)), pytest.approx(5 + sum(stop.pauses))]
    assert _value(metrics.FAILING_SECONDS, name) == _value(metrics.OLDEST_AGE, name) == 0


def _value(gauge: Any, name: str) -> float:
    return next(
        sample.value for family in gauge.collect() for sample in family.samples if name in sample.labels.values()
    )
