"""Consumer groups: members share partitions, leave, die and return; offsets and their metadata are kept."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from embedded_broker.protocol import ErrorCode
from tests.embedded_broker.contract.clients import Client, Consumer, Refused, wait_until
from tests.support.brokers import unique

PARTITIONS = 4
# kafka-python calls it a failed commit, librdkafka a fatal error of its own (-144 or -150).
FENCED = (ErrorCode.FENCED_INSTANCE_ID, ErrorCode.ILLEGAL_GENERATION, -144, -150)


@pytest.fixture
def topic(client: Client) -> str:
    name = unique("shared")
    client.create_topic(name, partitions=PARTITIONS)
    return name


class Member:
    """A consumer polled by a thread of its own, as every member must be during a rebalance."""

    def __init__(self, consumer: Consumer, topic: str) -> None:
        self.consumer = consumer
        self.assigned: frozenset[int] = frozenset()
        self.history: list[frozenset[int]] = []
        self.seen: set[tuple[int, int]] = set()
        self.error: Refused | None = None
        self._stop = threading.Event()
        self._close = True
        self._thread = threading.Thread(target=self._run, args=(topic,), daemon=True)
        self._thread.start()

    def _run(self, topic: str) -> None:
        self.consumer.subscribe(topic)
        while not self._stop.is_set():
            try:
                self.seen |= {(record.partition, record.offset) for record in self.consumer.poll(0.1)}
            except Refused as refused:
                self.error = refused
                break
            assigned = frozenset(self.consumer.assigned())
            if assigned != self.assigned:
                self.assigned = assigned
                self.history.append(assigned)
        if self._close:
            self.consumer.close()

    def leave(self) -> None:
        self._stop.set()
        self._thread.join(30)


@pytest.fixture
def members() -> Iterator[list[Member]]:
    started: list[Member] = []
    yield started
    for member in started:
        member.leave()


def shared_out(*members: Member) -> bool:
    """Tell whether the members hold all partitions, and each partition belongs to one member."""
    held = [index for member in members for index in member.assigned]
    return sorted(held) == list(range(PARTITIONS)) and all(member.assigned for member in members)


def test_a_group_goes_on_where_it_committed(client: Client, topic: str) -> None:
    group = unique("resume")
    with client.producer() as producer:
        producer.send_all(topic, [b"%d" % index for index in range(10)])
    with client.consumer(group=group) as consumer:
        consumer.subscribe(topic)
        consumer.read(10)
        consumer.commit(topic, {0: 6}, metadata="six")
        assert consumer.committed(topic, 0) == 6
        assert consumer.committed(topic, 1) is None
    with client.consumer(group=group) as consumer:
        consumer.subscribe(topic)
        assert [record.offset for record in consumer.read(4)] == [6, 7, 8, 9]


def test_metadata_of_a_committed_offset_comes_back_as_it_was(client: Client, topic: str) -> None:
    group, text = unique("metadata"), '{"attempts": {"7": 2}} \u00fc'
    with client.producer() as producer:
        producer.send(topic, b"value")()
    with client.consumer(group=group) as consumer:
        consumer.subscribe(topic)
        consumer.read(1)
        consumer.commit(topic, {0: 1, 1: 0}, metadata=text)
        assert consumer.committed_metadata(topic, 0) == text
        consumer.commit(topic, {0: 1})
    with client.consumer(group=group) as consumer:  # as after a restart, before it belongs to the group
        assert consumer.committed_metadata(topic, 0) == ""
        assert consumer.committed_metadata(topic, 1) == text
        assert consumer.committed(topic, 1) == 0


def test_metadata_over_the_limit_is_refused_and_the_offset_stays(client: Client, topic: str) -> None:
    with client.consumer(group=unique("metadata")) as consumer:
        consumer.assign(topic, [0])
        consumer.commit(topic, {0: 1}, metadata="x" * 4000)
        with pytest.raises(Refused) as refused:
            consumer.commit(topic, {0: 2}, metadata="x" * 5000)
        assert refused.value.code == ErrorCode.OFFSET_METADATA_TOO_LARGE
        assert consumer.committed(topic, 0) == 1


@pytest.mark.parametrize("cooperative", [False, True], ids=["eager", "cooperative-sticky"])
def test_members_share_partitions_and_a_leaving_member_hands_its_partitions_over(
    client: Client, topic: str, members: list[Member], cooperative: bool
) -> None:
    group = unique("share")
    first = Member(client.consumer(group=group, cooperative=cooperative), topic)
    members.append(first)
    wait_until(lambda: shared_out(first), "the first member has all")
    second = Member(client.consumer(group=group, cooperative=cooperative), topic)
    members.append(second)
    wait_until(lambda: shared_out(first, second), "two members share")
    assert len(first.assigned) == len(second.assigned) == PARTITIONS // 2
    state = wait_until(lambda: client.group_state(group)[0] == "stable" and client.group_state(group), "stable")
    assert state == ("stable", 2)
    if cooperative:  # the first member had partitions all the time
        assert all(first.history)
    second.leave()
    members.remove(second)
    wait_until(lambda: shared_out(first), "the first member has all again")


def test_a_killed_members_partitions_move_within_its_session_and_a_second(
    client: Client, topic: str, members: list[Member]
) -> None:
    group, session_ms = unique("killed"), 3_000
    arguments = [client.name, client.bootstrap, group, topic, str(session_ms)]
    victim = subprocess.Popen(
        [sys.executable, "-m", "tests.embedded_broker.contract.member", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline().strip() == str(PARTITIONS)
        survivor = Member(client.consumer(group=group, session_ms=session_ms, cooperative=True), topic)
        members.append(survivor)
        assert victim.stdout.readline().strip() == str(PARTITIONS // 2)
        wait_until(lambda: len(survivor.assigned) == PARTITIONS // 2, "the survivor's half")
    finally:
        victim.kill()
        victim.wait()
    killed_at = time.monotonic()
    wait_until(lambda: shared_out(survivor), "the survivor has all")
    took_s = time.monotonic() - killed_at
    # The heartbeat interval of 0.5 s, at which the survivor hears of it, is part of the second; the rest of the margin
    # is for a busy machine.
    assert took_s < session_ms / 1000 + 2.0
    assert took_s > session_ms / 1000 - 1.0  # not thrown out before its time


def test_a_static_member_returns_to_its_partitions_without_a_rebalance(
    client: Client, topic: str, members: list[Member]
) -> None:
    group = unique("static")
    options = {"group": group, "session_ms": 10_000, "cooperative": True}
    stays = Member(client.consumer(instance="one", **options), topic)
    bounces = Member(client.consumer(instance="two", **options), topic)
    members += [stays, bounces]
    wait_until(lambda: shared_out(stays, bounces), "two members share")
    held, history = bounces.assigned, list(stays.history)
    bounces.leave()
    members.remove(bounces)
    back = Member(client.consumer(instance="two", **options), topic)
    members.append(back)
    wait_until(lambda: back.assigned == held, "the same partitions")
    time.sleep(1.5)  # three heartbeats, in which a rebalance would show
    assert stays.history == history
    assert client.group_state(group) == ("stable", 2)


def test_a_second_process_of_a_static_member_fences_the_first(
    client: Client, topic: str, members: list[Member]
) -> None:
    group = unique("fenced")
    first = Member(client.consumer(group=group, instance="same"), topic)
    members.append(first)
    wait_until(lambda: shared_out(first), "the first has all")
    second = Member(client.consumer(group=group, instance="same"), topic)
    members.append(second)
    wait_until(lambda: shared_out(second), "the second has all")

    def refused() -> Refused | None:
        if first.error is None:  # kafka-python says so on a commit, librdkafka ends the consumer by itself
            try:
                first.consumer.commit(topic, {0: 1})
            except Refused as error:
                return error
            except RuntimeError:  # just closed by its thread
                return None
        return first.error

    assert wait_until(refused, "the fenced member is told").code in FENCED
    assert client.group_state(group)[1] == 1


def test_groups_can_be_listed_moved_and_deleted_once_they_are_empty(client: Client, topic: str) -> None:
    group = unique("managed")
    with client.producer() as producer:
        producer.send_all(topic, [b"x"] * 5)
    with client.consumer(group=group) as consumer:
        consumer.subscribe(topic)
        consumer.read(5)
        consumer.commit(topic, {0: 5})
        assert group in client.groups()
        with pytest.raises(Refused) as refused:
            client.delete_group(group)
        assert refused.value.code == ErrorCode.NON_EMPTY_GROUP
    wait_until(lambda: client.group_state(group) == ("empty", 0), "empty")
    client.alter_offset(group, topic, 0, 2)
    with client.consumer(group=group) as consumer:
        consumer.subscribe(topic)
        assert consumer.read(3)[0].offset == 2
    wait_until(lambda: client.group_state(group) == ("empty", 0), "empty again")
    client.delete_group(group)
    assert group not in client.groups()
    with pytest.raises(Refused) as refused:
        client.delete_group(group)
    assert refused.value.code == ErrorCode.GROUP_ID_NOT_FOUND


def test_a_commit_of_a_removed_member_is_refused(client: Client, topic: str, members: list[Member]) -> None:
    group = unique("outsider")
    member = Member(client.consumer(group=group), topic)
    members.append(member)
    wait_until(lambda: shared_out(member), "the member has all")
    with client.consumer(group=group) as outsider:
        outsider.assign(topic, [0])
        with pytest.raises(Refused) as refused:
            outsider.commit(topic, {0: 3})
    assert refused.value.code in (ErrorCode.UNKNOWN_MEMBER_ID, ErrorCode.ILLEGAL_GENERATION)
