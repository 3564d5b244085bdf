"""Clients and topics follow the settings; settings that cannot work are an error of one line."""

from __future__ import annotations

import functools
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.errors import KafkaConnectionError, MessageSizeTooLargeError, TopicAuthorizationFailedError
from pydantic import SecretStr

from embedded_broker import EmbeddedBroker
from flawline import kafka_clients, topics
from flawline.errors import FlawlineError, UsageError
from flawline.outage import Outage
from flawline.settings.tree import Settings
from tests.support.talking_line import TalkingLine


def with_kafka(settings: Settings, **values: Any) -> Settings:
    return settings.model_copy(update={"kafka": settings.kafka.model_copy(update=values)})


def test_topics_are_created_once_with_their_settings(line_settings: Settings) -> None:
    for _ in range(2):
        kafka_clients.ensure_topics(line_settings)
    client = kafka_clients.admin(line_settings)
    try:
        prefix = line_settings.kafka.topic_prefix
        there = {name.removeprefix(prefix) for name in client.list_topics() if name.startswith(prefix)}
        partitions = {
            row["name"].removeprefix(prefix): len(row["partitions"])
            for row in client.describe_topics([prefix + topic.name for topic in topics.ALL])
        }
    finally:
        client.close()
    assert there == {topic.name for topic in topics.ALL}
    assert partitions == {topic.name: 3 if topic.per_camera else 1 for topic in topics.ALL}


def test_only_some_topics_when_asked(line_settings: Settings) -> None:
    kafka_clients.ensure_topics(line_settings, only=["models"])
    client = kafka_clients.admin(line_settings)
    prefix = line_settings.kafka.topic_prefix
    assert [name for name in client.list_topics() if name.startswith(prefix)] == [f"{prefix}models"]
    client.close()


def test_largest_legal_frame_passes_and_a_larger_one_is_refused(line: TalkingLine) -> None:
    settings = line.settings
    writer = kafka_clients.producer(settings)
    topic = settings.topic("frames")
    try:
        assert writer.send(topic, value=bytes(settings.frames.limit_bytes), partition=0).get(60).offset == 0
        with pytest.raises(MessageSizeTooLargeError):
            writer.send(topic, value=bytes(settings.frames.limit_bytes + topics.ENVELOPE_BYTES), partition=0).get(60)
    finally:
        writer.close()
    reader = kafka_clients.consumer(settings, max_poll_records=1)
    place = TopicPartition(topic, 0)
    reader.assign([place])
    reader.seek_to_beginning(place)
    try:
        [record] = reader.poll(timeout_ms=60_000)[place]
        assert len(record.value) == settings.frames.limit_bytes
    finally:
        reader.close()


def test_partition_that_was_paused_between_two_polls_goes_on_when_the_others_have_no_more_records(
    line: TalkingLine,
) -> None:
    topic = line.settings.topic("verdicts")
    first, second = (TopicPartition(topic, number) for number in range(2))
    writer = kafka_clients.producer(line.settings)
    for place in (first, second):
        for _ in range(3):
            writer.send(topic, value=b"x", partition=place.partition).get(60)
    writer.close()
    reader = kafka_clients.consumer(line.settings)
    try:
        reader.assign([first, second])
        reader.seek_to_beginning()
        (paused,) = polled = reader.poll(timeout_ms=60_000, max_records=1)
        assert len(polled[paused]) == 1
        reader.pause(paused)
        other = second if paused == first else first
        while reader.position(other) < 3:
            reader.poll(timeout_ms=100)
        reader.poll(timeout_ms=100)
        reader.resume(paused)
        deadline = time.monotonic() + 60
        while reader.position(paused) < 3:
            assert time.monotonic() < deadline, "the partition is not read any more"
            reader.poll(timeout_ms=100)
    finally:
        reader.close()


def test_dead_letter_of_the_largest_frame_fits(line_settings: Settings) -> None:
    letter = topics.DEAD_LETTERS.max_message_bytes
    assert letter is not None and letter >= line_settings.frames.limit_bytes + 2 * topics.ENVELOPE_BYTES
    assert kafka_clients.largest_message_bytes(line_settings) >= letter


@pytest.mark.parametrize("limit", [1 << 10, 1 << 20, 16 << 20, 100 << 20])
@pytest.mark.parametrize("share", [256 << 20, 2 << 30, 1 << 40])
@pytest.mark.parametrize("partitions", [1, 8, 64])
def test_topics_stay_within_their_bytes_between_two_looks_of_the_broker(
    limit: int, share: int, partitions: int
) -> None:
    sizes = {f"{name}_limit_bytes": share for name in ("frames", "verdicts", "defects", "dead_letters")}
    settings = Settings.model_validate(
        {"frames": {"limit_bytes": limit}, "kafka": {"camera_partitions": partitions}, "retention": sizes}
    )
    for topic in topics.ALL:
        configs = topic.configs(settings)
        assert int(configs["max.message.bytes"]) >= (limit if topic is topics.FRAMES else 1 << 20)
        if topic.retention is None:
            assert configs["cleanup.policy"] == "compact" and "retention.ms" not in configs
            continue
        kept, segment = topic.retention(settings.retention), int(configs["segment.bytes"])
        assert int(configs["retention.ms"]) == kept.age_ms > 0
        assert segment >= int(configs["max.message.bytes"]), "Apache Kafka refuses a record that is larger"
        # A broker deletes a segment when the rest has the limit, so the topic never has a segment more than that.
        largest = topic.partitions(settings) * (int(configs["retention.bytes"]) + segment)
        smallest = topic.partitions(settings) * 2 * int(configs["max.message.bytes"])
        assert largest <= max(kept.limit_bytes, smallest)


def test_broker_that_is_away_names_its_address_and_the_remedy(line_settings: Settings, refusing_port: int) -> None:
    address = f"127.0.0.1:{refusing_port}"
    with pytest.raises(FlawlineError, match=address) as caught:
        kafka_clients.producer(with_kafka(line_settings, bootstrap_servers=address))
    assert "flawline broker" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"security_protocol": "SSL", "ssl_cafile": Path("/no/such/ca.pem")},
        {"bootstrap_servers": "127.0.0.1:not-a-port"},
    ],
)
def test_contradicting_security_settings_are_one_line(line_settings: Settings, values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="kafka") as caught:
        kafka_clients.producer(with_kafka(line_settings, **values))
    assert "\n" not in str(caught.value)


def test_broker_without_security_asked_for_it_is_one_line(line_settings: Settings) -> None:
    values: dict[str, Any] = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN", "sasl_username": "u"}
    with pytest.raises(FlawlineError, match="does not ask for a password") as caught:
        kafka_clients.producer(with_kafka(line_settings, **values, sasl_password=SecretStr("p")))
    assert "\n" not in str(caught.value)


def test_security_reaches_the_clients(line_settings: Settings) -> None:
    options = kafka_clients.client_options(
        with_kafka(
            line_settings,
            bootstrap_servers="a:1,b:2",
            security_protocol="SASL_SSL",
            sasl_mechanism="SCRAM-SHA-512",
            sasl_username="u",
            sasl_password=SecretStr("p"),
            ssl_cafile=Path(__file__),
        )
    )
    assert options["bootstrap_servers"] == ["a:1", "b:2"]
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("u", "p")
    assert options["ssl_cafile"] == __file__ and "ssl_keyfile" not in options


def test_missing_checksum_library_is_a_start_up_error(
    embedded_broker: EmbeddedBroker, line_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients.record_util, "crc32c_c", None)
    with pytest.raises(FlawlineError, match="pip install crc32c"):
        kafka_clients.producer(line_settings)


def test_second_broker_on_the_same_data_is_one_line(fresh_broker: EmbeddedBroker) -> None:
    with pytest.raises(FlawlineError, match="did not start") as caught:
        EmbeddedBroker(fresh_broker.data_dir).start()
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, UsageError)


def refusal() -> FlawlineError:
    error = FlawlineError("grant CREATE")
    error.__cause__ = TopicAuthorizationFailedError("frames")
    return error


def away() -> FlawlineError:
    error = FlawlineError("broker b:1 cannot be used: it is away")
    error.__cause__ = KafkaConnectionError()
    return error


def test_role_waits_for_a_broker_that_is_away_with_one_line_and_no_other_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    answers = iter([away(), away(), away(), None])
    outage = Outage(0.001, 0.002)

    def ask() -> None:
        if (answer := next(answers)) is not None:
            raise answer

    assert kafka_clients.await_broker(ask, outage, threading.Event())
    assert [text for text in caplog.messages if "growing pauses" in text] == [
        f"{away()}; trying again with growing pauses"
    ]
    assert "the broker answers, after " in caplog.messages[-1] and not outage.is_on

    def refuse(error: FlawlineError) -> None:
        raise error

    for error in (refusal(), FlawlineError("topic verdicts has 2 partitions"), UsageError("kafka.ssl_cafile x")):
        with pytest.raises(FlawlineError) as raised:
            kafka_clients.await_broker(functools.partial(refuse, error), outage, threading.Event())
        assert raised.value is error
    stopped = threading.Event()
    stopped.set()
    assert not kafka_clients.await_broker(functools.partial(refuse, away()), outage, stopped)
