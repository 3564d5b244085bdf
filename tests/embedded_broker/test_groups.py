"""The states of a group on a clock that never waits: when it rebalances, and when it removes a member."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from embedded_broker.groups import Group
from embedded_broker.members import GroupState, JoinAnswer, JoinCall
from embedded_broker.protocol import ErrorCode


class _SkippingSelector(selectors.DefaultSelector):
    """Move the clock of the loop past a timeout instead of waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list:
        if timeout:
            self.now += timeout
        return super().select(0)


def on_skipped_time(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run the scenario on a loop whose timers fire as soon as it has nothing else to do."""
    selector = _SkippingSelector()
    loop = asyncio.SelectorEventLoop(selector)
    loop.time = lambda: selector.now  # type: ignore[method-assign]
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()


def call(member_id: str = "", **changes: Any) -> JoinCall:
    values: dict[str, Any] = {
        "member_id": member_id,
        "instance_id": None,
        "client_id": "client",
        "client_host": "127.0.0.1",
        "session_timeout_ms": 6_000,
        "rebalance_timeout_ms": 60_000,
        "protocol_type": "consumer",
        "protocols": {"range": b"meta"},
        "needs_member_id": False,
        "skips_assignment": False,
    }
    return JoinCall(**values | changes)


def new_group(initial_delay_s: float = 0.0) -> Group:
    return Group("group", initial_delay_s, changed=lambda _: None)


async def stable(group: Group, answer: JoinAnswer, plan: dict[str, bytes] | None = None) -> None:
    """Send the assignment of the leader."""
    error, _ = await group.sync(answer.leader, None, group.generation, None, plan or {})
    assert error is ErrorCode.NONE
    assert group.state is GroupState.STABLE


async def keep_alive(group: Group, member_id: str, seconds: float) -> list[ErrorCode]:
    """Send a heartbeat every half second and return the answers."""
    heard = []
    for _ in range(int(seconds * 2)):
        await asyncio.sleep(0.5)
        heard.append(group.heartbeat(member_id, None, group.generation))
    return heard


def test_members_that_start_together_share_the_first_generation() -> None:
    async def scenario() -> None:
        group = new_group(initial_delay_s=0.2)
        joins = [asyncio.create_task(group.join(call())) for _ in range(3)]
        answers = await asyncio.gather(*joins)
        assert {answer.generation for answer in answers} == {1}
        leaders = [answer for answer in answers if answer.members]
        assert len(leaders) == 1
        assert len(leaders[0].members) == 3

    on_skipped_time(scenario)


def test_a_generation_waits_for_a_member_that_has_just_received_its_id() -> None:
    async def scenario() -> None:
        group = new_group()
        first = await group.join(call())
        await stable(group, first)
        newcomer = await group.join(call(needs_member_id=True))
        assert newcomer.error is ErrorCode.MEMBER_ID_REQUIRED
        rejoin = asyncio.create_task(group.join(call(first.member_id, protocols={"range": b"changed"})))
        await asyncio.sleep(0)
        assert not rejoin.done()
        second = await group.join(call(newcomer.member_id, needs_member_id=True))
        assert second.generation == (await rejoin).generation == 2

    on_skipped_time(scenario)


def test_an_id_from_elsewhere_is_unknown_and_an_unused_one_expires() -> None:
    async def scenario() -> None:
        group = new_group()
        assert (await group.join(call("client-made-up"))).error is ErrorCode.UNKNOWN_MEMBER_ID
        newcomer = await group.join(call(needs_member_id=True))
        await asyncio.sleep(7)
        assert (await group.join(call(newcomer.member_id))).error is ErrorCode.UNKNOWN_MEMBER_ID

    on_skipped_time(scenario)


def test_a_silent_member_is_removed_after_its_session_timeout_and_not_before() -> None:
    async def scenario() -> None:
        group = new_group()
        first = await group.join(call())
        await stable(group, first)
        joining = asyncio.create_task(group.join(call()))
        await asyncio.sleep(0)
        await group.join(call(first.member_id))
        second = await joining
        await stable(group, second)
        heard = await keep_alive(group, first.member_id, 5.5)
        assert set(heard) == {ErrorCode.NONE}
        heard = await keep_alive(group, first.member_id, 1)
        assert heard[-1] is ErrorCode.REBALANCE_IN_PROGRESS
        assert list(group.members) == [first.member_id]
        assert group.heartbeat(second.member_id, None, group.generation) is ErrorCode.UNKNOWN_MEMBER_ID

    on_skipped_time(scenario)


def test_a_broker_that_stood_still_reads_heartbeats_before_it_removes_members() -> None:
    async def scenario() -> None:
        group = new_group()
        member = await group.join(call())
        await stable(group, member)
        asyncio.get_running_loop()._selector.now += 60  # type: ignore[attr-defined]
        await asyncio.sleep(0.1)
        assert group.heartbeat(member.member_id, None, 1) is ErrorCode.NONE
        asyncio.get_running_loop()._selector.now += 60  # type: ignore[attr-defined]
        await asyncio.sleep(1)
        assert group.heartbeat(member.member_id, None, 1) is ErrorCode.UNKNOWN_MEMBER_ID

    on_skipped_time(scenario)


def test_a_member_whose_connection_breaks_while_it_joins_does_not_stop_the_group() -> None:
    async def scenario() -> None:
        group = new_group()
        first = await group.join(call())
        await stable(group, first)
        broken = asyncio.create_task(group.join(call()))
        await asyncio.sleep(0)
        broken.cancel()
        await asyncio.gather(broken, return_exceptions=True)
        again = await group.join(call(first.member_id))  # waits until the broken one's session is over
        assert again.generation == 2
        assert list(group.members) == [first.member_id]
        assert asyncio.get_running_loop().time() == pytest.approx(6, abs=0.5)

    on_skipped_time(scenario)


def test_followers_are_not_removed_while_they_wait_for_a_slow_leader() -> None:
    async def scenario() -> None:
        group = new_group(initial_delay_s=0.1)
        joins = [asyncio.create_task(group.join(call(session_timeout_ms=1_000))) for _ in range(2)]
        answers = await asyncio.gather(*joins)
        leader, follower = sorted(answers, key=lambda answer: not answer.members)
        waiting = asyncio.create_task(group.sync(follower.member_id, None, 1, None, {}))
        assert set(await keep_alive(group, leader.member_id, 5)) == {ErrorCode.NONE}
        await group.sync(leader.member_id, None, 1, None, {follower.member_id: b"part"})
        assert await waiting == (ErrorCode.NONE, b"part")

    on_skipped_time(scenario)


def test_a_join_whose_answer_was_lost_is_answered_again_without_a_rebalance() -> None:
    async def scenario() -> None:
        group = new_group(initial_delay_s=0.1)
        answers = await asyncio.gather(*[group.join(call()) for _ in range(2)])
        leader, follower = sorted(answers, key=lambda answer: not answer.members)
        await stable(group, leader, {follower.member_id: b"part"})
        again = await group.join(call(follower.member_id))
        assert again.generation == 1
        assert await group.sync(follower.member_id, None, 1, None, {}) == (ErrorCode.NONE, b"part")

    on_skipped_time(scenario)


def test_members_that_do_not_rejoin_in_time_are_removed() -> None:
    async def scenario() -> None:
        group = new_group(initial_delay_s=0.1)
        options = {"rebalance_timeout_ms": 3_000, "session_timeout_ms": 60_000}
        answers = await asyncio.gather(*[group.join(call(**options)) for _ in range(2)])
        leader, follower = sorted(answers, key=lambda answer: not answer.members)
        await stable(group, leader)
        again = await group.join(call(leader.member_id, **options, protocols={"range": b"changed"}))
        assert again.generation == 2
        assert follower.member_id not in group.members
        assert asyncio.get_running_loop().time() == pytest.approx(3.1, abs=0.2)

    on_skipped_time(scenario)


@pytest.mark.parametrize("skips_assignment", [True, False], ids=["since-v9", "before-v9"])
def test_a_static_leader_that_returns_causes_no_rebalance(skips_assignment: bool) -> None:
    async def scenario() -> None:
        group = new_group()
        first = await group.join(call(instance_id="one"))
        error, _ = await group.sync(first.member_id, "one", 1, None, {first.member_id: b"part"})
        assert error is ErrorCode.NONE
        back = await group.join(call(instance_id="one", skips_assignment=skips_assignment))
        assert back.generation == 1
        assert back.member_id != first.member_id
        # Before v9 it must take itself for a follower, or it would assign anew.
        assert back.leader == (back.member_id if skips_assignment else first.member_id)
        assert back.skip_assignment is skips_assignment
        assert await group.sync(back.member_id, "one", 1, None, {}) == (ErrorCode.NONE, b"part")
        assert group.heartbeat(first.member_id, "one", 1) is ErrorCode.FENCED_INSTANCE_ID
        assert group.leave("", "one") is ErrorCode.NONE
        assert group.state is GroupState.EMPTY

    on_skipped_time(scenario)


def test_a_static_member_that_is_away_keeps_its_place_until_its_session_ends() -> None:
    async def scenario() -> None:
        group = new_group()
        away = await group.join(call(instance_id="away", session_timeout_ms=30_000, rebalance_timeout_ms=2_000))
        error, _ = await group.sync(away.member_id, "away", 1, None, {})
        assert error is ErrorCode.NONE
        here = await group.join(call(session_timeout_ms=60_000, rebalance_timeout_ms=2_000))
        assert here.leader == here.member_id
        assert {member_id for member_id, _, _ in here.members} == {here.member_id, away.member_id}
        await asyncio.sleep(28.5)
        assert list(group.members) == [here.member_id]

    on_skipped_time(scenario)


def test_the_assignor_that_all_know_is_chosen_and_one_that_nobody_shares_is_refused() -> None:
    async def scenario() -> None:
        group = new_group(initial_delay_s=0.1)
        answers = await asyncio.gather(
            group.join(call(protocols={"sticky": b"", "range": b""})),
            group.join(call(protocols={"roundrobin": b"", "range": b""})),
        )
        assert {answer.protocol for answer in answers} == {"range"}
        stranger = await group.join(call(protocols={"sticky": b""}))
        assert stranger.error is ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        other = await group.join(call(protocol_type="connect"))
        assert other.error is ErrorCode.INCONSISTENT_GROUP_PROTOCOL

    on_skipped_time(scenario)


@pytest.mark.parametrize("session_timeout_ms", [0, -5, 999, 1_800_001, 2**31 - 1])
def test_session_timeouts_have_bounds(session_timeout_ms: int) -> None:
    async def scenario() -> None:
        answer = await new_group().join(call(session_timeout_ms=session_timeout_ms))
        assert answer.error is ErrorCode.INVALID_SESSION_TIMEOUT

    on_skipped_time(scenario)


def test_a_restored_group_is_as_it_was_and_removes_members_that_do_not_return() -> None:
    async def scenario() -> None:
        group = new_group(initial_delay_s=0.1)
        answers = await asyncio.gather(*[group.join(call()) for _ in range(2)])
        leader, follower = sorted(answers, key=lambda answer: not answer.members)
        await stable(group, leader, {follower.member_id: b"part"})
        restored = new_group()
        restored.restore(group.snapshot())
        assert restored.heartbeat(leader.member_id, None, 1) is ErrorCode.NONE
        assert await restored.sync(follower.member_id, None, 1, None, {}) == (ErrorCode.NONE, b"part")
        await keep_alive(restored, leader.member_id, 7)
        assert list(restored.members) == [leader.member_id]

    on_skipped_time(scenario)
