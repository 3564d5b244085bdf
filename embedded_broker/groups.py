"""Consumer groups: their members, leaders and generations, and members whose session has ended.

The classic protocol of Apache Kafka (JoinGroup, SyncGroup, Heartbeat) with static membership (KIP-345) and member ids
assigned before joining (KIP-394). The leader of a group makes the assignment and the broker passes it on unread, so
eager and cooperative assignors are the same here.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from embedded_broker.members import GroupState, JoinAnswer, JoinCall, Member
from embedded_broker.protocol import ErrorCode

log = logging.getLogger(__name__)

MIN_SESSION_TIMEOUT_MS: Final = 1_000
MAX_SESSION_TIMEOUT_MS: Final = 1_800_000
_STALL_S: Final = 0.5  # a timer that is later than this shows that the broker stood still; a judgement


@dataclass(slots=True, eq=False)
class Group:
    """One consumer group. All methods run on the event loop; the asynchronous ones return when the answer is known."""

    group_id: str
    initial_delay_s: float
    changed: Callable[[Group], None]  # called when members that must survive a restart have changed
    state: GroupState = GroupState.EMPTY
    generation: int = 0
    protocol_type: str = ""
    protocol: str = ""
    leader: str = ""
    members: dict[str, Member] = field(default_factory=dict)
    _static: dict[str, str] = field(default_factory=dict)  # instance id -> member id
    _pending: dict[str, asyncio.TimerHandle] = field(
        default_factory=dict
    )  # members that have an id and have not joined yet
    _rebalance_timer: asyncio.TimerHandle | None = None
    _gathering: bool = False  # it waits for the first members of an empty group

    # Joining

    async def join(self, call: JoinCall) -> JoinAnswer:
        """Add a member, or take it back; return when its generation begins."""
        refusal = self._refusal(call)
        if refusal is not ErrorCode.NONE:
            return JoinAnswer(refusal, call.member_id)
        if call.member_id:
            member = self.members.get(call.member_id)
            if member is None:
                self._pending.pop(call.member_id).cancel()
                return await self._admit(call, call.member_id)
            return await self._rejoin(member, call)
        member_id = (
            f"{call.client_id}-{uuid.uuid4()}" if call.instance_id is None else f"{call.instance_id}-{uuid.uuid4()}"
        )
        if call.instance_id is not None:
            previous = self.members.get(self._static.get(call.instance_id, ""))
            if previous is not None:
                return await self._replace_static(previous, call, member_id)
        elif call.needs_member_id:
            loop = asyncio.get_running_loop()
            expiry = loop.call_later(call.session_timeout_ms / 1000, self._drop_pending, member_id)
            self._pending[member_id] = expiry
            return JoinAnswer(ErrorCode.MEMBER_ID_REQUIRED, member_id)
        return await self._admit(call, member_id)

    def _refusal(self, call: JoinCall) -> ErrorCode:
        if not MIN_SESSION_TIMEOUT_MS <= call.session_timeout_ms <= MAX_SESSION_TIMEOUT_MS:
            return ErrorCode.INVALID_SESSION_TIMEOUT
        if not call.protocols or not call.protocol_type:
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        others = [member for member in self.members.values() if member.member_id != call.member_id]
        if others and (
            call.protocol_type != self.protocol_type
            or not any(all(name in member.protocols for member in others) for name in call.protocols)
        ):
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL
        if not call.member_id:
            return ErrorCode.NONE
        if call.instance_id is not None and call.instance_id in self._static:
            return self._identity_error(call.member_id, call.instance_id)
        known = call.member_id in self.members or call.member_id in self._pending
        return ErrorCode.NONE if known else ErrorCode.UNKNOWN_MEMBER_ID

    def _drop_pending(self, member_id: str) -> bool:
        """Stop waiting for a member that has an id only; tell whether it was waited for."""
        expiry = self._pending.pop(member_id, None)
        if expiry is None:
            return False
        expiry.cancel()
        self._complete_when_all_joined()
        return True

    async def _admit(self, call: JoinCall, member_id: str) -> JoinAnswer:
        member = Member(
            member_id,
            call.instance_id,
            call.client_id,
            call.client_host,
            call.session_timeout_ms / 1000,
            call.rebalance_timeout_ms / 1000,
            call.protocols,
        )
        if not self.members:
            self.protocol_type = call.protocol_type
        self.members[member_id] = member
        if call.instance_id is not None:
            self._static[call.instance_id] = member_id
        return await self._wait_for_generation(member)

    async def _rejoin(self, member: Member, call: JoinCall) -> JoinAnswer:
        unchanged = member.protocols == call.protocols
        self._update(member, call)
        settled = self.state is GroupState.COMPLETING or (
            self.state is GroupState.STABLE and member.member_id != self.leader
        )
        if unchanged and settled:  # its answer was lost, so it gets it again
            self.touch(member)
            return self._answer(member)
        return await self._wait_for_generation(member)

    def _update(self, member: Member, call: JoinCall) -> None:
        member.client_id, member.client_host = call.client_id, call.client_host
        member.session_timeout_s = call.session_timeout_ms / 1000
        member.rebalance_timeout_s = call.rebalance_timeout_ms / 1000
        member.protocols = call.protocols

    async def _replace_static(self, old: Member, call: JoinCall, member_id: str) -> JoinAnswer:
        """Replace a static member that returns under a new id; it keeps its assignment and its leadership."""
        self._release(old, ErrorCode.FENCED_INSTANCE_ID)
        previous_leader = self.leader
        del self.members[old.member_id]
        member = Member(
            member_id, call.instance_id, call.client_id, call.client_host, 0, 0, {}, assignment=old.assignment
        )
        self._update(member, call)
        self.members[member_id] = member
        self._static[str(call.instance_id)] = member_id
        if self.leader == old.member_id:
            self.leader = member_id
        if self.state is not GroupState.STABLE or self._common_protocol() != self.protocol:
            return await self._wait_for_generation(member)
        self.touch(member)
        self.changed(self)
        if member_id == self.leader and not call.skips_assignment:
            # With the old leader's id in the answer it acts as a follower and asks for its assignment (KIP-345).
            return self._answer(member, leader=previous_leader)
        return self._answer(member, skip_assignment=member_id == self.leader)

    async def _wait_for_generation(self, member: Member) -> JoinAnswer:
        if member.joined and member.join_waiter is not None:  # the same member on a newer connection
            member.join_waiter.set_result(JoinAnswer(ErrorCode.UNKNOWN_MEMBER_ID, member.member_id))
        waiter: asyncio.Future[JoinAnswer] = asyncio.get_running_loop().create_future()
        member.join_waiter = waiter
        if member.expiry is not None:  # it sends no heartbeat while its request waits
            member.expiry.cancel()
        self._prepare_rebalance()
        try:
            return await waiter
        except asyncio.CancelledError:  # its connection broke
            if self.members.get(member.member_id) is member and member.join_waiter is waiter:
                self.touch(member)
            raise

    def _answer(self, member: Member, *, leader: str | None = None, skip_assignment: bool = False) -> JoinAnswer:
        leader = self.leader if leader is None else leader
        listed = self.members.values() if leader == member.member_id else ()
        return JoinAnswer(
            ErrorCode.NONE,
            member.member_id,
            self.generation,
            self.protocol_type,
            self.protocol,
            leader,
            tuple((item.member_id, item.instance_id, item.protocols.get(self.protocol, b"")) for item in listed),
            skip_assignment,
        )

    # Rebalancing

    def _prepare_rebalance(self) -> None:
        loop = asyncio.get_running_loop()
        if self.state is not GroupState.PREPARING:
            self._gathering = self.state is GroupState.EMPTY and self.initial_delay_s > 0
            self.state = GroupState.PREPARING
            for member in self.members.values():
                if member.sync_waiter is not None and not member.sync_waiter.done():
                    member.sync_waiter.set_result(ErrorCode.REBALANCE_IN_PROGRESS)
            limit_s = max((member.rebalance_timeout_s for member in self.members.values()), default=0.0)
            self._set_rebalance_timer(loop, self.initial_delay_s if self._gathering else limit_s)
        if not self._gathering:
            self._complete_when_all_joined()

    def _set_rebalance_timer(self, loop: asyncio.AbstractEventLoop, delay_s: float) -> None:
        if self._rebalance_timer is not None:
            self._rebalance_timer.cancel()
        self._rebalance_timer = loop.call_later(delay_s, self._begin_generation)

    def _complete_when_all_joined(self) -> None:
        if self.state is not GroupState.PREPARING or self._gathering or self._pending:
            return
        if all(member.joined for member in self.members.values()):
            self._begin_generation()

    def _begin_generation(self) -> None:
        """Start the next generation with the members that joined; remove dynamic members that did not."""
        self._gathering = False
        for member in [member for member in self.members.values() if not member.joined]:
            if member.instance_id is None:
                self._forget(member)
        if self._rebalance_timer is not None:
            self._rebalance_timer.cancel()
            self._rebalance_timer = None
        joined = [member for member in self.members.values() if member.joined]
        if not self.members:
            self._become_empty()
            return
        if not joined:  # all are static and away; they stay until their session times out
            limit_s = max(member.rebalance_timeout_s for member in self.members.values())
            self._set_rebalance_timer(asyncio.get_running_loop(), limit_s)
            return
        self.generation += 1
        self.state = GroupState.COMPLETING
        if self.leader not in {member.member_id for member in joined}:
            self.leader = joined[0].member_id
        self.protocol = self._common_protocol()
        for member in self.members.values():
            member.assignment = b""
        for member in joined:
            waiter, member.join_waiter = member.join_waiter, None
            if waiter is not None:
                waiter.set_result(self._answer(member))
            self.touch(member)

    def _common_protocol(self) -> str:
        """Return the protocol that Apache Kafka would choose: each member votes for its first that all know."""
        members = list(self.members.values())
        common = [name for name in members[0].protocols if all(name in member.protocols for member in members)]
        votes = [next(name for name in member.protocols if name in common) for member in members if common]
        return max(common, key=votes.count, default="")

    def _become_empty(self) -> None:
        self.state = GroupState.EMPTY
        self.generation += 1
        self.leader = self.protocol = ""
        if self._rebalance_timer is not None:
            self._rebalance_timer.cancel()
            self._rebalance_timer = None
        self.changed(self)

    # Members of the generation

    def _identity_error(self, member_id: str, instance_id: str | None) -> ErrorCode:
        if instance_id is not None:
            holder = self._static.get(instance_id)
            if holder is None:
                return ErrorCode.UNKNOWN_MEMBER_ID
            if holder != member_id:
                return ErrorCode.FENCED_INSTANCE_ID
        return ErrorCode.NONE if member_id in self.members else ErrorCode.UNKNOWN_MEMBER_ID

    def check(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        """Return whether this is a member of the current generation; if so, its session timeout begins again."""
        error = self._identity_error(member_id, instance_id)
        if error is ErrorCode.NONE and generation != self.generation:
            error = ErrorCode.ILLEGAL_GENERATION
        if error is ErrorCode.NONE:
            self.touch(self.members[member_id])
        return error

    def heartbeat(self, member_id: str, instance_id: str | None, generation: int) -> ErrorCode:
        """Return the answer to a heartbeat; during a rebalance it tells the member to join again."""
        error = self.check(member_id, instance_id, generation)
        if error is ErrorCode.NONE and self.state is GroupState.PREPARING:
            return ErrorCode.REBALANCE_IN_PROGRESS
        return error

    async def sync(
        self, member_id: str, instance_id: str | None, generation: int, protocol: str | None, plan: dict[str, bytes]
    ) -> tuple[ErrorCode, bytes]:
        """Take the assignment `plan` of the leader, and return to each member its part once it is known."""
        error = self.check(member_id, instance_id, generation)
        if error is not ErrorCode.NONE:
            return error, b""
        if protocol is not None and protocol != self.protocol:
            return ErrorCode.INCONSISTENT_GROUP_PROTOCOL, b""
        if self.state is GroupState.PREPARING:
            return ErrorCode.REBALANCE_IN_PROGRESS, b""
        member = self.members[member_id]
        if self.state is GroupState.COMPLETING:
            if member_id != self.leader:
                member.sync_waiter = asyncio.get_running_loop().create_future()
                error = await member.sync_waiter
                return error, member.assignment if error is ErrorCode.NONE else b""
            for other in self.members.values():
                other.assignment = plan.get(other.member_id, b"")
            self.state = GroupState.STABLE
            self.changed(self)
            for other in self.members.values():
                if other.sync_waiter is not None and not other.sync_waiter.done():
                    self.touch(other)
                    other.sync_waiter.set_result(ErrorCode.NONE)
        return ErrorCode.NONE, member.assignment

    def leave(self, member_id: str, instance_id: str | None) -> ErrorCode:
        """Remove a member that asks for it, or one that an administrator names (a static one by its instance)."""
        if instance_id is not None and not member_id:
            member_id = self._static.get(instance_id, "")
        if instance_id is None and self._drop_pending(member_id):
            return ErrorCode.NONE
        error = self._identity_error(member_id, instance_id)
        if error is ErrorCode.NONE:
            self._remove(self.members[member_id])
        return error

    def touch(self, member: Member) -> None:
        """Begin the session timeout of the member again."""
        if member.expiry is not None:
            member.expiry.cancel()
        loop = asyncio.get_running_loop()
        member.expiry = loop.call_later(member.session_timeout_s, self._expire, member)

    def _expire(self, member: Member) -> None:
        if self.members.get(member.member_id) is not member:
            return
        loop = asyncio.get_running_loop()
        late_s = loop.time() - member.expiry.when() if member.expiry is not None else 0.0
        if member.waiting:
            self.touch(member)
        elif late_s > _STALL_S:
            # The broker itself stood still (a suspended or busy machine): heartbeats may wait in its sockets.
            member.expiry = loop.call_later(_STALL_S, self._expire, member)
        else:
            log.info(
                "group %s: member %s sent no heartbeat within its session timeout", self.group_id, member.member_id
            )
            self._remove(member)

    def _remove(self, member: Member) -> None:
        self._forget(member)
        if not self.members:
            self._become_empty()
        elif self.state is GroupState.PREPARING:
            self._complete_when_all_joined()
        else:
            self._prepare_rebalance()

    def _forget(self, member: Member) -> None:
        self._release(member, ErrorCode.UNKNOWN_MEMBER_ID)
        del self.members[member.member_id]
        if member.instance_id is not None and self._static.get(member.instance_id) == member.member_id:
            del self._static[member.instance_id]

    def _release(self, member: Member, error: ErrorCode) -> None:
        if member.expiry is not None:
            member.expiry.cancel()
        if member.join_waiter is not None and not member.join_waiter.done():
            member.join_waiter.set_result(JoinAnswer(error, member.member_id))
        if member.sync_waiter is not None and not member.sync_waiter.done():
            member.sync_waiter.set_result(error)

    # Surviving a restart of the broker

    def snapshot(self) -> dict[str, Any]:
        """Return the members and the generation as values for JSON."""
        return {
            "generation": self.generation,
            "protocol_type": self.protocol_type,
            "protocol": self.protocol,
            "leader": self.leader,
            "members": [member.snapshot() for member in self.members.values()],
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Restore the members of a `snapshot`; each has its whole session timeout to send a heartbeat."""
        self.generation, self.leader = snapshot["generation"], snapshot["leader"]
        self.protocol_type, self.protocol = snapshot["protocol_type"], snapshot["protocol"]
        for member in map(Member.restored, snapshot["members"]):
            self.members[member.member_id] = member
            if member.instance_id is not None:
                self._static[member.instance_id] = member.member_id
            self.touch(member)
        self.state = GroupState.STABLE if self.members else GroupState.EMPTY
